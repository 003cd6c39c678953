"""The way of a device's DMA: bus mastering, translation by the IOMMU in front of it, then memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from softiommu.hardware.iommu import Iommu, TranslationFaultError
from softiommu.memory.physical import BadAddressError
from softiommu.pagetable.kinds import READ, WRITE

if TYPE_CHECKING:
    from softiommu.memory.physical import PhysicalMemory

_PAGE_LG2 = 12


class DmaError(Exception):
    """A DMA that did not go through: an unsupported request, or one that was aborted. `done` bytes went before it."""

    def __init__(self, iova: int, done: int, why: str) -> None:
        super().__init__(f"DMA at iova {iova:#x}: {why}")
        self.iova, self.done, self.why = iova, done, why


class Port:
    """A function's port to memory. `sid` is what it is known by (its requester id, or its bridge's)."""

    def __init__(self, memory: PhysicalMemory, sid: int, iommu: Iommu | None = None) -> None:
        self._memory, self.sid, self.iommu = memory, sid, iommu
        #: The Command register's Bus Master Enable, kept by the function.
        self.bus_master = False

    def read(self, iova: int, length: int, pasid: int | None = None) -> bytes:
        """The bytes at `iova`. DmaError: some of them cannot be read."""
        parts = []
        for pa, size, done in self._pieces(iova, length, READ, pasid):
            try:
                parts.append(self._memory.read(pa, size))
            except BadAddressError as error:
                raise DmaError(iova + done, done, str(error)) from error
        return b"".join(parts)

    def write(self, iova: int, data: bytes, pasid: int | None = None) -> None:
        """Store `data` at `iova`. DmaError: some of it cannot be stored; what comes before it is."""
        for pa, size, done in self._pieces(iova, len(data), WRITE, pasid):
            try:
                self._memory.write(pa, data[done : done + size])
            except BadAddressError as error:
                raise DmaError(iova + done, done, str(error)) from error

    def _pieces(self, iova: int, length: int, want: int, pasid: int | None) -> Iterator[tuple[int, int, int]]:
        """An access cut where translations end: physical address, bytes, and bytes done before."""
        if not self.bus_master:
            raise DmaError(iova, 0, "the function may not master the bus")
        done = 0
        while done < length:
            at = iova + done
            if at >> 64:
                raise DmaError(at, done, "the address is past 2**64")
            if self.iommu is None:
                pa, lg2 = at, 64
            else:
                try:
                    pa, lg2, _ = self.iommu.translate(self.sid, at, want, pasid)
                except TranslationFaultError as fault:
                    raise DmaError(at, done, str(fault)) from fault
            size = min(length - done, (1 << max(lg2, _PAGE_LG2)) - (at & (1 << max(lg2, _PAGE_LG2)) - 1))
            yield pa, size, done
            done += size
