"""iommufd: structures, flags, numbers, and which kernel has which command (include/uapi/linux/iommufd.h)."""

from __future__ import annotations

from typing import NamedTuple

from softiommu.abi.ioctl import TYPE as TYPE, io
from softiommu.abi.iommufd_enums import (
    GetDirtyBitmapFlags as GetDirtyBitmapFlags,
    HwCapabilities as HwCapabilities,
    HwInfoArmSmmuv3Flags as HwInfoArmSmmuv3Flags,
    HwInfoFlags as HwInfoFlags,
    HwInfoType as HwInfoType,
    HwInfoVtdFlags as HwInfoVtdFlags,
    HwptAllocFlags as HwptAllocFlags,
    HwptDataType as HwptDataType,
    HwQueueType as HwQueueType,
    InvalidateDataType as InvalidateDataType,
    IoasMapFlags as IoasMapFlags,
    OptionId as OptionId,
    OptionOp as OptionOp,
    PageResponseCode as PageResponseCode,
    PgfaultFlags as PgfaultFlags,
    PgfaultPerm as PgfaultPerm,
    SetDirtyTrackingFlags as SetDirtyTrackingFlags,
    VeventqFlag as VeventqFlag,
    VeventqType as VeventqType,
    VfioIoasOp as VfioIoasOp,
    ViommuType as ViommuType,
    VtdInvFlags as VtdInvFlags,
    VtdS1Flags as VtdS1Flags,
)
from softiommu.abi.iommufd_structs import (
    Destroy as Destroy,
    FaultAlloc as FaultAlloc,
    HwInfo as HwInfo,
    HwInfoAmd as HwInfoAmd,
    HwInfoArmSmmuv3 as HwInfoArmSmmuv3,
    HwInfoTegra241Cmdqv as HwInfoTegra241Cmdqv,
    HwInfoVtd as HwInfoVtd,
    HwptAlloc as HwptAlloc,
    HwptAmdGuest as HwptAmdGuest,
    HwptArmSmmuv3 as HwptArmSmmuv3,
    HwptGetDirtyBitmap as HwptGetDirtyBitmap,
    HwptInvalidate as HwptInvalidate,
    HwptPageResponse as HwptPageResponse,
    HwptPgfault as HwptPgfault,
    HwptSetDirtyTracking as HwptSetDirtyTracking,
    HwptVtdS1 as HwptVtdS1,
    HwptVtdS1Invalidate as HwptVtdS1Invalidate,
    HwQueueAlloc as HwQueueAlloc,
    IoasAlloc as IoasAlloc,
    IoasAllowIovas as IoasAllowIovas,
    IoasChangeProcess as IoasChangeProcess,
    IoasCopy as IoasCopy,
    IoasIovaRanges as IoasIovaRanges,
    IoasMap as IoasMap,
    IoasMapFile as IoasMapFile,
    IoasNoiommuGetPa as IoasNoiommuGetPa,
    IoasUnmap as IoasUnmap,
    IovaRange as IovaRange,
    Option as Option,
    VdeviceAlloc as VdeviceAlloc,
    VeventArmSmmuv3 as VeventArmSmmuv3,
    VeventHeader as VeventHeader,
    VeventqAlloc as VeventqAlloc,
    VeventTegra241Cmdqv as VeventTegra241Cmdqv,
    VfioIoas as VfioIoas,
    ViommuAlloc as ViommuAlloc,
    ViommuArmSmmuv3Invalidate as ViommuArmSmmuv3Invalidate,
    ViommuTegra241Cmdqv as ViommuTegra241Cmdqv,
)
from softiommu.abi.struct import UserStruct

CMD_BASE = 0x80

