"""A function behind a RISC-V IOMMU, as the IOMMU's driver shows it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from errno import EINVAL
from typing import TYPE_CHECKING

from softiommu.abi.riscv_extension import HW_INFO, VIOMMU, HwInfoRiscv
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
from softiommu.drivers.riscv.domain import RiscvDomain
from softiommu.drivers.riscv.nested import RiscvNested, read_context
from softiommu.drivers.riscv.slice import RiscvSlice
from softiommu.drivers.riscv.viommu import RiscvViommu
from softiommu.drivers.user_data import UserData
from softiommu.errors import UapiError

if TYPE_CHECKING:
    from softiommu.drivers.function import Function
    from softiommu.drivers.riscv.driver import RiscvDriver


class RiscvDevice:
    """A function, with everything that cannot be told from it (`function.sids`)."""

    def __init__(self, driver: RiscvDriver, function: Function) -> None:
        self.name, self.function = function.name, function
        self.on_fault: Callable[[PageFault], None] | None = None
        self.driver: object = driver
        self.iommu: object = driver
        self.group: object = self if function.group is None else function.group
        bits = driver.routes.pasid_bits(function.pasid_bits) if driver.first_mode else 0
        self.features = DeviceFeatures(
            dirty_tracking=bool(driver.capabilities.AMO_HWAD),
            nesting=bool(driver.first_mode and driver.second_mode),
            page_faults=driver.routes.asks_for_pages(function.sids[0]),
            ats=driver.routes.uses_ats(function.sids[0]),
            max_pasids=1 << bits if bits else 0,
        )
        self._riscv = driver

    def reserved_regions(self) -> Sequence[Reserved]:
        """The machine's window of interrupt messages, if it has one that is not translated."""
        window = self._riscv.msi_window
        return () if window is None else (Reserved(*window, ReservedKind.MSI),)

    def hw_info(self, type: int) -> HwInfo | None:
        """The raw registers, for who asks for softiommu's own type: the kernel tells nothing of this IOMMU."""
        if type != HW_INFO:
            return None
        return HwInfo(HW_INFO, HwInfoRiscv(int(self._riscv.capabilities), self._riscv.fctl).to_bytes())

    def alloc_paging(self, flags: DomainFlags, data: UserData | None) -> PagingDomain:
        """A domain as wide as the hardware: of the first stage, or of the second where it is to be a parent or there
        is no first. EOPNOTSUPP: flags or data; ENOMEM."""
        driver = self._riscv
        if data is not None:
            raise unsupported("a paging domain takes no data")
        if DomainFlags.DIRTY_TRACKING in flags and not self.features.dirty_tracking:
            raise unsupported("the hardware sets no dirty flags")
        first = DomainFlags.NEST_PARENT not in flags and driver.first_mode != 0
        nests = first or self.features.nesting
        if not first and ((DomainFlags.PASID in flags and not nests) or not driver.second_mode):
            raise unsupported(f"no domain is made for {flags}")
        return RiscvDomain(driver, flags, first)

    def alloc_nested(self, parent: PagingDomain, flags: int, data: UserData) -> NestedDomain:
        """A guest's context, whose devices have no names. EINVAL: not a parent of this IOMMU; and the errors of
        `read_context`."""
        if not self.features.nesting:
            raise unsupported("the hardware has not both stages")
        context = read_context(self._riscv, flags, data)
        return RiscvNested(RiscvSlice(self._parent(parent)), context, private=True)

    def viommu_types(self) -> Sequence[int]:
        """softiommu's own type, where there are two stages."""
        return (VIOMMU,) if self.features.nesting else ()

    def alloc_viommu(self, type: int, parent: PagingDomain, host: ViommuHost, data: UserData | None) -> Viommu:
        """A guest's IOMMU. EOPNOTSUPP: data, or not both stages; EINVAL: not a parent of this IOMMU; ENOMEM."""
        if data is not None or not self.features.nesting:
            raise unsupported("a vIOMMU takes no data, and needs both stages")
        return RiscvViommu(self._parent(parent), host)

    def _parent(self, parent: PagingDomain) -> RiscvDomain:
        if not isinstance(parent, RiscvDomain) or parent.owner is not self._riscv or parent.first:
            raise UapiError(EINVAL, f"the parent is no second stage of the IOMMU of {self.name}")
        return parent

    def attach(self, domain: Domain, pasid: int | None) -> None:
        """Route the function through a domain. EINVAL: a domain of another IOMMU, or that cannot serve it;
        EOPNOTSUPP: a PASID where there are none; ENOMEM."""
        driver = self._riscv
        if pasid is not None and not self.features.max_pasids:
            raise unsupported("the device and its IOMMU have no PASIDs together")
        if pasid is not None and not 0 < pasid < self.features.max_pasids:
            raise UapiError(EINVAL, f"{self.name} has no PASID {pasid}")
        if not isinstance(domain, RiscvDomain | RiscvNested) or domain.owner is not driver:
            raise UapiError(EINVAL, f"the domain is not of the IOMMU of {self.name}")
        if pasid is not None and isinstance(domain, RiscvDomain) and not domain.first:
            raise UapiError(EINVAL, "a PASID needs a domain of the first stage")
        try:
            for sid in self.function.sids:
                driver.routes.reserve(sid, pasid, domain)
        except UapiError:
            for sid in self.function.sids:
                driver.routes.settle(sid)
            raise
        for sid in self.function.sids:
            driver.routes.route(sid, pasid, domain)

    def detach(self, pasid: int | None) -> None:
        """Block the function, or one of its PASIDs."""
        for sid in self.function.sids:
            self._riscv.routes.route(sid, pasid, None)

    def page_response(self, faults: Sequence[PageFault], code: PageResponse) -> None:
        """Answer the group that the last of these faults closed."""
        if self._riscv.pages is not None:
            self._riscv.pages.respond(self.function.sids[0], faults[-1], code)


_: type[Device] = RiscvDevice
