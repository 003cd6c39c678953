"""The registers of a RISC-V IOMMU. RISC-V IOMMU 1.0, chapter "Memory-mapped register interface"."""

from __future__ import annotations

from enum import IntEnum

from softiommu.registers import RegisterFile, array, reg, ro, rw, w1c
from softiommu.words import Word, bit, bits


class Igs(IntEnum):
    """capabilities.IGS: which interrupts there are."""

    MSI = 0
    WSI = 1
    BOTH = 2
    RESERVED = 3


class Capabilities(Word):
    """What the IOMMU can do."""

    VERSION = bits(7, 0)
    SV32 = bit(8)
    SV39 = bit(9)
    SV48 = bit(10)
    SV57 = bit(11)
    SVRSW60T59B = bit(14)
    SVPBMT = bit(15)
    SV32X4 = bit(16)
    SV39X4 = bit(17)
    SV48X4 = bit(18)
    SV57X4 = bit(19)
    AMO_MRIF = bit(21)
    MSI_FLAT = bit(22)
    MSI_MRIF = bit(23)
    AMO_HWAD = bit(24)
    ATS = bit(25)
    T2GPA = bit(26)
    END = bit(27)
    IGS = bits(29, 28, Igs)
    HPM = bit(30)
    DBG = bit(31)
    PAS = bits(37, 32)
    PD8 = bit(38)
    PD17 = bit(39)
    PD20 = bit(40)
    QOSID = bit(41)
    NL = bit(42)
    S = bit(43)
    CUSTOM = bits(63, 56)


class Fctl(Word, width=32):
    """Features control."""

    BE = bit(0)
    WSI = bit(1)
    GXL = bit(2)


class DdtpMode(IntEnum):
    """ddtp.iommu_mode."""

    OFF = 0
    BARE = 1
    LEVEL1 = 2
    LEVEL2 = 3
    LEVEL3 = 4


class Ddtp(Word):
    """Device directory table pointer."""

    MODE = bits(3, 0, DdtpMode)
    BUSY = bit(4)
    PPN = bits(53, 10)


class QueueBase(Word):
    """cqb, fqb, pqb: 2**(LOG2SZ_1 + 1) entries."""

    LOG2SZ_1 = bits(4, 0)
    PPN = bits(53, 10)


class QueueIndex(Word, width=32):
    """Heads and tails: numbers of entries."""

    INDEX = bits(31, 0)


class Cqcsr(Word, width=32):
    """Command queue control and status."""

    CQEN = bit(0)
    CIE = bit(1)
    CQMF = bit(8)
    CMD_TO = bit(9)
    CMD_ILL = bit(10)
    FENCE_W_IP = bit(11)
    CQON = bit(16)
    BUSY = bit(17)


class RecordCsr(Word, width=32):
    """fqcsr and pqcsr: control and status of a queue that the IOMMU fills."""

    EN = bit(0)
    IE = bit(1)
    MF = bit(8)
    OF = bit(9)
    ON = bit(16)
    BUSY = bit(17)


class Ipsr(Word, width=32):
    """Interrupt pending status: command queue, fault queue, performance monitor, page request queue."""

    CIP = bit(0)
    FIP = bit(1)
    PMIP = bit(2)
    PIP = bit(3)


class Iocount(Word, width=32):
    """iocountovf and iocountinh: of the cycle counter, then of counters 1 to 31."""

    CY = bit(0)
    HPM = bits(31, 1)


class Cycles(Word):
    """iohpmcycles."""

    COUNTER = bits(62, 0)
    OF = bit(63)


class Plain64(Word):
    """A register of one number."""

    VALUE = bits(63, 0)


class Plain32(Word, width=32):
    """A register of one number."""

    VALUE = bits(31, 0)


class EventId(IntEnum):
    """Standard events of the performance monitor."""

    NONE = 0
    UNTRANSLATED = 1
    TRANSLATED = 2
    ATS_TRANSLATION = 3
    TLB_MISS = 4
    DEVICE_WALK = 5
    PROCESS_WALK = 6
    FIRST_STAGE_WALK = 7
    SECOND_STAGE_WALK = 8


