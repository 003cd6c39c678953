"""A function behind a VT-d unit, as the unit's driver shows it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from errno import EINVAL
from typing import TYPE_CHECKING

from softiommu.abi.iommufd import HwInfoType, HwInfoVtd, HwInfoVtdFlags, HwptAllocFlags, HwptDataType
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
    Reserved,
    ReservedKind,
    Viommu,
    ViommuHost,
    unsupported,
)
from softiommu.drivers.user_data import UserData
from softiommu.drivers.vtd.domain import Route, VtdDomain
from softiommu.drivers.vtd.nested import VtdNestedDomain, nested_data
from softiommu.errors import UapiError

if TYPE_CHECKING:
    from softiommu.drivers.function import Function
    from softiommu.drivers.vtd.driver import VtdDriver

_MSI = (0xFEE00000, 0xFEEFFFFF)
#: The only flag of HWPT_ALLOC that a nested domain has a use for.
_HWPT_PASID = int(HwptAllocFlags.ALLOC_PASID)
#: What a second stage can be made for.
_KNOWN = DomainFlags.NEST_PARENT | DomainFlags.DIRTY_TRACKING | DomainFlags.PASID


class VtdDevice:
    """A function, with everything that cannot be told from it (`function.sids`)."""

    def __init__(self, driver: VtdDriver, function: Function) -> None:
        self.name, self.function = function.name, function
        self.on_fault: Callable[[PageFault], None] | None = None
        self.driver: object = driver
        self.iommu: object = driver
        self.group: object = self if function.group is None else function.group
        ecap, pasids = driver.ecap, driver.scalable and bool(driver.ecap.PASID)
        self.features = DeviceFeatures(
            enforces_coherency=bool(ecap.SC),
            nesting=driver.scalable and bool(ecap.NEST),
            dirty_tracking=driver.scalable and bool(ecap.SSADS and ecap.SSTS),
            page_faults=driver.pages is not None and function.pri and driver.routes.uses_ats(function.sids[0]),
            ats=driver.routes.uses_ats(function.sids[0]),
            max_pasids=1 << min(function.pasid_bits, ecap.PSS + 1) if pasids and function.pasid_bits else 0,
            isolated_msi=bool(ecap.IR),
        )
        self._vtd = driver

    def reserved_regions(self) -> Sequence[Reserved]:
        """Writes to the interrupt range are interrupts."""
        return (Reserved(*_MSI, ReservedKind.MSI),)

    def hw_info(self, type: int) -> HwInfo | None:
        """The raw capability registers."""
        if type not in (HwInfoType.DEFAULT, HwInfoType.INTEL_VTD):
            return None
        # The kernel's driver sets the erratum bit whatever the hardware is.
        flags = int(HwInfoVtdFlags.ERRATA_772415_SPR17)
        data = HwInfoVtd(flags, 0, int(self._vtd.cap), int(self._vtd.ecap))
        return HwInfo(HwInfoType.INTEL_VTD, data.to_bytes())

    def alloc_paging(self, flags: DomainFlags, data: UserData | None) -> PagingDomain:
        """A domain as wide as the hardware. EOPNOTSUPP: flags or data."""
        if data is not None:
            raise unsupported("a paging domain takes no data")
        vtd = self._vtd
        if not flags & ~DomainFlags.PASID and vtd.prefers_first_stage:
            return VtdDomain(vtd, flags, first=True)
        if flags & ~_KNOWN:
            raise unsupported(f"no domain is made for {flags & ~_KNOWN}")
        if DomainFlags.NEST_PARENT in flags and not self.features.nesting:
            raise unsupported("the hardware has no nesting")
        if DomainFlags.DIRTY_TRACKING in flags and not self.features.dirty_tracking:
            raise unsupported("the hardware sets no dirty flags")
        return VtdDomain(vtd, flags)

    def alloc_nested(self, parent: PagingDomain, flags: int, data: UserData) -> NestedDomain:
        """A guest's first stage over a second stage. EOPNOTSUPP: no nesting, flags, or data of another type; EINVAL:
        the parent is of another unit or no nest parent, or other data; ENOMEM."""
        if not self.features.nesting or flags & ~_HWPT_PASID:
            raise unsupported(f"no nested domain is made with flags {flags:#x}")
        if data.data_type != HwptDataType.VTD_S1:
            raise unsupported(f"data of type {data.data_type:#x} is no first-stage table")
        if not isinstance(parent, VtdDomain) or parent.owner is not self._vtd:
            raise UapiError(EINVAL, f"the parent is not of the IOMMU of {self.name}")
        if parent.first or DomainFlags.NEST_PARENT not in parent.flags:
            raise UapiError(EINVAL, "the parent is no second stage that was made for nesting")
        return VtdNestedDomain(parent, nested_data(data))

    def viommu_types(self) -> Sequence[int]:
        """None."""
        return ()

    def alloc_viommu(self, type: int, parent: PagingDomain, host: ViommuHost, data: UserData | None) -> Viommu:
        """There is no vIOMMU of this IOMMU."""
        raise unsupported("VT-d has no vIOMMU")

    def attach(self, domain: Domain, pasid: int | None) -> None:
        """Route the function through a domain. EINVAL: a domain of another unit, or that cannot serve it; EOPNOTSUPP:
        a PASID where there are none; ENOMEM."""
        vtd = self._vtd
        if pasid is not None:
            self._check_pasid(pasid)
        if not isinstance(domain, VtdDomain | VtdNestedDomain) or domain.owner is not vtd:
            raise UapiError(EINVAL, f"the domain is not of the IOMMU of {self.name}")
        if isinstance(domain, VtdNestedDomain):
            domain.check(vtd.cap, vtd.ecap)
        bottom = domain.parent if isinstance(domain, VtdNestedDomain) else domain
        if vtd.scalable and not bottom.first and not vtd.ecap.SSTS:
            raise UapiError(EINVAL, "the hardware has no second stage")
        if pasid is not None and DomainFlags.DIRTY_TRACKING in bottom.flags:
            raise UapiError(EINVAL, "no PASID attaches to a domain with dirty tracking")
        for sid in self._sids():
            vtd.routes.reserve(sid, pasid)
        for sid in self._sids():
            vtd.attach(Route(sid, pasid), domain)

    def _sids(self) -> list[int]:
        """The streams that go where this function's go."""
        return [sid for sid in self.function.sids if self._vtd.routes.knows(sid)]

    def _check_pasid(self, pasid: int) -> None:
        if not self.features.max_pasids:
            raise unsupported("the device and its IOMMU have no PASIDs together")
        if not 0 < pasid < self.features.max_pasids:
            raise UapiError(EINVAL, f"{self.name} has no PASID {pasid}")

    def detach(self, pasid: int | None) -> None:
        """Block the function, or one of its PASIDs."""
        if pasid is not None and not 0 < pasid < self.features.max_pasids:
            return
        for sid in self._sids():
            self._vtd.attach(Route(sid, pasid), None)

    def page_response(self, faults: Sequence[PageFault], code: PageResponse) -> None:
        """Answer the group that the last of these faults closed."""
        if self._vtd.pages is not None:
            self._vtd.pages.respond(self.function.sids[0], faults[-1], code)


_: type[Device] = VtdDevice
