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
#: Lines of the file `resource`: the BARs, the ROM, what virtual functions have.
RESOURCES = 13
#: A bridge is QEMU's from PCI Express to PCI.
_BRIDGE, _BRIDGE_CLASS = (0x1B36, 0x000E), 0x060400
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

    def config(self) -> bytes:
        """Its configuration space: a header of type 1 (PCI-to-PCI Bridge Architecture 1.2, 3.2)."""
        vendor, device = _BRIDGE
        identity = vendor | device << 16, 0x7, _BRIDGE_CLASS << 8, 1 << 16
        buses = requester_id(self.address) >> 8 | self.bus << 8 | self.bus << 16
        return b"".join(word.to_bytes(4, "little") for word in (*identity, 0, 0, buses)).ljust(256, b"\0")

    def shown(self, above: tuple[str, ...]) -> PciDevice:
        """It as a function among others, which no driver of the host's runs."""
        return PciDevice(self.name, self.address, *_BRIDGE, class_code=_BRIDGE_CLASS, above=above)


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
    #: The addresses of the bridges that it is behind, from its root bus on.
    above: tuple[str, ...] = ()

    @property
    def bus(self) -> int:
        """The number of the bus it is on."""
        return requester_id(self.address) >> 8

    @property
    def folder(self) -> str:
        """Its folder in sysfs. A bus without a bridge in front is a root bus."""
        way = (*self.above, self.address)
        return f"/sys/devices/pci{way[0][:7]}/{'/'.join(way)}"

    @property
    def up(self) -> str:
        """The way from its folder to /sys."""
        return "../" * (3 + len(self.above))

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
        shown[f"{device.folder}/subsystem"] = Link(f"{device.up}bus/pci")
        shown[f"/sys/bus/pci/devices/{device.address}"] = Link("../../.." + device.folder.removeprefix("/sys"))
    return shown


def resource(first: int = 0, last: int = 0, flags: int = 0) -> str:
    """A line of the file `resource`."""
    return f"{first:#018x} {last:#018x} {flags:#018x}"


def bridge_entries(bridges: Iterable[Bridge]) -> dict[str, Entry]:
    """The sysfs of bridges."""
    known = tuple(bridges)
    shown: dict[str, Entry] = {}
    for bridge in known:
        device = bridge.shown(above(bridge.address, known))
        shown |= entries([device])
        shown[f"{device.folder}/config"] = Text(bridge.config)
        shown[f"{device.folder}/resource"] = Text(_line("\n".join([resource()] * RESOURCES)))
        shown[f"{device.folder}/secondary_bus_number"] = Text(_line(str(bridge.bus)))
        shown[f"{device.folder}/subordinate_bus_number"] = Text(_line(str(bridge.bus)))
    return shown


def above(at: str, bridges: Iterable[Bridge]) -> tuple[str, ...]:
    """The addresses of the bridges that an address is behind, from the root bus on."""
    found: list[str] = []
    by_bus = {bridge.bus: bridge.address for bridge in bridges}
    while (up := by_bus.pop(requester_id(at) >> 8, None)) is not None:
        found.insert(0, up)
        at = up
    return tuple(found)


def _line(value: str) -> Callable[[], bytes]:
    return lambda: f"{value}\n".encode()
