"""What the interface lacks for SMMUv3 guests to use BTM and HTTU: numbers of softiommu's own, far from those that the
kernel's header has. docs/extensions.md describes them.
"""

from __future__ import annotations

from softiommu.abi.struct import UserStruct, u32

#: Bits of out_capabilities of GET_HW_INFO. The stage 2 of a vIOMMU can have the VMID that the VM has on its CPUs.
HW_CAP_BTM = 1 << 62
#: The firmware leaves IDR0.HTTU as the register has it.
HW_CAP_HTTU = 1 << 63
#: A flag of VIOMMU_ALLOC: that VMID is asked for. The vIOMMU's data is `ViommuBtm`.
VIOMMU_ALLOC_BTM = 1 << 31


class ViommuBtm(UserStruct):
    """The data of VIOMMU_ALLOC with VIOMMU_ALLOC_BTM: the VMID."""

    vmid: u32 = 0
    reserved: u32 = 0
