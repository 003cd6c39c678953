"""What invalidation looked like before iommufd: the draft of 2017, and the structure of 2019 to 2022.

The draft was never merged. struct iommu_cache_invalidate_info was in include/uapi/linux/iommu.h from Linux 5.3 to 5.17,
since 5.10 with its size in front; no ioctl ever took it.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

from softiommu.abi.struct import UserStruct, bytes3, u8, u16, u32, u64

VERSION_1 = 1


class TlbGranularity(IntEnum):
    """2017: what is selected."""

    DEVICE = 0
    PASID = 1
    PAGES = 2


class TlbInvalidate(UserStruct):
    """2017: struct iommu_tlb_invalidate, without the vendor's bytes that followed it."""

    model: u32 = 0
    granularity: u8 = 0
    padding: bytes3 = b"\0\0\0"
    pasid: u32 = 0
    padding2: u32 = 0
    addr: u64 = 0
    size: u64 = 0


class Cache(IntFlag):
    """2019: IOMMU_CACHE_INV_TYPE_*."""

    IOTLB = 1
    DEV_IOTLB = 2
    PASID = 4


class Granularity(IntEnum):
    """2019: enum iommu_inv_granularity."""

    DOMAIN = 0
    PASID = 1
    ADDR = 2


class InfoFlags(IntFlag):
    """2019: IOMMU_INV_ADDR_FLAGS_*; of IOMMU_INV_PASID_FLAGS_* there are the first two."""

    PASID = 1
    ARCHID = 2
    LEAF = 4


class CacheInvalidateInfo(UserStruct, last="padding2"):
    """5.10: struct iommu_cache_invalidate_info with its addr_info; pasid_info is as far as `pasid`."""

    argsz: u32 = 0
    version: u32 = VERSION_1
    cache: u8 = 0
    granularity: u8 = 0
    padding: u16 = 0
    padding2: u32 = 0
    flags: u32 = 0
    archid: u32 = 0
    pasid: u64 = 0
    addr: u64 = 0
    granule_size: u64 = 0
    nb_granules: u64 = 0


class CacheInvalidateInfo2019(UserStruct, last="padding"):
    """5.3 to 5.9: the same without a size."""

    version: u32 = VERSION_1
    cache: u8 = 0
    granularity: u8 = 0
    padding: u16 = 0
    flags: u32 = 0
    archid: u32 = 0
    pasid: u64 = 0
    addr: u64 = 0
    granule_size: u64 = 0
    nb_granules: u64 = 0
