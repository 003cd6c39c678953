"""What mappings of an open file's BARs show: a file without a name, with pages where registers are plain memory.

Each region lies in it where it lies in the device's own file. Where the file ends a mapping has no page, and a program
that touches it gets a bus error: that is how each access to a trapped BAR comes to us, and what vfio-pci does while the
device's memory is disabled.
"""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

from softiommu.consumers.vfio.levels import LevelPages, Place, pages
from softiommu.errors import ModelError
from softiommu.hardware.pci import Mapping

if TYPE_CHECKING:
    from collections.abc import Callable

    from softiommu.hardware.pci import Function

_ONES = b"\xff"
#: A program may add no seals; and the size stays.
_SEALS, _FIXED = fcntl.F_SEAL_SEAL, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


class Mappings:
    """The mappings of one open file. `offset_of` says where a BAR begins in it."""

    def __init__(self, function: Function, offset_of: Callable[[int], int]) -> None:
        bars = [Place(index, offset_of(index), bar) for index, bar in enumerate(function.bars) if bar is not None]
        self._level = [place for place in bars if place.bar.mapping is Mapping.LEVEL]
        trapped = [place.start for place in bars if place.bar.mapping is Mapping.TRAPPED]
        self._size = max((place.start + pages(place.bar.size) for place in self._level), default=0)
        if any(start < self._size for start in trapped):
            raise ModelError("a BAR whose accesses are trapped lies below one that is mapped as memory")
        #: The file; None: no BAR can be mapped.
        self.fd: int | None = None
        self._watched: list[LevelPages] = []
        self._msix = function.msix
        self._open = False
        if self._level or trapped:
            self.fd = os.memfd_create("vfio device", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            # Where it has no pages it never will, whatever way a program finds to ask for some.
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _SEALS if self._level else _SEALS | _FIXED)
            self._watched = [LevelPages(function, place, self.fd) for place in self._level]

    @property
    def has_level(self) -> bool:
        """Whether there is memory that programs store into, which is to be looked at."""
        return bool(self._level)

    def set_open(self, on: bool) -> None:
        """Whether the device's memory answers: while it does not, touching a mapping is a bus error."""
        if on == self._open or self.fd is None:
            return
        self._open = on
        os.ftruncate(self.fd, self._size if on else 0)
        for watched in self._watched:
            watched.clear()
        if on:
            self._hide_table()
            self.show()

    def _hide_table(self) -> None:
        """The host owns the MSI-X table: a program reads ones."""
        table = self._msix
        for place in self._level:
            if table is not None and self.fd is not None and table.bar == place.number:
                os.pwrite(self.fd, _ONES * len(table.table), place.start + table.table.start)

    def look(self) -> bool:
        """Hand what programs stored to the device. Whether there was anything."""
        return self._open and sum(watched.look() for watched in self._watched) > 0

    def show(self) -> None:
        """Let the memory hold what the device has to say."""
        if self._open:
            for watched in self._watched:
                watched.show()

    def close(self) -> None:
        """Nobody maps anything any more."""
        if self.fd is not None:
            os.close(self.fd)
            self.fd, self._open = None, False
