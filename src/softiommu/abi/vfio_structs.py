"""VFIO's structures: the parts of include/uapi/linux/vfio.h for containers, groups, PCI devices and iommufd.

A class is a struct without its vfio_ prefix. A struct within a struct is inlined, its name before its fields' names.
A word with two names has the first. MIN_SIZE is the smallest argsz that a kernel's handler takes.

Trailing arrays are not part of a class; argsz or a count tells their length. They hold:
RegionInfoCapSparseMmap RegionSparseMmapArea, PciHotResetInfo PciDependentDevice, PciHotReset s32 descriptors,
DeviceFeatureDmaBuf RegionDmaRange, IommuType1InfoCapIovaRange IovaRange; IrqSet bytes or s32 eventfds by its flags;
DeviceFeature the structure of the feature; IommuType1DmaUnmap Bitmap, IommuType1DirtyBitmap IommuType1DirtyBitmapGet.
"""

from __future__ import annotations

from softiommu.abi.struct import UserStruct, s32, u8, u16, u32, u64


class InfoCapHeader(UserStruct):
    """struct vfio_info_cap_header."""

    id: u16 = 0
    version: u16 = 0
    next: u32 = 0


class GroupStatus(UserStruct):
    """struct vfio_group_status."""

    argsz: u32 = 0
    flags: u32 = 0


class DeviceInfo(UserStruct, last="num_irqs"):
    """struct vfio_device_info."""

    argsz: u32 = 0
    flags: u32 = 0
    num_regions: u32 = 0
    num_irqs: u32 = 0
    cap_offset: u32 = 0
    pad: u32 = 0


class DeviceInfoCapPciAtomicComp(UserStruct):
    """struct vfio_device_info_cap_pci_atomic_comp."""

    header_id: u16 = 0
    header_version: u16 = 0
    header_next: u32 = 0
    flags: u32 = 0
    reserved: u32 = 0


class RegionInfo(UserStruct):
    """struct vfio_region_info."""

    argsz: u32 = 0
    flags: u32 = 0
    index: u32 = 0
    cap_offset: u32 = 0
    size: u64 = 0
    offset: u64 = 0


class RegionSparseMmapArea(UserStruct):
    """struct vfio_region_sparse_mmap_area."""

    offset: u64 = 0
    size: u64 = 0


class RegionInfoCapSparseMmap(UserStruct):
    """struct vfio_region_info_cap_sparse_mmap."""

    header_id: u16 = 0
    header_version: u16 = 0
    header_next: u32 = 0
    nr_areas: u32 = 0
    reserved: u32 = 0


class RegionInfoCapType(UserStruct):
    """struct vfio_region_info_cap_type."""

    header_id: u16 = 0
    header_version: u16 = 0
    header_next: u32 = 0
    type: u32 = 0
    subtype: u32 = 0


class DeviceMigrationInfo(UserStruct):
    """struct vfio_device_migration_info."""

    device_state: u32 = 0
    reserved: u32 = 0
    pending_bytes: u64 = 0
    data_offset: u64 = 0
    data_size: u64 = 0


class IrqInfo(UserStruct):
    """struct vfio_irq_info."""

    argsz: u32 = 0
    flags: u32 = 0
    index: u32 = 0
    count: u32 = 0


class IrqSet(UserStruct):
    """struct vfio_irq_set."""

    argsz: u32 = 0
    flags: u32 = 0
    index: u32 = 0
    start: u32 = 0
    count: u32 = 0


class PciDependentDevice(UserStruct):
    """struct vfio_pci_dependent_device."""

    group_id: u32 = 0
    segment: u16 = 0
    bus: u8 = 0
    devfn: u8 = 0


class PciHotResetInfo(UserStruct):
    """struct vfio_pci_hot_reset_info."""

    argsz: u32 = 0
    flags: u32 = 0
    count: u32 = 0


class PciHotReset(UserStruct):
    """struct vfio_pci_hot_reset."""

    argsz: u32 = 0
    flags: u32 = 0
    count: u32 = 0


class DeviceIoeventfd(UserStruct, last="fd"):
    """struct vfio_device_ioeventfd."""

    argsz: u32 = 0
    flags: u32 = 0
    offset: u64 = 0
    data: u64 = 0
    fd: s32 = 0
    reserved: u32 = 0


class DeviceFeature(UserStruct):
    """struct vfio_device_feature."""

    argsz: u32 = 0
    flags: u32 = 0


class DeviceBindIommufd(UserStruct, last="out_devid"):
    """struct vfio_device_bind_iommufd."""

    argsz: u32 = 0
    flags: u32 = 0
    iommufd: s32 = 0
    out_devid: u32 = 0
    token_uuid_ptr: u64 = 0