class HpmEvent(Word):
    """iohpmevt: what a counter counts, and of whom."""

    EVENT_ID = bits(14, 0, EventId)
    DMASK = bit(15)
    PID_PSCID = bits(35, 16)
    DID_GSCID = bits(59, 36)
    PV_PSCV = bit(60)
    DV_GSCV = bit(61)
    IDT = bit(62)
    OF = bit(63)


class TrReqIova(Word):
    """Translation request, address."""

    VPN = bits(63, 12)


class TrReqCtl(Word):
    """Translation request, control: GO is set by software and cleared when tr_response holds the answer."""

    GO = bit(0)
    PRIV = bit(1)
    EXE = bit(2)
    NW = bit(3)
    PID = bits(31, 12)
    PV = bit(32)
    DID = bits(63, 40)


class TrResponse(Word):
    """Translation response; with S the run of ones from the lowest bit of PPN tells the size."""

    FAULT = bit(0)
    PBMT = bits(8, 7)
    S = bit(9)
    PPN = bits(53, 10)


class Qosid(Word, width=32):
    """iommu_qosid: the IOMMU's own memory traffic."""

    RCID = bits(11, 0)
    MCID = bits(27, 16)


class Icvec(Word):
    """Interrupt vector of each cause."""

    CIV = bits(3, 0)
    FIV = bits(7, 4)
    PMIV = bits(11, 8)
    PIV = bits(15, 12)


class MsiAddress(Word):
    """Where a vector's message goes."""

    ADDR = bits(55, 2)


class MsiControl(Word, width=32):
    """A vector's control."""

    M = bit(0)


VECTORS = 16
COUNTERS = 31


class Registers(RegisterFile):
    """The 4 KiB block. Capabilities are set when the IOMMU is made."""

    CAPABILITIES = reg(0x000, Capabilities, ro)
    FCTL = reg(0x008, Fctl, rw)
    DDTP = reg(0x010, Ddtp, rw, BUSY=ro)
    CQB = reg(0x018, QueueBase, rw)
    CQH = reg(0x020, QueueIndex, ro)
    CQT = reg(0x024, QueueIndex, rw)
    FQB = reg(0x028, QueueBase, rw)
    FQH = reg(0x030, QueueIndex, rw)
    FQT = reg(0x034, QueueIndex, ro)
    PQB = reg(0x038, QueueBase, rw)
    PQH = reg(0x040, QueueIndex, rw)
    PQT = reg(0x044, QueueIndex, ro)
    CQCSR = reg(0x048, Cqcsr, w1c, CQEN=rw, CIE=rw, CQON=ro, BUSY=ro)
    FQCSR = reg(0x04C, RecordCsr, w1c, EN=rw, IE=rw, ON=ro, BUSY=ro)
    PQCSR = reg(0x050, RecordCsr, w1c, EN=rw, IE=rw, ON=ro, BUSY=ro)
    IPSR = reg(0x054, Ipsr, w1c)
    IOCOUNTOVF = reg(0x058, Iocount, ro)
    IOCOUNTINH = reg(0x05C, Iocount, rw)
    IOHPMCYCLES = reg(0x060, Cycles, rw)
    IOHPMCTR = array(reg(0x068, Plain64, rw), count=COUNTERS, stride=8)
    IOHPMEVT = array(reg(0x160, HpmEvent, rw), count=COUNTERS, stride=8)
    TR_REQ_IOVA = reg(0x258, TrReqIova, rw)
    TR_REQ_CTL = reg(0x260, TrReqCtl, rw)
    TR_RESPONSE = reg(0x268, TrResponse, ro)
    IOMMU_QOSID = reg(0x270, Qosid, rw)
    ICVEC = reg(0x2F8, Icvec, rw)
    MSI_ADDR = array(reg(0x300, MsiAddress, rw), count=VECTORS, stride=16)
    MSI_DATA = array(reg(0x308, Plain32, rw), count=VECTORS, stride=16)
    MSI_VEC_CTL = array(reg(0x30C, MsiControl, rw), count=VECTORS, stride=16)
