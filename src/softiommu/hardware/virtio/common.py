"""What every virtio device shows on PCI: status, common configuration, interrupts, doorbells. Virtio 1.2, 2.1 and 4.1.

The structures lie in one region, at the offsets that `CommonRegisters` says; a device's own configuration begins at
CONFIG, and its doorbells (`notify`) at NOTIFY.
"""

from __future__ import annotations

from softiommu.registers import Register, RegisterFile, reg, ro, rw, wo
from softiommu.words import Word, bit, bits

#: What a vector register reads when none is assigned (4.1.5.1.2).
NO_VECTOR = 0xFFFF
#: Where in the region the device's configuration lies, the doorbells, and how far apart those are (4.1.4.4).
CONFIG, NOTIFY, NOTIFY_STRIDE = 0x2000, 0x3000, 4


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

    ISR = reg(0x1000, Isr, ro)


def notify() -> Register[Number]:
    """The first of a device's doorbells."""
    return reg(NOTIFY, Number, wo)