DESTROY = io(TYPE, 0x80)
IOAS_ALLOC = io(TYPE, 0x81)
IOAS_ALLOW_IOVAS = io(TYPE, 0x82)
IOAS_COPY = io(TYPE, 0x83)
IOAS_IOVA_RANGES = io(TYPE, 0x84)
IOAS_MAP = io(TYPE, 0x85)
IOAS_UNMAP = io(TYPE, 0x86)
OPTION = io(TYPE, 0x87)
VFIO_IOAS = io(TYPE, 0x88)
HWPT_ALLOC = io(TYPE, 0x89)
GET_HW_INFO = io(TYPE, 0x8A)
HWPT_SET_DIRTY_TRACKING = io(TYPE, 0x8B)
HWPT_GET_DIRTY_BITMAP = io(TYPE, 0x8C)
HWPT_INVALIDATE = io(TYPE, 0x8D)
FAULT_QUEUE_ALLOC = io(TYPE, 0x8E)
IOAS_MAP_FILE = io(TYPE, 0x8F)
VIOMMU_ALLOC = io(TYPE, 0x90)
VDEVICE_ALLOC = io(TYPE, 0x91)
IOAS_CHANGE_PROCESS = io(TYPE, 0x92)
VEVENTQ_ALLOC = io(TYPE, 0x93)
HW_QUEUE_ALLOC = io(TYPE, 0x94)
IOAS_NOIOMMU_GET_PA = io(TYPE, 0x95)


#: The kernel releases whose commands are known here: 6.12, 7.2.13 and 7.3-rc7 were read.
RELEASES = ((6, 12), (7, 2), (7, 3))


class Ioctl(NamedTuple):
    """A command: its number, its structure, and the first of the releases that has it.

    SIZE and MIN_SIZE of the structure are the same in each of these releases: they differ in commands only.
    """

    name: str
    cmd: int
    struct: type[UserStruct]
    since: tuple[int, int]

    @property
    def present_in(self) -> tuple[str, ...]:
        """The releases that have the command: "7.2", "7.3"."""
        return tuple(f"{major}.{minor}" for major, minor in RELEASES if (major, minor) >= self.since)


IOCTLS = (
    Ioctl("DESTROY", DESTROY, Destroy, (6, 12)),
    Ioctl("IOAS_ALLOC", IOAS_ALLOC, IoasAlloc, (6, 12)),
    Ioctl("IOAS_ALLOW_IOVAS", IOAS_ALLOW_IOVAS, IoasAllowIovas, (6, 12)),
    Ioctl("IOAS_COPY", IOAS_COPY, IoasCopy, (6, 12)),
    Ioctl("IOAS_IOVA_RANGES", IOAS_IOVA_RANGES, IoasIovaRanges, (6, 12)),
    Ioctl("IOAS_MAP", IOAS_MAP, IoasMap, (6, 12)),
    Ioctl("IOAS_UNMAP", IOAS_UNMAP, IoasUnmap, (6, 12)),
    Ioctl("OPTION", OPTION, Option, (6, 12)),
    Ioctl("VFIO_IOAS", VFIO_IOAS, VfioIoas, (6, 12)),
    Ioctl("HWPT_ALLOC", HWPT_ALLOC, HwptAlloc, (6, 12)),
    Ioctl("GET_HW_INFO", GET_HW_INFO, HwInfo, (6, 12)),
    Ioctl("HWPT_SET_DIRTY_TRACKING", HWPT_SET_DIRTY_TRACKING, HwptSetDirtyTracking, (6, 12)),
    Ioctl("HWPT_GET_DIRTY_BITMAP", HWPT_GET_DIRTY_BITMAP, HwptGetDirtyBitmap, (6, 12)),
    Ioctl("HWPT_INVALIDATE", HWPT_INVALIDATE, HwptInvalidate, (6, 12)),
    Ioctl("FAULT_QUEUE_ALLOC", FAULT_QUEUE_ALLOC, FaultAlloc, (6, 12)),
    Ioctl("IOAS_MAP_FILE", IOAS_MAP_FILE, IoasMapFile, (7, 2)),
    Ioctl("VIOMMU_ALLOC", VIOMMU_ALLOC, ViommuAlloc, (7, 2)),
    Ioctl("VDEVICE_ALLOC", VDEVICE_ALLOC, VdeviceAlloc, (7, 2)),
    Ioctl("IOAS_CHANGE_PROCESS", IOAS_CHANGE_PROCESS, IoasChangeProcess, (7, 2)),
    Ioctl("VEVENTQ_ALLOC", VEVENTQ_ALLOC, VeventqAlloc, (7, 2)),
    Ioctl("HW_QUEUE_ALLOC", HW_QUEUE_ALLOC, HwQueueAlloc, (7, 2)),
    Ioctl("IOAS_NOIOMMU_GET_PA", IOAS_NOIOMMU_GET_PA, IoasNoiommuGetPa, (7, 3)),
)
