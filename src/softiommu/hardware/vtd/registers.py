"""The remapping hardware's registers. VT-d 11.4."""

from __future__ import annotations

from enum import IntEnum

from softiommu.hardware.vtd.events import FaultHigh, FaultLow
from softiommu.registers import RegisterFile, array, reg, ro, rw, w1c, wo
from softiommu.words import Word, bit, bits


class Ttm(IntEnum):
    """RTADDR, translation table mode (11.4.5)."""

    LEGACY = 0
    SCALABLE = 1
    RESERVED = 2
    ABORT = 3


class Ver(Word, width=32):
    """Version (11.4.1)."""

    MIN = bits(3, 0)
    MAX = bits(7, 4)


class Cap(Word):
    """Capability (11.4.2)."""

    ND = bits(2, 0)
    AFL = bit(3)
    RWBF = bit(4)
    PLMR = bit(5)
    PHMR = bit(6)
    CM = bit(7)
    SAGAW = bits(12, 8)
    MGAW = bits(21, 16)
    ZLR = bit(22)
    FRO = bits(33, 24)
    SSLPS = bits(37, 34)
    PSI = bit(39)
    NFR = bits(47, 40)
    MAMV = bits(53, 48)
    DWD = bit(54)
    DRD = bit(55)
    FS1GP = bit(56)
    PI = bit(59)
    FS5LP = bit(60)
    ECMDS = bit(61)
    ESIRTPS = bit(62)
    ESRTPS = bit(63)


class Ecap(Word):
    """Extended capability (11.4.3)."""

    C = bit(0)
    QI = bit(1)
    DT = bit(2)
    IR = bit(3)
    EIM = bit(4)
    PT = bit(6)
    SC = bit(7)
    IRO = bits(17, 8)
    MHMV = bits(23, 20)
    MTS = bit(25)
    NEST = bit(26)
    DIS = bit(27)
    PRS = bit(29)
    ERS = bit(30)
    SRS = bit(31)
    NWFS = bit(33)
    EAFS = bit(34)
    PSS = bits(39, 35)
    PASID = bit(40)
    DIT = bit(41)
    PDS = bit(42)
    SMTS = bit(43)
    VCS = bit(44)
    SSADS = bit(45)
    SSTS = bit(46)
    FSTS = bit(47)
    SMPWCS = bit(48)
    RPS = bit(49)
    PMS = bit(51)
    RPRIVS = bit(53)


class Gcmd(Word, width=32):
    """Global command, and global status with the same bits (11.4.4)."""

    CFI = bit(23)
    SIRTP = bit(24)
    IRE = bit(25)
    QIE = bit(26)
    WBF = bit(27)
    EAFL = bit(28)
    SFL = bit(29)
    SRTP = bit(30)
    TE = bit(31)


class Rtaddr(Word):
    """Root table address (11.4.5)."""

    TTM = bits(11, 10, Ttm)
    RTA = bits(63, 12)


class Fsts(Word, width=32):
    """Fault status (11.4.9)."""

    PFO = bit(0)
    PPF = bit(1)
    AFO = bit(2)
    APF = bit(3)
    IQE = bit(4)
    ICE = bit(5)
    ITE = bit(6)
    FRI = bits(15, 8)


class EventControl(Word, width=32):
    """An event's control: mask and pending (11.4.10)."""

    IP = bit(30)
    IM = bit(31)


class Plain32(Word, width=32):
    """A register without fields."""

    VALUE = bits(31, 0)


class Ccmd(Word):
    """Context command (11.4.6.1): G 1 global, 2 domain, 3 device; CAIG is what was done."""

    DID = bits(15, 0)
    SID = bits(31, 16)
    FM = bits(33, 32)
    CAIG = bits(60, 59)
    CIRG = bits(62, 61)
    ICC = bit(63)


class Iva(Word):
    """Invalidate address (11.4.6.2): 2**AM pages; IH: leaves only."""

    AM = bits(5, 0)
    IH = bit(6)
    ADDR = bits(63, 12)


class IotlbCommand(Word):
    """IOTLB invalidate (11.4.6.3): granularity 1 global, 2 domain, 3 page; IAIG is what was done."""

    DID = bits(47, 32)
    DW = bit(48)
    DR = bit(49)
    IAIG = bits(58, 57)
    IIRG = bits(61, 60)
    IVT = bit(63)


class Pmen(Word, width=32):
    """Protected memory enable (11.4.8): PRS follows EPM."""

    PRS = bit(0)
    EPM = bit(31)


class ProtectedLow(Word, width=32):
    """Base or limit of the protected memory below 4 GiB, in 2 MiB (11.4.8.2)."""

    ADDR = bits(31, 21)


class ProtectedHigh(Word):
    """Base or limit of the protected memory anywhere, in 2 MiB (11.4.8.4)."""

    ADDR = bits(63, 21)


