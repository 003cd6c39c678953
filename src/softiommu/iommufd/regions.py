"""The regions of an iommufd file that a program can map: pages that a vIOMMU or a queue shares with it."""

from __future__ import annotations

import os
from collections.abc import Callable
from errno import EINVAL, ENXIO, EPERM

from sortedcontainers import SortedDict

from softiommu.errors import UapiError
from softiommu.memory.client import PAGE_SIZE
from softiommu.memory.files import MmapRequest

PROT_EXEC = 4
MAP_SHARED = 1


class Regions:
    """Offset -> length of the regions, given from 4096 up at the lowest free place; their pages are one file."""

    def __init__(self) -> None:
        self._lengths: SortedDict[int, int] = SortedDict()
        self._fd: int | None = None
        #: Set by the front door through the iommufd file: whether a process maps any byte of (offset, length).
        self.is_mapped: Callable[[int, int], bool] = lambda offset, length: False

    def add(self, length: int) -> int:
        """A new zeroed region; its offset in the file."""
        length = -(-length // PAGE_SIZE) * PAGE_SIZE
        offset = PAGE_SIZE
        for start, size in self._lengths.items():
            if start - offset >= length:
                break
            offset = start + size
        self._lengths[offset] = length
        fd = self.pages_fd()
        os.ftruncate(fd, max(os.fstat(fd).st_size, offset + length))
        self.store(offset, bytes(length))
        return offset

    def remove(self, offset: int) -> None:
        """Take a region back."""
        del self._lengths[offset]

    def mapped(self, offset: int) -> bool:
        """Whether a process still maps the region."""
        return self.is_mapped(offset, self._lengths[offset])

    def check(self, request: MmapRequest) -> None:
        """Allow the mmap of one whole region, shared and not executable. EINVAL, EPERM, ENXIO."""
        if not request.flags & MAP_SHARED:
            raise UapiError(EINVAL, "an iommufd can only be mapped with MAP_SHARED")
        if request.prot & PROT_EXEC:
            raise UapiError(EPERM, "an iommufd cannot be mapped executable")
        if self._lengths.get(request.offset) != request.length:
            raise UapiError(ENXIO, f"no region of {request.length:#x} bytes at offset {request.offset:#x}")

    def store(self, offset: int, data: bytes) -> None:
        """Write into the pages."""
        os.pwrite(self.pages_fd(), data, offset)

    def load(self, offset: int, length: int) -> bytes:
        """Read from the pages."""
        return os.pread(self.pages_fd(), length, offset)

    def pages_fd(self) -> int:
        """The file whose pages a mapping shows."""
        if self._fd is None:
            self._fd = os.memfd_create("iommufd", os.MFD_CLOEXEC)
        return self._fd

    @property
    def empty(self) -> bool:
        """Whether no region is given out and the file is closed."""
        return not self._lengths and self._fd is None

    def close(self) -> None:
        """Give the file back."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
