"""Fault reasons, fault records and page requests. VT-d 7.1, 7.4 and 11.4.14."""

from __future__ import annotations

from enum import IntEnum

from softiommu.words import Word, bit, bits


class Reason(IntEnum):
    """Fault reason codes (7.1.3): legacy ones below 0x20, interrupts from 0x20, scalable mode from 0x30."""

    ROOT_NOT_PRESENT = 0x1
    CONTEXT_NOT_PRESENT = 0x2
    CONTEXT_INVALID = 0x3
    ADDRESS_BEYOND_WIDTH = 0x4
    NO_WRITE = 0x5
    NO_READ = 0x6
    PAGING_ACCESS = 0x7
    ROOT_ACCESS = 0x8
    CONTEXT_ACCESS = 0x9
    ROOT_RESERVED = 0xA
    CONTEXT_RESERVED = 0xB
    PAGING_RESERVED = 0xC
    REQUEST_BLOCKED_BY_TT = 0xD
    OUTPUT_IN_INTERRUPT_RANGE = 0xE
    INTERRUPT_RESERVED = 0x20
    INTERRUPT_INDEX = 0x21
    IRTE_NOT_PRESENT = 0x22
    IRTE_ACCESS = 0x23
    IRTE_RESERVED = 0x24
    COMPATIBILITY_BLOCKED = 0x25
    INTERRUPT_SOURCE = 0x26
    RTA_INVALID = 0x30
    RTA_PASID = 0x31
    RTA_PAGE_REQUEST = 0x32
    RTA_ABORT = 0x33
    SCALABLE_ROOT_ACCESS = 0x38
    SCALABLE_ROOT_NOT_PRESENT = 0x39
    SCALABLE_ROOT_RESERVED = 0x3A
    SCALABLE_CONTEXT_ACCESS = 0x40
    SCALABLE_CONTEXT_NOT_PRESENT = 0x41
    SCALABLE_CONTEXT_RESERVED = 0x42
    SCALABLE_CONTEXT_INVALID = 0x43
    DEVICE_TLB_NOT_ENABLED = 0x44
    PASID_NOT_ENABLED = 0x45
    PASID_TOO_LARGE = 0x46
    PAGE_REQUESTS_NOT_ENABLED = 0x47
    RID_PASID_TOO_LARGE = 0x48
    PASID_DIRECTORY_ACCESS = 0x50
    PASID_DIRECTORY_NOT_PRESENT = 0x51
    PASID_DIRECTORY_RESERVED = 0x52
    PASID_ENTRY_ACCESS = 0x58
    PASID_ENTRY_NOT_PRESENT = 0x59
    PASID_ENTRY_RESERVED = 0x5A
    PASID_ENTRY_INVALID = 0x5B
    EXECUTE_REQUESTS_DISABLED = 0x5C
    SUPERVISOR_REQUESTS_DISABLED = 0x5D
    FIRST_ACCESS = 0x70
    FIRST_NOT_PRESENT = 0x71
    FIRST_RESERVED = 0x72
    FIRST_TOP_ACCESS = 0x73
    FIRST_TABLE_BEYOND_WIDTH = 0x74
    FIRST_TOP_TABLE_READ = 0x75
    FIRST_TABLE_READ = 0x76
    FIRST_TABLE_WRITE = 0x77
    SECOND_ACCESS = 0x78
    SECOND_NOT_PRESENT = 0x79
    SECOND_RESERVED = 0x7A
    SECOND_TOP_ACCESS = 0x7B
    SECOND_FLAGS_NOT_SNOOPED = 0x7C
    SECOND_FLAGS_FAILED = 0x7D
    NOT_CANONICAL = 0x80
    USER = 0x81
    NO_EXECUTE = 0x82
    BEYOND_WIDTH = 0x83
    GUEST_ADDRESS_BEYOND_WIDTH = 0x84
    SCALABLE_NO_WRITE = 0x85
    SCALABLE_NO_READ = 0x86
    SCALABLE_OUTPUT_IN_INTERRUPT_RANGE = 0x87
    FIRST_FLAGS_NOT_SNOOPED = 0x90
    FIRST_FLAGS_FAILED = 0x91


class Unreported(IntEnum):
    """Why a request is blocked without a fault."""

    PROTECTED_MEMORY = 1


#: What an address translation request (ATS) is answered for without a fault: nothing there, or a right is missing.
ATS_ANSWERS = frozenset(
    (
        *(Reason.NO_WRITE, Reason.NO_READ, Reason.FIRST_NOT_PRESENT, Reason.SECOND_NOT_PRESENT, Reason.USER),
        *(Reason.NO_EXECUTE, Reason.SCALABLE_NO_WRITE, Reason.SCALABLE_NO_READ),
        *(Reason.FIRST_TOP_TABLE_READ, Reason.FIRST_TABLE_READ, Reason.FIRST_TABLE_WRITE),
    )
)


class AddressType(IntEnum):
    """What kind of address a request carries (PCIe AT)."""

    UNTRANSLATED = 0
    TRANSLATION = 1
    TRANSLATED = 2


class FaultLow(Word):
    """Fault recording register, bits 63:0."""

    FI = bits(63, 12)


class InterruptFaultLow(Word):
    """Fault recording register, bits 63:0, of an interrupt."""

    INDEX = bits(63, 48)


class FaultHigh(Word):
    """Fault recording register, bits 127:64. T and T2 are 1, 0 for reads; 0, 0 for writes; 0, 1 for page requests."""

    SID = bits(15, 0)
    T2 = bit(28)
    PRIV = bit(29)
    EXE = bit(30)
    PP = bit(31)
    FR = bits(39, 32)
    PV = bits(59, 40)
    AT = bits(61, 60, AddressType)
    T = bit(62)
    F = bit(63)


class PageRequest0(Word):
    """Page request queue entry, word 0 (7.4.1)."""

    TYPE = bits(7, 0)
    PP = bit(8)
    RID = bits(31, 16)
    PASID = bits(51, 32)
    EXE = bit(52)
    PM = bit(53)


class PageRequest1(Word):
    """Page request queue entry, word 1."""

    R = bit(0)
    W = bit(1)
    LPIG = bit(2)
    PRGI = bits(11, 3)
    ADDR = bits(63, 12)