class QueuePointer(Word):
    """Invalidation queue head and tail: byte offset (11.4.18)."""

    OFFSET = bits(18, 4)


class Iqa(Word):
    """Invalidation queue address (11.4.20)."""

    QS = bits(2, 0)
    DW = bit(11)
    IQA = bits(63, 12)


class Ics(Word, width=32):
    """Invalidation completion status (11.4.21)."""

    IWC = bit(0)


class QueueErrorInfo(IntEnum):
    """IQER, what was wrong with the invalidation queue (11.4.26)."""

    NONE = 0
    TAIL = 1
    FETCH = 2
    TYPE = 3
    RESERVED = 4
    WIDTH = 5
    TAIL_MISALIGNED = 6
    TTM = 7


class Iqer(Word):
    """Invalidation queue error record (11.4.26)."""

    IQEI = bits(3, 0, QueueErrorInfo)
    ITESID = bits(47, 32)
    ICESID = bits(63, 48)


class Irta(Word):
    """Interrupt remapping table address (11.4.27): 2**(S+1) entries."""

    S = bits(3, 0)
    EIME = bit(11)
    IRTA = bits(63, 12)


class PagePointer(Word):
    """Page request queue head and tail: byte offset (11.4.28)."""

    OFFSET = bits(18, 5)


class Pqa(Word):
    """Page request queue address (11.4.30): 2**PQS pages."""

    PQS = bits(2, 0)
    PQA = bits(63, 12)


class Prs(Word, width=32):
    """Page request status (11.4.31)."""

    PPR = bit(0)
    PRO = bit(1)


class Registers(RegisterFile):
    """What software sees at offset 0. CAP and ECAP are set when the hardware is made."""

    VER = reg(0x000, Ver, ro, 0x60)
    CAP = reg(0x008, Cap, ro)
    ECAP = reg(0x010, Ecap, ro)
    GCMD = reg(0x018, Gcmd, wo)
    GSTS = reg(0x01C, Gcmd, ro)
    RTADDR = reg(0x020, Rtaddr, rw)
    CCMD = reg(0x028, Ccmd, rw, CAIG=ro)
    FSTS = reg(0x034, Fsts, ro, PFO=w1c, AFO=w1c, APF=w1c, IQE=w1c, ICE=w1c, ITE=w1c)
    FECTL = reg(0x038, EventControl, rw, EventControl.IM.mask, IP=ro)
    FEDATA = reg(0x03C, Plain32, rw)
    FEADDR = reg(0x040, Plain32, rw)
    FEUADDR = reg(0x044, Plain32, rw)
    PMEN = reg(0x064, Pmen, rw, PRS=ro)
    PLMBASE = reg(0x068, ProtectedLow, rw)
    PLMLIMIT = reg(0x06C, ProtectedLow, rw)
    PHMBASE = reg(0x070, ProtectedHigh, rw)
    PHMLIMIT = reg(0x078, ProtectedHigh, rw)
    IQH = reg(0x080, QueuePointer, ro)
    IQT = reg(0x088, QueuePointer, rw)
    IQA = reg(0x090, Iqa, rw)
    ICS = reg(0x09C, Ics, w1c)
    IECTL = reg(0x0A0, EventControl, rw, EventControl.IM.mask, IP=ro)
    IEDATA = reg(0x0A4, Plain32, rw)
    IEADDR = reg(0x0A8, Plain32, rw)
    IEUADDR = reg(0x0AC, Plain32, rw)
    IQER = reg(0x0B0, Iqer, ro)
    IRTA = reg(0x0B8, Irta, rw)
    PQH = reg(0x0C0, PagePointer, rw)
    PQT = reg(0x0C8, PagePointer, rw)
    PQA = reg(0x0D0, Pqa, rw)
    PRS = reg(0x0DC, Prs, w1c)
    PECTL = reg(0x0E0, EventControl, rw, EventControl.IM.mask, IP=ro)
    PEDATA = reg(0x0E4, Plain32, rw)
    PEADDR = reg(0x0E8, Plain32, rw)
    PEUADDR = reg(0x0EC, Plain32, rw)


class IotlbRegisters(RegisterFile):
    """Where ECAP.IRO says (in 16 bytes): invalidation of the IOTLB without a queue."""

    IVA = reg(0x0, Iva, wo)
    IOTLB = reg(0x8, IotlbCommand, rw, IAIG=ro)


class FaultRegisters(RegisterFile):
    """Where CAP.FRO says (in 16 bytes): one record for each of CAP.NFR + 1 faults (11.4.14)."""

    LOW = array(reg(0x0, FaultLow, ro), count=256, stride=16)
    HIGH = array(reg(0x8, FaultHigh, ro, F=w1c), count=256, stride=16)