class DeviceAttachIommufdPt(UserStruct, last="pt_id"):
    """struct vfio_device_attach_iommufd_pt."""

    argsz: u32 = 0
    flags: u32 = 0
    pt_id: u32 = 0
    pasid: u32 = 0


class DeviceDetachIommufdPt(UserStruct, last="flags"):
    """struct vfio_device_detach_iommufd_pt."""

    argsz: u32 = 0
    flags: u32 = 0
    pasid: u32 = 0


class DeviceFeatureMigration(UserStruct):
    """struct vfio_device_feature_migration."""

    flags: u64 = 0


class DeviceFeatureMigState(UserStruct):
    """struct vfio_device_feature_mig_state."""

    device_state: u32 = 0
    data_fd: s32 = 0


class PrecopyInfo(UserStruct):
    """struct vfio_precopy_info."""

    argsz: u32 = 0
    flags: u32 = 0
    initial_bytes: u64 = 0
    dirty_bytes: u64 = 0


class DeviceLowPowerEntryWithWakeup(UserStruct):
    """struct vfio_device_low_power_entry_with_wakeup."""

    wakeup_eventfd: s32 = 0
    reserved: u32 = 0


class DeviceFeatureDmaLoggingControl(UserStruct):
    """struct vfio_device_feature_dma_logging_control."""

    page_size: u64 = 0
    num_ranges: u32 = 0
    reserved: u32 = 0
    ranges: u64 = 0


class DeviceFeatureDmaLoggingRange(UserStruct):
    """struct vfio_device_feature_dma_logging_range."""

    iova: u64 = 0
    length: u64 = 0


class DeviceFeatureDmaLoggingReport(UserStruct):
    """struct vfio_device_feature_dma_logging_report."""

    iova: u64 = 0
    length: u64 = 0
    page_size: u64 = 0
    bitmap: u64 = 0


class DeviceFeatureMigDataSize(UserStruct):
    """struct vfio_device_feature_mig_data_size."""

    stop_copy_length: u64 = 0


class DeviceFeatureBusMaster(UserStruct):
    """struct vfio_device_feature_bus_master."""

    op: u32 = 0


class RegionDmaRange(UserStruct):
    """struct vfio_region_dma_range."""

    offset: u64 = 0
    length: u64 = 0


class DeviceFeatureDmaBuf(UserStruct):
    """struct vfio_device_feature_dma_buf."""

    region_index: u32 = 0
    open_flags: u32 = 0
    flags: u32 = 0
    nr_ranges: u32 = 0


class IommuType1Info(UserStruct, last="iova_pgsizes"):
    """struct vfio_iommu_type1_info."""

    argsz: u32 = 0
    flags: u32 = 0
    iova_pgsizes: u64 = 0
    cap_offset: u32 = 0
    pad: u32 = 0


class IovaRange(UserStruct):
    """struct vfio_iova_range."""

    start: u64 = 0
    end: u64 = 0


class IommuType1InfoCapIovaRange(UserStruct):
    """struct vfio_iommu_type1_info_cap_iova_range."""

    header_id: u16 = 0
    header_version: u16 = 0
    header_next: u32 = 0
    nr_iovas: u32 = 0
    reserved: u32 = 0


class IommuType1InfoCapMigration(UserStruct):
    """struct vfio_iommu_type1_info_cap_migration."""

    header_id: u16 = 0
    header_version: u16 = 0
    header_next: u32 = 0
    flags: u32 = 0
    padding: u32 = 0
    pgsize_bitmap: u64 = 0
    max_dirty_bitmap_size: u64 = 0


class IommuType1InfoDmaAvail(UserStruct):
    """struct vfio_iommu_type1_info_dma_avail."""

    header_id: u16 = 0
    header_version: u16 = 0
    header_next: u32 = 0
    avail: u32 = 0


class IommuType1DmaMap(UserStruct):
    """struct vfio_iommu_type1_dma_map."""

    argsz: u32 = 0
    flags: u32 = 0
    vaddr: u64 = 0
    iova: u64 = 0
    size: u64 = 0


class Bitmap(UserStruct):
    """struct vfio_bitmap."""

    pgsize: u64 = 0
    size: u64 = 0
    data: u64 = 0


class IommuType1DmaUnmap(UserStruct):
    """struct vfio_iommu_type1_dma_unmap."""

    argsz: u32 = 0
    flags: u32 = 0
    iova: u64 = 0
    size: u64 = 0


class IommuType1DirtyBitmap(UserStruct):
    """struct vfio_iommu_type1_dirty_bitmap."""

    argsz: u32 = 0
    flags: u32 = 0


class IommuType1DirtyBitmapGet(UserStruct):
    """struct vfio_iommu_type1_dirty_bitmap_get."""

    iova: u64 = 0
    size: u64 = 0
    bitmap_pgsize: u64 = 0
    bitmap_size: u64 = 0
    bitmap_data: u64 = 0
