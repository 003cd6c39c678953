"""vIOMMUs: a guest's slice of a physical IOMMU, its names for devices, and its hardware queues."""

from __future__ import annotations

from errno import EEXIST, EINVAL, ENOMEM, EOPNOTSUPP, EOVERFLOW, ERANGE
from typing import TYPE_CHECKING

from softiommu.abi import iommufd as abi
from softiommu.drivers.driver import Viommu
from softiommu.drivers.user_data import UserData
from softiommu.errors import UapiError
from softiommu.iommufd.access import Access, Flags
from softiommu.iommufd.area import MAX
from softiommu.iommufd.context import Context
from softiommu.iommufd.device import DeviceObject
from softiommu.iommufd.hwpt import HwptPaging
from softiommu.iommufd.objects import Object
from softiommu.memory.client import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from softiommu.iommufd.events import VeventQueue

_MAX_QUEUE = 1 << 40


class ViommuObject(Object):
    """A vIOMMU (iommufd_viommu). Its driver reaches the manager through it (ViommuHost)."""

    kind = "vIOMMU"
    viommu: Viommu

    def __init__(self, ctx: Context, device: DeviceObject, hwpt: HwptPaging, type: int, flags: int) -> None:
        super().__init__()
        self.iommu, self.hwpt, self.type, self.flags = device.device.iommu, hwpt, type, flags
        self.event_queues: dict[int, VeventQueue] = {}
        self.vdevices: dict[int, Vdevice] = {}
        self.hw_queues: dict[int, HwQueue] = {}
        self._ctx = ctx
        self._regions: list[int] = []
        self._made = False
        hwpt.users += 1

    def make(self, device: DeviceObject, data: UserData | None) -> None:
        """Let the driver set its side up."""
        self.viommu = device.device.alloc_viommu(self.type, self.hwpt.domain, self, data)
        self._made = True

    def mmap_region(self, length: int, poll: Callable[[], bool] | None = None) -> int:
        """Pages that the VMM can map from the iommufd file: their offset."""
        offset = self._ctx.regions.add(length)
        self._regions.append(offset)
        if poll is not None:
            self._ctx.services.pollers[self] = poll
        return offset

    def store(self, offset: int, data: bytes) -> None:
        """Write into a region."""
        self._ctx.regions.store(offset, data)

    def load(self, offset: int, length: int) -> bytes:
        """Read from a region."""
        return self._ctx.regions.load(offset, length)

    def report_event(self, type: int, data: bytes) -> None:
        """Queue an event for the guest. EOPNOTSUPP: no queue of this type."""
        queue = self.event_queues.get(type)
        if queue is None:
            raise UapiError(EOPNOTSUPP, f"vIOMMU {self.id} has no event queue of type {type:#x}")
        queue.add(data)

    def busy(self) -> str | None:
        """Users, or a mapping of one of its regions."""
        if any(self._ctx.regions.mapped(offset) for offset in self._regions):
            return "one of its regions is mapped"
        return super().busy()

    def destroy(self, ctx: Context) -> None:
        """Let go of the parent and the regions."""
        self._ctx.services.pollers.pop(self, None)
        if self._made:
            self.viommu.free()
        for offset in self._regions:
            ctx.regions.remove(offset)
        self.hwpt.users -= 1


def viommu_alloc(ctx: Context, cmd: abi.ViommuAlloc) -> None:
    """IOMMU_VIOMMU_ALLOC."""
    if cmd.flags & ~_known_flags(ctx, cmd.dev_id) or not cmd.type:
        raise UapiError(EOPNOTSUPP, f"flags {cmd.flags:#x} and type {cmd.type:#x} make no vIOMMU")
    device = ctx.objects.get(cmd.dev_id, DeviceObject)
    if cmd.type not in device.device.viommu_types():
        raise UapiError(EOPNOTSUPP, f"the IOMMU of {device.device.name} has no vIOMMU of type {cmd.type:#x}")
    hwpt = ctx.objects.get(cmd.hwpt_id, HwptPaging)
    if not hwpt.nest_parent:
        raise UapiError(EINVAL, f"HWPT {hwpt.id} was made without NEST_PARENT")
    viommu = ctx.new(ViommuObject(ctx, device, hwpt, cmd.type, cmd.flags))
    data = UserData(ctx.caller, cmd.data_uptr, cmd.data_len, cmd.type) if cmd.data_len else None
    viommu.make(device, data)
    cmd.out_viommu_id = viommu.id


def _known_flags(ctx: Context, device_id: int) -> int:
    """The flags that a device's driver takes: a released kernel knows none."""
    device = ctx.objects.find(device_id)
    return device.device.features.viommu_flags if isinstance(device, DeviceObject) else 0


