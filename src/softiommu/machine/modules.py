"""What sysfs shows of the kernel modules that VFIO is made of: programs look there before they use it.

Parameters as Linux has them (drivers/vfio/group.c, drivers/iommu/iommufd/main.c).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from softiommu.machine.nodes import Entry, Link, Text

if TYPE_CHECKING:
    from softiommu.machine.description import Description


def entries(description: Description) -> dict[str, Entry]:
    """The modules that a machine with devices has loaded."""
    shown: dict[str, Entry] = {
        **{f"/sys/module/{name}/initstate": Text(_line("live")) for name in ("iommufd", "vfio", "vfio_pci")},
        "/sys/module/iommufd/parameters/allow_unsafe_interrupts": Text(_line(_flag(description.unsafe_interrupts))),
        "/sys/module/vfio_pci/drivers/pci:vfio-pci": Link("../../../bus/pci/drivers/vfio-pci"),
    }
    if description.no_iommu:
        shown["/sys/module/vfio/parameters/enable_unsafe_noiommu_mode"] = Text(_line(_flag(False)))
    return shown


def _flag(value: bool) -> str:
    return "Y" if value else "N"


def _line(value: str) -> Callable[[], bytes]:
    return lambda: f"{value}\n".encode()
