"""The kernel's iommufd test command, of kernels with CONFIG_IOMMUFD_TEST (drivers/iommu/iommufd/iommufd_test.h)."""

from __future__ import annotations

from enum import IntEnum, IntFlag

from softiommu.abi.ioctl import io
from softiommu.abi.struct import UserStruct, bytes4, bytes48, s32, u32, u64

TEST_CMD = io(ord(";"), 0xA0)


class TestCmd(UserStruct, last="last"):
    """The command: `op` says which member of the union `payload` holds (and `last` with it)."""

    size: u32 = 72
    op: u32 = 0
    id: u32 = 0
    reserved: u32 = 0
    payload: bytes48 = bytes(48)
    last: u32 = 0
    padding: bytes4 = bytes(4)


class AddReserved(UserStruct):
    """ADD_RESERVED: reserve I/O addresses of IOAS `id`."""

    start: u64 = 0
    length: u64 = 0


class MockDomain(UserStruct):
    """MOCK_DOMAIN: a new mock device attached to `id`."""

    out_stdev_id: u32 = 0
    out_hwpt_id: u32 = 0
    out_idev_id: u32 = 0


class MockDomainFlags(UserStruct):
    """MOCK_DOMAIN_FLAGS: the same with device flags."""

    out_stdev_id: u32 = 0
    out_hwpt_id: u32 = 0
    out_idev_id: u32 = 0
    dev_flags: u32 = 0


class MockDomainReplace(UserStruct):
    """MOCK_DOMAIN_REPLACE: move selftest object `id` to `pt_id`."""

    pt_id: u32 = 0


class CheckMap(UserStruct):
    """MD_CHECK_MAP: HWPT `id` translates the range to the pages at `uptr`."""

    iova: u64 = 0
    length: u64 = 0
    uptr: u64 = 0


class CheckRefs(UserStruct):
    """MD_CHECK_REFS: each page at `uptr` is pinned `refs` times."""

    length: u64 = 0
    uptr: u64 = 0
    refs: u32 = 0
    padding: u32 = 0


class CreateAccess(UserStruct):
    """CREATE_ACCESS: an access on IOAS `id`."""

    out_access_fd: u32 = 0
    flags: u32 = 0


class DestroyAccessPages(UserStruct):
    """DESTROY_ACCESS_PAGES: unpin."""

    access_pages_id: u32 = 0


class AccessPages(UserStruct):
    """ACCESS_PAGES: pin a range and compare it with the pages at `uptr`."""

    flags: u32 = 0
    out_access_pages_id: u32 = 0
    iova: u64 = 0
    length: u64 = 0
    uptr: u64 = 0


class AccessRw(UserStruct):
    """ACCESS_RW: copy between a range and `uptr`."""

    iova: u64 = 0
    length: u64 = 0
    uptr: u64 = 0
    flags: u32 = 0
    padding: u32 = 0


class MemoryLimit(UserStruct):
    """SET_TEMP_MEMORY_LIMIT."""

    limit: u32 = 0


class AccessReplaceIoas(UserStruct):
    """ACCESS_REPLACE_IOAS."""

    ioas_id: u32 = 0


class Dirty(UserStruct):
    """DIRTY: mark what the bitmap at `uptr` names as written by the device."""

    flags: u32 = 0
    padding: u32 = 0
    iova: u64 = 0
    length: u64 = 0
    page_size: u64 = 0
    uptr: u64 = 0
    out_nr_dirty: u64 = 0


class CheckIotlb(UserStruct):
    """MD_CHECK_IOTLB: a word of a nested HWPT."""

    id: u32 = 0
    iotlb: u32 = 0


class TriggerIopf(UserStruct):
    """TRIGGER_IOPF: a device reports a page fault."""

    dev_id: u32 = 0
    pasid: u32 = 0
    grpid: u32 = 0
    perm: u32 = 0
    addr: u64 = 0


class CheckDevCache(UserStruct):
    """DEV_CHECK_CACHE: a word of a device's cache."""

    id: u32 = 0
    cache: u32 = 0


class TriggerVevent(UserStruct):
    """TRIGGER_VEVENT: a device reports an event to its vIOMMU."""

    dev_id: u32 = 0


class PasidAttach(UserStruct):
    """PASID_ATTACH."""

    pasid: u32 = 0
    pt_id: u32 = 0


class PasidReplace(UserStruct):
    """PASID_REPLACE."""

    pasid: u32 = 0
    pt_id: u32 = 0


class PasidDetach(UserStruct):
    """PASID_DETACH."""

    pasid: u32 = 0


class PasidCheck(UserStruct):
    """PASID_CHECK_HWPT: what a PASID is attached to; 0 for nothing."""

    pasid: u32 = 0
    hwpt_id: u32 = 0


class DmabufGet(UserStruct):
    """DMABUF_GET: a new dma-buf, as the result of the ioctl."""

    length: u32 = 0
    open_flags: u32 = 0


