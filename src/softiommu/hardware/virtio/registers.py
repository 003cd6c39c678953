"""An IOMMU as its driver sees it: feature bits and device configuration. Virtio 1.2, 6, 5.13.3 and 5.13.4."""

from __future__ import annotations

from softiommu.hardware.virtio.common import CONFIG, NOTIFY_STRIDE, Address, CommonRegisters, notify
from softiommu.registers import array, reg, ro, rw
from softiommu.words import Word, bit, bits

#: Virtqueues (5.13.2).
REQUESTS, EVENTS = 0, 1
QUEUES = 2


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


class Registers(CommonRegisters):
    """One region with the structures of the PCI transport."""

    PAGE_SIZE_MASK = reg(CONFIG + 0x00, PageSizes, ro)
    INPUT_START = reg(CONFIG + 0x08, Address, ro)
    INPUT_END = reg(CONFIG + 0x10, Address, ro)
    DOMAIN_START = reg(CONFIG + 0x18, Domain, ro)
    DOMAIN_END = reg(CONFIG + 0x1C, Domain, ro)
    PROBE_SIZE = reg(CONFIG + 0x20, ProbeSize, ro)
    BYPASS = reg(CONFIG + 0x24, Bypass, rw)

    NOTIFY = array(notify(), count=QUEUES, stride=NOTIFY_STRIDE)
