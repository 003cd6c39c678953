"""A guest's RAM: a file in memory, which the VMM shows to the host's IOMMU and reads by guest-physical addresses."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

from softiommu.memory.physical import CHUNK, PAGE, PhysicalMemory
from softiommu.memory.shared import SharedMemory

if TYPE_CHECKING:
    from softiommu.api import Ioas, Mapping


class GuestRam(PhysicalMemory):
    """`length` bytes from guest-physical address `base` on, zeroed. Where there is no RAM an access is an error.

    Below `base`, the first page is memory of the VMM alone, which no device reaches.
    """

    def __init__(self, base: int, length: int) -> None:
        super().__init__(PAGE, reach=-(-(base + length) // CHUNK) * CHUNK)
        fd = os.memfd_create("guest-ram", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
        os.ftruncate(fd, length)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        self.base, self.length = base, length
        self._file = SharedMemory(fd)
        self.map_window(base, self._file, 0, length)

    @property
    def fd(self) -> int:
        """The file, for a mapping of the VMM's own."""
        return self._file.fd

    def show(self, ioas: Ioas) -> Mapping:
        """Map it for devices, at the guest's addresses."""
        return ioas.map_file(self.fd, 0, self.length, iova=self.base)
