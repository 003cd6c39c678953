"""softiommu's types for the RISC-V IOMMU, of which the kernel's interface has none. docs/extensions.md describes them.

The numbers lie in the range of `generic_invalidation.EXTENSIONS`; "R" is 0x52.
"""

from __future__ import annotations

from softiommu.abi.struct import UserStruct, u32, u64

#: Type of GET_HW_INFO: `HwInfoRiscv`.
HW_INFO = 0x5F495201
#: Data type of HWPT_ALLOC: `HwptRiscv`.
HWPT_DATA = 0x5F495202
#: Data type of HWPT_INVALIDATE, for nested HWPTs and vIOMMUs: `RiscvCommand`.
INVALIDATE_DATA = 0x5F495203
#: Type of VIOMMU_ALLOC, which takes no data.
VIOMMU = 0x5F495204
#: Type of VEVENTQ_ALLOC: `RiscvFault`.
VEVENTQ = 0x5F495205


class HwInfoRiscv(UserStruct):
    """Hardware information: raw registers."""

    capabilities: u64 = 0
    fctl: u32 = 0
    reserved: u32 = 0


class HwptRiscv(UserStruct):
    """The words of a guest's device context that say its first stage."""

    tc: u64 = 0
    ta: u64 = 0
    fsc: u64 = 0


class RiscvCommand(UserStruct):
    """A command of the guest's queue."""

    low: u64 = 0
    high: u64 = 0


class RiscvFault(UserStruct):
    """A fault record for the guest's queue, with the guest's device id."""

    word0: u64 = 0
    word1: u64 = 0
    iotval: u64 = 0
    iotval2: u64 = 0
