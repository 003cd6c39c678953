"""A function behind a virtio-iommu, as the driver shows it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from errno import EINVAL, ENODEV
from typing import TYPE_CHECKING

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
from softiommu.drivers.virtio.domain import VirtioDomain
from softiommu.errors import UapiError
from softiommu.hardware.virtio.commands import Property, PropertyType, ResvMem, Subtype, size_of
from softiommu.memory.physical import PAGE

if TYPE_CHECKING:
    from softiommu.drivers.function import Function
    from softiommu.drivers.virtio.driver import VirtioDriver

#: Where doorbells are mapped when the device has none of its own.
_SW_MSI = Reserved(0x8000000, 0x80FFFFF, ReservedKind.SW_MSI)


class VirtioDevice:
    """A function, with everything that cannot be told from it (`function.sids`)."""

    #: Interrupts are not remapped.
    features = DeviceFeatures(isolated_msi=False, nested_domains=False)

    def __init__(self, driver: VirtioDriver, function: Function, properties: bytes) -> None:
        self.name, self.function = function.name, function
        self.on_fault: Callable[[PageFault], None] | None = None
        self.driver: object = driver
        self.iommu: object = driver
        self.group: object = self if function.group is None else function.group
        self._virtio = driver
        self._reserved = reserved_of(properties)

    def reserved_regions(self) -> Sequence[Reserved]:
        """What the device told of when it was probed; without a doorbell among that, the software's place for one."""
        if any(region.kind is ReservedKind.MSI for region in self._reserved):
            return self._reserved
        return (*self._reserved, _SW_MSI)

    def hw_info(self, type: int) -> HwInfo | None:
        """Nothing is told of the device."""
        return None

    def alloc_paging(self, flags: DomainFlags, data: UserData | None) -> PagingDomain:
        """A plain domain. EOPNOTSUPP: flags or data; ENODEV: pages larger than the machine's; ENOSPC."""
        if flags or data is not None:
            raise unsupported("a virtio-iommu has plain domains only")
        if self._virtio.page_sizes & -self._virtio.page_sizes > PAGE:
            raise UapiError(ENODEV, "the device's granule is larger than a page")
        return VirtioDomain(self._virtio)

    def alloc_nested(self, parent: PagingDomain, flags: int, data: UserData) -> NestedDomain:
        """There are no tables to nest."""
        raise unsupported("a virtio-iommu has no nesting")

    def viommu_types(self) -> Sequence[int]:
        """None."""
        return ()

    def alloc_viommu(self, type: int, parent: PagingDomain, host: ViommuHost, data: UserData | None) -> Viommu:
        """There is no vIOMMU of this IOMMU."""
        raise unsupported("a virtio-iommu has no vIOMMU")

    def attach(self, domain: Domain, pasid: int | None) -> None:
        """Route the function through a domain. EINVAL: a domain of another IOMMU; EOPNOTSUPP: a PASID; else as the
        device answers."""
        if pasid is not None:
            raise unsupported("a virtio-iommu has no PASIDs")
        if not isinstance(domain, VirtioDomain) or domain.owner is not self._virtio:
            raise UapiError(EINVAL, f"the domain is not of the IOMMU of {self.name}")
        self._virtio.attach(self.function.sids, domain)

    def detach(self, pasid: int | None) -> None:
        """Block the function: it goes into a domain without mappings, since one without a domain may be bypassed."""
        if pasid is None:
            self._virtio.attach(self.function.sids, self._virtio.blocking)

    def page_response(self, faults: Sequence[PageFault], code: PageResponse) -> None:
        """Never asked: the device reports no page requests."""


def reserved_of(properties: bytes) -> tuple[Reserved, ...]:
    """The reserved ranges in a list of properties. What cannot be understood is passed over."""
    found: list[Reserved] = []
    head, at = size_of(Property), 0
    while at + head <= len(properties):
        prop = Property(int.from_bytes(properties[at : at + head], "little"))
        if prop.TYPE == PropertyType.NONE:
            break
        raw = properties[at : at + head + prop.LENGTH]
        if prop.TYPE == PropertyType.RESV_MEM and not prop.MUST_BE_ZERO and len(raw) >= size_of(ResvMem):
            mem = ResvMem(int.from_bytes(raw[: size_of(ResvMem)], "little"))
            kind = ReservedKind.MSI if mem.SUBTYPE == Subtype.MSI else ReservedKind.RESERVED
            if mem.START <= mem.END:
                found.append(Reserved(mem.START, mem.END, kind))
        at += head + prop.LENGTH
    return tuple(sorted(found))


_: type[Device] = VirtioDevice
