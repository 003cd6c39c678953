"""The device as its driver sees it: feature bits, common configuration, interrupt status, device configuration.

Virtio 1.2: features 6 and 5.13.3, status 2.1, common configuration 4.1.4.3, device configuration 5.13.4. The structures
of the PCI transport lie in one region, at the offsets that the fields of `Registers` say; `NOTIFY` is the doorbell of
every queue (4.1.4.4).
"""

from __future__ import annotations

from softiommu.registers import RegisterFile, array, reg, ro, rw, wo
from softiommu.words import Word, bit, bits

#: Virtqueues (5.13.2).
REQUESTS, EVENTS = 0, 1
QUEUES = 2
#: What a vector register reads when none is assigned (4.1.5.1.2).
NO_VECTOR = 0xFFFF


class Features(Word):
    """Feature bits of an IOMMU device (5.13.3), and those of any device that this one has (6)."""

    INPUT_RANGE = bit(0)
    DOMAIN_RANGE = bit(1)
    MAP_UNMAP = bit(2)
    BYPASS = bit(3)
    PROBE = bit(4)
    MMIO = bit(5)
    BYPASS_CONFIG = bit(6)
    INDIRECT_DESC = bit(28)
    VERSION_1 = bit(32)


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


class PageSizes(Word):
    """Page sizes that can be mapped; the lowest is the granule, the others are hints."""

    MASK = bits(63, 0)


class Domain(Word, width=32):
    """A domain's id."""

    ID = bits(31, 0)


class ProbeSize(Word, width=32):
    """Bytes of properties in a PROBE request."""

    BYTES = bits(31, 0)


class Bypass(Word, width=8):
    """Whether endpoints without a domain are in bypass mode."""

    ON = bit(0)


class Registers(RegisterFile):
    """One region with the structures of the PCI transport."""

    DEVICE_FEATURE_SELECT = reg(0x00, Select, rw)
    DEVICE_FEATURE = reg(0x04, Half, ro)
    DRIVER_FEATURE_SELECT = reg(0x08, Select, rw)
    DRIVER_FEATURE = reg(0x0C, Half, rw)
    CONFIG_MSIX_VECTOR = reg(0x10, Number, rw, reset=NO_VECTOR)
    NUM_QUEUES = reg(0x12, Number, ro, reset=QUEUES)
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

    PAGE_SIZE_MASK = reg(0x2000, PageSizes, ro)
    INPUT_START = reg(0x2008, Address, ro)
    INPUT_END = reg(0x2010, Address, ro)
    DOMAIN_START = reg(0x2018, Domain, ro)
    DOMAIN_END = reg(0x201C, Domain, ro)
    PROBE_SIZE = reg(0x2020, ProbeSize, ro)
    BYPASS = reg(0x2024, Bypass, rw)

    NOTIFY = array(reg(0x3000, Number, wo), count=QUEUES, stride=4)
