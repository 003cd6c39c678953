"""A function behind an AMD IOMMU, as the IOMMU's driver shows it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from errno import EINVAL
from typing import TYPE_CHECKING

from softiommu.abi.amd_extension import PROCESS, VIOMMU
from softiommu.abi.iommufd import HwInfoAmd, HwInfoType
from softiommu.drivers.amd.domain import AmdDomain
from softiommu.drivers.amd.nested import AmdNested
from softiommu.drivers.amd.process import AmdProcess, read_process
from softiommu.drivers.amd.routes import Route
from softiommu.drivers.amd.viommu import AmdViommu
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
from softiommu.errors import UapiError

if TYPE_CHECKING:
    from softiommu.drivers.amd.driver import AmdDriver
    from softiommu.drivers.function import Function

_MSI = (0xFEE00000, 0xFEEFFFFF)
#: HyperTransport's messages.
_HT = (0xFD_0000_0000, 0xFF_FFFF_FFFF)


class AmdDevice:
    """A function, with everything that cannot be told from it (`function.sids`)."""

    def __init__(self, driver: AmdDriver, function: Function) -> None:
        self.name, self.function = function.name, function
        self.on_fault: Callable[[PageFault], None] | None = None
        self.driver: object = driver
        self.iommu: object = driver
        self.group: object = self if function.group is None else function.group
        efr = driver.efr
        ats = function.ats and bool(driver.capability.IotlbSup)
        pri = ats and function.pri and bool(efr.PPRSup)
        bits = min(function.pasid_bits, efr.PASmax + 1, 9 * (efr.GLXSup + 1)) if driver.has_guest_tables else 0
        self.features = DeviceFeatures(
            enforces_coherency=True,
            dirty_tracking=bool(efr.HASup and efr.HDSup),
            nesting=driver.nests,
            page_faults=pri,
            ats=ats,
            max_pasids=1 << bits if bits else 0,
        )
        self._amd = driver
        for number, sid in enumerate(function.sids):
            # Only the function itself has a device TLB: its aliases are bridges.
            stream = driver.routes.add(sid, ats and not number, pri and not number, bits)
            if not number:
                stream.set_ats = function.set_ats

    def reserved_regions(self) -> Sequence[Reserved]:
        """Writes to the interrupt range are interrupts; HyperTransport's range is left alone."""
        msi = Reserved(*_MSI, ReservedKind.MSI)
        if self._amd.efr2.HTRangeIgnore:
            return (msi,)
        return (msi, Reserved(*_HT, ReservedKind.RESERVED))

    def hw_info(self, type: int) -> HwInfo | None:
        """The raw feature registers."""
        if not self._amd.quirks.tells_hardware or type not in (HwInfoType.DEFAULT, HwInfoType.AMD):
            return None
        return HwInfo(HwInfoType.AMD, HwInfoAmd(int(self._amd.efr), int(self._amd.efr2)).to_bytes())

    def alloc_paging(self, flags: DomainFlags, data: UserData | None) -> PagingDomain:
        """A host table, which can be a parent; a guest table for PASIDs. EOPNOTSUPP: flags or data."""
        if data is not None:
            raise unsupported("a paging domain takes no data")
        if flags == DomainFlags.PASID:
            if not self._amd.has_guest_tables:
                raise unsupported("the hardware has no guest tables")
            return AmdDomain(self._amd, flags, guest=True)
        parents = DomainFlags.NONE
        if self.features.nesting:
            parents = DomainFlags.NEST_PARENT
            parents |= flags & DomainFlags.PASID if DomainFlags.NEST_PARENT in flags else DomainFlags.NONE
        if flags & ~(DomainFlags.DIRTY_TRACKING | parents):
            raise unsupported(f"no domain is made for {flags}")
        if DomainFlags.DIRTY_TRACKING in flags and not self.features.dirty_tracking:
            raise unsupported("the hardware sets no dirty flags")
        return AmdDomain(self._amd, flags)

    def alloc_nested(self, parent: PagingDomain, flags: int, data: UserData) -> NestedDomain:
        """A guest's table for PASIDs, whose faults no guest hears. EOPNOTSUPP: other data, which needs a vIOMMU;
        EINVAL: not a host table of this IOMMU; and the errors of `read_process`."""
        if data.data_type != PROCESS:
            raise unsupported("a guest's device table entry needs a vIOMMU")
        found = read_process(self._amd, flags, data)
        return AmdProcess(self._host_table(parent), found)

    def viommu_types(self) -> Sequence[int]:
        """softiommu's own type, where there is nesting."""
        return (VIOMMU,) if self.features.nesting else ()

    def alloc_viommu(self, type: int, parent: PagingDomain, host: ViommuHost, data: UserData | None) -> Viommu:
        """A guest's IOMMU. EOPNOTSUPP: data, or there is no nesting; EINVAL: not a host table of this IOMMU."""
        if data is not None or not self.features.nesting:
            raise unsupported("a vIOMMU takes no data, and needs both stages")
        return AmdViommu(self._host_table(parent), host)

    def _host_table(self, parent: PagingDomain) -> AmdDomain:
        if not isinstance(parent, AmdDomain) or parent.owner is not self._amd or parent.guest:
            raise UapiError(EINVAL, f"the parent is no host table of the IOMMU of {self.name}")
        return parent

    def attach(self, domain: Domain, pasid: int | None) -> None:
        """Route the function through a domain. EINVAL: a domain of another IOMMU, or that cannot serve it; EOPNOTSUPP:
        a PASID where there are none; ENOMEM."""
        if pasid is not None:
            self._check_pasid(pasid)
        if not isinstance(domain, AmdDomain | AmdNested | AmdProcess) or domain.owner is not self._amd:
            raise UapiError(EINVAL, f"the domain is not of the IOMMU of {self.name}")
        routes, sids = self._amd.routes, self.function.sids
        for sid in sids:
            routes.check(sid, pasid, domain)
        try:
            for sid in sids:
                routes.reserve(sid, pasid, domain)
        except UapiError:
            for sid in sids:
                routes.settle(sid)
            raise
        for sid in sids:
            self._amd.attach(Route(sid, pasid), domain)

    def _check_pasid(self, pasid: int) -> None:
        if not self.features.max_pasids:
            raise unsupported("the device and its IOMMU have no PASIDs together")
        if not 0 < pasid < self.features.max_pasids:
            raise UapiError(EINVAL, f"{self.name} has no PASID {pasid}")

    def detach(self, pasid: int | None) -> None:
        """Block the function, or one of its PASIDs."""
        if pasid is not None and not 0 < pasid < self.features.max_pasids:
            return
        for sid in self.function.sids:
            self._amd.attach(Route(sid, pasid), None)

    def page_response(self, faults: Sequence[PageFault], code: PageResponse) -> None:
        """Answer the group that the last of these faults closed."""
        if self._amd.pages is not None:
            self._amd.pages.respond(self.function.sids[0], faults[-1], code)


_: type[Device] = AmdDevice
