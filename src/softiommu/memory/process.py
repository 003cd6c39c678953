"""A process's memory by its number: copies as the kernel makes them, and what its addresses name.

Calls' arguments go by process_vm_readv and process_vm_writev, which respect page protection as copy_from_user does.
DMA goes by an open /proc/PID/mem, which stays bound to the address space (it reads nothing after exec or exit) and
ignores page protection, as a device does. Memory that the program shares is reached through the file behind it, so it
stays readable when the program unmaps it or exits.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import weakref
from collections.abc import Hashable, Iterator
from contextlib import suppress
from errno import EFAULT, ENOENT, ENOTTY, EPERM
from itertools import count
from typing import NamedTuple

from softiommu.errors import ConfigError, UapiError
from softiommu.memory.client import PAGE_SIZE, Extent
from softiommu.memory.shared import SharedMemory, device_pages, known_memory, remember
from softiommu.memory.snapshot import GivenRanges, Snapshot

_libc = ctypes.CDLL(None, use_errno=True)
#: The same without errno and without giving up the interpreter lock: 0.3 us less on the path of every call.
_pylibc = ctypes.PyDLL(None)
_BUFFER = 1 << 16
_READABLE, _WRITABLE, _SHARED = 1, 2, 8
_PROCMAP_QUERY = 0xC0686611
_QUERY = struct.Struct("<9Q4I2Q")
_PIDFD_GETFD = 438


class ProcessCopier:
    """copy_from_user and copy_to_user of another process (or our own), one at a time. On the path of every call."""

    def __init__(self) -> None:
        self._buffer = ctypes.create_string_buffer(_BUFFER)
        self._view = memoryview(self._buffer).cast("B")
        iovecs = ctypes.create_string_buffer(32)
        #: Two struct iovec: ours (address, length) and the other's.
        self._iovecs = memoryview(iovecs).cast("B").cast("Q")
        self._iovecs[0] = ctypes.addressof(self._buffer)
        local, remote = ctypes.byref(iovecs), ctypes.byref(iovecs, 16)
        self._args = (local, 1, remote, 1, 0)
        self._readv = _pylibc.process_vm_readv
        self._writev = _pylibc.process_vm_writev

    def read(self, pid: int, va: int, length: int) -> bytes:
        """`length` bytes at `va`. EFAULT unless all can be read."""
        if length > _BUFFER:
            return b"".join(self.read(pid, va + at, min(_BUFFER, length - at)) for at in range(0, length, _BUFFER))
        iovecs = self._iovecs
        iovecs[2] = va & _ADDRESSES
        iovecs[1] = iovecs[3] = length
        if self._readv(pid, *self._args) != length:
            raise self._fault(pid, va, length, "read")
        return bytes(self._view[:length])

    def write(self, pid: int, va: int, data: bytes) -> None:
        """Store `data` at `va`. EFAULT unless all could be stored (what came before the bad page is stored)."""
        length = len(data)
        if length > _BUFFER:
            for at in range(0, length, _BUFFER):
                self.write(pid, va + at, data[at : at + _BUFFER])
            return
        self._view[:length] = data
        iovecs = self._iovecs
        iovecs[2] = va & _ADDRESSES
        iovecs[1] = iovecs[3] = length
        if self._writev(pid, *self._args) != length:
            raise self._fault(pid, va, length, "written")

    def _fault(self, pid: int, va: int, length: int, how: str) -> UapiError:
        """The error of a copy that failed. Asked again for the reason: the fast way does not fetch errno."""
        self._iovecs[1] = self._iovecs[3] = 1
        ctypes.set_errno(0)
        if _libc.process_vm_readv(pid, *self._args) < 0 and ctypes.get_errno() == EPERM:
            raise ConfigError(
                f"the memory of process {pid} cannot be reached (process_vm_readv: not permitted)\n"
                "hint: a security module restricts ptrace (kernel.yama.ptrace_scope), or the program changed its user"
            )
        return UapiError(EFAULT, f"{va:#x}..{va + length - 1:#x} cannot be {how}")


_ADDRESSES = _UNLIMITED = 2**64 - 1


class PrivateMemory:
    """The pages of one address space, by virtual address."""

    _serial = count(1)

    def __init__(self, pid: int, map: AddressMap) -> None:
        self._fd = os.open(f"/proc/{pid}/mem", os.O_RDWR | os.O_CLOEXEC)
        self._map = map
        self._key = ("mm", next(self._serial))
        #: What was handed out to be pinned.
        self.given = GivenRanges()
        self._kept = Snapshot()
        weakref.finalize(self, os.close, self._fd)

    @property
    def key(self) -> Hashable:
        """One address space, one key."""
        return self._key

    @property
    def alive(self) -> bool:
        """False after exec or exit. A read at an address that is never mapped tells: EIO, or nothing at all."""
        try:
            return bool(os.pread(self._fd, 1, 0))
        except OSError:
            return True

    def contiguous(self, offset: int, length: int) -> bool:
        """A whole aligned 2 MiB of one anonymous mapping is a large page; anything smaller has small pages."""
        vma = self._map.find(offset)
        return vma is not None and vma.end >= offset + length and not vma.inode

    def read(self, offset: int, length: int) -> bytes:
        """The bytes at virtual address `offset`."""
        parts = []
        end = offset + length
        while offset < end:
            try:
                part = os.pread(self._fd, end - offset, offset)
            except (OSError, OverflowError) as error:
                raise UapiError(EFAULT, f"{offset:#x} of the program's memory is not there") from error
            if not part:
                part = self._kept.read(offset, min(end, offset // PAGE_SIZE * PAGE_SIZE + PAGE_SIZE) - offset)
            parts.append(part)
            offset += len(part)
        return b"".join(parts)

    def write(self, offset: int, data: bytes) -> None:
        """Store at virtual address `offset`."""
        at = 0
        while at < len(data):
            try:
                done = os.pwrite(self._fd, data[at:], offset + at)
            except (OSError, OverflowError) as error:
                raise UapiError(EFAULT, f"{offset + at:#x} of the program's memory is not there") from error
            if not done:
                done = min(len(data) - at, PAGE_SIZE - (offset + at) % PAGE_SIZE)
                self._kept.write(offset + at, data[at : at + done])
            at += done

    def unshare(self, start: int, length: int) -> None:
        """Give the program its own copies of file pages that it cannot write, as a pin does: later writes to the file
        must not reach the device. A forced write of what is there does it; no CPU can write there meanwhile.
        """
        for at in range(start, start + length, PAGE_SIZE):
            with suppress(OSError):  # a kernel that forbids forced writes: the page stays shared
                os.pwrite(self._fd, os.pread(self._fd, 1, at), at)

    def forget(self) -> None:
        """Nothing is pinned any more: what was handed out, and copies of it."""
        self.given.clear()
        self._kept = Snapshot()

    def keep(self, most: int) -> bool:
        """Copy what was handed out, for when the address space is gone; False where it is more than `most` bytes."""
        if sum(end - start for start, end in self.given.ranges) > most:
            return False
        self._kept = Snapshot()
        for start, end in self.given.ranges:
            for at in range(start, end, PAGE_SIZE):
                with suppress(UapiError):  # what the program unmapped since is not there to be copied
                    self._kept.add(at, self.read(at, min(PAGE_SIZE, end - at)))
        return True


class Vma(NamedTuple):
    """A mapping of an address space: `end` is exclusive, as the kernel prints it."""

    start: int
    end: int
    flags: int
    offset: int
    dev: int
    inode: int


class AddressMap:
    """The mappings of process `pid`: by PROCMAP_QUERY (Linux 6.11), else by reading /proc/PID/maps."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._fd = os.open(f"/proc/{pid}/maps", os.O_RDONLY | os.O_CLOEXEC)
        self._query = bytearray(_QUERY.size)
        self._can_query = True
        weakref.finalize(self, os.close, self._fd)

    def find(self, va: int) -> Vma | None:
        """The mapping at `va`. EFAULT: the process is gone."""
        if self._can_query:
            _QUERY.pack_into(self._query, 0, _QUERY.size, 0, va, *[0] * 12)
            try:
                fcntl.ioctl(self._fd, _PROCMAP_QUERY, self._query)
            except OSError as error:
                if error.errno == ENOENT:
                    return None
                if error.errno != ENOTTY:
                    raise UapiError(EFAULT, "the process that mapped this memory is gone") from error
                self._can_query = False
            else:
                _, _, _, start, end, flags, _, offset, inode, major, minor, *_ = _QUERY.unpack(self._query)
                return Vma(start, end, flags, offset, os.makedev(major, minor), inode)
        return next((vma for vma in self if vma.start <= va < vma.end), None)

    def __iter__(self) -> Iterator[Vma]:
        """Every mapping, ascending."""
        with open(f"/proc/{self._pid}/maps") as lines:
            for line in lines:
                span, perms, offset, dev, inode = line.split()[:5]
                start, end = (int(part, 16) for part in span.split("-"))
                major, minor = (int(part, 16) for part in dev.split(":"))
                flags = (perms[0] == "r") * _READABLE | (perms[1] == "w") * _WRITABLE | (perms[3] == "s") * _SHARED
                yield Vma(start, end, flags, int(offset, 16), os.makedev(major, minor), int(inode))


