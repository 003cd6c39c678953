"""The HWPT data of nesting in software: who keeps a child's table, and what its keeper promises.

It is softiommu's own: no kernel has it. docs/nesting.md describes every field. The numbers lie in the range that
softiommu keeps for its own types (`generic_invalidation.EXTENSIONS`).
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

from softiommu.abi.struct import UserStruct, u32, u64

#: HWPT_ALLOC data: the guest keeps the table in its own memory, and tells of changes by HWPT_INVALIDATE.
BOUND = 0x5F495301
#: HWPT_ALLOC data: the program keeps the table, by IOAS_MAP and IOAS_UNMAP on an address space of its own.
MAPPED = 0x5F495302


class BoundFlags(IntFlag):
    """What the guest promises."""

    #: It invalidates what it maps as well as what it unmaps (VT-d's CAP.CM, "caching mode").
    CACHING_MODE = 1


class TableFormat(IntEnum):
    """Which tables the guest's IOMMU walks. `addr_width` chooses among their sizes."""

    #: 13 to 48 bits: four levels; 49 to 57: five. Addresses of the upper half are not translated.
    X86_64 = 0
    #: VT-d's second stage: 39, 48, 57.
    VTD_SECOND_STAGE = 1
    #: AMD version 1: 30, 39, 48, 57.
    AMD_V1 = 2
    #: Arm stage 1 with granules of 4 KiB: 25 to 48.
    ARM64_4K = 3
    #: With 16 KiB: 25 to 48.
    ARM64_16K = 4
    #: With 64 KiB: 25 to 48.
    ARM64_64K = 5
    #: RISC-V: 13 to 57, by three, four or five levels. Addresses of the upper half are not translated.
    RISCV = 6


class HwptBound(UserStruct):
    """HWPT data of type BOUND."""

    flags: u64 = 0
    root: u64 = 0
    addr_width: u32 = 0
    format: u32 = 0


class HwptMapped(UserStruct):
    """HWPT data of type MAPPED: the IOAS whose mappings are the table. Its "user" addresses are the parent's."""

    ioas_id: u32 = 0
    reserved: u32 = 0
