"""VFIO: structures, numbers and flags of containers, groups, PCI devices and iommufd (include/uapi/linux/vfio.h).

A name is the header's without VFIO_; a member of an enumeration stands for the star in the name its class gives.
What other buses and machines have, and what is deprecated, is in vfio_other.py.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

from softiommu.abi.ioctl import TYPE as TYPE, io
from softiommu.abi.vfio_structs import (
    Bitmap as Bitmap,
    DeviceAttachIommufdPt as DeviceAttachIommufdPt,
    DeviceBindIommufd as DeviceBindIommufd,
    DeviceDetachIommufdPt as DeviceDetachIommufdPt,
    DeviceFeature as DeviceFeature,
    DeviceFeatureBusMaster as DeviceFeatureBusMaster,
    DeviceFeatureDmaBuf as DeviceFeatureDmaBuf,
    DeviceFeatureDmaLoggingControl as DeviceFeatureDmaLoggingControl,
    DeviceFeatureDmaLoggingRange as DeviceFeatureDmaLoggingRange,
    DeviceFeatureDmaLoggingReport as DeviceFeatureDmaLoggingReport,
    DeviceFeatureMigDataSize as DeviceFeatureMigDataSize,
    DeviceFeatureMigration as DeviceFeatureMigration,
    DeviceFeatureMigState as DeviceFeatureMigState,
    DeviceInfo as DeviceInfo,
    DeviceInfoCapPciAtomicComp as DeviceInfoCapPciAtomicComp,
    DeviceIoeventfd as DeviceIoeventfd,
    DeviceLowPowerEntryWithWakeup as DeviceLowPowerEntryWithWakeup,
    DeviceMigrationInfo as DeviceMigrationInfo,
    GroupStatus as GroupStatus,
    InfoCapHeader as InfoCapHeader,
    IommuType1DirtyBitmap as IommuType1DirtyBitmap,
    IommuType1DirtyBitmapGet as IommuType1DirtyBitmapGet,
    IommuType1DmaMap as IommuType1DmaMap,
    IommuType1DmaUnmap as IommuType1DmaUnmap,
    IommuType1Info as IommuType1Info,
    IommuType1InfoCapIovaRange as IommuType1InfoCapIovaRange,
    IommuType1InfoCapMigration as IommuType1InfoCapMigration,
    IommuType1InfoDmaAvail as IommuType1InfoDmaAvail,
    IovaRange as IovaRange,
    IrqInfo as IrqInfo,
    IrqSet as IrqSet,
    PciDependentDevice as PciDependentDevice,
    PciHotReset as PciHotReset,
    PciHotResetInfo as PciHotResetInfo,
    PrecopyInfo as PrecopyInfo,
    RegionDmaRange as RegionDmaRange,
    RegionInfo as RegionInfo,
    RegionInfoCapSparseMmap as RegionInfoCapSparseMmap,
    RegionInfoCapType as RegionInfoCapType,
    RegionSparseMmapArea as RegionSparseMmapArea,
)

BASE = 100
API_VERSION = 0

GET_API_VERSION = io(TYPE, 100)
CHECK_EXTENSION = io(TYPE, 101)
SET_IOMMU = io(TYPE, 102)
GROUP_GET_STATUS = io(TYPE, 103)
GROUP_SET_CONTAINER = io(TYPE, 104)
GROUP_UNSET_CONTAINER = io(TYPE, 105)
GROUP_GET_DEVICE_FD = io(TYPE, 106)
DEVICE_GET_INFO = io(TYPE, 107)
DEVICE_GET_REGION_INFO = io(TYPE, 108)
DEVICE_GET_IRQ_INFO = io(TYPE, 109)
DEVICE_SET_IRQS = io(TYPE, 110)
DEVICE_RESET = io(TYPE, 111)
DEVICE_GET_PCI_HOT_RESET_INFO = io(TYPE, 112)
DEVICE_PCI_HOT_RESET = io(TYPE, 113)
DEVICE_IOEVENTFD = io(TYPE, 116)
DEVICE_FEATURE = io(TYPE, 117)
DEVICE_BIND_IOMMUFD = io(TYPE, 118)
DEVICE_ATTACH_IOMMUFD_PT = io(TYPE, 119)
DEVICE_DETACH_IOMMUFD_PT = io(TYPE, 120)
MIG_GET_PRECOPY_INFO = io(TYPE, 121)
IOMMU_GET_INFO = io(TYPE, 112)
IOMMU_MAP_DMA = io(TYPE, 113)
IOMMU_UNMAP_DMA = io(TYPE, 114)
IOMMU_ENABLE = io(TYPE, 115)
IOMMU_DISABLE = io(TYPE, 116)
IOMMU_DIRTY_PAGES = io(TYPE, 117)


class Extension(IntEnum):
    """VFIO_*: what VFIO_CHECK_EXTENSION and VFIO_SET_IOMMU take. Type 6 is __VFIO_RESERVED_TYPE1_NESTING_IOMMU."""

    TYPE1_IOMMU = 1
    SPAPR_TCE_IOMMU = 2
    TYPE1v2_IOMMU = 3
    DMA_CC_IOMMU = 4
    EEH = 5
    TYPE1_NESTING_IOMMU = 6
    SPAPR_TCE_v2_IOMMU = 7
    NOIOMMU_IOMMU = 8
    UNMAP_ALL = 9
    UPDATE_VADDR = 10


class GroupFlags(IntFlag):
    """VFIO_GROUP_FLAGS_*."""

    VIABLE = 1
    CONTAINER_SET = 2


class DeviceFlags(IntFlag):
    """VFIO_DEVICE_FLAGS_*."""

    RESET = 1
    PCI = 2
    PLATFORM = 4
    AMBA = 8
    CCW = 0x10
    AP = 0x20
    FSL_MC = 0x40
    CAPS = 0x80
    CDX = 0x100


class DeviceCap(IntEnum):
    """VFIO_DEVICE_INFO_CAP_*: capabilities of a device."""

    ZPCI_BASE = 1
    ZPCI_GROUP = 2
    ZPCI_UTIL = 3
    ZPCI_PFIP = 4
    PCI_ATOMIC_COMP = 5


class PciAtomicFlags(IntFlag):
    """VFIO_PCI_ATOMIC_*: atomic operations that the root port completes."""

    COMP32 = 1
    COMP64 = 2
    COMP128 = 4


class RegionFlags(IntFlag):
    """VFIO_REGION_INFO_FLAG_*."""

    READ = 1
    WRITE = 2
    MMAP = 4
    CAPS = 8


class RegionCap(IntEnum):
    """VFIO_REGION_INFO_CAP_*."""

    SPARSE_MMAP = 1
    TYPE = 2
    MSIX_MAPPABLE = 3
    NVLINK2_SSATGT = 4
    NVLINK2_LNKSPD = 5


class IrqFlags(IntFlag):
    """VFIO_IRQ_INFO_*."""

    EVENTFD = 1
    MASKABLE = 2
    AUTOMASKED = 4
    NORESIZE = 8


class IrqSetFlags(IntFlag):
    """VFIO_IRQ_SET_*."""

    DATA_NONE = 1
    DATA_BOOL = 2
    DATA_EVENTFD = 4
    ACTION_MASK = 8
    ACTION_UNMASK = 0x10
    ACTION_TRIGGER = 0x20
    DATA_TYPE_MASK = 7
    ACTION_TYPE_MASK = 0x38


class HotResetFlags(IntFlag):
    """VFIO_PCI_HOT_RESET_FLAG_*."""

    DEV_ID = 1
    DEV_ID_OWNED = 2


class IoeventfdFlags(IntFlag):
    """VFIO_DEVICE_IOEVENTFD_*: SIZE_8 is VFIO_DEVICE_IOEVENTFD_8, for a name cannot be 8."""

    SIZE_8 = 1
    SIZE_16 = 2
    SIZE_32 = 4
    SIZE_64 = 8
    SIZE_MASK = 0xF


class FeatureFlags(IntFlag):
    """VFIO_DEVICE_FEATURE_*: what to do with a feature."""

    MASK = 0xFFFF
    GET = 0x10000
    SET = 0x20000
    PROBE = 0x40000


class Feature(IntEnum):
    """VFIO_DEVICE_FEATURE_*: the features."""

    PCI_VF_TOKEN = 0
    MIGRATION = 1
    MIG_DEVICE_STATE = 2
    LOW_POWER_ENTRY = 3
    LOW_POWER_ENTRY_WITH_WAKEUP = 4
    LOW_POWER_EXIT = 5
    DMA_LOGGING_START = 6
    DMA_LOGGING_STOP = 7
    DMA_LOGGING_REPORT = 8
    MIG_DATA_SIZE = 9
    BUS_MASTER = 0xA
    DMA_BUF = 0xB
    MIG_PRECOPY_INFOv2 = 0xC
    ZPCI_ERROR = 0xD


class MigrationFlags(IntFlag):
    """VFIO_MIGRATION_*."""

    STOP_COPY = 1
    P2P = 2
    PRE_COPY = 4


class MigState(IntEnum):
    """VFIO_DEVICE_STATE_*: enum vfio_device_mig_state."""

    ERROR = 0
    STOP = 1
    RUNNING = 2
    STOP_COPY = 3
    RESUMING = 4
    RUNNING_P2P = 5
    PRE_COPY = 6
    PRE_COPY_P2P = 7
    NR = 8


class IommuInfoFlags(IntFlag):
    """VFIO_IOMMU_INFO_*."""

    PGSIZES = 1
    CAPS = 2


class Type1Cap(IntEnum):
    """VFIO_IOMMU_TYPE1_INFO_CAP_* or VFIO_IOMMU_TYPE1_INFO_*: capabilities of a container."""

    IOVA_RANGE = 1
    MIGRATION = 2
    DMA_AVAIL = 3


class DmaMapFlags(IntFlag):
    """VFIO_DMA_MAP_FLAG_*."""

    READ = 1
    WRITE = 2
    VADDR = 4


class DmaUnmapFlags(IntFlag):
    """VFIO_DMA_UNMAP_FLAG_*."""

    GET_DIRTY_BITMAP = 1
    ALL = 2
    VADDR = 4


class DirtyPagesFlags(IntFlag):
    """VFIO_IOMMU_DIRTY_PAGES_FLAG_*."""

    START = 1
    STOP = 2
    GET_BITMAP = 4


class PciRegion(IntEnum):
    """VFIO_PCI_*_REGION_INDEX."""

    BAR0 = 0
    BAR1 = 1
    BAR2 = 2
    BAR3 = 3
    BAR4 = 4
    BAR5 = 5
    ROM = 6
    CONFIG = 7
    VGA = 8


class PciIrq(IntEnum):
    """VFIO_PCI_*_IRQ_INDEX."""

    INTX = 0
    MSI = 1
    MSIX = 2
    ERR = 3
    REQ = 4


PCI_NUM_REGIONS = 9
PCI_NUM_IRQS = 5
DEVICE_API_PCI_STRING = "vfio-pci"
DEVICE_API_PLATFORM_STRING = "vfio-platform"
DEVICE_API_AMBA_STRING = "vfio-amba"
DEVICE_API_CCW_STRING = "vfio-ccw"
DEVICE_API_AP_STRING = "vfio-ap"
PRECOPY_INFO_REINIT = 1
DEVICE_BIND_FLAG_TOKEN = 1
DEVICE_ATTACH_PASID = 1
DEVICE_DETACH_PASID = 1
DEVICE_FEATURE_CLEAR_MASTER = 0
DEVICE_FEATURE_SET_MASTER = 1
PCI_DEVID_OWNED = 0
PCI_DEVID_NOT_OWNED = -1
