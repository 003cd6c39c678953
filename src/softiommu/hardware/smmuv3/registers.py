"""The registers of both pages. Arm IHI 0070, 6.3."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from softiommu.registers import RegisterFile, reg, ro, rw
from softiommu.words import Word, bit, bits


class Idr0(Word, width=32):
    """Features (6.3.1)."""

    S2P = bit(0)
    S1P = bit(1)
    TTF = bits(3, 2)
    COHACC = bit(4)
    BTM = bit(5)
    HTTU = bits(7, 6)
    DORMHINT = bit(8)
    HYP = bit(9)
    ATS = bit(10)
    NS1ATS = bit(11)
    ASID16 = bit(12)
    MSI = bit(13)
    SEV = bit(14)
    ATOS = bit(15)
    PRI = bit(16)
    VMW = bit(17)
    VMID16 = bit(18)
    CD2L = bit(19)
    VATOS = bit(20)
    TTENDIAN = bits(22, 21)
    ATSRECERR = bit(23)
    STALL_MODEL = bits(25, 24)
    TERM_MODEL = bit(26)
    ST_LEVEL = bits(28, 27)
    RME_IMPL = bit(30)


class Idr1(Word, width=32):
    """Sizes (6.3.2)."""

    SIDSIZE = bits(5, 0)
    SSIDSIZE = bits(10, 6)
    PRIQS = bits(15, 11)
    EVENTQS = bits(20, 16)
    CMDQS = bits(25, 21)
    ATTR_PERMS_OVR = bit(26)
    ATTR_TYPES_OVR = bit(27)
    REL = bit(28)
    QUEUES_PRESET = bit(29)
    TABLES_PRESET = bit(30)
    ECMDQ = bit(31)


class Idr2(Word, width=32):
    """Where VATOS is (6.3.3)."""

    BA_VATOS = bits(9, 0)


class Idr3(Word, width=32):
    """Later features (6.3.4)."""

    HAD = bit(2)
    PBHA = bit(3)
    XNX = bit(4)
    PPS = bit(5)
    MPAM = bit(7)
    FWB = bit(8)
    STT = bit(9)
    RIL = bit(10)
    BBML = bits(12, 11)
    E0PD = bit(13)
    PTWNNC = bit(14)
    DPT = bit(15)


class Idr5(Word, width=32):
    """Addresses (6.3.6)."""

    OAS = bits(2, 0)
    GRAN4K = bit(4)
    GRAN16K = bit(5)
    GRAN64K = bit(6)
    DS = bit(7)
    D128 = bit(8)
    VAX = bits(11, 10)
    STALL_MAX = bits(31, 16)


class Iidr(Word, width=32):
    """Who made it (6.3.7)."""

    IMPLEMENTER = bits(11, 0)
    REVISION = bits(15, 12)
    VARIANT = bits(19, 16)
    PRODUCTID = bits(31, 20)


class Aidr(Word, width=32):
    """The version of the architecture (6.3.8)."""

    ARCHMINOR = bits(3, 0)
    ARCHMAJOR = bits(7, 4)


#: Address sizes by their code (OAS, CD.IPS, STE.S2PS).
SIZES = (32, 36, 40, 42, 44, 48, 52, 56)


class Cr0(Word, width=32):
    """Enables (6.3.9); CR0ACK shows what took effect."""

    SMMUEN = bit(0)
    PRIQEN = bit(1)
    EVENTQEN = bit(2)
    CMDQEN = bit(3)
    ATSCHK = bit(4)
    VMW = bits(8, 6)


class Cr1(Word, width=32):
    """Attributes of accesses to tables and queues (6.3.11)."""

    QUEUE_IC = bits(1, 0)
    QUEUE_OC = bits(3, 2)
    QUEUE_SH = bits(5, 4)
    TABLE_IC = bits(7, 6)
    TABLE_OC = bits(9, 8)
    TABLE_SH = bits(11, 10)


class Cr2(Word, width=32):
    """Choices (6.3.12)."""

    E2H = bit(0)
    RECINVSID = bit(1)
    PTM = bit(2)
    REC_CFG_ATS = bit(3)


class Statusr(Word, width=32):
    """Status (6.3.13)."""

    DORMANT = bit(0)


class Gbpa(Word, width=32):
    """What happens to transactions while SMMUEN is 0 (6.3.14)."""

    MEMATTR = bits(3, 0)
    MTCFG = bit(4)
    ALLOCCFG = bits(11, 8)
    SHCFG = bits(13, 12)
    PRIVCFG = bits(17, 16)
    INSTCFG = bits(19, 18)
    ABORT = bit(20)
    UPDATE = bit(31)


class IrqCtrl(Word, width=32):
    """Which interrupts are sent (6.3.16)."""

    GERROR = bit(0)
    PRIQ = bit(1)
    EVENTQ = bit(2)


class Gerror(Word, width=32):
    """Global errors (6.3.18): one is active while its bits in GERROR and GERRORN differ."""

    CMDQ_ERR = bit(0)
    EVENTQ_ABT = bit(2)
    PRIQ_ABT = bit(3)
    MSI_CMDQ_ABT = bit(4)
    MSI_EVENTQ_ABT = bit(5)
    MSI_PRIQ_ABT = bit(6)
    MSI_GERROR_ABT = bit(7)
    SFM = bit(8)
    CMDQP_ERR = bit(9)
    DPT_ERR = bit(10)


class IrqCfg0(Word):
    """Where an interrupt's message is written; 0: none is."""

    ADDR = bits(51, 2)


class IrqCfg1(Word, width=32):
    """What is written there."""

    DATA = bits(31, 0)