class ProcessMm:
    """The address space that process `pid` has now."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.map = AddressMap(pid)
        self.private = PrivateMemory(pid, self.map)
        self.pinned = self.locked = 0
        #: The kernel asks the task that mapped, also after it exited: its limit outlives it.
        self._limit = _memlock_limit(pid) or 0

    @property
    def key(self) -> Hashable:
        """One address space, one key."""
        return self.private.key

    def memlock_limit(self) -> int:
        """The soft RLIMIT_MEMLOCK of the process in bytes; the last one that was seen when the process is gone."""
        limit = _memlock_limit(self.pid)
        if limit is not None:
            self._limit = limit
        return self._limit

    def set_locked(self, pinned: int, locked: int) -> None:
        """Pages to add to VmPin and VmLck of the process's status."""
        self.pinned, self.locked = pinned, locked
        if not pinned:
            self.private.forget()

    def maps_file(self, dev: int, inode: int, offset: int, length: int) -> bool:
        """Whether any mapping shows a byte of `offset`..`offset+length` of the file."""
        return any(
            (vma.dev, vma.inode) == (dev, inode)
            and vma.offset < offset + length
            and offset < vma.offset + vma.end - vma.start
            for vma in self.map
        )

    def extents(self, va: int, length: int, write: bool) -> list[Extent]:
        """What the addresses name now. EFAULT: a hole, a forbidden use, or the process is gone."""
        if not self.private.alive:
            raise UapiError(EFAULT, "the process that mapped this memory is gone")
        extents: list[Extent] = []
        end = va + length
        while va < end:
            vma = self.map.find(va)
            if vma is None:
                raise UapiError(EFAULT, f"nothing is mapped at user address {va:#x}")
            if not vma.flags & (_WRITABLE if write else _READABLE):
                raise UapiError(EFAULT, f"user address {va:#x} cannot be {'written' if write else 'read'}")
            size = min(end, vma.end) - va
            _append(extents, self._extent(vma, va, size, write))
            va += size
        return extents

    def _extent(self, vma: Vma, va: int, size: int, write: bool) -> Extent:
        if (vma.dev, vma.inode) in device_pages:
            raise UapiError(EFAULT, f"user address {va:#x} is a device's memory, which cannot be pinned")
        if vma.flags & _SHARED:
            shared = self._shared(vma)
            if shared is not None:
                return self._shared_extent(shared, vma.offset + va - vma.start, size, write)
        # A page past the end of its file, or of a device, cannot be pinned: if the last can, all before it can.
        self.private.read(va + size - 1, 1)
        if vma.inode and not vma.flags & _WRITABLE:
            self.private.unshare(va, size)
        self.private.given.add(va, va + size)
        return Extent(self.private, va, size)

    @staticmethod
    def _shared_extent(shared: SharedMemory, offset: int, size: int, write: bool) -> Extent:
        """Pages of a file: EFAULT past its end, and where a file of a disk is to be written (its pages come and go)."""
        if offset + size > -(-shared.size // PAGE_SIZE) * PAGE_SIZE:
            raise UapiError(EFAULT, f"file offset {offset + size:#x} passes the end of the mapped file")
        if write and not shared.is_memory:
            raise UapiError(EFAULT, "pages of a file on a disk cannot be pinned for writing")
        return Extent(shared, offset, size)

    def _shared(self, vma: Vma) -> SharedMemory | None:
        """The file behind a shared mapping; None when it cannot be opened (no CAP_SYS_ADMIN, no descriptor left)."""
        known = known_memory(vma.dev, vma.inode)
        if known is not None:
            return known
        fd = self._open_mapped(vma)
        return None if fd is None else remember(fd)

    def _open_mapped(self, vma: Vma) -> int | None:
        link = f"/proc/{self.pid}/map_files/{vma.start:x}-{vma.end:x}"
        try:
            return os.open(link, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            pass  # without privilege map_files cannot be followed: look for a descriptor of the same file
        try:
            numbers = os.listdir(f"/proc/{self.pid}/fd")
        except OSError:
            return None
        for number in numbers:
            path = f"/proc/{self.pid}/fd/{number}"
            try:
                stat = os.stat(path)
                if (stat.st_dev, stat.st_ino) == (vma.dev, vma.inode):
                    return os.open(path, os.O_RDWR | os.O_CLOEXEC)
            except OSError:
                continue
        return None


def _memlock_limit(pid: int) -> int | None:
    """The soft RLIMIT_MEMLOCK of a process in bytes; None when it is gone. prlimit asks for the same user or
    CAP_SYS_RESOURCE, and a program may have changed its user: then /proc tells, to everybody."""
    import resource

    try:
        soft = resource.prlimit(pid, resource.RLIMIT_MEMLOCK)[0]
    except ProcessLookupError:
        return None
    except PermissionError:
        try:
            with open(f"/proc/{pid}/limits") as lines:
                # "Max locked memory", soft, hard, "bytes"
                word = next(line for line in lines if line.startswith("Max locked memory")).split()[3]
        except (FileNotFoundError, ProcessLookupError):
            return None
        return _UNLIMITED if word == "unlimited" else int(word)
    return _UNLIMITED if soft == resource.RLIM_INFINITY else soft


def _append(extents: list[Extent], new: Extent) -> None:
    if extents:
        backing, offset, length = extents[-1]
        if backing is new.backing and offset + length == new.offset:
            extents[-1] = Extent(backing, offset, length + new.length)
            return
    extents.append(new)


def duplicate(pidfd: int, fd: int) -> int:
    """Our own duplicate of another process's descriptor (pidfd_getfd). OSError as the kernel's."""
    got = int(_libc.syscall(_PIDFD_GETFD, pidfd, fd, 0))
    if got < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return got
