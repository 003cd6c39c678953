"""The flags and enumerations of iommufd. A member is the header's name without the prefix its class names."""

from __future__ import annotations

from enum import IntEnum, IntFlag


class IoasMapFlags(IntFlag):
    """enum iommufd_ioas_map_flags: IOMMU_IOAS_MAP_*."""

    FIXED_IOVA = 1
    WRITEABLE = 2
    READABLE = 4


class OptionId(IntEnum):
    """enum iommufd_option: IOMMU_OPTION_*."""

    RLIMIT_MODE = 0
    HUGE_PAGES = 1


class OptionOp(IntEnum):
    """enum iommufd_option_ops: IOMMU_OPTION_OP_*."""

    SET = 0
    GET = 1


class VfioIoasOp(IntEnum):
    """enum iommufd_vfio_ioas_op: IOMMU_VFIO_IOAS_*."""

    GET = 0
    SET = 1
    CLEAR = 2


class HwptAllocFlags(IntFlag):
    """enum iommufd_hwpt_alloc_flags: IOMMU_HWPT_*."""

    ALLOC_NEST_PARENT = 1
    ALLOC_DIRTY_TRACKING = 2
    FAULT_ID_VALID = 4
    ALLOC_PASID = 8


class VtdS1Flags(IntFlag):
    """enum iommu_hwpt_vtd_s1_flags: IOMMU_VTD_S1_*."""

    SRE = 1
    EAFE = 2
    WPE = 4


class HwptDataType(IntEnum):
    """enum iommu_hwpt_data_type: IOMMU_HWPT_DATA_*."""

    NONE = 0
    VTD_S1 = 1
    ARM_SMMUV3 = 2
    AMD_GUEST = 3


class HwInfoVtdFlags(IntFlag):
    """enum iommu_hw_info_vtd_flags: IOMMU_HW_INFO_VTD_*."""

    ERRATA_772415_SPR17 = 1


class HwInfoArmSmmuv3Flags(IntFlag):
    """enum iommu_hw_info_arm_smmuv3_flags: IOMMU_HW_INFO_ARM_SMMUV3_*."""

    ERRATA_REPEAT_TLBI_CFGI = 1


class HwInfoType(IntEnum):
    """enum iommu_hw_info_type: IOMMU_HW_INFO_TYPE_*."""

    NONE = 0
    DEFAULT = 0
    INTEL_VTD = 1
    ARM_SMMUV3 = 2
    TEGRA241_CMDQV = 3
    AMD = 4


class HwCapabilities(IntFlag):
    """enum iommufd_hw_capabilities: IOMMU_HW_CAP_*."""

    DIRTY_TRACKING = 1
    PCI_PASID_EXEC = 2
    PCI_PASID_PRIV = 4
    PCI_ATS_NOT_SUPPORTED = 8


class HwInfoFlags(IntFlag):
    """enum iommufd_hw_info_flags: IOMMU_HW_INFO_FLAG_*."""

    INPUT_TYPE = 1


class SetDirtyTrackingFlags(IntFlag):
    """enum iommufd_hwpt_set_dirty_tracking_flags: IOMMU_HWPT_DIRTY_TRACKING_*."""

    ENABLE = 1


class GetDirtyBitmapFlags(IntFlag):
    """enum iommufd_hwpt_get_dirty_bitmap_flags: IOMMU_HWPT_GET_DIRTY_BITMAP_*."""

    NO_CLEAR = 1


class InvalidateDataType(IntEnum):
    """enum iommu_hwpt_invalidate_data_type: IOMMU_*."""

    HWPT_INVALIDATE_DATA_VTD_S1 = 0
    VIOMMU_INVALIDATE_DATA_ARM_SMMUV3 = 1


class VtdInvFlags(IntFlag):
    """enum iommu_hwpt_vtd_s1_invalidate_flags: IOMMU_VTD_INV_FLAGS_*."""

    LEAF = 1


class PgfaultFlags(IntFlag):
    """enum iommu_hwpt_pgfault_flags: IOMMU_PGFAULT_FLAGS_*."""

    PASID_VALID = 1
    LAST_PAGE = 2


class PgfaultPerm(IntFlag):
    """enum iommu_hwpt_pgfault_perm: IOMMU_PGFAULT_PERM_*."""

    READ = 1
    WRITE = 2
    EXEC = 4
    PRIV = 8


class PageResponseCode(IntEnum):
    """enum iommufd_page_response_code: IOMMUFD_PAGE_RESP_*."""

    SUCCESS = 0
    INVALID = 1


class ViommuType(IntEnum):
    """enum iommu_viommu_type: IOMMU_VIOMMU_TYPE_*."""

    DEFAULT = 0
    ARM_SMMUV3 = 1
    TEGRA241_CMDQV = 2


class VeventqFlag(IntFlag):
    """enum iommu_veventq_flag: IOMMU_VEVENTQ_FLAG_*."""

    LOST_EVENTS = 1


class VeventqType(IntEnum):
    """enum iommu_veventq_type: IOMMU_VEVENTQ_TYPE_*."""

    DEFAULT = 0
    ARM_SMMUV3 = 1
    TEGRA241_CMDQV = 2


class HwQueueType(IntEnum):
    """enum iommu_hw_queue_type: IOMMU_HW_QUEUE_TYPE_*."""

    DEFAULT = 0
    TEGRA241_CMDQV = 1
