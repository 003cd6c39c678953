"""Causes of faults, and the records of the fault and page request queues. RISC-V IOMMU 1.0, "In-memory queues"."""

from __future__ import annotations

from enum import IntEnum

from softiommu.words import Word, bit, bits


class Cause(IntEnum):
    """Fault causes."""

    INSTRUCTION_ACCESS_FAULT = 1
    READ_MISALIGNED = 4
    READ_ACCESS_FAULT = 5
    WRITE_MISALIGNED = 6
    WRITE_ACCESS_FAULT = 7
    INSTRUCTION_PAGE_FAULT = 12
    READ_PAGE_FAULT = 13
    WRITE_PAGE_FAULT = 15
    INSTRUCTION_GUEST_PAGE_FAULT = 20
    READ_GUEST_PAGE_FAULT = 21
    WRITE_GUEST_PAGE_FAULT = 23
    ALL_INBOUND_DISALLOWED = 256
    DDT_LOAD_ACCESS_FAULT = 257
    DDT_NOT_VALID = 258
    DDT_MISCONFIGURED = 259
    TRANSACTION_TYPE_DISALLOWED = 260
    MSI_PTE_LOAD_ACCESS_FAULT = 261
    MSI_PTE_NOT_VALID = 262
    MSI_PTE_MISCONFIGURED = 263
    MRIF_ACCESS_FAULT = 264
    PDT_LOAD_ACCESS_FAULT = 265
    PDT_NOT_VALID = 266
    PDT_MISCONFIGURED = 267
    DDT_DATA_CORRUPTION = 268
    PDT_DATA_CORRUPTION = 269
    MSI_PT_DATA_CORRUPTION = 270
    MRIF_DATA_CORRUPTION = 271
    INTERNAL_DATAPATH_ERROR = 272
    MSI_WRITE_ACCESS_FAULT = 273
    PAGE_TABLE_DATA_CORRUPTION = 274


#: Recorded even where the device context disables translation fault reports (DTF).
ALWAYS_RECORDED = frozenset(
    (
        Cause.ALL_INBOUND_DISALLOWED,
        Cause.DDT_LOAD_ACCESS_FAULT,
        Cause.DDT_NOT_VALID,
        Cause.DDT_MISCONFIGURED,
        Cause.DDT_DATA_CORRUPTION,
        Cause.INTERNAL_DATAPATH_ERROR,
        Cause.MSI_WRITE_ACCESS_FAULT,
    )
)

#: An ATS translation request that ends so succeeds, without any right; nothing is recorded.
NOTHING_THERE = frozenset(
    (
        Cause.INSTRUCTION_PAGE_FAULT,
        Cause.READ_PAGE_FAULT,
        Cause.WRITE_PAGE_FAULT,
        Cause.INSTRUCTION_GUEST_PAGE_FAULT,
        Cause.READ_GUEST_PAGE_FAULT,
        Cause.WRITE_GUEST_PAGE_FAULT,
        Cause.MSI_PTE_NOT_VALID,
        Cause.PDT_NOT_VALID,
    )
)


class Ttyp(IntEnum):
    """Transaction types."""

    NONE = 0
    UNTRANSLATED_EXECUTE = 1
    UNTRANSLATED_READ = 2
    UNTRANSLATED_WRITE = 3
    TRANSLATED_EXECUTE = 5
    TRANSLATED_READ = 6
    TRANSLATED_WRITE = 7
    ATS_TRANSLATION = 8
    MESSAGE = 9


#: iotval of a page request's fault record: its PCIe message code.
PAGE_REQUEST_MESSAGE = 0x04


class Fault0(Word):
    """Fault record, word 0."""

    CAUSE = bits(11, 0, Cause)
    PID = bits(31, 12)
    PV = bit(32)
    PRIV = bit(33)
    TTYP = bits(39, 34, Ttyp)
    DID = bits(63, 40)


class Iotval2(Word):
    """Fault record, word 3: the guest-physical address of a guest page fault, and what the access was."""

    IMPLICIT = bit(0)
    IMPLICIT_WRITE = bit(1)
    GPA = bits(63, 2)


class PageRequest0(Word):
    """Page request, word 0."""

    PID = bits(31, 12)
    PV = bit(32)
    PRIV = bit(33)
    EXEC = bit(34)
    DID = bits(63, 40)


class PageRequest1(Word):
    """Page request, word 1."""

    R = bit(0)
    W = bit(1)
    L = bit(2)
    PRGI = bits(11, 3)
    PAGE = bits(63, 12)


#: Bytes of a fault record and of a page request.
FAULT_BYTES, PAGE_REQUEST_BYTES = 32, 16
