"""What sysfs shows around devices behind an IOMMU: groups, IOMMUs, drivers, and the VFIO device of each.

Files and their formats as Linux has them (drivers/iommu/iommu.c, iommu-sysfs.c, drivers/pci/pci-sysfs.c,
drivers/vfio/device_cdev.c, group.c).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from softiommu.machine import firmware, pci
from softiommu.machine.nodes import Entry, Link, Text

if TYPE_CHECKING:
    from softiommu.drivers.driver import Reserved
    from softiommu.hardware.pci import Function
    from softiommu.machine.hardware import Wired

_MEMORY, _IO, _PREFETCH, _64_BIT = 0x40200, 0x40101, 0x2000, 0x100000
#: Drivers as their folders are called: VFIO's, and that of vDPA for virtio functions.
_VFIO, _VDPA = "vfio-pci", "vp-vdpa"


def entries(wired: Sequence[Wired], majors: tuple[int, int]) -> dict[str, Entry]:
    """The entries of these devices. `majors`: the numbers of VFIO's group nodes, and of its device nodes."""
    shown: dict[str, Entry] = {}
    for number, device in enumerate(wired):
        name = f"vfio{number}"
        shown |= _function(device, _VFIO) | _group_node(device, majors[0]) | _vfio(device, name, majors[1], number)
    return shown


def vdpa_entries(wired: Sequence[Wired]) -> dict[str, Entry]:
    """The entries of devices that vDPA has."""
    return {path: entry for device in wired for path, entry in _function(device, _VDPA).items()}


def _function(device: Wired, driver: str) -> dict[str, Entry]:
    """What the folder of a function has beside its identity."""
    folder, up = device.pci.folder, device.pci.up
    shown: dict[str, Entry] = {
        f"{folder}/config": Text(_config(device.function)),
        f"{folder}/resource": Text(_resource(device.function)),
        f"{folder}/uevent": Text(_line("\n".join(device.pci.uevent(driver)))),
        f"{folder}/driver": Link(f"{up}bus/pci/drivers/{driver}"),
        f"{folder}/driver_override": Text(_line(driver)),
        f"{folder}/iommu_group": Link(f"{up}kernel/iommu_groups/{device.place.group}"),
        f"{folder}/iommu": Link(f"{up}devices/virtual/iommu/{device.pci.iommu}"),
        f"/sys/bus/pci/drivers/{driver}/{device.pci.address}": Link("../../../.." + folder.removeprefix("/sys")),
        **_group(device),
        **_iommu(device),
    }
    methods = ["flr"] * device.function.can_reset + ["bus"] * (device.place.sid != device.place.sids[0])
    if methods:
        shown[f"{folder}/reset_method"] = Text(_line(" ".join(methods)))
    return shown


def _group(device: Wired) -> dict[str, Entry]:
    """Its group: what the IOMMU says of that."""
    group = f"/sys/kernel/iommu_groups/{device.place.group}"
    return {
        f"{group}/type": Text(_line("DMA")),
        f"{group}/reserved_regions": Text(_regions(device.device.reserved_regions())),
        f"{group}/devices/{device.pci.address}": Link("../../../.." + device.pci.folder.removeprefix("/sys")),
    }


def _group_node(device: Wired, major: int) -> dict[str, Entry]:
    """The VFIO device of its group."""
    number = device.place.group
    return {
        **_node(f"/sys/devices/virtual/vfio/{number}", "vfio", f"vfio/{number}", (major, number)),
        f"/sys/class/vfio/{number}": Link(f"../../devices/virtual/vfio/{number}"),
    }


def _iommu(device: Wired) -> dict[str, Entry]:
    """The device in the list of its IOMMU."""
    name, folder = device.pci.iommu, f"/sys/devices/virtual/iommu/{device.pci.iommu}"
    return {
        f"/sys/class/iommu/{name}": Link(f"../../devices/virtual/iommu/{name}"),
        f"{folder}/subsystem": Link("../../../../class/iommu"),
        f"{folder}/devices/{device.pci.address}": Link("../../../../.." + device.pci.folder.removeprefix("/sys")),
    }


def _vfio(device: Wired, name: str, major: int, minor: int) -> dict[str, Entry]:
    """Its own VFIO device."""
    folder = f"{device.pci.folder}/vfio-dev/{name}"
    return {
        **_node(folder, "vfio-dev", f"vfio/devices/{name}", (major, minor)),
        f"{folder}/device": Link(f"../../../{device.pci.address}"),
        f"/sys/class/vfio-dev/{name}": Link(f"../..{folder.removeprefix('/sys')}"),
    }


def _node(folder: str, kind: str, name: str, numbers: tuple[int, int]) -> dict[str, Entry]:
    """The folder of a character device, and its name among all of them."""
    major, minor = numbers
    return {
        f"{folder}/dev": Text(_line(f"{major}:{minor}")),
        f"{folder}/uevent": Text(_line(f"MAJOR={major}\nMINOR={minor}\nDEVNAME={name}")),
        f"{folder}/subsystem": Link("../" * (folder.count("/") - 1) + f"class/{kind}"),
        f"/sys/dev/char/{major}:{minor}": Link(f"../..{folder.removeprefix('/sys')}"),
    }


def _config(function: Function) -> Callable[[], bytes]:
    size = function.config_size
    return lambda: b"".join(function.read_config(at, 4).to_bytes(4, "little") for at in range(0, size, 4))


def _resource(function: Function) -> Callable[[], bytes]:
    """A line for each BAR, the ROM and the windows of a bridge: first, last, flags. A program's BARs change nothing."""
    rows = [pci.resource()] * pci.RESOURCES
    for index, bar in enumerate(function.bars):
        if bar is not None:
            first = firmware.address(function, index)
            flags = _IO if bar.io else _MEMORY | _PREFETCH * bar.prefetchable | _64_BIT * bar.is_64
            rows[index] = pci.resource(first, first + bar.size - 1, flags)
    return _line("\n".join(rows))


def _regions(regions: Sequence[Reserved]) -> Callable[[], bytes]:
    ordered = sorted(regions, key=lambda region: region.first)
    text = "".join(f"{r.first:#018x} {r.last:#018x} {_KINDS.get(r.kind.value, r.kind.value)}\n" for r in ordered)
    return text.encode


_KINDS = {"sw-msi": "msi"}


def _line(value: str) -> Callable[[], bytes]:
    return lambda: f"{value}\n".encode()
