"""softiommu's types of AMD vIOMMUs, for which the kernel's interface has no numbers. docs/extensions.md describes them.

The numbers lie in the range of `generic_invalidation.EXTENSIONS`; "A" is 0x41.
"""

from __future__ import annotations

from softiommu.abi.struct import UserStruct, u64

#: Type of VIOMMU_ALLOC, which takes no data. Nested HWPTs on it have data of the uAPI's type AMD_GUEST.
VIOMMU = 0x5F494101
#: Type of VEVENTQ_ALLOC: `AmdEvent`.
VEVENTQ = 0x5F494102


class AmdEvent(UserStruct):
    """A record for the guest's event log, with the guest's device id."""

    low: u64 = 0
    high: u64 = 0
