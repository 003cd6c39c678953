"""AMD IOMMU v1 host tables: every power-of-two leaf from 4 KiB, and links that may skip levels.

AMD IOMMU specification 48882, 2.2.3 "I/O page tables for host translations", tables 14 and 15. Level here is one less
than the specification's (its level 1 holds 4 KiB pages); a link's NextLevel is the specification's.
"""

from __future__ import annotations

from softiommu.pagetable.kinds import (
    AMDV1,
    BAD,
    EMPTY,
    EXECUTE,
    HW_ACCESSED,
    HW_DIRTY,
    LEAF,
    PRIVILEGED_LOW,
    READ,
    TABLE,
    WRITE,
    Table,
)
from softiommu.words import Word, bit, bits


class Pte(Word):
    """An entry of any level. NEXT_LEVEL 0 is a leaf of the level's size, 7 one whose size its address tells."""

    PR = bit(0)
    A = bit(5)
    D = bit(6)
    NEXT_LEVEL = bits(11, 9)
    ADDR = bits(51, 12)
    U = bit(59)
    FC = bit(60)
    IR = bit(61)
    IW = bit(62)


PR, A, D, FC, IR, IW = Pte.PR.mask, Pte.A.mask, Pte.D.mask, Pte.FC.mask, Pte.IR.mask, Pte.IW.mask
ADDR, NEXT_LEVEL_LOW = Pte.ADDR.mask, Pte.NEXT_LEVEL.low
SIZED = 7 << NEXT_LEVEL_LOW
#: Reserved bits of a leaf, and of a link (of which 59 and 60 are also reserved).
RESERVED, RESERVED_LINK = 0x7F << 52, 0x1FF << 52


def _mode(levels: int) -> Table:
    """DTE.Mode: the root is 4 KiB. Level 6 takes the seven bits that are left, and has no leaves."""
    return Table(
        AMDV1, levels - 1, 12, 9, min(9, 64 - 3 - 9 * levels), min(levels - 1, 4), min(12 + 9 * levels, 64), 52
    )


VARIANTS = {f"amdv1-{levels}level": _mode(levels) for levels in range(1, 7)}
#: Every power of two from 4 KiB.
SIZES = (1 << 52) - (1 << 12)


def load(t: Table, level: int, pte: int) -> tuple[int, int, int, int]:
    """-> kind, output address, lg2 of the leaf, level of the next table"""
    if pte & PR == 0:
        return EMPTY, 0, 0, 0
    below = pte >> NEXT_LEVEL_LOW & 7
    oa = pte & ADDR
    if below and below != 7:
        if below > level or pte & RESERVED_LINK:
            return BAD, 0, 0, 0
        return TABLE, oa, 0, below - 1
    if level > t.leaf_top or pte & RESERVED:
        return BAD, 0, 0, 0
    lg2 = 12 + 9 * level
    if below == 0:
        return LEAF, oa & ~((1 << lg2) - 1), lg2, 0
    sized = 13
    while oa >> (sized - 1) & 1:
        # The lowest zero above bit 12 tells the size.
        sized += 1
    if sized < lg2 or sized >= lg2 + 9:
        return BAD, 0, 0, 0
    return LEAF, oa & ~((1 << sized) - 1), sized, 0


def rights(t: Table, pte: int, every: int, some: int) -> int:
    """What a leaf allows below tables that all have the bits `every`."""
    allowed = EXECUTE
    if pte & every & IR:
        allowed |= READ
    if pte & every & IW:
        allowed |= WRITE
    return allowed | allowed << PRIVILEGED_LOW


def used(t: Table, kind: int, pte: int, want: int) -> int:
    """The entry after an access by it (DTE.HAD)."""
    if t.option & HW_ACCESSED:
        pte |= A
    if t.option & HW_DIRTY and kind == LEAF and want & WRITE:
        pte |= D
    return pte


def leaf(t: Table, level: int, oa: int, lg2: int, prot: int) -> int:
    """The entry of a leaf. DMA through it is coherent (FC)."""
    pte = oa | PR | FC
    if prot & READ:
        pte |= IR
    if prot & WRITE:
        pte |= IW
    if lg2 != 12 + 9 * level:
        pte |= SIZED | (1 << (lg2 - 1)) - 1 & ~0xFFF
    return pte


def link(t: Table, level: int, table: int) -> int:
    """The entry of a table one level down."""
    return table | PR | IR | IW | level << NEXT_LEVEL_LOW


def dirty(t: Table, pte: int) -> int:
    """Not 0: the leaf was written."""
    return pte & D


def clean(t: Table, pte: int) -> int:
    """The leaf, not written."""
    return pte & ~D
