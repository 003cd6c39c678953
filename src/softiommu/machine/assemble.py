"""A machine put together: its kernel's uAPI, its memory, its IOMMUs with their drivers, its device nodes."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from softiommu.iommufd import kernels, table
from softiommu.iommufd.file import IommufdFile
from softiommu.machine import pci
from softiommu.machine.description import Description, load
from softiommu.machine.nodes import Entry, Node
from softiommu.memory.accounts import Accounts
from softiommu.memory.frames import Frames
from softiommu.memory.pins import Physical

if TYPE_CHECKING:
    from softiommu.memory.client import Caller

#: misc devices (10): their minors as Linux gives them.
_IOMMU_DEV, _VFIO_DEV = (10, 127), (10, 196)


class Machine:
    """A machine in user space. Everything a front door shows comes from here."""

    def __init__(self, description: Description, kernel: str | None = None) -> None:
        self.description = description
        self.kernel = kernels.kernel(kernel or description.kernel or kernels.DEFAULT)
        self.physical = Physical(Frames(), Accounts())
        self.services = table.services(self.kernel, self.physical)
        self.services.no_iommu = description.no_iommu
        self.entries: Mapping[str, Entry] = {
            "/dev/iommu": Node(*_IOMMU_DEV, stat.S_IFCHR | 0o666, self.open_iommu),
            "/dev/vfio/vfio": Node(*_VFIO_DEV, stat.S_IFCHR | 0o666, self.open_iommu),
            **pci.entries(description.devices),
        }
        if description.has_model("mock"):
            self._add_mock()

    def open_iommu(self, caller: Caller, flags: int) -> IommufdFile:
        """open(2) of /dev/iommu, or of /dev/vfio/vfio where the container is iommufd's."""
        return IommufdFile(self.services)

    def facts(self) -> dict[str, Any]:
        """What `softiommu machine show` tells."""
        description = self.description
        return {
            "name": description.name,
            "summary": description.summary,
            "source": description.source,
            "kernel": self.kernel.name,
            "nodes": [path for path, entry in self.entries.items() if isinstance(entry, Node)],
            "iommus": [{"name": iommu.name, "model": iommu.model} for iommu in description.iommus],
            "devices": [
                {
                    "name": device.name,
                    "address": device.address,
                    "id": f"{device.vendor:04x}:{device.device:04x}",
                    "sysfs": f"/sys/bus/pci/devices/{device.address}",
                }
                for device in description.devices
            ],
            "test_command": description.has_model("mock"),
        }

    def _add_mock(self) -> None:
        from softiommu.drivers.mock import MockDriver
        from softiommu.iommufd import selftest

        self.services.has_devices = True
        old = self.kernel.name == "6.12"
        command = selftest.SelftestCommand(MockDriver(per_item=not old), old)
        self.services.commands[selftest.TEST_CMD] = command.command()
        self.services.last_number = selftest.TEST_CMD & 0xFF
        self.services.prepare_copy = selftest.prepare_copy


def machine(name: str, kernel: str | None = None) -> Machine:
    """A built-in machine, or one from a TOML file, that plays `kernel` (the description's, or the newest recorded)."""
    return Machine(load(name), kernel)
