"""softiommu's types of AMD vIOMMUs, for which the kernel's interface has no numbers. docs/extensions.md describes them.

The numbers lie in the range of `generic_invalidation.EXTENSIONS`; "A" is 0x41.
"""

from __future__ import annotations

from enum import IntFlag

from softiommu.abi.struct import UserStruct, u32, u64

#: Type of VIOMMU_ALLOC, which takes no data. Nested HWPTs on it have data of the uAPI's type AMD_GUEST.
VIOMMU = 0x5F494101
#: Type of VEVENTQ_ALLOC: `AmdEvent`.
VEVENTQ = 0x5F494102
#: Data type of HWPT_ALLOC: `HwptAmdProcess`.
PROCESS = 0x5F494103


class ProcessFlags(IntFlag):
    """Flags of `HwptAmdProcess`."""

    #: The guest has devices' own TLBs emptied, so that devices may use them.
    ATS = 1


class HwptAmdProcess(UserStruct):
    """A guest's page table for one PASID."""

    root: u64 = 0
    levels: u32 = 0
    flags: u32 = 0


class AmdEvent(UserStruct):
    """A record for the guest's event log, with the guest's device id."""

    low: u64 = 0
    high: u64 = 0
