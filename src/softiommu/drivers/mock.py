"""The kernel's mock IOMMU (CONFIG_IOMMUFD_TEST) as an ordinary driver: tables, caches and queues that tests look into.

Its paging domains are AMD v1 tables with a 2 KiB granule, so that every part of a 4 KiB page can be mapped by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from errno import EINVAL, ENOENT, ENOMEM, EOPNOTSUPP

from softiommu.abi import iommufd_test as test
from softiommu.drivers.driver import (
    Device,
    DeviceFeatures,
    Domain,
    DomainFlags,
    Handled,
    HwInfo,
    NestedDomain,
    PageFault,
    PageResponse,
    PagingDomain,
    Reserved,
    UserArray,
    UserData,
    Viommu,
    ViommuHost,
    unsupported,
)
from softiommu.drivers.mock_domain import MockDomain
from softiommu.drivers.mock_viommu import MockViommu
from softiommu.errors import UapiError

HWPT_PASID = 8
#: A device flag of kernels before the generic page table: 1 MiB entries too.
HUGE_IOVA = 2
WORDS = 4


class MockDriver:
    """One IOMMU instance for all mock devices. `per_item`: the dirty rule of kernels with the generic page table."""

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


class MockNestedDomain:
    """A guest's table as the mock sees it: four IOTLB words that invalidation clears."""

    def __init__(self, owner: object, viommu: MockViommu | None, iotlb: int) -> None:
        self.owner = owner
        self.viommu = viommu
        self.iotlb = [iotlb] * WORDS

    def invalidate(self, entries: UserArray, handled: Handled) -> None:
        """Clear one word, or all. EINVAL, EOPNOTSUPP at the first bad entry; earlier ones stay done."""
        if entries.data_type != test.HWPT_INVALIDATE_DATA_SELFTEST or (
            entries.entry_num and entries.entry_len != test.HwptInvalidateSelftest.SIZE
        ):
            raise UapiError(EINVAL, f"type {entries.data_type:#x} with entries of {entries.entry_len} bytes")
        for index in range(entries.entry_num):
            entry = entries.entry(index, test.HwptInvalidateSelftest, test.HWPT_INVALIDATE_DATA_SELFTEST)
            if entry.flags & ~test.TEST_INVALIDATE_FLAG_ALL:
                raise UapiError(EOPNOTSUPP, f"entry {index} has flags {entry.flags:#x}")
            if entry.iotlb_id >= WORDS:
                raise UapiError(EINVAL, f"entry {index} names IOTLB word {entry.iotlb_id}")
            if entry.flags & test.TEST_INVALIDATE_FLAG_ALL:
                self.iotlb = [0] * WORDS
            else:
                self.iotlb[entry.iotlb_id] = 0
            handled.count += 1

    def free(self) -> None:
        """Nothing to give back."""


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
        #: The virtual id in its events: what it was called when its HWPT was attached.
        self.event_id = 0
        self.responses: list[tuple[PageFault, PageResponse]] = []
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
            if data.data_type != test.HWPT_DATA_SELFTEST:
                raise unsupported(f"HWPT data type {data.data_type:#x}")
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
        return MockNestedDomain(self.driver, None, _nested_data(flags, data).iotlb)

    def viommu_types(self) -> Sequence[int]:
        """The selftest type."""
        return (test.VIOMMU_TYPE_SELFTEST,)

    def alloc_viommu(self, type: int, parent: PagingDomain, host: ViommuHost, data: UserData | None) -> Viommu:
        """A vIOMMU; with data also a region of two pages that the program can map."""
        return MockViommu(self.driver, parent, host, data, MockNestedDomain)

    def attach(self, domain: Domain, pasid: int | None) -> None:
        """EINVAL: a dirty domain for a device without tracking. ENOENT: a vIOMMU's domain without a vdevice here."""
        if pasid is not None:
            # The kernel's mock checks neither the vdevice nor dirty tracking for a PASID.
            pass
        elif isinstance(domain, MockNestedDomain):
            if domain.viommu is not None and self.viommu is not domain.viommu:
                raise UapiError(ENOENT, f"device {self.name} has no vDEVICE on the vIOMMU")
        elif (
            isinstance(domain, MockDomain)
            and DomainFlags.DIRTY_TRACKING in domain.flags
            and not self.features.dirty_tracking
        ):
            raise UapiError(EINVAL, f"device {self.name} has no dirty tracking")
        if pasid == test.TEST_PASID_RESERVED:
            self._fail_every_second(pasid)
        self._attached[pasid] = domain
        if pasid is None:
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
        self.responses += [(fault, code) for fault in faults]


def _nested_data(flags: int, data: UserData) -> test.HwptSelftest:
    if flags & ~HWPT_PASID:
        raise unsupported(f"flags {flags:#x} for a nested HWPT")
    if data.data_type != test.HWPT_DATA_SELFTEST:
        raise unsupported(f"HWPT data type {data.data_type:#x}")
    return data.copy(test.HwptSelftest, test.HWPT_DATA_SELFTEST)


_: type[Device] = MockDevice
