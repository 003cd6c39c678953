"""PCI devices of a machine, and what sysfs shows of them.

Files and their formats as Linux has them (drivers/pci/pci-sysfs.c, drivers/pci/pci-driver.c for uevent).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from softiommu.machine.nodes import Entry, Link, Text

#: Files that say the same of every function here: no driver of the host's own runs it, and one node has all memory.
_EVERYWHERE = {
    "ari_enabled": "0",
    "broken_parity_status": "0",
    "consistent_dma_mask_bits": "32",
    "dma_mask_bits": "32",
    "enable": "0",
    "irq": "0",
    "msi_bus": "1",
    "numa_node": "-1",
    "power/control": "on",
    "power/runtime_status": "active",
    "power_state": "D0",
}
_ADDRESS = re.compile(r"(?:([0-9a-f]{4}):)?([0-9a-f]{2}):([01][0-9a-f])\.([0-7])", re.IGNORECASE)


def address(text: str) -> str | None:
    """An address in full: domain:bus:device.function. The domain may be left out. None: it is no address."""
    found = _ADDRESS.fullmatch(text)
    if found is None:
        return None
    domain, bus, device, function = found.groups("0000")
    return f"{domain}:{bus}:{device}.{function}".lower()


def requester_id(full: str) -> int:
    """Bus, device and function of a full address as the 16 bits that requests bear."""
    bus, slot, function = int(full[5:7], 16), int(full[8:10], 16), int(full[11])
    return bus << 8 | slot << 3 | function


@dataclass(frozen=True)
class Bridge:
    """A bridge from PCI Express to PCI: its name, its address, and the bus behind it."""

    name: str
    address: str
    bus: int


@dataclass(frozen=True)
class PciDevice:
    """A PCI function: its name in the description, its address, and what its configuration header identifies it by."""

    name: str
    address: str
    vendor: int
    device: int
    #: Base class, subclass and programming interface, 8 bits each.
    class_code: int = 0
    revision: int = 0
    subsystem_vendor: int = 0
    subsystem_device: int = 0
    #: Which model plays it (None: it is only seen), and its options.
    model: str | None = None
    options: object = None
    #: The IOMMU that its DMA goes through.
    iommu: str | None = None
    #: Its BARs cannot be mapped.
    no_mmap: bool = False
    #: Whether vDPA has it, and not VFIO.
    vdpa: bool = False

    @property
    def bus(self) -> int:
        """The number of the bus it is on."""
        return requester_id(self.address) >> 8

    @property
    def folder(self) -> str:
        """Its folder in sysfs. Every bus is a root bus."""
        return f"/sys/devices/pci{self.address[:7]}/{self.address}"

    @property
    def modalias(self) -> str:
        """What a driver is matched by."""
        subsystem = f"sv{self.subsystem_vendor:08X}sd{self.subsystem_device:08X}"
        base, sub, interface = self.class_code.to_bytes(3, "big")
        return f"pci:v{self.vendor:08X}d{self.device:08X}{subsystem}bc{base:02X}sc{sub:02X}i{interface:02X}"

    def uevent(self, driver: str = "") -> list[str]:
        """What the kernel tells of it, with the driver that has it."""
        return [f"DRIVER={driver}"] * bool(driver) + [
            f"PCI_CLASS={self.class_code:04X}",
            f"PCI_ID={self.vendor:04X}:{self.device:04X}",
            f"PCI_SUBSYS_ID={self.subsystem_vendor:04X}:{self.subsystem_device:04X}",
            f"PCI_SLOT_NAME={self.address}",
            f"MODALIAS={self.modalias}",
        ]

    def attributes(self) -> dict[str, str]:
        """The files of its folder, and the line or lines in each."""
        return {
            "vendor": f"{self.vendor:#06x}",
            "device": f"{self.device:#06x}",
            "subsystem_vendor": f"{self.subsystem_vendor:#06x}",
            "subsystem_device": f"{self.subsystem_device:#06x}",
            "class": f"{self.class_code:#08x}",
            "revision": f"{self.revision:#04x}",
            "modalias": self.modalias,
            "uevent": "\n".join(self.uevent()),
            **_EVERYWHERE,
        }


def entries(devices: Iterable[PciDevice]) -> dict[str, Entry]:
    """The sysfs of these devices: each one's folder, and its name in the bus's list."""
    shown: dict[str, Entry] = {}
    for device in devices:
        for name, value in device.attributes().items():
            shown[f"{device.folder}/{name}"] = Text(_line(value))
        shown[f"{device.folder}/subsystem"] = Link("../../../bus/pci")
        shown[f"/sys/bus/pci/devices/{device.address}"] = Link("../../.." + device.folder.removeprefix("/sys"))
    return shown


def _line(value: str) -> Callable[[], bytes]:
    return lambda: f"{value}\n".encode()
