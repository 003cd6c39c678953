"""What requests change: domains, their mappings, and which endpoint is attached to which. Virtio 1.2, 5.13.6.

Each request is checked in the order in which the specification tells of its checks, and changes nothing when it is
refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sortedcontainers import SortedDict

from softiommu.hardware.virtio.commands import Attach, Code, Detach, Map, Unmap
from softiommu.pagetable.kinds import READ, WRITE

if TYPE_CHECKING:
    from softiommu.hardware.virtio.commands import ResvMem
    from softiommu.hardware.virtio.presets import Offer
    from softiommu.hardware.virtio.registers import Features

_TOP = (1 << 64) - 1
_NO_DOMAIN = -1


class Mapping(NamedTuple):
    """What one MAP request mapped: all of it goes at once."""

    first: int
    last: int
    pa: int
    allowed: int


class Domain:
    """An address space that endpoints share."""

    def __init__(self, is_bypass: bool) -> None:
        self.is_bypass = is_bypass
        self.endpoints: set[int] = set()
        self._mappings: SortedDict[int, Mapping] = SortedDict()

    def __len__(self) -> int:
        return len(self._mappings)

    def meeting(self, first: int, last: int) -> list[Mapping]:
        """The mappings that have an address of `first`..`last`, in order."""
        below = self.at(first)
        found = [below] if below is not None and below.first < first else []
        return found + [self._mappings[key] for key in self._mappings.irange(first, last)]

    def at(self, iova: int) -> Mapping | None:
        """The mapping of an address."""
        number = self._mappings.bisect_right(iova)
        if not number:
            return None
        mapping: Mapping = self._mappings.peekitem(number - 1)[1]
        return mapping if iova <= mapping.last else None

    def add(self, mapping: Mapping) -> None:
        """Map; nothing is there."""
        self._mappings[mapping.first] = mapping

    def remove(self, mapping: Mapping) -> None:
        """Unmap."""
        del self._mappings[mapping.first]


class Domains:
    """All domains of a device."""

    def __init__(self, offer: Offer) -> None:
        self._offer = offer
        self._granule = offer.page_size_mask & -offer.page_size_mask
        self._domains: dict[int, Domain] = {}
        self._attached: dict[int, int] = {}
        self._reserved = [(int(mem.START), int(mem.END), mem) for mem in offer.reserved]

    def reset(self) -> None:
        """Nobody is attached to anything."""
        self._domains.clear()
        self._attached.clear()

    def of(self, endpoint: int) -> Domain | None:
        """The domain that an endpoint is attached to."""
        return self._domains.get(self._attached.get(endpoint, _NO_DOMAIN))

    def number_of(self, endpoint: int) -> int | None:
        """The number of that domain."""
        return self._attached.get(endpoint)

    def attach(self, request: Attach, features: Features) -> Code:
        """Attach an endpoint, also one that is attached elsewhere; a domain begins with its first."""
        if request.MUST_BE_ZERO or request.UNKNOWN_FLAGS or (request.BYPASS and not features.BYPASS_CONFIG):
            return Code.INVAL
        if request.ENDPOINT not in self._offer.endpoints:
            return Code.NOENT
        if not self._is_domain(request.DOMAIN):
            return Code.RANGE
        domain = self._domains.get(request.DOMAIN)
        if domain is None:
            domain = Domain(bool(request.BYPASS))
        elif domain.is_bypass != bool(request.BYPASS):
            return Code.INVAL
        if self._attached.get(request.ENDPOINT) != request.DOMAIN:
            self._detach(request.ENDPOINT)
            self._domains[request.DOMAIN] = domain
            domain.endpoints.add(request.ENDPOINT)
            self._attached[request.ENDPOINT] = request.DOMAIN
        return Code.OK

    def detach(self, request: Detach) -> Code:
        """Detach an endpoint. A domain ends, with its mappings, when its last endpoint leaves."""
        if request.ENDPOINT not in self._offer.endpoints:
            return Code.NOENT
        if self._attached.get(request.ENDPOINT) != request.DOMAIN:
            return Code.INVAL
        self._detach(request.ENDPOINT)
        return Code.OK

    def _detach(self, endpoint: int) -> None:
        number = self._attached.pop(endpoint, None)
        if number is None:
            return
        domain = self._domains[number]
        domain.endpoints.discard(endpoint)
        if not domain.endpoints:
            del self._domains[number]

    def map(self, request: Map, features: Features) -> Code:
        """Map a range."""
        first, last = request.VIRT_START, request.VIRT_END
        if request.UNKNOWN_FLAGS or (request.MMIO and not features.MMIO):
            return Code.INVAL
        domain = self._domains.get(request.DOMAIN)
        if domain is None:
            return Code.NOENT
        if domain.is_bypass:
            return Code.INVAL
        if (first | request.PHYS_START | last + 1) & self._granule - 1 or last <= first:
            return Code.RANGE
        low, high = self._offer.input_range
        if first < low or last > high or request.PHYS_START + last - first > _TOP:
            return Code.RANGE
        if domain.meeting(first, last) or self.reserved(first, last):
            return Code.INVAL
        if self._offer.most_mappings and len(domain) >= self._offer.most_mappings:
            return Code.NOMEM
        allowed = READ * request.READ | WRITE * request.WRITE
        domain.add(Mapping(first, last, request.PHYS_START, allowed))
        return Code.OK

    def unmap(self, request: Unmap) -> Code:
        """Remove the mappings of a range, all or none: none is split."""
        if request.MUST_BE_ZERO:
            return Code.INVAL
        domain = self._domains.get(request.DOMAIN)
        if domain is None:
            return Code.NOENT
        if domain.is_bypass:
            return Code.INVAL
        first, last = request.VIRT_START, request.VIRT_END
        found = domain.meeting(first, last) if first <= last else []
        if found and (found[0].first < first or found[-1].last > last):
            return Code.RANGE
        for mapping in found:
            domain.remove(mapping)
        return Code.OK

    def reserved(self, first: int, last: int) -> ResvMem | None:
        """The reserved range that has an address of `first`..`last`."""
        for start, end, mem in self._reserved:
            if start <= last and first <= end:
                return mem
        return None

    def _is_domain(self, number: int) -> bool:
        low, high = self._offer.domain_range
        return low <= number <= high
