"""softiommu's type of an AMD vIOMMU, for which the kernel's interface has no number. docs/extensions.md describes it.

The number lies in the range of `generic_invalidation.EXTENSIONS`; "A" is 0x41.
"""

from __future__ import annotations

#: Type of VIOMMU_ALLOC, which takes no data. Nested HWPTs on it have data of the uAPI's type AMD_GUEST.
VIOMMU = 0x5F494101
