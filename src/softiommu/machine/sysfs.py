"""What sysfs shows around devices behind an IOMMU: groups, IOMMUs, drivers, and the VFIO device of each.

Files and their formats as Linux has them (drivers/iommu/iommu.c, iommu-sysfs.c, drivers/pci/pci-sysfs.c,
drivers/vfio/device_cdev.c).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from softiommu.machine.nodes import Entry, Link, Text

if TYPE_CHECKING:
    from softiommu.drivers.driver import Reserved
    from softiommu.hardware import pci
    from softiommu.machine.hardware import Wired

_MEMORY, _IO, _PREFETCH, _64_BIT = 0x40200, 0x40101, 0x2000, 0x100000


def entries(wired: Sequence[Wired], majors: tuple[int, int]) -> dict[str, Entry]:
    """The entries of these devices. `majors`: the numbers of VFIO's group nodes, and of its device nodes."""
    shown: dict[str, Entry] = {}
    for number, device in enumerate(wired):
        folder, group = device.pci.folder, f"/sys/kernel/iommu_groups/{device.place.group}"
        up = "../" * (folder.count("/") - 1)
        shown |= {
            f"{folder}/config": Text(_config(device.function)),
            f"{folder}/resource": Text(_resource(device.function)),
            f"{folder}/driver": Link("../../../bus/pci/drivers/vfio-pci"),
            f"{folder}/driver_override": Text(_line("vfio-pci")),
            f"{folder}/iommu_group": Link(f"{up}kernel/iommu_groups/{device.place.group}"),
            f"{folder}/iommu": Link(f"{up}devices/virtual/iommu/{device.pci.iommu}"),
            f"{folder}/vfio-dev/vfio{number}/dev": Text(_line(f"{majors[1]}:{number}")),
            f"{group}/type": Text(_line("DMA")),
            f"{group}/reserved_regions": Text(_regions(device.device.reserved_regions())),
            f"{group}/devices/{device.pci.address}": Link("../../../.." + folder.removeprefix("/sys")),
            f"/sys/class/iommu/{device.pci.iommu}": Link(f"../../devices/virtual/iommu/{device.pci.iommu}"),
            f"/sys/devices/virtual/iommu/{device.pci.iommu}/devices/{device.pci.address}": Link(
                "../../../../.." + folder.removeprefix("/sys")
            ),
            f"/sys/bus/pci/drivers/vfio-pci/{device.pci.address}": Link("../../../.." + folder.removeprefix("/sys")),
            f"/sys/class/vfio-dev/vfio{number}": Link(f"../..{folder.removeprefix('/sys')}/vfio-dev/vfio{number}"),
        }
    return shown


def _config(function: pci.Function) -> Callable[[], bytes]:
    return lambda: b"".join(function.read_config(at, 4).to_bytes(4, "little") for at in range(0, 4096, 4))


def _resource(function: pci.Function) -> Callable[[], bytes]:
    """A line for each BAR, the ROM and the windows of a bridge: first, last, flags."""

    def lines() -> bytes:
        rows = [(0, 0, 0)] * 13
        for index, bar in enumerate(function.bars):
            if bar is not None:
                flags = _IO if bar.io else _MEMORY | _PREFETCH * bar.prefetchable | _64_BIT * bar.is_64
                rows[index] = (0, bar.size - 1, flags)
        return "".join(f"{first:#018x} {last:#018x} {flags:#018x}\n" for first, last, flags in rows).encode()

    return lines


def _regions(regions: Sequence[Reserved]) -> Callable[[], bytes]:
    ordered = sorted(regions, key=lambda region: region.first)
    text = "".join(f"{r.first:#018x} {r.last:#018x} {_KINDS.get(r.kind.value, r.kind.value)}\n" for r in ordered)
    return text.encode


_KINDS = {"sw-msi": "msi"}


def _line(value: str) -> Callable[[], bytes]:
    return lambda: f"{value}\n".encode()
