"""The VFIO nodes of a machine's devices: `/dev/vfio/devices/vfioN` and `/dev/vfio/GROUP`."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, NamedTuple

from softiommu.consumers.vfio.device import VfioDevice
from softiommu.consumers.vfio.file import DeviceFile
from softiommu.consumers.vfio.group import VfioGroup
from softiommu.consumers.vfio.reset import Bus
from softiommu.machine import sysfs
from softiommu.machine.nodes import Entry, Node

if TYPE_CHECKING:
    from collections.abc import Callable

    from softiommu.iommufd.context import Services
    from softiommu.machine.hardware import Hardware, Wired
    from softiommu.memory.client import Caller
    from softiommu.memory.files import File

#: Linux gives both from the range of dynamic numbers: for groups, and for devices.
_GROUP_MAJOR, _DEVICE_MAJOR = 510, 511
_MODE = stat.S_IFCHR | 0o666


def _opener(what: VfioDevice | VfioGroup, services: Services) -> Callable[[Caller, int], File]:
    """open(2) of a device's node, or of a group's (EBUSY where the group is in use)."""

    def opened(caller: Caller, flags: int) -> File:
        return what.open(services) if isinstance(what, VfioGroup) else DeviceFile(what, services)

    return opened


class Shown(NamedTuple):
    """A device as programs meet it: its nodes."""

    wired: Wired
    node: str
    group_node: str


class Vfio:
    """Every device of the hardware that vfio-pci holds."""

    def __init__(self, hardware: Hardware, services: Services) -> None:
        groups: dict[int, VfioGroup] = {}
        buses: dict[int, Bus] = {}
        self.devices: list[Shown] = []
        held = [wired for wired in hardware.devices if not wired.pci.vdpa]
        self.entries: dict[str, Entry] = sysfs.entries(held, (_GROUP_MAJOR, _DEVICE_MAJOR))
        for number, wired in enumerate(held):
            group = groups.setdefault(wired.place.group, VfioGroup(wired.place.group))
            behind_bridge = wired.place.sid != wired.place.sids[0]
            bus = buses.setdefault(wired.pci.bus, Bus()) if behind_bridge else None
            device = VfioDevice(wired.function, wired.device, wired.pci.address, group, bus)
            shown = Shown(wired, f"/dev/vfio/devices/vfio{number}", f"/dev/vfio/{group.number}")
            self.devices.append(shown)
            self.entries[shown.node] = Node(_DEVICE_MAJOR, number, _MODE, _opener(device, services))
            self.entries[shown.group_node] = Node(_GROUP_MAJOR, group.number, _MODE, _opener(group, services))
