"""Registers of the engine and of its channels.

Intel Xeon Processor E7 v2 Product Family Datasheet, Volume Two (February 2014), 14.5; what that leaves open is as
Linux's ioatdma, DPDK and SPDK rely on it.
"""

from __future__ import annotations

from enum import IntEnum

from softiommu.registers import RegisterFile, reg, ro, rw, w1c
from softiommu.words import Word, bit, bits

BAR_SIZE = 0x4000
MSIX_TABLE, MSIX_PENDING = 0x2000, 0x3000
#: A channel has so many bytes of registers; those of the first follow the engine's own.
CHANNEL_SIZE = 0x80
MAX_CHANNELS = 8

VERSION_3_2 = 0x32
#: log2 of the most bytes that a descriptor moves.
XFERCAP = 12


class Value8(Word, width=8):
    """A byte without fields."""

    VALUE = bits(7, 0)


class Value16(Word, width=16):
    """A word without fields."""

    VALUE = bits(15, 0)


class General(Word, width=8):
    """GENCTRL."""

    DEBUG_EN = bit(0)


class InterruptControl(Word, width=8):
    """INTRCTRL. INT_STATUS: a channel wants attention; INT: and MASTER_INT_EN lets it be told."""

    MASTER_INT_EN = bit(0)
    INT_STATUS = bit(1)
    INT = bit(2)
    MSIX_VECTOR_CONTROL = bit(3)


class Attention(Word, width=32):
    """ATTNSTATUS: a bit for each channel."""

    CHANNELS = bits(31, 0)


class Capability(Word, width=32):
    """DMACAPABILITY."""

    PAGE_BREAK = bit(0)
    CRC = bit(1)
    SKIP_MARKER = bit(2)
    DCA = bit(4)
    CRC_MOVE = bit(5)
    FILL_BLOCK = bit(6)
    APIC = bit(7)
    XOR = bit(8)
    PQ = bit(9)


class Registers(RegisterFile):
    """The engine's own registers: what BAR 0 shows first."""

    CHANCNT = reg(0x00, Value8, ro)
    XFERCAP = reg(0x01, Value8, ro, reset=XFERCAP)
    GENCTRL = reg(0x02, General, rw)
    INTRCTRL = reg(0x03, InterruptControl, rw, INT_STATUS=ro, INT=ro)
    ATTNSTATUS = reg(0x04, Attention, ro)
    CBVER = reg(0x08, Value8, ro, reset=VERSION_3_2)
    INTRDELAY = reg(0x0C, Value16, ro)
    CS_STATUS = reg(0x0E, Value16, ro)
    DMACAPABILITY = reg(0x10, Capability, ro, reset=Capability.of(FILL_BLOCK=1))
    DCAOFFSET = reg(0x14, Value16, ro)


class ChannelControl(Word, width=16):
    """CHANCTRL. INT_DISABLE is set with each interrupt; IN_USE with each read, for who reads it as 0."""

    INT_DISABLE = bit(0)
    ERR_COMPLETION_EN = bit(2)
    ANY_ERR_ABORT_EN = bit(3)
    ERR_INT_EN = bit(4)
    DESCRIPTOR_SNOOP_CONTROL = bit(5)
    IN_USE = bit(8)
    COMPL_DCA_EN = bit(9)


class Compatibility(Word, width=16):
    """DMA_COMP: which earlier versions a driver may be of."""

    V1 = bit(0)
    V2 = bit(1)


class Command(Word, width=8):
    """CHANCMD: one bit at a time. A command is over when it is written, so that it reads as 0."""

    START = bit(0)
    APPEND = bit(1)
    SUSPEND = bit(2)
    ABORT = bit(3)
    RESUME = bit(4)
    RESET = bit(5)


class State(IntEnum):
    """What a channel does."""

    ACTIVE = 0
    #: It did all that it was given.
    IDLE = 1
    SUSPENDED = 2
    #: It needs a new chain, and before that to be told that its errors were seen.
    HALTED = 3
    #: It has a chain, and nothing to do yet.
    ARMED = 4


class ChannelStatus(Word):
    """CHANSTS, which is also what a completion writes. COMPLETED is a descriptor's address, shifted."""

    STATE = bits(2, 0, State)
    UNAFFILIATED_ERR = bit(3)
    SOFT_ERR = bit(4)
    COMPLETED = bits(63, 6)


class ChainAddress(Word):
    """CHAINADDR: the first descriptor."""

    ADDRESS = bits(63, 0)


class CompletionAddress(Word):
    """CHANCMP: where completions are written."""

    ADDRESS = bits(63, 3)


class Errors(Word, width=32):
    """CHANERR and CHANERRMSK."""

    SOURCE_ADDRESS = bit(0)
    DESTINATION_ADDRESS = bit(1)
    NEXT_ADDRESS = bit(2)
    NEXT_ALIGNMENT = bit(3)
    CHAIN_ADDRESS = bit(4)
    COMMAND = bit(5)
    CHIPSET_INTEGRITY = bit(6)
    DMA_INTEGRITY = bit(7)
    READ_DATA = bit(8)
    WRITE_DATA = bit(9)
    CONTROL = bit(10)
    LENGTH = bit(11)
    COMPLETION_ADDRESS = bit(12)
    INTERRUPT_CONFIGURATION = bit(13)
    SOFT = bit(14)
    UNAFFILIATED = bit(15)
    XOR_P_OR_CRC = bit(16)
    XOR_Q = bit(17)
    DESCRIPTOR_COUNT = bit(18)


class CacheAccess(Word, width=32):
    """DCACTRL. Without direct cache access it is kept, and does nothing."""

    TARGET_CPU = bits(15, 0)
    CMPL_WRITE_ENABLE = bit(16)


class ChannelRegisters(RegisterFile):
    """The registers of one channel."""

    CHANCTRL = reg(0x00, ChannelControl, rw, INT_DISABLE=w1c)
    DMA_COMP = reg(0x02, Compatibility, ro, reset=Compatibility.of(V2=1))
    CHANCMD = reg(0x04, Command, rw)
    DMACOUNT = reg(0x06, Value16, rw)
    CHANSTS = reg(0x08, ChannelStatus, ro)
    CHAINADDR = reg(0x10, ChainAddress, rw)
    CHANCMP = reg(0x18, CompletionAddress, rw)
    CHANERR = reg(0x28, Errors, w1c)
    CHANERRMSK = reg(0x2C, Errors, rw)
    DCACTRL = reg(0x30, CacheAccess, rw)
