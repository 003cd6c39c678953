"""The kernel's mock IOMMU (CONFIG_IOMMUFD_TEST) as an ordinary driver: tables, caches and queues that tests look into.

Its paging domains are AMD v1 tables with a 2 KiB granule, so that every part of a 4 KiB page can be mapped by itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from errno import EINVAL, ENOENT, ENOMEM

from softiommu.abi import iommufd_test as test
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
    Viommu,
    ViommuHost,
    unsupported,
)
from softiommu.drivers.mock.domain import MockDomain
from softiommu.drivers.mock.nested import MockNestedDomain, nested_data
from softiommu.drivers.mock.viommu import MockViommu
from softiommu.drivers.user_data import UserData
from softiommu.errors import UapiError

#: A device flag of kernels before the generic page table: 1 MiB entries too.
HUGE_IOVA = 2
WORDS = 4
_MOST_RESPONSES = 1 << 14


class MockDriver:
    """One IOMMU instance for all mock devices.

    `per_item`: the mock of kernels with the generic page table, whose dirty bits are an entry's. The mock of 6.12 has
    a dirty bit for each granule, makes large tables by a device flag, and takes no data for a paging domain.
    """

    def __init__(self, per_item: bool = True) -> None:
        self.per_item = per_item
        self._flags = int(test.DeviceFlags.NO_DIRTY) | (int(test.DeviceFlags.PASID) if per_item else HUGE_IOVA)
        self._made = 0

    def device(self, flags: int) -> MockDevice:
        """A new device in a group of its own. EINVAL: unknown flags."""
        if flags & ~self._flags:
            raise UapiError(EINVAL, f"device flags {flags:#x} are not known")
        number = self._made
        self._made += 1
        return MockDevice(self, f"iommufd_mock{number}", flags)


class MockDevice:
    """A device of the mock IOMMU: a cache of four words, PASIDs where asked for, faults and events on demand."""

    def __init__(self, driver: MockDriver, name: str, flags: int) -> None:
        self.name = name
        self.on_fault: Callable[[PageFault], None] | None = None
        self.driver: object = driver
        self.iommu: object = driver
        self.group: object = self
        self.features = DeviceFeatures(
            dirty_tracking=not flags & test.DeviceFlags.NO_DIRTY,
            nesting=True,
            page_faults=True,
            max_pasids=1 << test.MOCK_PASID_WIDTH if flags & test.DeviceFlags.PASID else 0,
        )
        self.cache = [test.TEST_DEV_CACHE_DEFAULT] * WORDS
        self.viommu: MockViommu | None = None
        self.virt_id = 0
        #: The virtual id in its events: what it was called when it was attached to its vIOMMU.
        self.event_id = 0
        #: The latest answers to its faults.
        self.responses: deque[tuple[PageFault, PageResponse]] = deque(maxlen=_MOST_RESPONSES)
        self._mock = driver
        self._huge = bool(flags & HUGE_IOVA)
        self._attached: dict[int | None, Domain] = {}
        self._reserved_pasid_used = False

    def reserved_regions(self) -> Sequence[Reserved]:
        """None."""
        return ()

    def hw_info(self, type: int) -> HwInfo | None:
        """The selftest structure."""
        if type not in (0, test.HW_INFO_TYPE_SELFTEST):
            return None
        return HwInfo(test.HW_INFO_TYPE_SELFTEST, test.HwInfoSelftest(test_reg=test.HW_INFO_SELFTEST_REGVAL).to_bytes())

    def alloc_paging(self, flags: DomainFlags, data: UserData | None) -> PagingDomain:
        """A domain with 2 KiB pages, or with 4 KiB and 1 MiB ones where the data asks for HUGE."""
        kind = test.MockPagetable.HUGE if self._huge else test.MockPagetable.DEFAULT
        if data is not None:
            if data.data_type != test.HWPT_DATA_SELFTEST or not self._mock.per_item:
                raise unsupported(f"HWPT data type {data.data_type:#x} for a paging domain")
            kind = test.MockPagetable(self._copy(data).pagetable_type)
        if DomainFlags.DIRTY_TRACKING in flags and not self.features.dirty_tracking:
            raise unsupported(f"device {self.name} has no dirty tracking")
        return MockDomain(self.driver, flags, kind is test.MockPagetable.HUGE, self._mock.per_item)

    def _copy(self, data: UserData) -> test.HwptSelftest:
        parsed = data.copy(test.HwptSelftest, test.HWPT_DATA_SELFTEST)
        if parsed.pagetable_type not in (0, 1):
            raise unsupported(f"page table type {parsed.pagetable_type}")
        return parsed

    def alloc_nested(self, parent: PagingDomain, flags: int, data: UserData) -> NestedDomain:
        """A nested domain straight on its parent."""
        return MockNestedDomain(self.driver, None, nested_data(flags, data, self._mock.per_item).iotlb)

    def viommu_types(self) -> Sequence[int]:
        """The selftest type."""
        return (test.VIOMMU_TYPE_SELFTEST,)

    def alloc_viommu(self, type: int, parent: PagingDomain, host: ViommuHost, data: UserData | None) -> Viommu:
        """A vIOMMU; with data also a region of two pages that the program can map."""
        return MockViommu(self.driver, parent, host, data)

    def attach(self, domain: Domain, pasid: int | None) -> None:
        """EINVAL: a dirty domain for a device without tracking. ENOENT: a vIOMMU's domain without a vdevice here."""
        if pasid is None:
            self._check_rid(domain)
            self._rename(domain)
        # The kernel's mock checks neither the vdevice nor dirty tracking for a PASID.
        elif pasid == test.TEST_PASID_RESERVED:
            self._fail_every_second(pasid)
        self._attached[pasid] = domain

    def _check_rid(self, domain: Domain) -> None:
        if isinstance(domain, MockNestedDomain):
            if domain.viommu is not None and self.viommu is not domain.viommu:
                raise UapiError(ENOENT, f"device {self.name} has no vDEVICE on the vIOMMU")
            return
        wanted = domain.flags if isinstance(domain, MockDomain) else DomainFlags.NONE
        if DomainFlags.DIRTY_TRACKING in wanted and not self.features.dirty_tracking:
            raise UapiError(EINVAL, f"device {self.name} has no dirty tracking")

    def _rename(self, domain: Domain) -> None:
        """Events have the name that the device had when it came to the vIOMMU, also after a move within it."""
        old = self._attached.get(None)
        if _viommu(old) is not _viommu(domain):
            self.event_id = self.virt_id

    def _fail_every_second(self, pasid: int) -> None:
        """The PASID with which tests provoke a failure of the driver."""
        if self._reserved_pasid_used:
            self._reserved_pasid_used = False
            raise UapiError(ENOMEM, f"PASID {pasid} fails the second time in a row")
        self._reserved_pasid_used = True

    def detach(self, pasid: int | None) -> None:
        """Block it."""
        if pasid == test.TEST_PASID_RESERVED:
            self._reserved_pasid_used = False
        self._attached.pop(pasid, None)

    def attached(self, pasid: int | None) -> Domain | None:
        """What it is routed through now."""
        return self._attached.get(pasid)

    def page_response(self, faults: Sequence[PageFault], code: PageResponse) -> None:
        """Remember the answer."""
        self.responses.extend((fault, code) for fault in faults)


def _viommu(domain: Domain | None) -> MockViommu | None:
    return domain.viommu if isinstance(domain, MockNestedDomain) else None


_: type[Device] = MockDevice
