"""A vIOMMU of the vendor's, where nesting in hardware and in software is mixed: it knows the vendor's devices alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from softiommu.drivers.driver import Device, NestedDomain, Viommu
from softiommu.drivers.user_data import Handled, UserArray, UserData


class ShadowViommu:
    """The vendor's vIOMMU; `device` tells of a device that can be nested which one of the vendor's it is."""

    def __init__(self, inner: Viommu, device: Callable[[Device], Device]) -> None:
        self._inner, self._device = inner, device

    def alloc_nested(self, device: Device, flags: int, data: UserData) -> NestedDomain:
        """The vendor's: nothing is nested in software on a vIOMMU."""
        return self._inner.alloc_nested(self._device(device), flags, data)

    def invalidate(self, entries: UserArray, handled: Handled) -> None:
        """The vendor's."""
        self._inner.invalidate(entries, handled)

    def add_vdevice(self, device: Device, virt_id: int) -> None:
        """Name the vendor's device."""
        self._inner.add_vdevice(self._device(device), virt_id)

    def remove_vdevice(self, device: Device) -> None:
        """Forget its name."""
        self._inner.remove_vdevice(self._device(device))

    def hw_queue_types(self) -> Sequence[int]:
        """The vendor's."""
        return self._inner.hw_queue_types()

    def add_hw_queue(self, index: int, iova: int, pa: int, length: int) -> int | None:
        """The vendor's."""
        return self._inner.add_hw_queue(index, iova, pa, length)

    def remove_hw_queue(self, index: int) -> None:
        """The vendor's."""
        self._inner.remove_hw_queue(index)

    def free(self) -> None:
        """The vendor's."""
        self._inner.free()


_: type[Viommu] = ShadowViommu
