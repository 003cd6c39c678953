"""The driver of devices without an IOMMU: domains keep memory pinned and translate nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from softiommu.drivers.driver import (
    Device,
    DeviceFeatures,
    DirtyReport,
    Domain,
    DomainFlags,
    HwInfo,
    NestedDomain,
    PageFault,
    PageResponse,
    PagingDomain,
    Prot,
    Range,
    Reserved,
    Viommu,
    ViommuHost,
    unsupported,
)
from softiommu.drivers.user_data import UserData

_SIZES = (2**64 - 1) & ~4095


class NoIommuDomain:
    """Memory stays where it is; devices use physical addresses."""

    page_sizes = _SIZES
    aperture = Range(0, 2**64 - 1)
    flags = DomainFlags.NONE
    cache_coherent = True

    def __init__(self, owner: object) -> None:
        self.owner = owner

    def map(self, iova: int, pa: int, length: int, prot: Prot) -> None:
        """Nothing to fill."""

    def unmap(self, iova: int, length: int) -> int:
        """Nothing to empty."""
        return length

    def flush(self) -> None:
        """Nothing is cached."""

    def iova_to_pa(self, iova: int) -> int | None:
        """No translation exists."""
        return None

    def enforce_cache_coherency(self) -> bool:
        """Devices reach memory as they are wired."""
        return True

    def set_dirty_tracking(self, enable: bool) -> None:
        """Never asked: the domain has no DIRTY_TRACKING."""
        raise unsupported("a device without an IOMMU has no dirty tracking")

    def read_dirty(self, window: Range, report: DirtyReport | None, clear: bool) -> None:
        """Never asked: the domain has no DIRTY_TRACKING."""
        raise unsupported("a device without an IOMMU has no dirty tracking")

    def free(self) -> None:
        """Nothing to give back."""


class NoIommuDevice:
    """A device whose DMA no IOMMU translates."""

    features = DeviceFeatures(cache_coherent=True)

    def __init__(self, name: str) -> None:
        self.name = name
        self.on_fault: Callable[[PageFault], None] | None = None
        self.driver: object = NoIommuDevice
        self.iommu: object = self
        self.group: object = self

    def reserved_regions(self) -> Sequence[Reserved]:
        """None: no IOMMU sees the addresses."""
        return ()

    def hw_info(self, type: int) -> HwInfo | None:
        """There is no IOMMU to tell of."""
        return None

    def alloc_paging(self, flags: DomainFlags, data: UserData | None) -> PagingDomain:
        """A domain that translates nothing."""
        if flags or data:
            raise unsupported("a device without an IOMMU has plain domains only")
        return NoIommuDomain(self.driver)

    def alloc_nested(self, parent: PagingDomain, flags: int, data: UserData) -> NestedDomain:
        """No hardware could walk it."""
        raise unsupported("a device without an IOMMU has no nesting")

    def viommu_types(self) -> Sequence[int]:
        """None."""
        return ()

    def alloc_viommu(self, type: int, parent: PagingDomain, host: ViommuHost, data: UserData | None) -> Viommu:
        """No hardware could be shared."""
        raise unsupported("a device without an IOMMU has no vIOMMU")

    def attach(self, domain: Domain, pasid: int | None) -> None:
        """The device goes on using physical addresses."""
        if pasid is not None:
            raise unsupported("a device without an IOMMU has no PASIDs")

    def detach(self, pasid: int | None) -> None:
        """Nothing changes for the device."""

    def page_response(self, faults: Sequence[PageFault], code: PageResponse) -> None:
        """Never asked: the device reports no faults."""


_: type[Device] = NoIommuDevice
