"""Calls on descriptors of our files: ioctl, read and write, mmap, dup, and what would change the memfd behind."""

from __future__ import annotations

import os
import struct
from errno import EBADF, EFAULT, EINVAL, ENODEV, EOPNOTSUPP, ESPIPE
from typing import TYPE_CHECKING, NamedTuple

from softiommu.errors import UapiError
from softiommu.memory.client import PAGE_SIZE
from softiommu.memory.files import MmapRequest
from softiommu.run.seccomp import KVM_SET_DEVICE_ATTR, MAP_ANONYMOUS, MAP_FIXED
from softiommu.run.session import ANSWERED, CONTINUE, Handler, Reply, Session
from softiommu.run.syscalls import BETWEEN, Nr

if TYPE_CHECKING:
    from softiommu.run.descriptors import OpenFile
    from softiommu.run.tracee import Task

_KVM_ATTRIBUTE = struct.Struct("<IIQQ")
_KVM_DEV_VFIO_FILE = 1
_IOVEC = struct.Struct("<QQ")
_IOV_MAX = 1024
_MAX_COUNT = 0x7FFFF000
_USER_ADDRESS_LG2 = 47
_F_DUPFD_CLOEXEC = 1030
#: The one flag of preadv2 and pwritev2 that files without asynchronous transfers take: it does nothing then.
_RWF_HIPRI = 1
#: The offset of preadv2 and pwritev2 that means the file's position.
_AT_POSITION = (1 << 64) - 1


class _Transfer(NamedTuple):
    """One read or write: what it moves, and where in the file."""

    write: bool
    va: int
    size: int
    offset: int | None


