"""The silicon of a machine, wired: physical memory, IOMMUs with their drivers, and functions that do DMA."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from softiommu.drivers.function import Function
from softiommu.hardware.bus import Port
from softiommu.machine import firmware, models
from softiommu.machine.topology import Place, places
from softiommu.memory.physical import Mmio, PhysicalMemory

if TYPE_CHECKING:
    from softiommu.drivers.driver import Device
    from softiommu.hardware import pci
    from softiommu.hardware.smmuv3.broadcast import Broadcast
    from softiommu.iommufd.kernels import Kernel
    from softiommu.machine.description import Description, Iommu
    from softiommu.machine.models import Built
    from softiommu.machine.pci import PciDevice

#: Writes here are interrupts (the local APICs of a PC).
_DOORBELLS = range(0xFEE00000, 0xFEF00000)


class Wired(NamedTuple):
    """A device in its place: what it is, what it does, and how the driver of its IOMMU shows it."""

    pci: PciDevice
    place: Place
    function: pci.Function
    device: Device


class Hardware:
    """Everything below the uAPI. `report` hears what a kernel's driver would print; `memory` makes RAM of a size.
    `claim`: files that drives keep their blocks in are this machine's alone."""

    def __init__(
        self,
        description: Description,
        kernel: Kernel,
        report: Callable[[str], None],
        memory: Callable[[int], PhysicalMemory] | None = None,
        claim: bool = True,
    ) -> None:
        self.memory = (memory or PhysicalMemory)(description.memory)
        if description.memory <= _DOORBELLS.start:
            self.memory.map_window(_DOORBELLS.start, Mmio(self._doorbell), 0, len(_DOORBELLS))
        site = models.Site(self.memory, kernel, report)
        self.iommus: dict[str, Built] = {
            iommu.name: self._build(iommu, site) for iommu in description.iommus if iommu.model != "mock"
        }
        where = places(description.devices, description.bridges)
        groups: dict[int, object] = {place.group: object() for place in where.values()}
        self.devices = [
            self._wire(device, where[device.name], groups[where[device.name].group], claim)
            for device in description.devices
            if device.name in where
        ]
        firmware.assign(wired.function for wired in self.devices)

    @staticmethod
    def _build(iommu: Iommu, site: models.Site) -> Built:
        """An IOMMU with its driver, which software nests on where the description says so."""
        built = models.iommu(iommu.model).build(iommu.features, site)
        if iommu.nesting == "hardware":
            return built
        from softiommu.drivers.shadow.driver import ShadowDriver

        return built._replace(driver=ShadowDriver(built.driver, site.memory, mixed=iommu.nesting == "mixed"))

    def _wire(self, device: PciDevice, place: Place, group: object, claim: bool) -> Wired:
        assert device.iommu is not None, "a place is given to devices behind an IOMMU"
        assert device.model is not None, "a device behind an IOMMU has a model"
        unit, driver = self.iommus[device.iommu]
        port = Port(self.memory, place.sid, unit)
        function = models.device(device.model).build(device.options, port, place.sid == place.sids[0], claim)
        if device.no_mmap:
            function.forbid_mapping()
        able = function.features
        shown = driver.device(
            Function(
                device.name,
                place.sids,
                group,
                able.pasid_bits,
                able.ats,
                bool(able.pri),
                function.let_translate,
                able.stalls,
            )
        )
        identity = replace(device, **function.identity._asdict())
        return Wired(identity, place, function, shown)

    def broadcast(self, message: Broadcast) -> None:
        """A CPU of the machine does TLB maintenance (a TLBI instruction): every IOMMU that listens hears it. There are
        no CPUs here: who plays one calls this."""
        from softiommu.hardware.smmuv3.broadcast import Listener

        for built in self.iommus.values():
            if isinstance(built.unit, Listener):
                built.unit.hear(message)

    @staticmethod
    def _doorbell(offset: int, data: bytes) -> None:
        """A vector that nobody asked for: a kernel has no handler for it, and goes on."""
