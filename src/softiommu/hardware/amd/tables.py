"""Device table entries, GCR3 tables, interrupt table entries. AMD IOMMU specification 48882, 2.2 and 2.3."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from softiommu.words import Word, bit, bits

DTE_SIZE = 32
#: DTE.Mode: the host table of so many levels (2.2.3).
HOST_TABLES = {levels: f"amdv1-{levels}level" for levels in range(1, 7)}
#: DTE.GuestPagingMode: the guest table (2.2.6).
GUEST_TABLES = {0: "x86-64-4level", 1: "x86-64-5level"}


class Had(IntEnum):
    """DTE.HAD: which flags of host tables the hardware sets."""

    NONE = 0
    ACCESSED = 1
    RESERVED = 2
    ACCESSED_AND_DIRTY = 3


class IntCtl(IntEnum):
    """DTE.IntCtl: what happens to fixed and arbitrated interrupts."""

    ABORT = 0
    FORWARD = 1
    REMAP = 2


class PortIo(IntEnum):
    """DTE.IoCtl and DTE.SysMgt: what happens to the ranges of port I/O and of system management messages."""

    ABORT = 0
    FORWARD = 1
    #: Port I/O: translated. System management: INTx messages are forwarded, and the rest aborted.
    SOME = 2
    TRANSLATE = 3


class Dte0(Word):
    """Device table entry, bits 63:0."""

    V = bit(0)
    TV = bit(1)
    HAD = bits(8, 7, Had)
    Mode = bits(11, 9)
    HostPageTableRoot = bits(51, 12)
    PPR = bit(52)
    GPRP = bit(53)
    GIoV = bit(54)
    GV = bit(55)
    GLX = bits(57, 56)
    GCR3Root14_12 = bits(60, 58)
    IR = bit(61)
    IW = bit(62)


class Dte1(Word):
    """Device table entry, bits 127:64."""

    DomainID = bits(15, 0)
    GCR3Root30_15 = bits(31, 16)
    I = bit(32)  # noqa: E741 - the manual's name
    SE = bit(33)
    SA = bit(34)
    IoCtl = bits(36, 35, PortIo)
    Cache = bit(37)
    SD = bit(38)
    EX = bit(39)
    SysMgt = bits(41, 40, PortIo)
    GCR3Root51_31 = bits(63, 43)


class Dte2(Word):
    """Device table entry, bits 191:128."""

    IV = bit(0)
    IntTabLen = bits(4, 1)
    IG = bit(5)
    IntTableRoot = bits(51, 6)
    GuestPagingMode = bits(55, 54)
    INITPass = bit(56)
    EIntPass = bit(57)
    NMIPass = bit(58)
    HPTMode = bit(59)
    IntCtl = bits(61, 60, IntCtl)
    Lint0Pass = bit(62)
    Lint1Pass = bit(63)


class Dte3(Word):
    """Device table entry, bits 255:192."""

    AttrV = bit(54)
    Mode0FC = bit(55)
    SnoopAttr = bits(63, 56)


class Dte(NamedTuple):
    """A device table entry."""

    q0: Dte0 = Dte0(0)
    q1: Dte1 = Dte1(0)
    q2: Dte2 = Dte2(0)
    q3: Dte3 = Dte3(0)

    @property
    def gcr3_root(self) -> int:
        """The address of the GCR3 table, which lies in three fields."""
        return self.q0.GCR3Root14_12 << 12 | self.q1.GCR3Root30_15 << 15 | self.q1.GCR3Root51_31 << 31

    def with_gcr3_root(self, pa: int) -> Dte:
        """The entry with another GCR3 table."""
        page = pa >> 12
        return self._replace(
            q0=self.q0.replace(GCR3Root14_12=page & 7),
            q1=self.q1.replace(GCR3Root30_15=page >> 3 & 0xFFFF, GCR3Root51_31=page >> 19),
        )

    def to_bytes(self) -> bytes:
        """Its 32 bytes."""
        return b"".join(int(word).to_bytes(8, "little") for word in self)

    @classmethod
    def from_bytes(cls, raw: bytes) -> Dte:
        """The entry with these bytes."""
        words = [int.from_bytes(raw[at : at + 8], "little") for at in range(0, DTE_SIZE, 8)]
        return cls(Dte0(words[0]), Dte1(words[1]), Dte2(words[2]), Dte3(words[3]))


class Gcr3Entry(Word):
    """An entry of a GCR3 table of any level: the next table, or a PASID's guest table (2.2.6.3)."""

    V = bit(0)
    ADDR = bits(51, 12)


#: IntTabLen is a logarithm of at most this.
MOST_INTERRUPTS_LG2 = 11
#: IRTE.IntType: fixed and lowest priority; others are not remapped.
REMAPPED_TYPES = (0, 1)


class Irte(Word, width=32):
    """Interrupt remapping table entry of 32 bits (2.2.5)."""

    RemapEn = bit(0)
    SupIOPF = bit(1)
    IntType = bits(4, 2)
    RqEoi = bit(5)
    DM = bit(6)
    GuestMode = bit(7)
    Destination = bits(15, 8)
    Vector = bits(23, 16)


class LongIrteLow(Word):
    """Interrupt remapping table entry of 128 bits (Control.GAEn), low word."""

    RemapEn = bit(0)
    SupIOPF = bit(1)
    IntType = bits(4, 2)
    RqEoi = bit(5)
    DM = bit(6)
    GuestMode = bit(7)
    Destination = bits(31, 8)


class LongIrteHigh(Word):
    """Interrupt remapping table entry of 128 bits, high word."""

    Vector = bits(7, 0)
    DestinationHigh = bits(63, 56)


class MsiAddress(Word, width=32):
    """The address of a message signalled interrupt, below 4 GiB (Intel SDM volume 3, 11.11.1)."""

    DM = bit(2)
    RH = bit(3)
    Destination = bits(19, 12)
    FEE = bits(31, 20)


class MsiData(Word, width=32):
    """Its data; the low 11 bits are the index of its remapping entry."""

    Vector = bits(7, 0)
    Mode = bits(10, 8)
    Level = bit(14)
    Trigger = bit(15)
