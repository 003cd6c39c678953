"""Event records and page requests. Arm IHI 0070, 7.3 and chapter 8."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from softiommu.words import Word, bit, bits

EVENT_BYTES, REQUEST_BYTES = 32, 16


class Event(IntEnum):
    """Event numbers. 0 is ours: blocked without an event."""

    SILENT = 0x00
    F_UUT = 0x01
    C_BAD_STREAMID = 0x02
    F_STE_FETCH = 0x03
    C_BAD_STE = 0x04
    F_BAD_ATS_TREQ = 0x05
    F_STREAM_DISABLED = 0x06
    F_TRANSL_FORBIDDEN = 0x07
    C_BAD_SUBSTREAMID = 0x08
    F_CD_FETCH = 0x09
    C_BAD_CD = 0x0A
    F_WALK_EABT = 0x0B
    F_TRANSLATION = 0x10
    F_ADDR_SIZE = 0x11
    F_ACCESS = 0x12
    F_PERMISSION = 0x13
    F_TLB_CONFLICT = 0x20
    F_CFG_CONFLICT = 0x21
    E_PAGE_REQUEST = 0x24
    F_VMS_FETCH = 0x25


class Class(IntEnum):
    """What was done when a fault arose."""

    CD = 0
    TT = 1
    IN = 2


class Event0(Word):
    """Event record, word 0."""

    TYPE = bits(7, 0, Event)
    SSV = bit(11)
    SSID = bits(31, 12)
    SID = bits(63, 32)


class Event1(Word):
    """Event record, word 1."""

    STAG = bits(15, 0)
    STALL = bit(31)
    PNU = bit(33)
    IND = bit(34)
    RNW = bit(35)
    NSIPA = bit(38)
    S2 = bit(39)
    CLASS = bits(41, 40, Class)
    TTRNW = bit(44)


class Event3(Word):
    """Event record, word 3: an IPA (of a page), or the address of a fetch."""

    ADDR = bits(55, 3)


class Fields(NamedTuple):
    """Which fields a record has beside its type and stream."""

    substream: bool = False
    input_addr: bool = False
    #: RnW; and PnU and InD.
    direction: bool = False
    access: bool = False
    #: S2 and CLASS.
    place: bool = False
    #: The address of the failed fetch, or the IPA.
    fetch: bool = False
    ipa: bool = False


_TRANSLATION = Fields(substream=True, input_addr=True, direction=True, access=True, place=True, ipa=True)

RECORDS = {
    Event.F_UUT: Fields(substream=True, input_addr=True, direction=True, access=True),
    Event.C_BAD_STREAMID: Fields(substream=True),
    Event.F_STE_FETCH: Fields(substream=True, fetch=True),
    Event.C_BAD_STE: Fields(substream=True),
    Event.F_BAD_ATS_TREQ: Fields(substream=True, input_addr=True),
    Event.F_STREAM_DISABLED: Fields(),
    Event.F_TRANSL_FORBIDDEN: Fields(input_addr=True, direction=True),
    Event.C_BAD_SUBSTREAMID: Fields(substream=True),
    Event.F_CD_FETCH: Fields(substream=True, fetch=True),
    Event.C_BAD_CD: Fields(substream=True),
    Event.F_WALK_EABT: _TRANSLATION._replace(ipa=False, fetch=True),
    Event.F_TRANSLATION: _TRANSLATION,
    Event.F_ADDR_SIZE: _TRANSLATION,
    Event.F_ACCESS: _TRANSLATION,
    Event.F_PERMISSION: _TRANSLATION,
}

#: The faults that a context or stage 2 may stall, or not record.
TRANSLATION_RELATED = frozenset({Event.F_TRANSLATION, Event.F_ADDR_SIZE, Event.F_ACCESS, Event.F_PERMISSION})


class Request0(Word):
    """A page request in the queue, word 0 (chapter 8)."""

    SID = bits(31, 0)
    SSID = bits(51, 32)
    PRIV = bit(58)
    X = bit(59)
    R = bit(60)
    W = bit(61)
    LAST = bit(62)
    SSV = bit(63)


class Request1(Word):
    """A page request, word 1."""

    PRGINDEX = bits(8, 0)
    ADDR = bits(63, 12)
