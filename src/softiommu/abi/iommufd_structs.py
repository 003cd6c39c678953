"""The structures of iommufd, as include/uapi/linux/iommufd.h lays them out.

A class is a struct without its iommu_ prefix; `__reserved` is `reserved`; words of an array are numbered (`ste0`).
"""

from __future__ import annotations

from softiommu.abi.struct import UserStruct, bytes3, s32, u8, u16, u32, u64


class Destroy(UserStruct):
    """IOMMU_DESTROY."""

    size: u32 = 8
    id: u32 = 0


class IoasAlloc(UserStruct):
    """IOMMU_IOAS_ALLOC."""

    size: u32 = 12
    flags: u32 = 0
    out_ioas_id: u32 = 0


class IovaRange(UserStruct):
    """One range of I/O addresses, `last` inclusive."""

    start: u64 = 0
    last: u64 = 0


class IoasIovaRanges(UserStruct):
    """IOMMU_IOAS_IOVA_RANGES: `allowed_iovas` points to IovaRange[num_iovas]."""

    size: u32 = 32
    ioas_id: u32 = 0
    num_iovas: u32 = 0
    reserved: u32 = 0
    allowed_iovas: u64 = 0
    out_iova_alignment: u64 = 0


class IoasAllowIovas(UserStruct):
    """IOMMU_IOAS_ALLOW_IOVAS: `allowed_iovas` points to IovaRange[num_iovas]."""

    size: u32 = 24
    ioas_id: u32 = 0
    num_iovas: u32 = 0
    reserved: u32 = 0
    allowed_iovas: u64 = 0


class IoasMap(UserStruct):
    """IOMMU_IOAS_MAP."""

    size: u32 = 40
    flags: u32 = 0
    ioas_id: u32 = 0
    reserved: u32 = 0
    user_va: u64 = 0
    length: u64 = 0
    iova: u64 = 0


class IoasNoiommuGetPa(UserStruct):
    """IOMMU_IOAS_NOIOMMU_GET_PA."""

    size: u32 = 40
    flags: u32 = 0
    ioas_id: u32 = 0
    reserved: u32 = 0
    iova: u64 = 0
    length: u64 = 0
    out_phys: u64 = 0


class IoasMapFile(UserStruct):
    """IOMMU_IOAS_MAP_FILE."""

    size: u32 = 40
    flags: u32 = 0
    ioas_id: u32 = 0
    fd: s32 = 0
    start: u64 = 0
    length: u64 = 0
    iova: u64 = 0


class IoasCopy(UserStruct):
    """IOMMU_IOAS_COPY."""

    size: u32 = 40
    flags: u32 = 0
    dst_ioas_id: u32 = 0
    src_ioas_id: u32 = 0
    length: u64 = 0
    dst_iova: u64 = 0
    src_iova: u64 = 0


class IoasUnmap(UserStruct):
    """IOMMU_IOAS_UNMAP."""

    size: u32 = 24
    ioas_id: u32 = 0
    iova: u64 = 0
    length: u64 = 0


class Option(UserStruct):
    """IOMMU_OPTION."""

    size: u32 = 24
    option_id: u32 = 0
    op: u16 = 0
    reserved: u16 = 0
    object_id: u32 = 0
    val64: u64 = 0


class VfioIoas(UserStruct):
    """IOMMU_VFIO_IOAS."""

    size: u32 = 12
    ioas_id: u32 = 0
    op: u16 = 0
    reserved: u16 = 0


class HwptVtdS1(UserStruct):
    """HWPT data of type VTD_S1: a guest first-stage table."""

    flags: u64 = 0
    pgtbl_addr: u64 = 0
    addr_width: u32 = 0
    reserved: u32 = 0


class HwptArmSmmuv3(UserStruct):
    """HWPT data of type ARM_SMMUV3: dwords 0 and 1 of a guest's STE."""

    ste0: u64 = 0
    ste1: u64 = 0


class HwptAmdGuest(UserStruct):
    """HWPT data of type AMD_GUEST: a guest's DTE."""

    dte0: u64 = 0
    dte1: u64 = 0
    dte2: u64 = 0
    dte3: u64 = 0


class HwptAlloc(UserStruct, last="reserved"):
    """IOMMU_HWPT_ALLOC."""

    size: u32 = 48
    flags: u32 = 0
    dev_id: u32 = 0
    pt_id: u32 = 0
    out_hwpt_id: u32 = 0
    reserved: u32 = 0
    data_type: u32 = 0
    data_len: u32 = 0
    data_uptr: u64 = 0
    fault_id: u32 = 0
    reserved2: u32 = 0


class HwInfoVtd(UserStruct):
    """Hardware information of type INTEL_VTD."""

    flags: u32 = 0
    reserved: u32 = 0
    cap_reg: u64 = 0
    ecap_reg: u64 = 0


class HwInfoArmSmmuv3(UserStruct):
    """Hardware information of type ARM_SMMUV3: raw ID registers."""

    flags: u32 = 0
    reserved: u32 = 0
    idr0: u32 = 0
    idr1: u32 = 0
    idr2: u32 = 0
    idr3: u32 = 0
    idr4: u32 = 0
    idr5: u32 = 0
    iidr: u32 = 0
    aidr: u32 = 0


