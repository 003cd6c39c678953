"""Invalidation queue descriptors. VT-d 6.5.2."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from softiommu.hardware.vtd.registers import Ecap
from softiommu.words import Word, bit, bits


class Type(IntEnum):
    """Descriptor types (6.5.2)."""

    CONTEXT = 1
    IOTLB = 2
    DEVICE_TLB = 3
    INTERRUPT = 4
    WAIT = 5
    PASID_IOTLB = 6
    PASID_CACHE = 7
    PASID_DEVICE_TLB = 8
    PAGE_GROUP_RESPONSE = 9


class Context(Word):
    """Context-cache invalidate, word 0 (6.5.2.1): G 1 global, 2 domain, 3 device."""

    TYPE = bits(3, 0)
    G = bits(5, 4)
    DID = bits(31, 16)
    SID = bits(47, 32)
    FM = bits(49, 48)


class Iotlb0(Word):
    """IOTLB invalidate, word 0 (6.5.2.3): G 1 global, 2 domain, 3 page."""

    TYPE = bits(3, 0)
    G = bits(5, 4)
    DW = bit(6)
    DR = bit(7)
    DID = bits(31, 16)


class Range(Word):
    """Word 1 of page-selective invalidations: 2**AM pages at ADDR; IH: leaves only."""

    AM = bits(5, 0)
    IH = bit(6)
    ADDR = bits(63, 12)


class DeviceTlb0(Word):
    """Device-TLB invalidate, word 0 (6.5.2.5)."""

    TYPE = bits(3, 0)
    PFSID_LOW = bits(15, 12)
    MIP = bits(20, 16)
    SID = bits(47, 32)
    PFSID_HIGH = bits(63, 52)


class DeviceTlb1(Word):
    """Device-TLB invalidate, word 1: with S the run of ones from bit 12 tells the size."""

    S = bit(0)
    ADDR = bits(63, 12)


class Interrupt0(Word):
    """Interrupt entry cache invalidate, word 0 (6.5.2.7)."""

    TYPE = bits(3, 0)
    G = bit(4)
    IM = bits(31, 27)
    IIDX = bits(47, 32)


class Wait0(Word):
    """Invalidation wait, word 0 (6.5.2.8)."""

    TYPE = bits(3, 0)
    IF = bit(4)
    SW = bit(5)
    FN = bit(6)
    PD = bit(7)
    DATA = bits(63, 32)


class Wait1(Word):
    """Invalidation wait, word 1."""

    ADDR = bits(63, 2)


class PasidIotlb0(Word):
    """PASID-based IOTLB invalidate, word 0 (6.5.2.4): G 2 all of a PASID, 3 pages of it."""

    TYPE = bits(3, 0)
    G = bits(5, 4)
    DID = bits(31, 16)
    PASID = bits(51, 32)


class PasidCache0(Word):
    """PASID-cache invalidate, word 0 (6.5.2.2): G 0 domain, 1 PASID in a domain, 3 global."""

    TYPE = bits(3, 0)
    G = bits(5, 4)
    DID = bits(31, 16)
    PASID = bits(51, 32)


class PasidDeviceTlb0(Word):
    """PASID-based device-TLB invalidate, word 0 (6.5.2.6)."""

    TYPE = bits(3, 0)
    MIP = bits(8, 4)
    PFSID_LOW = bits(15, 12)
    SID = bits(31, 16)
    PASID = bits(51, 32)
    PFSID_HIGH = bits(63, 52)


class PasidDeviceTlb1(Word):
    """PASID-based device-TLB invalidate, word 1: G is for all PASIDs; with S the run of ones tells the size."""

    G = bit(0)
    S = bit(11)
    ADDR = bits(63, 12)


class PageGroupResponse0(Word):
    """Page group response, word 0 (7.7.1)."""

    TYPE = bits(3, 0)
    PP = bit(4)
    CODE = bits(15, 12)
    RID = bits(31, 16)
    PASID = bits(51, 32)


class PageGroupResponse1(Word):
    """Page group response, word 1."""

    LPIG = bit(2)
    PRGI = bits(11, 3)


class Layout(NamedTuple):
    """The words of a descriptor; bits that neither names are reserved. Units without `needs` have no such."""

    low: type[Word]
    high: type[Word] | None
    needs: int = 0


LAYOUTS: dict[int, Layout] = {
    Type.CONTEXT: Layout(Context, None),
    Type.IOTLB: Layout(Iotlb0, Range),
    Type.DEVICE_TLB: Layout(DeviceTlb0, DeviceTlb1, Ecap.DT.mask),
    Type.INTERRUPT: Layout(Interrupt0, None, Ecap.IR.mask),
    Type.WAIT: Layout(Wait0, Wait1),
    Type.PASID_IOTLB: Layout(PasidIotlb0, Range, Ecap.SMTS.mask),
    Type.PASID_CACHE: Layout(PasidCache0, None, Ecap.SMTS.mask),
    Type.PASID_DEVICE_TLB: Layout(PasidDeviceTlb0, PasidDeviceTlb1, Ecap.DT.mask | Ecap.SMTS.mask),
    Type.PAGE_GROUP_RESPONSE: Layout(PageGroupResponse0, PageGroupResponse1, Ecap.PRS.mask),
}
