"""A guest's RISC-V IOMMU: its names for devices, and its commands."""

from __future__ import annotations

from collections.abc import Sequence
from errno import EINVAL
from typing import TYPE_CHECKING

from softiommu.drivers.driver import Device, NestedDomain, Viommu, ViommuHost, unsupported
from softiommu.drivers.riscv.nested import RiscvNested, read_context
from softiommu.drivers.riscv.slice import RiscvSlice
from softiommu.drivers.user_data import Handled, UserArray, UserData
from softiommu.errors import UapiError

if TYPE_CHECKING:
    from softiommu.drivers.riscv.domain import RiscvDomain

_DEVICE_ID_BITS = 24


class RiscvViommu:
    """A slice whose guest has names for devices."""

    def __init__(self, parent: RiscvDomain, host: ViommuHost) -> None:
        self._slice = RiscvSlice(parent, host)

    def alloc_nested(self, device: Device, flags: int, data: UserData) -> NestedDomain:
        """The domain of a guest's device context. Errors as `read_context`."""
        return RiscvNested(self._slice, read_context(self._slice.owner, flags, data), private=False)

    def invalidate(self, entries: UserArray, handled: Handled) -> None:
        """Commands, or generic entries. Errors as `RiscvSlice.invalidate`."""
        self._slice.invalidate(entries, handled)

    def add_vdevice(self, device: Device, virt_id: int) -> None:
        """Name a device. EINVAL: device ids have 24 bits."""
        from softiommu.drivers.riscv.device import RiscvDevice

        assert isinstance(device, RiscvDevice), "devices behind one IOMMU are of its driver"
        if virt_id >> _DEVICE_ID_BITS:
            raise UapiError(EINVAL, f"a device id has {_DEVICE_ID_BITS} bits: {virt_id:#x} has more")
        self._slice.names[virt_id] = device

    def remove_vdevice(self, device: Device) -> None:
        """Forget a name."""
        self._slice.names = {name: named for name, named in self._slice.names.items() if named is not device}

    def hw_queue_types(self) -> Sequence[int]:
        """None."""
        return ()

    def add_hw_queue(self, index: int, iova: int, pa: int, length: int) -> int | None:
        """There are none."""
        raise unsupported("this vIOMMU has no hardware queues")

    def remove_hw_queue(self, index: int) -> None:
        """There are none."""

    def free(self) -> None:
        """Nothing is left of it in the hardware."""
        self._slice.free()


_: type[Viommu] = RiscvViommu
