"""The generic typed form of IOMMU_HWPT_INVALIDATE: what must be forgotten, whatever IOMMU there is.

It is softiommu's own: no kernel has it. Its type number lies in a range that no vendor's number is near.
docs/invalidation.md describes every field. A structure's size is its version: `entry_len` chooses one.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

from softiommu.abi.struct import UserStruct, u8, u16, u32, u64

#: Numbers of softiommu's own types: 0x5f490000 ("_I") to 0x5f49ffff.
EXTENSIONS = range(0x5F490000, 0x5F4A0000)
#: The data_type of the generic form, for nested HWPTs and vIOMMUs.
GENERIC = 0x5F490001


class Scope(IntEnum):
    """Whose translations, and whether all of them or those of a range."""

    DOMAIN = 0
    PASID = 1
    RANGE = 2
    RANGE_ALL_PASIDS = 3
    NO_PASID = 4
    RANGE_NO_PASID = 5


class Target(IntFlag):
    """Which caches."""

    LEAF = 1
    TABLES = 2
    CONFIG = 4
    DEVICE_TLB = 8


class Hint(IntFlag):
    """What the guest knows beyond that."""

    LEAF_ONLY = 1
    GLOBAL = 2
    DRAIN_READS = 4
    DRAIN_WRITES = 8


class Valid(IntFlag):
    """Which of the further names of version 2 are given."""

    ARCH_ID = 1
    DEVICE = 2


class Outcome(IntEnum):
    """What the hardware reported of an entry that was carried out (version 2)."""

    NONE = 0
    DEVICE_TIMEOUT = 1


class InvalidateV1(UserStruct):
    """An entry of version 1."""

    scope: u8 = 0
    granule_lg2: u8 = 0
    targets: u16 = 0
    hints: u32 = 0
    pasid: u32 = 0
    reserved: u32 = 0
    addr: u64 = 0
    count: u64 = 0


class InvalidateV2(UserStruct):
    """An entry of version 2: version 1, two more names, and what became of the entry."""

    scope: u8 = 0
    granule_lg2: u8 = 0
    targets: u16 = 0
    hints: u32 = 0
    pasid: u32 = 0
    reserved: u32 = 0
    addr: u64 = 0
    count: u64 = 0
    valid: u32 = 0
    arch_id: u32 = 0
    device: u64 = 0
    out_errno: u32 = 0
    out_fault: u32 = 0
