"""A machine put together: its kernel's uAPI, its memory, its IOMMUs with their drivers, its device nodes."""

from __future__ import annotations

import stat
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from softiommu.clock import MS, RealClock
from softiommu.iommufd import kernels, table
from softiommu.iommufd.context import Patience
from softiommu.iommufd.file import IommufdFile
from softiommu.machine import modules, pci
from softiommu.machine.description import Description, load
from softiommu.machine.nodes import Entry, Node
from softiommu.memory.accounts import Accounts
from softiommu.memory.frames import Frames
from softiommu.memory.pins import Physical

if TYPE_CHECKING:
    from softiommu.clock import Clock
    from softiommu.consumers.vdpa import VdpaDevice
    from softiommu.machine.hardware import Hardware
    from softiommu.machine.vfio import Vfio
    from softiommu.memory.client import Caller
    from softiommu.memory.physical import PhysicalMemory

#: misc devices (10): their minors as Linux gives them.
_IOMMU_DEV, _VFIO_DEV = (10, 127), (10, 196)


class Machine:
    """A machine in user space. Everything a front door shows comes from here. `memory` makes RAM of a size; time-outs
    are of `clock`, or of the host's clock. Without `claim` it is only looked at: another may have its drives' files."""

    def __init__(
        self,
        description: Description,
        kernel: str | None = None,
        memory: Callable[[int], PhysicalMemory] | None = None,
        clock: Clock | None = None,
        claim: bool = True,
    ) -> None:
        self.description = description
        self.kernel = kernels.kernel(kernel or description.kernel or kernels.DEFAULT)
        #: What the kernel of the machine has printed: faults, above all. `on_message` hears each line.
        self.messages: list[str] = []
        self.on_message: Callable[[str], None] | None = None
        #: Hears what a device (by its name) refuses, and why: its driver has a status code at most.
        self.on_refusal: Callable[[str, str], None] | None = None
        self.hardware = self._hardware(memory, claim)
        self.physical = Physical(self._frames(), Accounts())
        self.services = table.services(self.kernel, self.physical)
        self.services.no_iommu = description.no_iommu
        self.services.unsafe_interrupts = description.unsafe_interrupts
        self.services.report = self._report
        if description.page_fault_timeout_ms:
            self.services.patience = Patience(clock or RealClock(), description.page_fault_timeout_ms * MS)
        self.entries: dict[str, Entry] = {
            "/dev/iommu": Node(*_IOMMU_DEV, stat.S_IFCHR | 0o666, self.open_iommu),
            "/dev/vfio/vfio": Node(*_VFIO_DEV, stat.S_IFCHR | 0o666, self.open_container),
        }
        self.vfio = self._vfio()
        seen = [wired.pci for wired in self.hardware.devices] if self.hardware else []
        seen += [device for device in description.devices if device.model is None]
        self.entries |= pci.bridge_entries(description.bridges) | pci.entries(seen)
        if self.vfio is not None:
            self.entries |= self.vfio.entries | modules.entries(description)
        self.vdpa = self._vdpa()
        if description.has_model("mock"):
            self._add_mock()

    def _hardware(self, memory: Callable[[int], PhysicalMemory] | None, claim: bool) -> Hardware | None:
        """The silicon, on a machine that has any: loading the models takes its time."""
        if all(iommu.model == "mock" for iommu in self.description.iommus):
            return None
        from softiommu.machine.hardware import Hardware

        hardware = Hardware(self.description, self.kernel, self._report, memory, claim)
        for wired in hardware.devices:
            wired.function.on_refusal = partial(self._refused, wired.pci.name)
        return hardware

    def _refused(self, device: str, why: str) -> None:
        if self.on_refusal is not None:
            self.on_refusal(device, why)

    def _frames(self) -> Frames:
        if self.hardware is None:
            return Frames()
        from softiommu.memory.windows import ClientWindows

        return Frames(on_window=ClientWindows(self.hardware.memory))

    def _vfio(self) -> Vfio | None:
        if self.hardware is None:
            return None
        from softiommu.machine.vfio import Vfio

        self.services.has_devices = True
        return Vfio(self.hardware, self.services)

    def _vdpa(self) -> dict[str, VdpaDevice]:
        """The devices that vDPA has, by name; they are in sysfs, too."""
        held = [wired for wired in self.hardware.devices if wired.pci.vdpa] if self.hardware else []
        if not held:
            return {}
        from softiommu.consumers.vdpa import VdpaDevice
        from softiommu.machine import sysfs

        self.entries |= sysfs.vdpa_entries(held)
        return {wired.pci.name: VdpaDevice(wired.function, wired.device, wired.pci.address) for wired in held}

    def _report(self, line: str) -> None:
        self.messages.append(line)
        if self.on_message is not None:
            self.on_message(line)

    def open_iommu(self, caller: Caller, flags: int) -> IommufdFile:
        """open(2) of /dev/iommu."""
        return IommufdFile(self.services)

    def open_container(self, caller: Caller, flags: int) -> IommufdFile:
        """open(2) of /dev/vfio/vfio, which is iommufd's."""
        return IommufdFile(self.services, container=True)

    @property
    def pollers(self) -> Mapping[object, Callable[[], object]]:
        """What looks at pages that programs map, at page faults that wait for an answer, and at work of devices."""
        return self.services.pollers

    def share_time(self) -> None:
        """Let devices do long work bit by bit, between calls: for a front door that looks at `pollers`."""
        for wired in self.hardware.devices if self.hardware else []:
            wired.function.background = self._take_over

    def _take_over(self, step: Callable[[], bool]) -> bool:
        pollers = self.services.pollers

        def look() -> bool:
            more = False
            try:
                more = step()
            finally:
                if not more:
                    pollers.pop(step, None)
            return True

        pollers[step] = look
        return True

    def device_nodes(self) -> dict[str, str]:
        """The VFIO node of each device, by name and by PCI address."""
        shown = self.vfio.devices if self.vfio else []
        by_name = {device.wired.pci.name: device.node for device in shown}
        return by_name | {device.wired.pci.address: device.node for device in shown}

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
            "devices": [self._device_facts(device) for device in description.devices],
            "test_command": description.has_model("mock"),
        }

    def _device_facts(self, device: pci.PciDevice) -> dict[str, Any]:
        shown = next((s for s in self.vfio.devices if s.wired.pci.name == device.name), None) if self.vfio else None
        wired = next((w for w in self.hardware.devices if w.pci.name == device.name), None) if self.hardware else None
        what = wired.pci if wired else device
        facts: dict[str, Any] = {
            "name": device.name,
            "address": device.address,
            "id": f"{what.vendor:04x}:{what.device:04x}",
            "sysfs": f"/sys/bus/pci/devices/{device.address}",
        }
        if wired is not None:
            facts |= {
                "model": device.model,
                "iommu": device.iommu,
                "group": wired.place.group,
                "nodes": [shown.node, shown.group_node] if shown else [],
            }
        return facts

    def _add_mock(self) -> None:
        from softiommu.drivers.mock.driver import MockDriver
        from softiommu.iommufd import selftest

        self.services.has_devices = True
        old = self.kernel.name == "6.12"
        command = selftest.SelftestCommand(MockDriver(per_item=not old), old)
        self.services.commands[selftest.TEST_CMD] = command.command()
        self.services.last_number = selftest.TEST_CMD & 0xFF
        self.services.prepare_copy = selftest.prepare_copy


def machine(name: str, kernel: str | None = None, claim: bool = True) -> Machine:
    """A built-in machine, or one from a TOML file, that plays `kernel` (the description's, or the newest recorded).
    Without `claim` it is only looked at: another may have its drives' files."""
    return Machine(load(name), kernel, claim=claim)
