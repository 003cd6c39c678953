"""Root, context and PASID structures. VT-d 4.1, chapter 9 "Translation structure formats"."""

from __future__ import annotations

from enum import IntEnum

from softiommu.words import Word, bit, bits


class TranslationType(IntEnum):
    """Legacy context entry, TT (9.3)."""

    UNTRANSLATED = 0
    DEVICE_TLB = 1
    PASS_THROUGH = 2


class Pgtt(IntEnum):
    """PASID table entry, PGTT (9.6): which tables translate."""

    FIRST = 1
    SECOND = 2
    NESTED = 3
    PASS_THROUGH = 4


class RootEntry(Word):
    """Legacy root entry, low word (9.1)."""

    P = bit(0)
    CTP = bits(63, 12)


class ScalableRootHalf(Word):
    """Scalable root entry: either half (9.2), for devfn 0x00..0x7f and 0x80..0xff."""

    P = bit(0)
    CTP = bits(63, 12)


class ContextLow(Word):
    """Legacy context entry, low word (9.3)."""

    P = bit(0)
    FPD = bit(1)
    TT = bits(3, 2, TranslationType)
    SSPTPTR = bits(63, 12)


class ContextHigh(Word):
    """Legacy context entry, high word (9.3)."""

    AW = bits(2, 0)
    IGNORED = bits(6, 3)
    DID = bits(23, 8)


class ScalableContext0(Word):
    """Scalable context entry, word 0 (9.4)."""

    P = bit(0)
    FPD = bit(1)
    DTE = bit(2)
    PASIDE = bit(3)
    PRE = bit(4)
    PDTS = bits(11, 9)
    PASIDDIRPTR = bits(63, 12)


class ScalableContext1(Word):
    """Scalable context entry, word 1 (9.4)."""

    RID_PASID = bits(19, 0)
    RID_PRIV = bit(20)


class PasidDirectoryEntry(Word):
    """PASID directory entry (9.5)."""

    P = bit(0)
    FPD = bit(1)
    SMPTBLPTR = bits(63, 12)


class Pasid0(Word):
    """PASID table entry, word 0 (9.6)."""

    P = bit(0)
    FPD = bit(1)
    AW = bits(4, 2)
    SLEE = bit(5)
    PGTT = bits(8, 6, Pgtt)
    SSADE = bit(9)
    SSPTPTR = bits(63, 12)


class Pasid1(Word):
    """PASID table entry, word 1 (9.6)."""

    DID = bits(15, 0)
    PWSNP = bit(23)
    PGSNP = bit(24)
    CD = bit(25)
    EMTE = bit(26)
    EMT = bits(29, 27)
    PWT = bit(30)
    PCD = bit(31)
    PAT = bits(63, 32)


class Pasid2(Word):
    """PASID table entry, word 2 (9.6)."""

    SRE = bit(0)
    ERE = bit(1)
    FSPM = bits(3, 2)
    WPE = bit(4)
    NXE = bit(5)
    SMEP = bit(6)
    EAFE = bit(7)
    FSPTPTR = bits(63, 12)


class SourceCheck(IntEnum):
    """IRTE, SVT: how the source of an interrupt is checked (9.10)."""

    NONE = 0
    STREAM = 1
    BUSES = 2


class Irte0(Word):
    """Interrupt remapping table entry, word 0 (9.10). An xAPIC's destination is bits 15:8 of DST."""

    P = bit(0)
    FPD = bit(1)
    DM = bit(2)
    RH = bit(3)
    TM = bit(4)
    DLM = bits(7, 5)
    AVAIL = bits(11, 8)
    IM = bit(15)
    V = bits(23, 16)
    DST = bits(63, 32)


class Irte1(Word):
    """Interrupt remapping table entry, word 1. Of a range of buses, SID has the first and the last."""

    SID = bits(15, 0)
    SQ = bits(17, 16)
    SVT = bits(19, 18, SourceCheck)


class RemappableAddress(Word):
    """The address of an interrupt in remappable format (5.1.2.2)."""

    HANDLE_HIGH = bit(2)
    SHV = bit(3)
    FORMAT = bit(4)
    HANDLE_LOW = bits(19, 5)
    FEE = bits(31, 20)


class MessageAddress(Word):
    """The address of an interrupt message to a local APIC; the upper half has a wide destination's other bits."""

    DM = bit(2)
    RH = bit(3)
    DEST = bits(19, 12)
    FEE = bits(31, 20)
    DEST_HIGH = bits(63, 40)


class MessageData(Word, width=32):
    """The data of an interrupt message."""

    VECTOR = bits(7, 0)
    DLM = bits(10, 8)
    LEVEL = bit(14)
    TM = bit(15)


#: A mask for each value of a function mask field: which function bits are ignored.
FUNCTION_MASKS = (0xFFFF, 0xFFFB, 0xFFF9, 0xFFF8)

#: Levels by the AW field of a second stage.
WIDTHS = {1: "vtdss-39", 2: "vtdss-48", 3: "vtdss-57"}