class DmabufRevoke(UserStruct):
    """DMABUF_REVOKE: take a dma-buf back, or give it again."""

    dmabuf_fd: s32 = 0
    revoked: u32 = 0


class HwInfoSelftest(UserStruct):
    """struct iommu_test_hw_info."""

    flags: u32 = 0
    test_reg: u32 = 0


class HwptSelftest(UserStruct, last="iotlb"):
    """struct iommu_hwpt_selftest."""

    iotlb: u32 = 0
    pagetable_type: u32 = 0


class HwptInvalidateSelftest(UserStruct):
    """struct iommu_hwpt_invalidate_selftest."""

    flags: u32 = 0
    iotlb_id: u32 = 0


class ViommuSelftest(UserStruct, last="out_data"):
    """struct iommu_viommu_selftest."""

    in_data: u32 = 0
    out_data: u32 = 0
    out_mmap_offset: u64 = 0
    out_mmap_length: u64 = 0


class ViommuInvalidateSelftest(UserStruct):
    """struct iommu_viommu_invalidate_selftest."""

    flags: u32 = 0
    vdev_id: u32 = 0
    cache_id: u32 = 0


class ViommuEventSelftest(UserStruct):
    """struct iommu_viommu_event_selftest."""

    virt_id: u32 = 0


class TestOp(IntEnum):
    """IOMMU_TEST_OP_*."""

    ADD_RESERVED = 1
    MOCK_DOMAIN = 2
    MD_CHECK_MAP = 3
    MD_CHECK_REFS = 4
    CREATE_ACCESS = 5
    DESTROY_ACCESS_PAGES = 6
    ACCESS_PAGES = 7
    ACCESS_RW = 8
    SET_TEMP_MEMORY_LIMIT = 9
    MOCK_DOMAIN_REPLACE = 10
    ACCESS_REPLACE_IOAS = 11
    MOCK_DOMAIN_FLAGS = 12
    DIRTY = 13
    MD_CHECK_IOTLB = 14
    TRIGGER_IOPF = 15
    DEV_CHECK_CACHE = 16
    TRIGGER_VEVENT = 17
    PASID_ATTACH = 18
    PASID_REPLACE = 19
    PASID_DETACH = 20
    PASID_CHECK_HWPT = 21
    DMABUF_GET = 22
    DMABUF_REVOKE = 23


class MockPagetable(IntEnum):
    """MOCK_IOMMUPT_*."""

    DEFAULT = 0
    HUGE = 1


class Mock(IntEnum):
    """MOCK_*."""

    APERTURE_START = 0x1000000
    APERTURE_LAST = 0x7FFFFFFF
    PAGE_SIZE = 0x800
    HUGE_PAGE_SIZE = 0x100000


class AccessFlags(IntFlag):
    """MOCK_FLAGS_ACCESS_*."""

    WRITE = 1
    SYZ = 0x10000


class AccessRwFlags(IntFlag):
    """MOCK_ACCESS_RW_*."""

    WRITE = 1
    SLOW_PATH = 4


class AccessCreateFlags(IntFlag):
    """MOCK_FLAGS_ACCESS_CREATE_*."""

    NEEDS_PIN_PAGES = 1


class DeviceFlags(IntFlag):
    """MOCK_FLAGS_DEVICE_*."""

    NO_DIRTY = 1
    PASID = 4


class NestedIotlb(IntEnum):
    """MOCK_NESTED_DOMAIN_IOTLB_*."""

    ID_MAX = 3
    NUM = 4


class DevCache(IntEnum):
    """MOCK_DEV_CACHE_*."""

    ID_MAX = 3
    NUM = 4


TEST_PASID_RESERVED = 0x400
MOCK_PASID_WIDTH = 0x14
HW_INFO_TYPE_SELFTEST = 0xFEEDBEEF
HW_INFO_SELFTEST_REGVAL = 0xDEADBEEF
HWPT_DATA_SELFTEST = 0xDEAD
TEST_IOTLB_DEFAULT = 0xBADBEEF
TEST_DEV_CACHE_DEFAULT = 0xBADDAD
HWPT_INVALIDATE_DATA_SELFTEST = 0xDEADBEEF
HWPT_INVALIDATE_DATA_SELFTEST_INVALID = 0xDADBEEF
TEST_INVALIDATE_FLAG_ALL = 0x1
VIOMMU_TYPE_SELFTEST = 0xDEADBEEF
VIOMMU_INVALIDATE_DATA_SELFTEST = 0xDEADBEEF
VIOMMU_INVALIDATE_DATA_SELFTEST_INVALID = 0xDADBEEF
VEVENTQ_TYPE_SELFTEST = 0xBEEFBEEF
HW_QUEUE_TYPE_SELFTEST = 0xDEADBEEF
TEST_HW_QUEUE_MAX = 0x2
