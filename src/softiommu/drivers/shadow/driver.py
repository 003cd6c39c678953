"""Nesting in software: wraps a vendor's driver, whose IOMMU has one stage, or is to use one.

The driver's devices make domains, attach and fault as ever; only nesting parents and what is nested on them differ: a
nested domain is an ordinary domain of the driver, a shadow, in which child and parent are merged. `mixed` leaves the
nesting that the driver has, if it has any, to the driver, for data of its own type; both kinds may then hang on one
parent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from errno import EINVAL
from typing import Protocol

from softiommu.abi.software_nesting import BOUND
from softiommu.drivers.driver import (
    Device,
    DeviceFeatures,
    Domain,
    DomainFlags,
    HwInfo,
    NestedDomain,
    PageFault,
    PageResponse,
    PagingDomain,
    Range,
    Reserved,
    ReservedKind,
    SoftwareNesting,
    Viommu,
    ViommuHost,
    unsupported,
)
from softiommu.drivers.function import Function
from softiommu.drivers.shadow.data import binding
from softiommu.drivers.shadow.domain import BoundDomain, MappedDomain
from softiommu.drivers.shadow.parent import ParentDomain, Work
from softiommu.drivers.shadow.viommu import ShadowViommu
from softiommu.drivers.user_data import UserData
from softiommu.errors import UapiError
from softiommu.memory.physical import PhysicalMemory

_HWPT_PASID = 8
#: What a shadow must be able to do when its parent can.
_INHERITED = DomainFlags.DIRTY_TRACKING
_KEPT = frozenset((ReservedKind.RESERVED, ReservedKind.MSI, ReservedKind.SW_MSI))


class VendorDriver(Protocol):
    """The driver that is wrapped."""

    def device(self, function: Function) -> Device:
        """A function behind its IOMMU."""
        ...


class ShadowDriver:
    """A vendor's driver, and nesting in software on top of it. `work` counts what that costs."""

    def __init__(self, driver: VendorDriver, memory: PhysicalMemory, mixed: bool = False) -> None:
        self.memory, self.mixed, self.work = memory, mixed, Work()
        #: What each group's RID and PASIDs are routed to, where that is a guest's table.
        self.bound: dict[tuple[object, int | None], BoundDomain] = {}
        self._driver = driver

    def device(self, function: Function) -> ShadowDevice:
        """A function behind the IOMMU. Errors as the vendor's driver has them."""
        return ShadowDevice(self, self._driver.device(function), alone=len(function.sids) == 1)


