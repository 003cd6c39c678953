"""Fault reasons and the fault recording register. VT-d 7.1 and 11.4.14."""

from __future__ import annotations

from enum import IntEnum

from softiommu.words import Word, bit, bits


class Reason(IntEnum):
    """Fault reason codes (7.1.3): legacy ones below 0x30, those of scalable mode above."""

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
    OUTPUT_IN_INTERRUPT_RANGE = 0xE
    RTA_INVALID = 0x30
    RTA_PASID = 0x31
    RTA_ABORT = 0x33
    SCALABLE_ROOT_ACCESS = 0x38
    SCALABLE_ROOT_NOT_PRESENT = 0x39
    SCALABLE_ROOT_RESERVED = 0x3A
    SCALABLE_CONTEXT_ACCESS = 0x40
    SCALABLE_CONTEXT_NOT_PRESENT = 0x41
    SCALABLE_CONTEXT_RESERVED = 0x42
    SCALABLE_CONTEXT_INVALID = 0x43
    PASID_NOT_ENABLED = 0x45
    PASID_TOO_LARGE = 0x46
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
    SECOND_ACCESS = 0x78
    SECOND_PERMISSION = 0x79
    SECOND_RESERVED = 0x7A
    NOT_CANONICAL = 0x80
    USER = 0x81
    NO_EXECUTE = 0x82
    BEYOND_WIDTH = 0x83
    SCALABLE_NO_WRITE = 0x85
    SCALABLE_NO_READ = 0x86
    SCALABLE_OUTPUT_IN_INTERRUPT_RANGE = 0x87


class FaultLow(Word):
    """Fault recording register, bits 63:0."""

    FI = bits(63, 12)


class FaultHigh(Word):
    """Fault recording register, bits 127:64."""

    SID = bits(15, 0)
    T2 = bit(28)
    PRIV = bit(29)
    EXE = bit(30)
    PP = bit(31)
    FR = bits(39, 32)
    PV = bits(59, 40)
    AT = bits(61, 60)
    T = bit(62)
    F = bit(63)