class Vdevice(Object):
    """The guest's name for a device (iommufd_vdevice)."""

    kind = "vDEVICE"

    def __init__(self, viommu: ViommuObject, device: DeviceObject, virt_id: int) -> None:
        super().__init__()
        self.viommu, self.device, self.virt_id = viommu, device, virt_id
        viommu.users += 1
        viommu.vdevices[virt_id] = self
        device.vdevice = self

    def destroy(self, ctx: Context) -> None:
        """The name is free again."""
        self.viommu.viommu.remove_vdevice(self.device.device)
        del self.viommu.vdevices[self.virt_id]
        self.viommu.users -= 1
        self.device.vdevice = None


def vdevice_alloc(ctx: Context, cmd: abi.VdeviceAlloc) -> None:
    """IOMMU_VDEVICE_ALLOC."""
    viommu = ctx.objects.get(cmd.viommu_id, ViommuObject)
    device = ctx.objects.get(cmd.dev_id, DeviceObject)
    if device.device.iommu is not viommu.iommu:
        raise UapiError(EINVAL, f"device {device.device.name} sits behind another IOMMU than vIOMMU {viommu.id}")
    if device.vdevice is not None:
        raise UapiError(EEXIST, f"device {cmd.dev_id} has vDEVICE {device.vdevice.id} already")
    if cmd.virt_id in viommu.vdevices:
        raise UapiError(EEXIST, f"virtual id {cmd.virt_id:#x} is taken in vIOMMU {viommu.id}")
    viommu.viommu.add_vdevice(device.device, cmd.virt_id)
    cmd.out_vdevice_id = ctx.new(Vdevice(viommu, device, cmd.virt_id)).id


class HwQueue(Object):
    """A queue of the guest's that the hardware reads by itself (iommufd_hw_queue)."""

    kind = "HW queue"

    def __init__(self, viommu: ViommuObject, index: int) -> None:
        super().__init__()
        self.viommu, self.index = viommu, index
        self._access: Access | None = None
        self._needs: HwQueue | None = None
        self._started = False
        viommu.users += 1

    def pin(self, ctx: Context, iova: int, length: int) -> int:
        """Hold the queue's memory where it is; its physical address. Errors as Access.attach and pin_contiguous."""
        access = ctx.objects.add(Access(ctx, pins=True))
        access.ready = True
        self._access = access
        access.attach(self.viommu.hwpt.ioas)
        skew = iova % PAGE_SIZE
        size = -(-(skew + length) // PAGE_SIZE) * PAGE_SIZE
        return access.pin_contiguous(iova - skew, size, Flags.READ) + skew

    def start(self, iova: int, pa: int, length: int) -> None:
        """Let the driver use it."""
        needs = self.viommu.viommu.add_hw_queue(self.index, iova, pa, length)
        self._started = True
        self.viommu.hw_queues[self.index] = self
        if needs is not None:
            self._needs = self.viommu.hw_queues[needs]
            self._needs.users += 1

    def destroy(self, ctx: Context) -> None:
        """Stop it and let its memory go."""
        if self._started:
            self.viommu.viommu.remove_hw_queue(self.index)
            del self.viommu.hw_queues[self.index]
        if self._needs is not None:
            self._needs.users -= 1
        if self._access is not None:
            ctx.discard(self._access)
        self.viommu.users -= 1


def hw_queue_alloc(ctx: Context, cmd: abi.HwQueueAlloc) -> None:
    """IOMMU_HW_QUEUE_ALLOC."""
    if cmd.flags or not cmd.type:
        raise UapiError(EOPNOTSUPP, f"flags {cmd.flags:#x} and type {cmd.type:#x} make no hardware queue")
    if not cmd.length:
        raise UapiError(EINVAL, "a queue of length 0")
    iova = cmd.nesting_parent_iova
    if iova + cmd.length - 1 > MAX:
        raise UapiError(EOVERFLOW, f"nesting_parent_iova {iova:#x} + length {cmd.length:#x} wraps")
    viommu = ctx.objects.get(cmd.viommu_id, ViommuObject)
    if cmd.type not in viommu.viommu.hw_queue_types():
        raise UapiError(EOPNOTSUPP, f"vIOMMU {viommu.id} has no hardware queue of type {cmd.type:#x}")
    _check_size(iova, cmd.length)
    queue = ctx.new(HwQueue(viommu, cmd.index))
    queue.start(iova, queue.pin(ctx, iova, cmd.length), cmd.length)
    cmd.out_hw_queue_id = queue.id


def _check_size(iova: int, length: int) -> None:
    """The pages of the queue are gathered in an array, which must be possible."""
    size = iova % PAGE_SIZE + length + PAGE_SIZE - 1
    if size > MAX:
        raise UapiError(ERANGE, f"length {length:#x} wraps when rounded up to pages")
    if size > _MAX_QUEUE:
        raise UapiError(ENOMEM, f"a queue of {length:#x} bytes is too large")