class HwInfoTegra241Cmdqv(UserStruct):
    """Hardware information of type TEGRA241_CMDQV."""

    flags: u32 = 0
    version: u8 = 0
    log2vcmdqs: u8 = 0
    log2vsids: u8 = 0
    reserved: u8 = 0


class HwInfoAmd(UserStruct):
    """Hardware information of type AMD: raw feature registers."""

    efr: u64 = 0
    efr2: u64 = 0


class HwInfo(UserStruct, last="reserved"):
    """IOMMU_GET_HW_INFO. `data_type` is in_data_type on the way in, out_data_type on the way out."""

    size: u32 = 40
    flags: u32 = 0
    dev_id: u32 = 0
    data_len: u32 = 0
    data_uptr: u64 = 0
    data_type: u32 = 0
    out_max_pasid_log2: u8 = 0
    reserved: bytes3 = b"\0\0\0"
    out_capabilities: u64 = 0


class HwptSetDirtyTracking(UserStruct):
    """IOMMU_HWPT_SET_DIRTY_TRACKING."""

    size: u32 = 16
    flags: u32 = 0
    hwpt_id: u32 = 0
    reserved: u32 = 0


class HwptGetDirtyBitmap(UserStruct):
    """IOMMU_HWPT_GET_DIRTY_BITMAP."""

    size: u32 = 48
    hwpt_id: u32 = 0
    flags: u32 = 0
    reserved: u32 = 0
    iova: u64 = 0
    length: u64 = 0
    page_size: u64 = 0
    data: u64 = 0


class HwptVtdS1Invalidate(UserStruct):
    """Invalidation entry of type VTD_S1."""

    addr: u64 = 0
    npages: u64 = 0
    flags: u32 = 0
    reserved: u32 = 0


class ViommuArmSmmuv3Invalidate(UserStruct):
    """Invalidation entry of type ARM_SMMUV3: a command of the guest."""

    cmd0: u64 = 0
    cmd1: u64 = 0


class HwptInvalidate(UserStruct):
    """IOMMU_HWPT_INVALIDATE."""

    size: u32 = 32
    hwpt_id: u32 = 0
    data_uptr: u64 = 0
    data_type: u32 = 0
    entry_len: u32 = 0
    entry_num: u32 = 0
    reserved: u32 = 0


class HwptPgfault(UserStruct):
    """What a read of a fault queue gives."""

    flags: u32 = 0
    dev_id: u32 = 0
    pasid: u32 = 0
    grpid: u32 = 0
    perm: u32 = 0
    reserved: u32 = 0
    addr: u64 = 0
    length: u32 = 0
    cookie: u32 = 0


class HwptPageResponse(UserStruct):
    """What a write to a fault queue takes."""

    cookie: u32 = 0
    code: u32 = 0


class FaultAlloc(UserStruct):
    """IOMMU_FAULT_QUEUE_ALLOC."""

    size: u32 = 16
    flags: u32 = 0
    out_fault_id: u32 = 0
    out_fault_fd: u32 = 0


class ViommuTegra241Cmdqv(UserStruct):
    """vIOMMU data of type TEGRA241_CMDQV."""

    out_vintf_mmap_offset: u64 = 0
    out_vintf_mmap_length: u64 = 0


class ViommuAlloc(UserStruct, last="out_viommu_id"):
    """IOMMU_VIOMMU_ALLOC."""

    size: u32 = 40
    flags: u32 = 0
    type: u32 = 0
    dev_id: u32 = 0
    hwpt_id: u32 = 0
    out_viommu_id: u32 = 0
    data_len: u32 = 0
    reserved: u32 = 0
    data_uptr: u64 = 0


class VdeviceAlloc(UserStruct):
    """IOMMU_VDEVICE_ALLOC."""

    size: u32 = 24
    viommu_id: u32 = 0
    dev_id: u32 = 0
    out_vdevice_id: u32 = 0
    virt_id: u64 = 0


class IoasChangeProcess(UserStruct):
    """IOMMU_IOAS_CHANGE_PROCESS."""

    size: u32 = 8
    reserved: u32 = 0


class VeventHeader(UserStruct):
    """Before each event that a read of a vEVENTQ gives."""

    flags: u32 = 0
    sequence: u32 = 0


class VeventArmSmmuv3(UserStruct):
    """Event of type ARM_SMMUV3: a record with a virtual stream id."""

    evt0: u64 = 0
    evt1: u64 = 0
    evt2: u64 = 0
    evt3: u64 = 0


class VeventTegra241Cmdqv(UserStruct):
    """Event of type TEGRA241_CMDQV: error bits of the logical queues."""

    lvcmdq_err_map0: u64 = 0
    lvcmdq_err_map1: u64 = 0


class VeventqAlloc(UserStruct, last="out_veventq_fd"):
    """IOMMU_VEVENTQ_ALLOC."""

    size: u32 = 32
    flags: u32 = 0
    viommu_id: u32 = 0
    type: u32 = 0
    veventq_depth: u32 = 0
    out_veventq_id: u32 = 0
    out_veventq_fd: u32 = 0
    reserved: u32 = 0


class HwQueueAlloc(UserStruct):
    """IOMMU_HW_QUEUE_ALLOC."""

    size: u32 = 40
    flags: u32 = 0
    viommu_id: u32 = 0
    type: u32 = 0
    index: u32 = 0
    out_hw_queue_id: u32 = 0
    nesting_parent_iova: u64 = 0
    length: u64 = 0
