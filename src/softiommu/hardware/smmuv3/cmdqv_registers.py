"""The registers of Tegra241's CMDQV, an extension of an SMMUv3: queues of commands that guests own.

An interface (VINTF) is a guest's: it has a VMID, pairs of stream ids, and some of the queues (VCMDQ), which have a
number of their own in it (LVCMDQ). The page that a guest is given shows the first halves of its queues.
"""

from __future__ import annotations

from softiommu.hardware.smmuv3.registers import CmdqCons, CmdqProd, Gerror
from softiommu.registers import RegisterFile, array, reg, ro, rw
from softiommu.words import Word, bit, bits

#: Where interfaces start and how far apart they are; the same of queues, of both halves.
VINTF_BASE, VINTF_STRIDE = 0x1000, 0x100
QUEUE_STRIDE = 0x80
PAGE0_BASE, PAGE1_BASE, PAGE_SIZE = 0x10000, 0x20000, 0x10000
#: The pages of an interface's own queues: both halves, for each interface.
LOGICAL_BASE, LOGICAL_STRIDE = 0x30000, 0x20000
MOST_QUEUES, MOST_SIDS = 128, 16


class Enable(Word, width=32):
    """CONFIG of the whole, and of a queue."""

    EN = bit(0)


class Enabled(Word, width=32):
    """STATUS of the whole, and of a queue."""

    ENABLED = bit(0)


class Param(Word, width=32):
    """How many there are of everything."""

    VER = bits(3, 0)
    NUM_VCMDQ_LOG2 = bits(7, 4)
    NUM_VINTF_LOG2 = bits(11, 8)
    NUM_SID_PER_VM_LOG2 = bits(15, 12)

    @property
    def per_interface_lg2(self) -> int:
        """log2 of the queues of each interface."""
        return self.NUM_VCMDQ_LOG2 - self.NUM_VINTF_LOG2


class Bits(Word, width=32):
    """One bit for each of something."""

    MAP = bits(31, 0)


class WideBits(Word):
    """The same, of 64."""

    MAP = bits(63, 0)


class Allocation(Word, width=32):
    """Which interface has a queue, and how it calls it."""

    ALLOC = bit(0)
    LVCMDQ = bits(7, 1)
    VINTF = bits(20, 15)


class VintfConfig(Word, width=32):
    """Of an interface. HYP_OWN: it is the host's, any command is taken as it is."""

    EN = bit(0)
    VMID = bits(16, 1)
    HYP_OWN = bit(17)


class SidMatch(Word, width=32):
    """A stream id as the guest calls it."""

    EN = bit(0)
    SID = bits(31, 1)


class QueueBase(Word):
    """Where a queue is."""

    LOG2SIZE = bits(4, 0)
    ADDR = bits(47, 5)


class Registers(RegisterFile):
    """Of the whole."""

    CONFIG = reg(0x000, Enable, rw)
    PARAM = reg(0x004, Param, ro)
    STATUS = reg(0x008, Enabled, ro)
    VINTF_ERR_MAP = reg(0x014, WideBits, ro)
    VINTF_INT_MASK = reg(0x01C, WideBits, rw)
    CMDQ_ALLOC = array(reg(0x200, Allocation, rw), MOST_QUEUES, 4)


class VintfRegisters(RegisterFile):
    """Of an interface."""

    CONFIG = reg(0x00, VintfConfig, rw)
    STATUS = reg(0x04, Enabled, ro)
    SID_MATCH = array(reg(0x40, SidMatch, rw), MOST_SIDS, 4)
    SID_REPLACE = array(reg(0x80, Bits, rw), MOST_SIDS, 4)
    LVCMDQ_ERR_MAP = array(reg(0xC0, WideBits, ro), 2, 8)


class Page0(RegisterFile):
    """The half of a queue that its owner has."""

    CONS = reg(0x00, CmdqCons, rw)
    PROD = reg(0x04, CmdqProd, rw)
    CONFIG = reg(0x08, Enable, rw)
    STATUS = reg(0x0C, Enabled, ro)
    GERROR = reg(0x10, Gerror, ro)
    GERRORN = reg(0x14, Gerror, rw)


class Page1(RegisterFile):
    """The half of a queue that the host has."""

    BASE = reg(0x00, QueueBase, rw)
    CONS_INDX_BASE = reg(0x08, WideBits, rw)


def queue_page0(number: int) -> int:
    """Where the owner's half of a queue is."""
    return PAGE0_BASE + QUEUE_STRIDE * number


def queue_page1(number: int) -> int:
    """Where the host's half of a queue is."""
    return PAGE1_BASE + QUEUE_STRIDE * number


def vintf(number: int) -> int:
    """Where an interface is."""
    return VINTF_BASE + VINTF_STRIDE * number
