"""vIOMMUs: a guest's slice of a physical IOMMU."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from softiommu.abi import iommufd as abi
from softiommu.api.hwpt import invalidate
from softiommu.api.queues import EventQueue

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from softiommu.abi.struct import UserStruct
    from softiommu.api.device import Device
    from softiommu.api.iommufd import Iommufd


class _Owned:
    """An object that destroy, or the end of a with block, takes away."""

    def __init__(self, iommufd: Iommufd, id: int) -> None:
        self.iommufd, self.id = iommufd, id

    def destroy(self) -> None:
        """Destroy it. EBUSY while other objects use it."""
        self.iommufd.destroy(self.id)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.destroy()


class Vdevice(_Owned):
    """The guest's name for a device."""


class HwQueue(_Owned):
    """A queue in the guest's memory that the hardware reads by itself."""


class Viommu(_Owned):
    """A vIOMMU."""

    @classmethod
    def new(cls, device: Device, type: int, hwpt_id: int, data: bytearray | None, flags: int) -> Viommu:
        """A vIOMMU of `type` over a nesting parent."""
        iommufd, cmd = device.iommufd, abi.ViommuAlloc(40, flags, type, device.id, hwpt_id)
        raw = (ctypes.c_char * len(data)).from_buffer(data) if data is not None else None
        if data is not None and raw is not None:
            cmd.data_len, cmd.data_uptr = len(data), ctypes.addressof(raw)
        iommufd.backend.call("VIOMMU_ALLOC", abi.VIOMMU_ALLOC, cmd)
        return cls(iommufd, cmd.out_viommu_id)

    def vdevice(self, device: Device, virt_id: int) -> Vdevice:
        """Name a device as the guest does. EEXIST: the device or the name is taken."""
        cmd = abi.VdeviceAlloc(24, self.id, device.id, 0, virt_id)
        self.iommufd.backend.call("VDEVICE_ALLOC", abi.VDEVICE_ALLOC, cmd)
        return Vdevice(self.iommufd, cmd.out_vdevice_id)

    def event_queue(self, type: int, depth: int, data_size: int) -> EventQueue:
        """A queue for events of one type, each with `data_size` bytes of data."""
        cmd = abi.VeventqAlloc(32, 0, self.id, type, depth)
        self.iommufd.backend.call("VEVENTQ_ALLOC", abi.VEVENTQ_ALLOC, cmd)
        return EventQueue(self.iommufd, cmd.out_veventq_id, cmd.out_veventq_fd, data_size)

    def hw_queue(self, type: int, index: int, iova: int, length: int) -> HwQueue:
        """Give the hardware a queue in the parent's address space."""
        cmd = abi.HwQueueAlloc(40, 0, self.id, type, index, 0, iova, length)
        self.iommufd.backend.call("HW_QUEUE_ALLOC", abi.HW_QUEUE_ALLOC, cmd)
        return HwQueue(self.iommufd, cmd.out_hw_queue_id)

    def poll(self) -> None:
        """Let a soft machine see what was stored into mapped pages, as every call does. Hardware sees it by itself."""
        _ = self.iommufd.per_process_limit

    def invalidate(self, data_type: int, entries: list[UserStruct]) -> int:
        """Carry out the guest's cache invalidation commands; how many were."""
        return invalidate(self.iommufd, self.id, data_type, entries)