class IrqCfg2(Word, width=32):
    """How it is written; LO (PRIQ only): for the last request of a group."""

    MEMATTR = bits(3, 0)
    SH = bits(5, 4)
    LO = bit(31)


class StrtabBase(Word):
    """The stream table (6.3.24)."""

    ADDR = bits(51, 6)
    RA = bit(62)


class StrtabBaseCfg(Word, width=32):
    """Its shape (6.3.25): FMT 1 has two levels."""

    LOG2SIZE = bits(5, 0)
    SPLIT = bits(10, 6)
    FMT = bits(17, 16)


class QueueBase(Word):
    """A queue: of commands (6.3.26), events, or page requests. HINT is RA or WA."""

    LOG2SIZE = bits(4, 0)
    ADDR = bits(51, 5)
    HINT = bit(62)


class Prod(Word, width=32):
    """The producer's index with its wrap bit; in queues of records, OVFLG tells of an overflow."""

    WR = bits(19, 0)
    OVFLG = bit(31)


class Cons(Word, width=32):
    """The consumer's index with its wrap bit; OVACKFLG acknowledges an overflow."""

    RD = bits(19, 0)
    OVACKFLG = bit(31)


class CommandError(IntEnum):
    """Why the command queue stopped (7.1)."""

    NONE = 0
    ILL = 1
    ABT = 2
    ATC_INV_SYNC = 3


class CmdqProd(Word, width=32):
    """Where software puts commands (6.3.27)."""

    WR = bits(19, 0)


class CmdqCons(Word, width=32):
    """Where the SMMU takes them (6.3.28)."""

    RD = bits(19, 0)
    ERR = bits(30, 24, CommandError)


class Ring(NamedTuple):
    """Pointers of a queue with 2**lg2 entries: an index, and above it a bit that changes with every round (3.5.1)."""

    lg2: int

    def slot(self, pointer: int) -> int:
        """The entry that a pointer points at."""
        return pointer & (1 << self.lg2) - 1

    def next(self, pointer: int) -> int:
        """The pointer to the entry after it."""
        return pointer + 1 & (2 << self.lg2) - 1

    def ahead(self, prod: int, cons: int) -> int:
        """How many entries follow one another in memory from the consumer's pointer on."""
        return min(prod - cons & (2 << self.lg2) - 1, (1 << self.lg2) - self.slot(cons))

    def skip(self, pointer: int, count: int) -> int:
        """The pointer `count` entries on."""
        return pointer + count & (2 << self.lg2) - 1

    def empty(self, prod: int, cons: int) -> bool:
        """Whether nothing is between the pointers."""
        return not (prod ^ cons) & (2 << self.lg2) - 1

    def full(self, prod: int, cons: int) -> bool:
        """Whether there is no room."""
        return (prod ^ cons) & (2 << self.lg2) - 1 == 1 << self.lg2


class Registers(RegisterFile):
    """Pages 0 and 1. The ID registers are set when the hardware is made; secure ones read as 0."""

    IDR0 = reg(0x00, Idr0, ro)
    IDR1 = reg(0x04, Idr1, ro)
    IDR2 = reg(0x08, Idr2, ro)
    IDR3 = reg(0x0C, Idr3, ro)
    IDR4 = reg(0x10, IrqCfg1, ro)
    IDR5 = reg(0x14, Idr5, ro)
    IIDR = reg(0x18, Iidr, ro)
    AIDR = reg(0x1C, Aidr, ro)
    CR0 = reg(0x20, Cr0, rw)
    CR0ACK = reg(0x24, Cr0, ro)
    CR1 = reg(0x28, Cr1, rw)
    CR2 = reg(0x2C, Cr2, rw)
    STATUSR = reg(0x40, Statusr, ro)
    GBPA = reg(0x44, Gbpa, rw)
    AGBPA = reg(0x48, IrqCfg1, ro)
    IRQ_CTRL = reg(0x50, IrqCtrl, rw)
    IRQ_CTRLACK = reg(0x54, IrqCtrl, ro)
    GERROR = reg(0x60, Gerror, ro)
    GERRORN = reg(0x64, Gerror, rw)
    GERROR_IRQ_CFG0 = reg(0x68, IrqCfg0, rw)
    GERROR_IRQ_CFG1 = reg(0x70, IrqCfg1, rw)
    GERROR_IRQ_CFG2 = reg(0x74, IrqCfg2, rw, LO=ro)
    STRTAB_BASE = reg(0x80, StrtabBase, rw)
    STRTAB_BASE_CFG = reg(0x88, StrtabBaseCfg, rw)
    CMDQ_BASE = reg(0x90, QueueBase, rw)
    CMDQ_PROD = reg(0x98, CmdqProd, rw)
    CMDQ_CONS = reg(0x9C, CmdqCons, rw)
    EVENTQ_BASE = reg(0xA0, QueueBase, rw)
    EVENTQ_IRQ_CFG0 = reg(0xB0, IrqCfg0, rw)
    EVENTQ_IRQ_CFG1 = reg(0xB8, IrqCfg1, rw)
    EVENTQ_IRQ_CFG2 = reg(0xBC, IrqCfg2, rw, LO=ro)
    PRIQ_BASE = reg(0xC0, QueueBase, rw)
    PRIQ_IRQ_CFG0 = reg(0xD0, IrqCfg0, rw)
    PRIQ_IRQ_CFG1 = reg(0xD8, IrqCfg1, rw)
    PRIQ_IRQ_CFG2 = reg(0xDC, IrqCfg2, rw)
    EVENTQ_PROD = reg(0x100A8, Prod, rw)
    EVENTQ_CONS = reg(0x100AC, Cons, rw)
    PRIQ_PROD = reg(0x100C8, Prod, rw)
    PRIQ_CONS = reg(0x100CC, Cons, rw)
