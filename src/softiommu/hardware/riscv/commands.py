"""Commands. RISC-V IOMMU 1.0, section "Command-Queue"."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from softiommu.words import Word, bit, bits

COMMAND_BYTES = 16


class Command(IntEnum):
    """Opcode, and func3 from bit 7: as in the word."""

    IOTINVAL_VMA = 1
    IOTINVAL_GVMA = 1 | 1 << 7
    IOFENCE_C = 2
    IODIR_INVAL_DDT = 3
    IODIR_INVAL_PDT = 3 | 1 << 7
    ATS_INVAL = 4
    ATS_PRGR = 4 | 1 << 7


class Iotinval0(Word):
    """IOTINVAL.VMA and IOTINVAL.GVMA, word 0."""

    COMMAND = bits(9, 0)
    AV = bit(10)
    PSCID = bits(31, 12)
    PSCV = bit(32)
    GV = bit(33)
    NL = bit(34)
    GSCID = bits(59, 44)


class Iotinval1(Word):
    """IOTINVAL, word 1: with S the run of ones from the lowest bit of PAGE tells the size."""

    S = bit(9)
    PAGE = bits(61, 10)


class Iofence0(Word):
    """IOFENCE.C, word 0."""

    COMMAND = bits(9, 0)
    AV = bit(10)
    WSI = bit(11)
    PR = bit(12)
    PW = bit(13)
    DATA = bits(63, 32)


class Iofence1(Word):
    """IOFENCE.C, word 1: address bits 63:2."""

    ADDR = bits(61, 0)


class Iodir0(Word):
    """IODIR.INVAL_DDT and IODIR.INVAL_PDT, word 0."""

    COMMAND = bits(9, 0)
    PID = bits(31, 12)
    DV = bit(33)
    DID = bits(63, 40)


class Iodir1(Word):
    """IODIR, word 1: nothing."""


class Ats0(Word):
    """ATS.INVAL and ATS.PRGR, word 0."""

    COMMAND = bits(9, 0)
    PID = bits(31, 12)
    PV = bit(32)
    DSV = bit(33)
    RID = bits(55, 40)
    DSEG = bits(63, 56)


class AtsPayload(Word):
    """ATS, word 1: what the message carries; the IOMMU does not look at it."""

    PAYLOAD = bits(63, 0)


class Inval(Word):
    """Payload of ATS.INVAL: with S the run of ones from bit 12 tells the size."""

    G = bit(0)
    S = bit(11)
    PAGE = bits(63, 12)


class Prgr(Word):
    """Payload of ATS.PRGR."""

    PRGI = bits(40, 32)
    RESPONSE = bits(47, 44)


class Layout(NamedTuple):
    """The words of a command; bits that neither names are reserved."""

    low: type[Word]
    high: type[Word]


LAYOUTS = {
    Command.IOTINVAL_VMA: Layout(Iotinval0, Iotinval1),
    Command.IOTINVAL_GVMA: Layout(Iotinval0, Iotinval1),
    Command.IOFENCE_C: Layout(Iofence0, Iofence1),
    Command.IODIR_INVAL_DDT: Layout(Iodir0, Iodir1),
    Command.IODIR_INVAL_PDT: Layout(Iodir0, Iodir1),
    Command.ATS_INVAL: Layout(Ats0, AtsPayload),
    Command.ATS_PRGR: Layout(Ats0, AtsPayload),
}


def napot(number: int) -> tuple[int, int]:
    """The first page and the logarithm of the pages that a NAPOT-coded page number names."""
    lg2 = (~number & number + 1).bit_length()
    return number >> lg2 << lg2, lg2
