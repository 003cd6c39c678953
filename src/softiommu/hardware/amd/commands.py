"""Commands of the command buffer. AMD IOMMU specification 48882, 2.4."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from softiommu.words import Word, bit, bits

COMMAND_SIZE = 16
#: Address with Size: every address of a domain or of a device (2.4.3).
EVERYWHERE = (1 << 63) - (1 << 12)


class Opcode(IntEnum):
    """Bits 63:60 of a command's first word."""

    COMPLETION_WAIT = 1
    INVALIDATE_DEVTAB_ENTRY = 2
    INVALIDATE_IOMMU_PAGES = 3
    INVALIDATE_IOTLB_PAGES = 4
    INVALIDATE_INTERRUPT_TABLE = 5
    PREFETCH_IOMMU_PAGES = 6
    COMPLETE_PPR_REQUEST = 7
    INVALIDATE_IOMMU_ALL = 8


class Plain(Word):
    """A command without operands: INVALIDATE_IOMMU_ALL, word 0 (2.4.8)."""

    OPCODE = bits(63, 60, Opcode)


class Wait(Word):
    """COMPLETION_WAIT, word 0 (2.4.1): S stores, I interrupts, F flushes what was queued before."""

    S = bit(0)
    I = bit(1)  # noqa: E741 - the manual's name
    F = bit(2)
    StoreAddress = bits(51, 3)
    OPCODE = bits(63, 60, Opcode)


class StoreData(Word):
    """COMPLETION_WAIT, word 1."""

    DATA = bits(63, 0)


class OfDevice(Word):
    """INVALIDATE_DEVTAB_ENTRY and INVALIDATE_INTERRUPT_TABLE, word 0 (2.4.2, 2.4.5)."""

    DeviceID = bits(15, 0)
    OPCODE = bits(63, 60, Opcode)


class Pages0(Word):
    """INVALIDATE_IOMMU_PAGES, word 0 (2.4.3)."""

    PASID = bits(19, 0)
    DomainID = bits(47, 32)
    OPCODE = bits(63, 60, Opcode)


class Pages1(Word):
    """INVALIDATE_IOMMU_PAGES, word 1. PDE: entries of upper levels, too; GN: the PASID's guest addresses."""

    S = bit(0)
    PDE = bit(1)
    GN = bit(2)
    Address = bits(63, 12)


class Iotlb0(Word):
    """INVALIDATE_IOTLB_PAGES, word 0 (2.4.4)."""

    DeviceID = bits(15, 0)
    PASID15_8 = bits(23, 16)
    Maxpend = bits(31, 24)
    QueueID = bits(47, 32)
    PASID7_0 = bits(55, 48)
    PASID19_16 = bits(59, 56)
    OPCODE = bits(63, 60, Opcode)


class Iotlb1(Word):
    """INVALIDATE_IOTLB_PAGES, word 1."""

    S = bit(0)
    GN = bit(2)
    Type = bits(5, 4)
    Address = bits(63, 12)


class Prefetch0(Word):
    """PREFETCH_IOMMU_PAGES, word 0 (2.4.6)."""

    DeviceID = bits(15, 0)
    PASID15_8 = bits(23, 16)
    PFCount = bits(31, 24)
    PASID7_0 = bits(55, 48)
    PASID19_16 = bits(59, 56)
    OPCODE = bits(63, 60, Opcode)


class Prefetch1(Word):
    """PREFETCH_IOMMU_PAGES, word 1."""

    S = bit(0)
    GN = bit(2)
    Inval = bit(4)
    Address = bits(63, 12)


class PprResponse0(Word):
    """COMPLETE_PPR_REQUEST, word 0 (2.4.7)."""

    DeviceID = bits(15, 0)
    PASID = bits(51, 32)
    OPCODE = bits(63, 60, Opcode)


class PprResponse1(Word):
    """COMPLETE_PPR_REQUEST, word 1."""

    GN = bit(2)
    Tag = bits(40, 32)
    Status = bits(47, 44)


class Layout(NamedTuple):
    """The words of a command; bits that neither names are reserved."""

    low: type[Word]
    high: type[Word] | None


LAYOUTS = {
    Opcode.COMPLETION_WAIT: Layout(Wait, StoreData),
    Opcode.INVALIDATE_DEVTAB_ENTRY: Layout(OfDevice, None),
    Opcode.INVALIDATE_IOMMU_PAGES: Layout(Pages0, Pages1),
    Opcode.INVALIDATE_IOTLB_PAGES: Layout(Iotlb0, Iotlb1),
    Opcode.INVALIDATE_INTERRUPT_TABLE: Layout(OfDevice, None),
    Opcode.PREFETCH_IOMMU_PAGES: Layout(Prefetch0, Prefetch1),
    Opcode.COMPLETE_PPR_REQUEST: Layout(PprResponse0, PprResponse1),
    Opcode.INVALIDATE_IOMMU_ALL: Layout(Plain, None),
}


def window(size: int, page: int) -> tuple[int, int]:
    """First and last address that S and Address (bits 63:12, as `page`) name: with S the run of ones tells the size."""
    if not size:
        return page << 12, (page << 12) + 0xFFF
    if page == EVERYWHERE >> 12:
        return 0, (1 << 64) - 1
    ones = (~page & page + 1).bit_length() - 1
    first = page & ~((1 << ones + 1) - 1)
    return first << 12, min((first + (1 << ones + 1) << 12) - 1, (1 << 64) - 1)


def span(first: int, last: int) -> tuple[int, int]:
    """S and Address (bits 63:12) that name the smallest aligned power of two of pages with `first`..`last`."""
    lg2 = (first ^ last).bit_length() - 12
    if lg2 <= 0:
        return 0, first >> 12
    if lg2 >= 51:
        return 1, EVERYWHERE >> 12
    return 1, first >> 12 & ~((1 << lg2) - 1) | (1 << lg2 - 1) - 1
