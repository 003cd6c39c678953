"""What every virtio device shows on PCI: status, common configuration, interrupts, doorbells. Virtio 1.2, 2.1 and 4.1.

The structures lie in one region, at the offsets that `CommonRegisters` says; a device's own configuration begins at
CONFIG, and its doorbells (`notify`) at NOTIFY.
"""

from __future__ import annotations

from enum import IntEnum

from softiommu.hardware.pci import Function, VendorCapability
from softiommu.hardware.pci_config import CapabilityHeader
from softiommu.registers import Register, RegisterFile, reg, ro, rw, wo
from softiommu.words import Word, bit, bits

#: What a vector register reads when none is assigned (4.1.5.1.2).
NO_VECTOR = 0xFFFF
#: Where in the region what lies, and how far apart the doorbells are (4.1.4.4).
COMMON, ISR, CONFIG, NOTIFY, NOTIFY_STRIDE, REGION = 0x0000, 0x1000, 0x2000, 0x3000, 4, 0x4000


class Half(Word, width=32):
    """Half of the feature bits."""

    BITS = bits(31, 0)


class Select(Word, width=32):
    """Which half of the feature bits the register beside it shows."""

    HALF = bits(31, 0)


class Status(Word, width=8):
    """Device status (2.1)."""

    ACKNOWLEDGE = bit(0)
    DRIVER = bit(1)
    DRIVER_OK = bit(2)
    FEATURES_OK = bit(3)
    DEVICE_NEEDS_RESET = bit(6)
    FAILED = bit(7)


class Generation(Word, width=8):
    """Configuration generation: it changes with the device configuration."""

    COUNT = bits(7, 0)


class Number(Word, width=16):
    """A queue's number, its size, a vector: 16 bits."""

    VALUE = bits(15, 0)


class Switch(Word, width=16):
    """Enables, or resets, the selected queue."""

    ON = bit(0)


class Address(Word):
    """A physical address."""

    ADDR = bits(63, 0)


class Isr(Word, width=8):
    """Interrupt status; reading takes it (4.1.4.5)."""

    QUEUE = bit(0)
    CONFIG = bit(1)


class CommonRegisters(RegisterFile):
    """Common configuration (4.1.4.3) and interrupt status."""

    DEVICE_FEATURE_SELECT = reg(0x00, Select, rw)
    DEVICE_FEATURE = reg(0x04, Half, ro)
    DRIVER_FEATURE_SELECT = reg(0x08, Select, rw)
    DRIVER_FEATURE = reg(0x0C, Half, rw)
    CONFIG_MSIX_VECTOR = reg(0x10, Number, rw, reset=NO_VECTOR)
    NUM_QUEUES = reg(0x12, Number, ro)
    DEVICE_STATUS = reg(0x14, Status, rw, DEVICE_NEEDS_RESET=ro)
    CONFIG_GENERATION = reg(0x15, Generation, ro)
    QUEUE_SELECT = reg(0x16, Number, rw)
    QUEUE_SIZE = reg(0x18, Number, rw)
    QUEUE_MSIX_VECTOR = reg(0x1A, Number, rw, reset=NO_VECTOR)
    QUEUE_ENABLE = reg(0x1C, Switch, rw)
    QUEUE_NOTIFY_OFF = reg(0x1E, Number, ro)
    QUEUE_DESC = reg(0x20, Address, rw)
    QUEUE_DRIVER = reg(0x28, Address, rw)
    QUEUE_DEVICE = reg(0x30, Address, rw)

    ISR = reg(ISR, Isr, ro)


def notify() -> Register[Number]:
    """The first of a device's doorbells."""
    return reg(NOTIFY, Number, wo)


# Where a driver finds them: PCI capabilities (4.1.4)


class Structure(IntEnum):
    """What a capability leads to."""

    COMMON = 1
    NOTIFY = 2
    ISR = 3
    DEVICE = 4
    PCI_CFG = 5


class Place(Word, width=32):
    """An offset, a length, or a multiplier."""

    BYTES = bits(31, 0)


class Where(Word, width=32):
    """Which BAR, and a number where there are several structures of a type."""

    BAR = bits(7, 0)
    ID = bits(15, 8)


class Shape(Word, width=16):
    """The capability's length and type."""

    LENGTH = bits(7, 0)
    TYPE = bits(15, 8, Structure)


class PciCapability(RegisterFile):
    """A structure of the device in a BAR (4.1.4). The last word is of doorbells only: how far apart they are."""

    HEADER = reg(0x00, CapabilityHeader, ro)
    SHAPE = reg(0x02, Shape, ro)
    WHERE = reg(0x04, Where, ro)
    OFFSET = reg(0x08, Place, ro)
    LENGTH = reg(0x0C, Place, ro)
    MULTIPLIER = reg(0x10, Place, ro)


class Window(RegisterFile):
    """A way to the BARs through configuration space: DATA is what lies at OFFSET of BAR, LENGTH bytes (4.1.4.9)."""

    HEADER = reg(0x00, CapabilityHeader, ro)
    SHAPE = reg(0x02, Shape, ro)
    WHERE = reg(0x04, Where, ro, BAR=rw)
    OFFSET = reg(0x08, Place, rw)
    LENGTH = reg(0x0C, Place, rw)
    DATA = reg(0x10, Place, rw)


class _Access:
    """The hooks of a window. An access of another length than 1, 2 or 4 bytes, or a misaligned one, meets nobody."""

    def __init__(self, function: Function) -> None:
        self._function, self.registers = function, Window(self)

    def on_read_DATA(self) -> int:
        """Read what the window shows."""
        window = self.registers
        return self._function.read_bar(window.WHERE.BAR, int(window.OFFSET), self._width())

    def on_write_DATA(self, old: Place, new: Place) -> None:
        """Write to what the window shows."""
        window = self.registers
        self._function.write_bar(window.WHERE.BAR, int(window.OFFSET), self._width(), int(new))

    def _width(self) -> int:
        return int(self.registers.LENGTH) if self.registers.LENGTH in (1, 2, 4) else 0


def _window(function: Function) -> RegisterFile:
    return _Access(function).registers


def capabilities(bar: int, config_size: int, queues: int) -> tuple[VendorCapability, ...]:
    """Those of a device whose region is a BAR."""
    made = []
    for kind, offset, size in (
        (Structure.COMMON, COMMON, 0x38),
        (Structure.NOTIFY, NOTIFY, queues * NOTIFY_STRIDE),
        (Structure.ISR, ISR, 1),
        (Structure.DEVICE, CONFIG, config_size),
    ):
        length = 20 if kind is Structure.NOTIFY else 16
        values: dict[str, int] = {
            "SHAPE": Shape.of(LENGTH=length, TYPE=kind),
            "WHERE": Where.of(BAR=bar),
            "OFFSET": offset,
            "LENGTH": size,
            "MULTIPLIER": NOTIFY_STRIDE if kind is Structure.NOTIFY else 0,
        }
        made.append(VendorCapability(PciCapability, length, values))
    window: dict[str, int] = {"SHAPE": Shape.of(LENGTH=20, TYPE=Structure.PCI_CFG)}
    return (*made, VendorCapability(_window, 20, window))
