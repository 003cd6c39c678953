"""A function behind an SMMUv3, as the SMMU's driver shows it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from errno import EINVAL, ENOENT
from typing import TYPE_CHECKING

from softiommu.abi.iommufd import HwInfoArmSmmuv3, HwInfoType, ViommuType
from softiommu.abi.smmuv3_extension import VIOMMU_ALLOC_BTM
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
from softiommu.drivers.smmuv3.cmdqv import CmdqvViommu
from softiommu.drivers.smmuv3.domain import Route, SmmuDomain
from softiommu.drivers.smmuv3.nested import SmmuNested
from softiommu.drivers.smmuv3.viommu import Guest, SmmuViommu, read_vmid
from softiommu.drivers.user_data import UserData
from softiommu.errors import UapiError
from softiommu.hardware.smmuv3.registers import Registers
from softiommu.hardware.smmuv3.tables import Config

if TYPE_CHECKING:
    from softiommu.drivers.function import Function
    from softiommu.drivers.smmuv3.driver import SmmuDriver

#: Where the kernel maps doorbells of interrupts for devices (MSI_IOVA_BASE).
_SW_MSI = (0x8000000, 0x80FFFFF)
_INFO = ("IDR0", "IDR1", "IDR2", "IDR3", "IDR4", "IDR5", "IIDR", "AIDR")
_STAGE1 = (
    DomainFlags.PASID,
    DomainFlags.DIRTY_TRACKING,
    DomainFlags.DIRTY_TRACKING | DomainFlags.PASID,
)


class SmmuDevice:
    """A function, with everything that cannot be told from it (`function.sids`)."""

    def __init__(self, driver: SmmuDriver, function: Function) -> None:
        self.name, self.function = function.name, function
        self.on_fault: Callable[[PageFault], None] | None = None
        self.driver: object = driver
        self.iommu: object = driver
        self.group: object = self if function.group is None else function.group
        #: Its transactions stall where a page is missing.
        self.stalls = driver.routes.stalls(function.sids[0])
        idr0, bits = driver.idr0, driver.routes.pasid_bits(function.pasid_bits)
        self.features = DeviceFeatures(
            cache_coherent=bool(idr0.COHACC),
            dirty_tracking=bool(idr0.HTTU == 2 and idr0.COHACC and idr0.S1P),
            nesting=driver.nests,
            nested_domains=False,
            page_faults=driver.routes.asks_for_pages(function.sids[0]) or self.stalls,
            ignores_fault_queues=driver.quirks.ignores_fault_queues,
            ats=driver.routes.uses_ats(function.sids[0]),
            max_pasids=1 << bits if bits else 0,
            capabilities=driver.capabilities,
            viommu_flags=VIOMMU_ALLOC_BTM if driver.listens else 0,
        )
        self._smmu = driver

    def reserved_regions(self) -> Sequence[Reserved]:
        """Where the kernel maps the doorbells of interrupts."""
        return (Reserved(*_SW_MSI, ReservedKind.SW_MSI),)

    def hw_info(self, type: int) -> HwInfo | None:
        """The raw ID registers, or the numbers of a CMDQV."""
        if type == HwInfoType.TEGRA241_CMDQV and self._smmu.cmdqv is not None:
            return HwInfo(type, self._smmu.cmdqv.hw_info())
        if not self._smmu.quirks.tells_hardware or type not in (HwInfoType.DEFAULT, HwInfoType.ARM_SMMUV3):
            return None
        values = {name.lower(): self._smmu.read32(getattr(Registers, name).offset) for name in _INFO}
        return HwInfo(HwInfoType.ARM_SMMUV3, HwInfoArmSmmuv3(flags=0, reserved=0, **values).to_bytes())

    def alloc_paging(self, flags: DomainFlags, data: UserData | None) -> PagingDomain:
        """A domain of stage 1 where there is one; of stage 2 as a parent. EOPNOTSUPP: flags or data; ENOMEM."""
        idr0 = self._smmu.idr0
        if data is not None:
            raise unsupported("a paging domain takes no data")
        if flags == DomainFlags.NONE:
            return SmmuDomain(self._smmu, flags, first=bool(idr0.S1P))
        if not self._smmu.quirks.knows_nesting and flags != DomainFlags.DIRTY_TRACKING:
            raise unsupported(f"this kernel makes no domain for {flags}")
        if flags == DomainFlags.NEST_PARENT and idr0.S1P and idr0.S2P:
            return SmmuDomain(self._smmu, flags, first=False)
        if flags not in _STAGE1 or not idr0.S1P:
            raise unsupported(f"no domain is made for {flags}")
        if DomainFlags.DIRTY_TRACKING in flags and not self.features.dirty_tracking:
            raise unsupported("the hardware sets no dirty flags")
        return SmmuDomain(self._smmu, flags, first=True)

    def alloc_nested(self, parent: PagingDomain, flags: int, data: UserData) -> NestedDomain:
        """A nested domain needs a vIOMMU."""
        raise unsupported("there is no nesting without a vIOMMU")

    def viommu_types(self) -> Sequence[int]:
        """SMMUv3, where it can nest, and the one with queues of its own."""
        if self._smmu.cmdqv is not None:
            return ViommuType.ARM_SMMUV3, ViommuType.TEGRA241_CMDQV
        return (ViommuType.ARM_SMMUV3,) if self.features.nesting else ()

    def alloc_viommu(self, type: int, parent: PagingDomain, host: ViommuHost, data: UserData | None) -> Viommu:
        """A guest's slice. EINVAL: a parent of another SMMU; errors of a CMDQV, and of a VMID that is asked for."""
        if not isinstance(parent, SmmuDomain) or parent.owner is not self._smmu:
            raise UapiError(EINVAL, f"the parent is not of the IOMMU of {self.name}")
        wants_vmid = bool(host.flags & VIOMMU_ALLOC_BTM)
        if type == ViommuType.TEGRA241_CMDQV and self._smmu.cmdqv is not None:
            if wants_vmid:
                raise unsupported("a vIOMMU with queues of its own takes no VMID")
            return CmdqvViommu(self._smmu, self._smmu.cmdqv, parent, host, data)
        if wants_vmid:
            parent.share_vmid(read_vmid(type, data))
        return SmmuViommu(self._smmu, parent, host)

    def attach(self, domain: Domain, pasid: int | None) -> None:
        """Route the function through a domain. EINVAL: a domain of another SMMU, or that cannot serve it; EBUSY: stage
        2 while PASIDs are used; EOPNOTSUPP: a PASID where there are none; ENOENT: a guest's stage 1 for a device
        that has no name there; ENOMEM."""
        smmu = self._smmu
        if pasid is not None and not self.features.max_pasids:
            raise unsupported("the device and its IOMMU have no PASIDs together")
        if pasid is not None and not 0 < pasid < self.features.max_pasids:
            raise UapiError(EINVAL, f"{self.name} has no PASID {pasid}")
        if not isinstance(domain, SmmuDomain | SmmuNested) or domain.owner is not smmu:
            raise UapiError(EINVAL, f"the domain is not of the IOMMU of {self.name}")
        if pasid is not None and not domain.first:
            raise UapiError(EINVAL, "a PASID needs a domain of stage 1")
        guest = self._guest(domain) if isinstance(domain, SmmuNested) else None
        for sid in self.function.sids:
            smmu.routes.reserve(sid, pasid, domain)
        for sid in self.function.sids:
            smmu.attach(Route(sid, pasid), domain)
        if pasid is None:
            self._tell(guest)

    def _guest(self, domain: SmmuNested) -> Guest | None:
        """Who in the guest hears of events. ENOENT: nobody, though its stage 1 is used."""
        name = domain.viommu.name_of(self)
        if name is not None and domain.valid:
            return Guest(domain.viommu, name)
        if domain.config == Config.S1:
            raise UapiError(ENOENT, f"{self.name} has no stream id in the guest (vDEVICE)")
        return None

    def _tell(self, guest: Guest | None) -> None:
        own = self.function.sids[0]
        if guest is None:
            self._smmu.guests.pop(own, None)
        else:
            self._smmu.guests[own] = guest

    def detach(self, pasid: int | None) -> None:
        """Block the function, or one of its PASIDs."""
        for sid in self.function.sids:
            self._smmu.attach(Route(sid, pasid), None)
        if pasid is None:
            self._tell(None)

    def page_response(self, faults: Sequence[PageFault], code: PageResponse) -> None:
        """Answer the group that the last of these faults closed."""
        server = self._smmu.stalls if self.stalls else self._smmu.requests
        if server is not None:
            server.respond(self.function.sids[0], faults[-1], code)


_: type[Device] = SmmuDevice
