"""VFIO for other buses and machines, and its deprecated parts (include/uapi/linux/vfio.h). Names as in vfio.py.

sPAPR and EEH of POWER, NVLink, zPCI, CCW and AP of s390, graphics planes, version 1 of migration.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

from softiommu.abi.ioctl import TYPE, io
from softiommu.abi.struct import UserStruct, u16, u32, u64

DEVICE_QUERY_GFX_PLANE = io(TYPE, 114)
DEVICE_GET_GFX_DMABUF = io(TYPE, 115)
IOMMU_SPAPR_TCE_GET_INFO = io(TYPE, 112)
IOMMU_SPAPR_REGISTER_MEMORY = io(TYPE, 117)
IOMMU_SPAPR_UNREGISTER_MEMORY = io(TYPE, 118)
IOMMU_SPAPR_TCE_CREATE = io(TYPE, 119)
IOMMU_SPAPR_TCE_REMOVE = io(TYPE, 120)
EEH_PE_OP = io(TYPE, 121)


class RegionGfxEdid(UserStruct):
    """struct vfio_region_gfx_edid."""

    edid_offset: u32 = 0
    edid_max_size: u32 = 0
    edid_size: u32 = 0
    max_xres: u32 = 0
    max_yres: u32 = 0
    link_state: u32 = 0


class RegionInfoCapNvlink2Ssatgt(UserStruct):
    """struct vfio_region_info_cap_nvlink2_ssatgt."""

    header_id: u16 = 0
    header_version: u16 = 0
    header_next: u32 = 0
    tgt: u64 = 0


class RegionInfoCapNvlink2Lnkspd(UserStruct):
    """struct vfio_region_info_cap_nvlink2_lnkspd."""

    header_id: u16 = 0
    header_version: u16 = 0
    header_next: u32 = 0
    link_speed: u32 = 0
    pad: u32 = 0


class DeviceGfxPlaneInfo(UserStruct):
    """struct vfio_device_gfx_plane_info. `region_index` is also dmabuf_id."""

    argsz: u32 = 0
    flags: u32 = 0
    drm_plane_type: u32 = 0
    drm_format: u32 = 0
    drm_format_mod: u64 = 0
    width: u32 = 0
    height: u32 = 0
    stride: u32 = 0
    size: u32 = 0
    x_pos: u32 = 0
    y_pos: u32 = 0
    x_hot: u32 = 0
    y_hot: u32 = 0
    region_index: u32 = 0
    reserved: u32 = 0


class DeviceFeatureZpciErr(UserStruct):
    """struct vfio_device_feature_zpci_err."""

    data: u64 = 0


class IommuSpaprTceDdwInfo(UserStruct):
    """struct vfio_iommu_spapr_tce_ddw_info."""

    pgsizes: u64 = 0
    max_dynamic_windows_supported: u32 = 0
    levels: u32 = 0


class IommuSpaprTceInfo(UserStruct):
    """struct vfio_iommu_spapr_tce_info."""

    argsz: u32 = 0
    flags: u32 = 0
    dma32_window_start: u32 = 0
    dma32_window_size: u32 = 0
    ddw_pgsizes: u64 = 0
    ddw_max_dynamic_windows_supported: u32 = 0
    ddw_levels: u32 = 0


class EehPeErr(UserStruct):
    """struct vfio_eeh_pe_err."""

    type: u32 = 0
    func: u32 = 0
    addr: u64 = 0
    mask: u64 = 0


class EehPeOp(UserStruct, last="op"):
    """struct vfio_eeh_pe_op."""

    argsz: u32 = 0
    flags: u32 = 0
    op: u32 = 0
    padding: u32 = 0
    err_type: u32 = 0
    err_func: u32 = 0
    err_addr: u64 = 0
    err_mask: u64 = 0


class IommuSpaprRegisterMemory(UserStruct):
    """struct vfio_iommu_spapr_register_memory."""

    argsz: u32 = 0
    flags: u32 = 0
    vaddr: u64 = 0
    size: u64 = 0


class IommuSpaprTceCreate(UserStruct):
    """struct vfio_iommu_spapr_tce_create."""

    argsz: u32 = 0
    flags: u32 = 0
    page_shift: u32 = 0
    resv1: u32 = 0
    window_size: u64 = 0
    levels: u32 = 0
    resv2: u32 = 0
    start_addr: u64 = 0


class IommuSpaprTceRemove(UserStruct):
    """struct vfio_iommu_spapr_tce_remove."""

    argsz: u32 = 0
    flags: u32 = 0
    start_addr: u64 = 0


class RegionType(IntEnum):
    """VFIO_REGION_TYPE_*: PCI_VENDOR_TYPE is a flag beside a vendor's number."""

    GFX = 1
    CCW = 2
    MIGRATION_DEPRECATED = 3
    PCI_VENDOR_MASK = 0xFFFF
    PCI_VENDOR_TYPE = 0x80000000


class IntelIgdSubtype(IntEnum):
    """VFIO_REGION_SUBTYPE_INTEL_IGD_*."""

    OPREGION = 1
    HOST_CFG = 2
    LPC_CFG = 3


class CcwSubtype(IntEnum):
    """VFIO_REGION_SUBTYPE_CCW_*."""

    ASYNC_CMD = 1
    SCHIB = 2
    CRW = 3


class GfxLinkState(IntEnum):
    """VFIO_DEVICE_GFX_LINK_STATE_*."""

    UP = 1
    DOWN = 2


class GfxPlaneFlags(IntFlag):
    """VFIO_GFX_PLANE_TYPE_*."""

    PROBE = 1
    DMABUF = 2
    REGION = 4


class StateV1Flags(IntFlag):
    """VFIO_DEVICE_STATE_V1_*: version 1 of migration; STOP is no bit set."""

    STOP = 0
    RUNNING = 1
    SAVING = 2
    RESUMING = 4


class CcwRegion(IntEnum):
    """VFIO_CCW_*_REGION_INDEX."""

    CONFIG = 0


class CcwIrq(IntEnum):
    """VFIO_CCW_*_IRQ_INDEX."""

    IO = 0
    CRW = 1
    REQ = 2


class ApIrq(IntEnum):
    """VFIO_AP_*_IRQ_INDEX."""

    REQ = 0
    CFG_CHG = 1


class EehOp(IntEnum):
    """VFIO_EEH_PE_*: what VFIO_EEH_PE_OP does."""

    DISABLE = 0
    ENABLE = 1
    UNFREEZE_IO = 2
    UNFREEZE_DMA = 3
    GET_STATE = 4
    RESET_DEACTIVATE = 5
    RESET_HOT = 6
    RESET_FUNDAMENTAL = 7
    CONFIGURE = 8
    INJECT_ERR = 9


class EehState(IntEnum):
    """VFIO_EEH_PE_STATE_*: what GET_STATE answers."""

    NORMAL = 0
    RESET = 1
    STOPPED = 2
    STOPPED_DMA = 4
    UNAVAIL = 5


REGION_SUBTYPE_NVIDIA_NVLINK2_RAM = 1
REGION_SUBTYPE_IBM_NVLINK2_ATSD = 1
REGION_SUBTYPE_GFX_EDID = 1
REGION_SUBTYPE_MIGRATION_DEPRECATED = 1
DEVICE_STATE_MASK = 7
IOMMU_SPAPR_INFO_DDW = 1
CCW_NUM_REGIONS = 1
CCW_NUM_IRQS = 3
AP_NUM_IRQS = 2
