"""A domain of a virtio-iommu: the mappings that its driver remembers, since the device forgets them when nobody is
attached."""

from __future__ import annotations

from errno import EINVAL
from typing import TYPE_CHECKING, NamedTuple

from sortedcontainers import SortedDict

from softiommu.drivers.driver import DirtyReport, DomainFlags, Prot, Range, unsupported
from softiommu.errors import UapiError
from softiommu.hardware.virtio.commands import Map, Type, Unmap

if TYPE_CHECKING:
    from softiommu.drivers.virtio.driver import VirtioDriver


class Mapping(NamedTuple):
    """One MAP request."""

    last: int
    pa: int
    prot: Prot


class VirtioDomain:
    """An address space behind one device."""

    flags = DomainFlags.NONE
    #: The device cannot make DMA coherent that does not ask for it.
    cache_coherent = False

    def __init__(self, driver: VirtioDriver) -> None:
        self.owner = driver
        self.page_sizes, self.aperture = driver.page_sizes, Range(0, 0)
        self.number: int | None = None
        #: Endpoints that are attached.
        self.sids: set[int] = set()
        self._mappings: SortedDict[int, Mapping] = SortedDict()
        if not driver.quirks.late_domains:
            self.settle()

    def settle(self) -> int:
        """From now on the domain has a number, which is given back, and its aperture. ENOSPC."""
        if self.number is None:
            self.number = self.owner.take_number()
            self.aperture = self.owner.aperture
        return self.number

    def map(self, iova: int, pa: int, length: int, prot: Prot) -> None:
        """Ask for a mapping, if anybody is attached, and wait for it. UapiError: the device refuses it. EINVAL:
        something is mapped there."""
        last = iova + length - 1
        if self._meeting(iova, last):
            raise UapiError(EINVAL, f"{iova:#x}..{last:#x} is mapped already")
        mapping = Mapping(last, pa, prot)
        if self.sids:
            self.owner.requests.send(self._request(iova, mapping))
        self._mappings[iova] = mapping

    def _request(self, iova: int, mapping: Mapping) -> Map:
        return Map.of(
            TYPE=Type.MAP,
            DOMAIN=self.settle(),
            VIRT_START=iova,
            VIRT_END=mapping.last,
            PHYS_START=mapping.pa,
            READ=int(mapping.prot.readable),
            WRITE=int(mapping.prot.writable),
        )

    def replay(self) -> None:
        """Ask for every mapping again: the first endpoint was attached just now. UapiError."""
        for iova, mapping in self._mappings.items():
            self.owner.requests.send(self._request(iova, mapping))

    def _meeting(self, first: int, last: int) -> list[int]:
        """Where the mappings begin that have an address of `first`..`last`."""
        below = next(self._mappings.irange(None, first, inclusive=(True, False), reverse=True), None)
        found = [below] if below is not None and self._mappings[below].last >= first else []
        return found + list(self._mappings.irange(first, last))

    def unmap(self, iova: int, length: int) -> int:
        """Forget mappings, and ask the device to; `flush` waits for it. A mapping is removed whole, or not at all when
        it begins before the range."""
        found = self._meeting(iova, iova + length - 1)
        if not found or found[0] < iova:
            return 0
        gone = [self._mappings.pop(first).last - first + 1 for first in found]
        if self.sids:
            last = found[-1] + gone[-1] - 1
            unmap = Unmap.of(TYPE=Type.UNMAP, DOMAIN=self.settle(), VIRT_START=found[0], VIRT_END=last)
            self.owner.requests.add(unmap)
        return sum(gone)

    def flush(self) -> None:
        """Wait for every request in the ring."""
        self.owner.requests.sync()

    def iova_to_pa(self, iova: int) -> int | None:
        """What was asked for."""
        found = self._meeting(iova, iova)
        return self._mappings[found[0]].pa + iova - found[0] if found else None

    def enforce_cache_coherency(self) -> bool:
        """The device has no such request."""
        return False

    def set_dirty_tracking(self, enable: bool) -> None:
        """Never asked: no domain is made with it."""
        raise unsupported("a virtio-iommu tracks no writes")

    def read_dirty(self, window: Range, report: DirtyReport | None, clear: bool) -> None:
        """Never asked: no domain is made with it."""
        raise unsupported("a virtio-iommu tracks no writes")

    def free(self) -> None:
        """Give the number back. The device forgot the domain with its last endpoint."""
        self._mappings.clear()
        if self.number is not None:
            self.owner.give_number(self.number)
