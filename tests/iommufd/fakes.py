"""A caller whose memory is a bytearray: quick enough for thousands of calls, with holes wherever a test wants them."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterator
from errno import EBADF, EFAULT, EMFILE

from softiommu.errors import UapiError
from softiommu.memory.client import PAGE_SIZE, Extent
from softiommu.memory.files import File, HostFile

BASE = 0x10_0000_0000
NO_LIMIT = 2**64 - 1


class Ram:
    """Pages that a bytearray holds, from address `base` on. `together`: they lie together in physical memory."""

    alive = True

    def __init__(self, pages: int, base: int = 0, together: bool = False) -> None:
        self.base, self.together = base, together
        self.bytes = bytearray(pages * PAGE_SIZE)

    @property
    def key(self) -> Hashable:
        """This memory."""
        return id(self)

    def contiguous(self, offset: int, length: int) -> bool:
        """As the test chose."""
        return self.together

    def _at(self, offset: int, length: int) -> int:
        at = offset - self.base
        if at < 0 or at + length > len(self.bytes):
            raise UapiError(EFAULT, f"{offset:#x} is outside the memory")
        return at

    def read(self, offset: int, length: int) -> bytes:
        """The bytes at `offset`."""
        at = self._at(offset, length)
        return bytes(self.bytes[at : at + length])

    def write(self, offset: int, data: bytes) -> None:
        """Store at `offset`."""
        at = self._at(offset, len(data))
        self.bytes[at : at + len(data)] = data


class FakeMm:
    """An address space of `pages` pages at BASE. `holes` and `read_only` are page numbers."""

    def __init__(self, pages: int = 64, together: bool = False) -> None:
        self.ram = Ram(pages, BASE, together)
        self.holes: set[int] = set()
        self.read_only: set[int] = set()
        self.limit = NO_LIMIT
        self.pinned = self.locked = 0

    @property
    def key(self) -> Hashable:
        """This address space."""
        return self.ram.key

    def memlock_limit(self) -> int:
        """As the test chose."""
        return self.limit

    def set_locked(self, pinned: int, locked: int) -> None:
        """VmPin and VmLck."""
        self.pinned, self.locked = pinned, locked

    def check(self, va: int, length: int, write: bool) -> None:
        """EFAULT: a hole, or a page that cannot be written."""
        first, last = (va - BASE) // PAGE_SIZE, (va + length - 1 - BASE) // PAGE_SIZE
        size = len(self.ram.bytes) // PAGE_SIZE
        for page in range(first, last + 1):
            if not 0 <= page < size or page in self.holes or (write and page in self.read_only):
                raise UapiError(EFAULT, f"page {page} of the fake memory")

    def extents(self, va: int, length: int, write: bool) -> list[Extent]:
        """One piece, as long as every page may be used so."""
        self.check(va, length, write)
        return [Extent(self.ram, va, length)]


class FakeCaller:
    """A task with a FakeMm, the capabilities a test gives it, and a table of descriptors."""

    name = "test[1]"

    def __init__(self, mm: FakeMm | None = None, uid: int = 1000) -> None:
        self.mm = mm or FakeMm()
        self.uid = uid
        self.capabilities: set[int] = set()
        self.files: dict[int, File] = {}
        self.table_full = False

    def read(self, va: int, length: int) -> bytes:
        """copy_from_user."""
        if not length:
            return b""
        self.mm.check(va, length, write=False)
        return self.mm.ram.read(va, length)

    def write(self, va: int, data: bytes) -> None:
        """copy_to_user."""
        if data:
            self.mm.check(va, len(data), write=True)
            self.mm.ram.write(va, data)

    def capable(self, capability: int) -> bool:
        """As the test chose."""
        return capability in self.capabilities

    def file(self, fd: int) -> File:
        """The file of a descriptor."""
        if fd not in self.files:
            raise UapiError(EBADF, f"descriptor {fd}")
        return self.files[fd]

    def install(self, file: File) -> int:
        """The next free descriptor from 3."""
        if self.table_full:
            raise UapiError(EMFILE, "the table is full")
        fd = next(n for n in _from(3) if n not in self.files)
        self.files[fd] = file
        return fd

    def close(self, fd: int) -> None:
        """Close; ours are released with their last descriptor."""
        file = self.files.pop(fd)
        if file not in self.files.values() and not isinstance(file, HostFile):
            file.release()


def _from(first: int) -> Iterator[int]:
    while True:
        yield first
        first += 1


def memory_file(pages: int, size: Callable[[], int] | None = None) -> HostFile:
    """A memfd's file whose pages are a bytearray."""
    ram = Ram(pages, together=True)
    return HostFile(os.open("/dev/null", os.O_RDWR), size or (lambda: len(ram.bytes)), lambda: ram)
