"""Memory that is a file: memfd, shmem, hugetlbfs, shared anonymous memory. It outlives its mappings and its process."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import weakref
from collections.abc import Hashable
from errno import EFAULT, EINVAL

from softiommu.errors import UapiError
from softiommu.memory.client import PAGE_SIZE

_F_GET_SEALS = 1034
_LARGE_FILE = 64 << 20


def _has_seals(fd: int) -> bool:
    """Only files that are memory know seals, also when they have none."""
    try:
        fcntl.fcntl(fd, _F_GET_SEALS)
    except OSError:
        return False
    return True


class SharedMemory:
    """The pages of a file (memfd, shmem, hugetlbfs, shared anonymous memory), by offset. Owns `fd`."""

    alive = True

    def __init__(self, fd: int) -> None:
        self.fd = fd
        stat = os.fstat(fd)
        self._key = ("file", stat.st_dev, stat.st_ino)
        #: Whether the file lives in memory (memfd, shmem, hugetlbfs) and not on a disk.
        self.is_memory = _has_seals(fd)
        self._map: mmap.mmap | None = None
        weakref.finalize(self, os.close, fd)

    @property
    def key(self) -> Hashable:
        """One file, one key."""
        return self._key

    @property
    def size(self) -> int:
        """Its length in bytes now."""
        return os.fstat(self.fd).st_size

    def contiguous(self, offset: int, length: int) -> bool:
        """Pages of hugetlbfs lie together, and those of a file as large as a guest's RAM, as large folios do.

        Smaller files have small pages, which lie apart on a machine that has been up for a while.
        """
        stat = os.fstat(self.fd)
        return stat.st_blksize > PAGE_SIZE or stat.st_size >= _LARGE_FILE

    def read(self, offset: int, length: int) -> bytes:
        """The bytes at file offset `offset`; EFAULT past the end."""
        data = os.pread(self.fd, length, offset)
        if len(data) != length:
            raise UapiError(EFAULT, f"file offset {offset:#x}..{offset + length - 1:#x} passes the end of the file")
        return data

    def write(self, offset: int, data: bytes) -> None:
        """Store at file offset `offset`; EFAULT past the end (a device cannot grow a file)."""
        if offset + len(data) > self.size:
            raise UapiError(EFAULT, f"file offset {offset:#x} + {len(data):#x} passes the end of the file")
        try:
            os.pwrite(self.fd, data, offset)
        except OSError as error:
            if error.errno == EINVAL:
                return self._write_mapped(offset, data)
            raise UapiError(EFAULT, f"the file refuses to be written: {error.strerror}") from error

    def _write_mapped(self, offset: int, data: bytes) -> None:
        """hugetlbfs has no write(2). Through /proc/self/mem, since a file cut short meanwhile must not kill us."""
        if self._map is None or len(self._map) < offset + len(data):
            self._map = mmap.mmap(self.fd, self.size)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        memory = os.open("/proc/self/mem", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.pwrite(memory, data, address + offset)
        except OSError as error:
            raise UapiError(EFAULT, f"the file refuses to be written: {error.strerror}") from error
        finally:
            os.close(memory)


#: Files whose pages are a device's, by device and inode number: mapped memory of theirs cannot be pinned.
device_pages: set[tuple[int, int]] = set()

_shared: weakref.WeakValueDictionary[Hashable, SharedMemory] = weakref.WeakValueDictionary()


def known_memory(dev: int, inode: int) -> SharedMemory | None:
    """The memory of a file that something still uses."""
    return _shared.get(("file", dev, inode))


def remember(fd: int) -> SharedMemory:
    """The memory behind a descriptor, which it owns from now on."""
    memory = SharedMemory(fd)
    return _shared.setdefault(memory.key, memory)


def shared_memory(fd: int) -> SharedMemory | None:
    """The memory behind a descriptor of ours (a duplicate is kept); None when the file is no memory."""
    if not _has_seals(fd):
        return None
    stat = os.fstat(fd)
    known = known_memory(stat.st_dev, stat.st_ino)
    return known or remember(os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC))
