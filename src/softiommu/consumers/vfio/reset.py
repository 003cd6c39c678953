"""Resets that are wider than one function: the bus behind a bridge, with everything on it."""

from __future__ import annotations

from errno import EINVAL, ENODEV, ENOSPC
from typing import TYPE_CHECKING

from softiommu.abi import vfio
from softiommu.abi.vfio import HotResetFlags
from softiommu.consumers import pci_host
from softiommu.consumers.vfio.group import GroupFile
from softiommu.errors import UapiError

if TYPE_CHECKING:
    from softiommu.consumers.calls import Call
    from softiommu.consumers.vfio.device import VfioDevice
    from softiommu.iommufd.context import Context


class Bus:
    """The devices behind one bridge, which a reset of the bridge's secondary bus resets."""

    def __init__(self) -> None:
        self.devices: list[VfioDevice] = []

    def reset(self) -> None:
        """Reset everything on the bus."""
        for device in self.devices:
            pci_host.reset(device.function)
            device.needs_reset = False
            if device.pci is not None:
                device.pci.restore()

    def reset_if_unused(self) -> None:
        """When the last device is closed: what cannot be reset by itself is reset with its bus."""
        if not any(device.opens for device in self.devices) and any(device.needs_reset for device in self.devices):
            self.reset()


def hot_reset_info(device: VfioDevice, call: Call) -> None:
    """VFIO_DEVICE_GET_PCI_HOT_RESET_INFO: who is reset along. ENODEV: no bridge can do it; ENOSPC: the number."""
    cmd = call.struct(vfio.PciHotResetInfo)
    cmd.flags, devices = 0, _on_bus(device)
    cmd.count = len(devices)
    if cmd.argsz < vfio.PciHotResetInfo.SIZE + cmd.count * vfio.PciDependentDevice.SIZE:
        call.reply(cmd)
        raise UapiError(ENOSPC, f"{cmd.count} devices are reset together: there is no room for them")
    if device.by_cdev:
        cmd.flags = int(HotResetFlags.DEV_ID | HotResetFlags.DEV_ID_OWNED)
    entries = b""
    for other in devices:
        id = _owned_id(other, device.context) if device.by_cdev else other.group.number
        if device.by_cdev and id == vfio.PCI_DEVID_NOT_OWNED:
            cmd.flags &= ~int(HotResetFlags.DEV_ID_OWNED)
        entries += _dependent(other, id)
    call.reply(cmd)
    call.write(vfio.PciHotResetInfo.SIZE, entries)


def hot_reset(device: VfioDevice, call: Call) -> None:
    """VFIO_DEVICE_PCI_HOT_RESET. EINVAL: the caller does not have every device of the bus; ENODEV: no bridge."""
    cmd = call.struct(vfio.PciHotReset)
    # A list of groups proves ownership, unless the device was bound through its own node: then the iommufd does.
    if cmd.flags or bool(cmd.count) == device.by_cdev:
        raise UapiError(EINVAL, f"flags {cmd.flags:#x}, or {cmd.count} groups, cannot be")
    devices = _on_bus(device)
    if device.by_cdev:
        owned = all(_owned_id(other, device.context) != vfio.PCI_DEVID_NOT_OWNED for other in devices)
    else:
        owned = _own_by_groups(call, cmd.count, devices)
    if not owned:
        raise UapiError(EINVAL, "the reset would reach a device that is not the caller's")
    assert device.bus is not None, "a device that can be reset this way is on a bus"
    device.bus.reset()


def _on_bus(device: VfioDevice) -> list[VfioDevice]:
    if device.bus is None:
        raise UapiError(ENODEV, f"{device.address} sits on a root bus, which cannot be reset")
    return device.bus.devices


def _owned_id(device: VfioDevice, context: Context | None) -> int:
    """How a device on the bus relates to the caller's iommufd: its id there, owned by its group, or not owned."""
    if device.bound is not None and device.context is context:
        return device.bound.id
    if context is not None and device.device.group in context.groups:
        return vfio.PCI_DEVID_OWNED
    return vfio.PCI_DEVID_NOT_OWNED


def _own_by_groups(call: Call, count: int, devices: list[VfioDevice]) -> bool:
    if count > len(devices):
        raise UapiError(EINVAL, f"{count} groups for {len(devices)} devices")
    raw = call.read(vfio.PciHotReset.SIZE, 4 * count)
    groups = []
    for at in range(0, len(raw), 4):
        file = call.caller.file(int.from_bytes(raw[at : at + 4], "little"))
        if not isinstance(file, GroupFile):
            raise UapiError(EINVAL, "a descriptor is no VFIO group")
        groups.append(file.group)
    return all(device.group in groups for device in devices)


def _dependent(device: VfioDevice, id: int) -> bytes:
    segment, bus, slot = device.address.split(":")
    number, function = slot.split(".")
    devfn = int(number, 16) << 3 | int(function)
    return vfio.PciDependentDevice(id & 0xFFFFFFFF, int(segment, 16), int(bus, 16), devfn).to_bytes()