class ShadowDevice:
    """A device of the vendor's driver, which can be nested. `alone`: no other is routed with it."""

    def __init__(self, driver: ShadowDriver, inner: Device, alone: bool) -> None:
        self.inner, self._shadows, self._alone = inner, driver, alone
        self.name, self.group = inner.name, inner.group
        self.driver, self.iommu = inner.driver, inner.iommu
        self._listener: Callable[[PageFault], None] | None = None
        #: Faults whose group is not complete, of guests' tables.
        self._partial: dict[tuple[int | None, int], list[PageFault]] = {}

    @property
    def _mixes(self) -> bool:
        """Whether the hardware nests, too."""
        return self._shadows.mixed and self.inner.features.nesting

    @property
    def features(self) -> DeviceFeatures:
        """The vendor's, and nesting."""
        features = self.inner.features._replace(nesting=True, nested_domains=True)
        # What a vIOMMU of the vendor's could be asked for is nothing where there is none.
        return features if self._mixes else features._replace(capabilities=0, viommu_flags=0)

    def reserved_regions(self) -> Sequence[Reserved]:
        """The vendor's."""
        return self.inner.reserved_regions()

    def hw_info(self, type: int) -> HwInfo | None:
        """The vendor's: registers tell what the hardware has."""
        return self.inner.hw_info(type)

    # Domains

    def alloc_paging(self, flags: DomainFlags, data: UserData | None) -> PagingDomain:
        """An ordinary domain, or one for NEST_PARENT. Errors as the vendor's driver has them."""
        if DomainFlags.NEST_PARENT not in flags:
            return self.inner.alloc_paging(flags, data)
        return self._parent(flags, data)

    def _parent(self, flags: DomainFlags, data: UserData | None = None) -> ParentDomain:
        wanted = flags if self._mixes else flags & ~DomainFlags.NEST_PARENT
        return ParentDomain(self.inner.alloc_paging(wanted, data), flags, self._shadows.memory, self._shadows.work)

    def alloc_nested(self, parent: PagingDomain, flags: int, data: UserData) -> NestedDomain:
        """A guest's table over `parent`. EOPNOTSUPP: flags; EINVAL: data; ENOMEM."""
        below = self._nested_on(parent)
        if self._mixes and data.data_type != BOUND:
            return self.inner.alloc_nested(below.inner, flags, data)
        if flags & ~_HWPT_PASID:
            raise unsupported(f"no nested domain is made with flags {flags:#x}")
        config = binding(data)
        reserved = [Range(region.first, region.last) for region in self.reserved_regions() if region.kind in _KEPT]
        shadow = self._shadow(below, DomainFlags.PASID if flags else DomainFlags.NONE)
        return BoundDomain(below, shadow, config, reserved)

    def alloc_mapped(self, parent: PagingDomain, flags: DomainFlags) -> PagingDomain:
        """A table over `parent` that the program fills; with NEST_PARENT others can be nested on it in turn.
        EOPNOTSUPP: other flags; ENOMEM."""
        below = self._nested_on(parent)
        if flags & ~(DomainFlags.NEST_PARENT | DomainFlags.PASID):
            raise unsupported("a child tracks no writes: its parent does")
        if DomainFlags.NEST_PARENT in flags:
            return MappedDomain(below, _as_coherent(self._parent(flags | below.flags & _INHERITED), below), flags)
        return MappedDomain(below, self._shadow(below, flags), flags)

    def _nested_on(self, parent: PagingDomain) -> ParentDomain:
        found = parent.out if isinstance(parent, MappedDomain) else parent
        if not isinstance(found, ParentDomain) or found.owner is not self.driver:
            raise UapiError(EINVAL, f"the parent is no nesting parent of the IOMMU of {self.name}")
        return found

    def _shadow(self, parent: ParentDomain, flags: DomainFlags) -> PagingDomain:
        """An empty domain of the vendor's, which tracks writes where the parent can."""
        return _as_coherent(self.inner.alloc_paging(flags | parent.flags & _INHERITED, None), parent)

    def viommu_types(self) -> Sequence[int]:
        """The vendor's where it nests itself."""
        return self.inner.viommu_types() if self._mixes else ()

    def alloc_viommu(self, type: int, parent: PagingDomain, host: ViommuHost, data: UserData | None) -> Viommu:
        """The vendor's."""
        return ShadowViommu(self.inner.alloc_viommu(type, self._nested_on(parent).inner, host, data), _vendors)

    # Routes

    def attach(self, domain: Domain, pasid: int | None) -> None:
        """Route through a domain, or through its shadow. EINVAL: what the guest promises is not enough (see
        `BoundDomain.check`); ENOMEM; and as the vendor's driver."""
        route = self.group, pasid
        old = self._shadows.bound.get(route)
        new = domain if isinstance(domain, BoundDomain) else None
        if new is not None:
            new.check(self._alone and self.inner.features.page_faults)
            new.enter(route)
        try:
            self.inner.attach(_bottom(domain), pasid)
        except UapiError:
            if new is not None and new is not old:
                new.leave(route)
            raise
        self._switch(route, new)

    def detach(self, pasid: int | None) -> None:
        """Block."""
        self.inner.detach(pasid)
        self._switch((self.group, pasid), None)

    def _switch(self, route: tuple[object, int | None], new: BoundDomain | None) -> None:
        old = self._shadows.bound.pop(route, None)
        if new is not None:
            self._shadows.bound[route] = new
        if old is not None and old is not new:
            old.leave(route)
            self._partial = {key: faults for key, faults in self._partial.items() if key[0] != route[1]}
        self._listen()

    # Faults

    @property
    def on_fault(self) -> Callable[[PageFault], None] | None:
        """Where page faults go that no guest's table answers."""
        return self._listener

    @on_fault.setter
    def on_fault(self, listener: Callable[[PageFault], None] | None) -> None:
        self._listener = listener
        self._listen()

    def _listen(self) -> None:
        """Hear of faults while anybody else does, or a guest's table may answer them."""
        bound = any(group == self.group for group, _ in self._shadows.bound)
        self.inner.on_fault = self._hear if bound or self._listener is not None else None

    def _hear(self, fault: PageFault) -> None:
        domain = self._shadows.bound.get((self.group, fault.pasid))
        if domain is None:
            self._pass_on([fault])
            return
        key = fault.pasid, fault.group
        self._partial.setdefault(key, []).append(fault)
        if not fault.last:
            return
        faults = self._partial.pop(key)
        if all(self._resolved(domain, one) for one in faults):
            self.inner.page_response(faults, PageResponse.SUCCESS)
        else:
            self._pass_on(faults)

    @staticmethod
    def _resolved(domain: BoundDomain, fault: PageFault) -> bool:
        """Whether the guest has mapped it meanwhile. Without memory to merge it, it stays a fault."""
        try:
            return domain.resolve(fault)
        except UapiError:
            return False

    def _pass_on(self, faults: list[PageFault]) -> None:
        """To the manager; what nobody hears is refused."""
        if self._listener is None:
            if faults[-1].last:
                self.inner.page_response(faults, PageResponse.INVALID)
            return
        for fault in faults:
            self._listener(fault)

    def page_response(self, faults: Sequence[PageFault], code: PageResponse) -> None:
        """The vendor's."""
        self.inner.page_response(faults, code)


def _as_coherent(shadow: PagingDomain, parent: ParentDomain) -> PagingDomain:
    """DMA through an empty shadow is as coherent as through its parent."""
    if parent.cache_coherent:
        shadow.enforce_cache_coherency()
    return shadow


def _vendors(device: Device) -> Device:
    """The vendor's own device."""
    return device.inner if isinstance(device, ShadowDevice) else device


def _bottom(domain: Domain) -> Domain:
    """The vendor's own domain, which its IOMMU walks."""
    while True:
        if isinstance(domain, ParentDomain):
            domain = domain.inner
        elif isinstance(domain, BoundDomain | MappedDomain):
            domain = domain.out
        else:
            return domain


_: tuple[type[Device], type[SoftwareNesting]] = (ShadowDevice, ShadowDevice)
