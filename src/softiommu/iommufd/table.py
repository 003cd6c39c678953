"""The ioctl table: every command of iommufd with its handler, and which of them a kernel has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from softiommu.abi import iommufd as abi
from softiommu.iommufd import device, dirty, events, hwpt, invalidate, ioas, noiommu, option, vfio_ioas, viommu
from softiommu.iommufd.context import Context, Services
from softiommu.iommufd.dispatch import Command
from softiommu.iommufd.kernels import Kernel
from softiommu.memory.pins import Physical

if TYPE_CHECKING:
    from softiommu.memory.client import Caller


def destroy(ctx: Context, cmd: abi.Destroy) -> None:
    """IOMMU_DESTROY."""
    ctx.discard(ctx.objects.check_destroy(cmd.id))


_ROWS = {
    abi.DESTROY: Command("DESTROY", abi.Destroy, destroy, replies=False),
    abi.IOAS_ALLOC: Command("IOAS_ALLOC", abi.IoasAlloc, ioas.alloc),
    abi.IOAS_ALLOW_IOVAS: Command("IOAS_ALLOW_IOVAS", abi.IoasAllowIovas, ioas.allow_iovas, replies=False),
    abi.IOAS_COPY: Command("IOAS_COPY", abi.IoasCopy, ioas.copy),
    abi.IOAS_IOVA_RANGES: Command("IOAS_IOVA_RANGES", abi.IoasIovaRanges, ioas.iova_ranges),
    abi.IOAS_MAP: Command("IOAS_MAP", abi.IoasMap, ioas.map),
    abi.IOAS_UNMAP: Command("IOAS_UNMAP", abi.IoasUnmap, ioas.unmap),
    abi.OPTION: Command("OPTION", abi.Option, option.option),
    abi.VFIO_IOAS: Command("VFIO_IOAS", abi.VfioIoas, vfio_ioas.vfio_ioas, replies=False),
    abi.HWPT_ALLOC: Command("HWPT_ALLOC", abi.HwptAlloc, hwpt.alloc),
    abi.GET_HW_INFO: Command("GET_HW_INFO", abi.HwInfo, device.get_hw_info),
    abi.HWPT_SET_DIRTY_TRACKING: Command(
        "HWPT_SET_DIRTY_TRACKING", abi.HwptSetDirtyTracking, dirty.set_tracking, replies=False
    ),
    abi.HWPT_GET_DIRTY_BITMAP: Command(
        "HWPT_GET_DIRTY_BITMAP", abi.HwptGetDirtyBitmap, dirty.get_bitmap, replies=False
    ),
    abi.HWPT_INVALIDATE: Command("HWPT_INVALIDATE", abi.HwptInvalidate, invalidate.invalidate),
    abi.FAULT_QUEUE_ALLOC: Command(
        "FAULT_QUEUE_ALLOC", abi.FaultAlloc, events.fault_queue_alloc, fd_field="out_fault_fd"
    ),
    abi.IOAS_MAP_FILE: Command("IOAS_MAP_FILE", abi.IoasMapFile, ioas.map_file),
    abi.VIOMMU_ALLOC: Command("VIOMMU_ALLOC", abi.ViommuAlloc, viommu.viommu_alloc),
    abi.VDEVICE_ALLOC: Command("VDEVICE_ALLOC", abi.VdeviceAlloc, viommu.vdevice_alloc),
    abi.IOAS_CHANGE_PROCESS: Command("IOAS_CHANGE_PROCESS", abi.IoasChangeProcess, ioas.change_process, replies=False),
    abi.VEVENTQ_ALLOC: Command("VEVENTQ_ALLOC", abi.VeventqAlloc, events.veventq_alloc, fd_field="out_veventq_fd"),
    abi.HW_QUEUE_ALLOC: Command("HW_QUEUE_ALLOC", abi.HwQueueAlloc, viommu.hw_queue_alloc),
    abi.IOAS_NOIOMMU_GET_PA: Command("IOAS_NOIOMMU_GET_PA", abi.IoasNoiommuGetPa, noiommu.get_pa),
}


def commands(kernel: Kernel) -> dict[int, Command]:
    """The table of one kernel version."""
    release = tuple(int(part) for part in kernel.name.split("."))
    return {row.cmd: _ROWS[row.cmd] for row in abi.IOCTLS if row.since <= release}


def _vfio_ioctl(ctx: Context, caller: Caller, cmd: int, arg: int) -> int:
    """VFIO's container commands, loaded when a program uses one."""
    from softiommu.iommufd import vfio_compat

    return vfio_compat.ioctl(ctx, caller, cmd, arg)


def services(kernel: Kernel, physical: Physical) -> Services:
    """What a machine lends to every file it opens, with this kernel's table."""
    made = Services(kernel, physical)
    made.commands = commands(kernel)
    made.last_number = max(cmd & 0xFF for cmd in made.commands)
    made.vfio_ioctl = _vfio_ioctl
    return made