class FileCalls:
    """Handlers of calls that take a descriptor."""

    def __init__(self, session: Session) -> None:
        self._session, self._log = session, session.log
        self.handlers: dict[int, Handler] = {
            Nr.IOCTL: self.ioctl,
            Nr.READ: lambda task, args: self._transfer(task, args, write=False),
            Nr.WRITE: lambda task, args: self._transfer(task, args, write=True),
            Nr.PREAD64: lambda task, args: self._transfer(task, args, write=False, offset=args[3]),
            Nr.PWRITE64: lambda task, args: self._transfer(task, args, write=True, offset=args[3]),
            Nr.READV: lambda task, args: self._vector(task, args, write=False),
            Nr.WRITEV: lambda task, args: self._vector(task, args, write=True),
            Nr.PREADV: lambda task, args: self._vector(task, args, write=False, offset=args[3]),
            Nr.PWRITEV: lambda task, args: self._vector(task, args, write=True, offset=args[3]),
            Nr.PREADV2: lambda task, args: self._vector_with_flags(task, args, write=False),
            Nr.PWRITEV2: lambda task, args: self._vector_with_flags(task, args, write=True),
            Nr.LSEEK: self.seek,
            Nr.FTRUNCATE: lambda task, args: self._refuse(task, args[0], EINVAL, "cut or extended"),
            Nr.FALLOCATE: lambda task, args: self._refuse(task, args[0], ENODEV, "given space"),
            Nr.MADVISE: self.remove,
            **{number: self._between(*indices) for number, indices in BETWEEN.items()},
            Nr.MMAP: self.mmap,
            Nr.DUP: lambda task, args: self._duplicate(task, args[0], at_least=0, cloexec=False),
            Nr.FCNTL: lambda task, args: self._duplicate(task, args[0], args[2], args[1] == _F_DUPFD_CLOEXEC),
        }

    def ioctl(self, task: Task, args: tuple[int, ...]) -> int | Reply:
        """ioctl(2) of an iommufd or VFIO command, or of KVM about a VFIO file."""
        record = task.record(args[0] & 0xFFFFFFFF)
        if record is not None:
            if self._log is None:
                return record.file.ioctl(task, args[1] & 0xFFFFFFFF, args[2])
            return self._log.ioctl(task, record.file, args[1] & 0xFFFFFFFF, args[2])
        if args[1] & 0xFFFFFFFF == KVM_SET_DEVICE_ATTR:
            return self._kvm_attribute(task, args[2])
        return CONTINUE

    @staticmethod
    def _kvm_attribute(task: Task, va: int) -> int | Reply:
        """KVM is told of a VFIO file: the host's KVM would refuse ours, and the VMM give up."""
        try:
            _, group, _, address = _KVM_ATTRIBUTE.unpack(task.read(va, _KVM_ATTRIBUTE.size))
            if group != _KVM_DEV_VFIO_FILE:
                return CONTINUE
            fd = int.from_bytes(task.read(address, 4), "little")
        except UapiError:
            return CONTINUE
        return CONTINUE if task.record(fd) is None else 0

    def _transfer(self, task: Task, args: tuple[int, ...], write: bool, offset: int | None = None) -> int | Reply:
        fd = args[0] & 0xFFFFFFFF
        record = task.record(fd)
        if record is None or not record.file.has_data:
            return CONTINUE
        self._check_mode(record, write)
        _check_offset(offset)
        self._session.current = (task, fd, record)
        return self._move(task, record, _Transfer(write, args[1], args[2], offset))

    def _vector_with_flags(self, task: Task, args: tuple[int, ...], write: bool) -> int | Reply:
        """preadv2(2), pwritev2(2). EOPNOTSUPP: flags that a file without asynchronous transfers does not take."""
        record, flags = task.record(args[0] & 0xFFFFFFFF), args[5] & 0xFFFFFFFF
        if record is not None and record.file.has_data and flags & ~_RWF_HIPRI:
            raise UapiError(EOPNOTSUPP, f"flags {flags:#x} of a transfer")
        return self._vector(task, args, write, None if args[3] == _AT_POSITION else args[3])

    def _vector(self, task: Task, args: tuple[int, ...], write: bool, offset: int | None = None) -> int | Reply:
        """readv(2), writev(2) and their kin: one buffer after the other, until one comes up short."""
        fd, count = args[0] & 0xFFFFFFFF, args[2]
        record = task.record(fd)
        if record is None or not record.file.has_data:
            return CONTINUE
        self._check_mode(record, write)
        _check_offset(offset)
        if count > _IOV_MAX:
            raise UapiError(EINVAL, f"{count} buffers are more than {_IOV_MAX}")
        self._session.current = (task, fd, record)
        done = 0
        for va, size in _IOVEC.iter_unpack(task.read(args[1], count * _IOVEC.size)):
            try:
                at = None if offset is None else offset + done
                moved = self._move(task, record, _Transfer(write, va, size, at))
            except UapiError:
                if done:
                    break
                raise
            done += moved
            if moved != size:
                break
        return done

    def _move(self, task: Task, record: OpenFile, transfer: _Transfer) -> int:
        write, va, size, offset = transfer
        count = min(size, _MAX_COUNT)
        if (va + count) >> _USER_ADDRESS_LG2:
            raise UapiError(EFAULT, f"{va:#x} is no user address")
        operation = record.file.write if write else record.file.read
        if self._log is None:
            return operation(task, va, count, offset)
        fields = {"count": count} if offset is None else {"count": count, "offset": hex(offset)}
        with self._log.noted(task.name, record.file.kind, "write" if write else "read", fields) as note:
            note.result = operation(task, va, count, offset)
        return note.result

    @staticmethod
    def _check_mode(record: OpenFile, write: bool) -> None:
        if record.access == (os.O_RDONLY if write else os.O_WRONLY):
            raise UapiError(EBADF, f"{record.path} is not open for {'writing' if write else 'reading'}")

    # What ours are not, but the memfd behind would be

    def seek(self, task: Task, args: tuple[int, ...]) -> int | Reply:
        """lseek(2). ESPIPE: no file of ours has a position that can be set, as no file of iommufd and VFIO has."""
        return self._refuse(task, args[0], ESPIPE, "positioned")

    def _between(self, one: int, other: int) -> Handler:
        """sendfile(2) and its kin, between the descriptors in two arguments. EINVAL: ours have no pages to give."""

        def refuse(task: Task, args: tuple[int, ...]) -> Reply:
            self._refuse(task, args[one], EINVAL, "copied from or to inside the kernel")
            return self._refuse(task, args[other], EINVAL, "copied from or to inside the kernel")

        return refuse

    def _refuse(self, task: Task, fd: int, errno: int, what: str) -> Reply:
        record = task.record(fd & 0xFFFFFFFF) if self._session.descriptors.by_key else None
        if record is not None:
            raise UapiError(errno, f"a {record.file.kind} is not {what}")
        return CONTINUE

    def remove(self, task: Task, args: tuple[int, ...]) -> Reply:
        """madvise(2) that takes pages out of the file. ENODEV: a mapped file of ours is no memory."""
        record = self._session.mapped_at(task, args[0], args[1])
        if record is not None:
            raise UapiError(ENODEV, f"pages of a {record.file.kind} cannot be removed")
        return CONTINUE

    # Mappings and copies

    def mmap(self, task: Task, args: tuple[int, ...]) -> int | Reply:
        """mmap(2) of a file: ours are checked, then the kernel maps the pages of the memfd behind."""
        _, length, prot, flags, fd, offset = args
        if flags & MAP_FIXED:
            self._session.forget_permissions()
        if flags & MAP_ANONYMOUS or not self._session.descriptors.by_key:
            return CONTINUE
        record = task.record(fd & 0xFFFFFFFF)
        if record is None or not length or offset % PAGE_SIZE or length >> _USER_ADDRESS_LG2:
            return CONTINUE
        request = MmapRequest(-(-length // PAGE_SIZE) * PAGE_SIZE, offset, prot, flags)
        if self._log is None:
            self._map(task, record, request)
            return CONTINUE
        fields = {"length": hex(request.length), "offset": hex(offset), "prot": prot}
        with self._log.noted(task.name, record.file.kind, "mmap", fields):
            self._map(task, record, request)
        return CONTINUE

    def _map(self, task: Task, record: OpenFile, request: MmapRequest) -> None:
        record.file.mmap(task, request)
        if record.file.is_trapped(request.offset):
            self._session.before_trap(task, record)

    def _duplicate(self, task: Task, fd: int, at_least: int, cloexec: bool) -> int | Reply:
        """dup(2), F_DUPFD: the copy of a file with data stays where the filter tells of its reads."""
        record = task.record(fd & 0xFFFFFFFF)
        if record is None or not record.trapped or at_least >> 31:
            return CONTINUE
        number = task.free_high_number(at_least)
        if number is None:
            return CONTINUE
        ours = task.duplicate(fd & 0xFFFFFFFF)
        try:
            self._session.listener.install(task.call, ours, number, cloexec, answer=True)
        finally:
            os.close(ours)
        return ANSWERED


def _check_offset(offset: int | None) -> None:
    if offset is not None and offset >> 63:
        raise UapiError(EINVAL, f"offset {offset - (1 << 64)} is negative")
