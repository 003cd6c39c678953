"""The caller of the in-process front door: this very process."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

from softiommu.errors import UapiError
from softiommu.memory.files import File, HostFile
from softiommu.memory.process import ProcessCopier, ProcessMm
from softiommu.memory.shared import shared_memory

_libc = ctypes.CDLL(None, use_errno=True)
_CAPABILITY_VERSION_3 = 0x20080522
_ALL_CAPABILITIES = (1 << 41) - 1


_header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
_data = (ctypes.c_uint32 * 6)()
_capget_arguments = (ctypes.byref(_header), ctypes.byref(_data))
_capget = _libc.capget


def effective_capabilities(tid: int) -> int:
    """The effective capability set of a task (0 is the calling thread), as a bitmap: capget(2)."""
    _header[1] = tid
    if _capget(*_capget_arguments):
        return 0
    return _data[0] | _data[3] << 32


def withheld_capabilities() -> int:
    """What the surroundings keep from everybody here (a container's bounding set), as a bitmap.

    A machine of ours has its own root: where root is not allowed a capability by the container around us, a root
    program still has it towards the machine.
    """
    return ~bounding_capabilities() & _ALL_CAPABILITIES


def bounding_capabilities() -> int:
    """The bounding set of this process: /proc/self/status."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1], 16) for line in lines if line.startswith("CapBnd:"))


class LocalCaller:
    """This process as the caller of its own soft iommufd. Descriptors of our files are real numbers, held open."""

    def __init__(self) -> None:
        self._copier = ProcessCopier()
        self.pid = os.getpid()
        self.mm = ProcessMm(self.pid)
        self.name = f"python[{self.pid}]"
        self.uid = os.getuid()
        self.withheld = withheld_capabilities() if self.uid == 0 else 0
        self.files: dict[int, File] = {}

    def read(self, va: int, length: int) -> bytes:
        """copy_from_user."""
        return self._copier.read(self.pid, va, length)

    def write(self, va: int, data: bytes) -> None:
        """copy_to_user."""
        self._copier.write(self.pid, va, data)

    def capable(self, capability: int) -> bool:
        """Whether the calling thread has a capability now, or has it withheld (`withheld_capabilities`)."""
        return bool((effective_capabilities(0) | self.withheld) >> capability & 1)

    def ours(self, fd: int) -> File | None:
        """Our file behind a descriptor that `install` gave; None for any other."""
        return self.files.get(fd)

    def maps_file(self, fd: int) -> Callable[[int, int], bool]:
        """Whether this process maps any byte of (offset, length) of an open file."""
        stat = os.fstat(fd)
        return lambda offset, length: self.mm.maps_file(stat.st_dev, stat.st_ino, offset, length)

    def file(self, fd: int) -> File:
        """The file of a descriptor: one that `install` gave, or a duplicate of a real one (EBADF)."""
        if fd in self.files:
            return self.files[fd]
        try:
            copy = os.dup(fd)
        except (OSError, OverflowError) as error:
            raise UapiError(9, f"descriptor {fd} is not open") from error
        return host_file(copy)

    def install(self, file: File) -> int:
        """A new descriptor number for one of our files."""
        try:
            fd = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise UapiError(error.errno or 24, "no descriptor is free") from error
        self.files[fd] = file
        return fd

    def close(self, fd: int) -> None:
        """Close a descriptor that `install` gave; the last one releases the file."""
        file = self.files.pop(fd)
        os.close(fd)
        if file not in self.files.values():
            file.release()

    def dup(self, fd: int) -> int:
        """One more descriptor of the same file."""
        copy = os.dup(fd)
        self.files[copy] = self.files[fd]
        return copy


def host_file(fd: int) -> HostFile:
    """A file of the host by our own descriptor, which the result owns."""
    return HostFile(fd, lambda: os.fstat(fd).st_size, lambda: shared_memory(fd))
