"""AMD IOMMU v1 host tables: every power-of-two leaf from 4 KiB, and links that may skip levels.

AMD IOMMU specification 48882, 2.2.3 "I/O page tables for host translations", tables 14 and 15. Level here is one less
than the specification's (its level 1 holds 4 KiB pages); a link's NextLevel is the specification's.
"""

from __future__ import annotations

from softiommu.pagetable.kinds import AMDV1, BAD, EMPTY, EXECUTE, LEAF, READ, TABLE, WRITE, Table
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


PR, D, FC, IR, IW = Pte.PR.mask, Pte.D.mask, Pte.FC.mask, Pte.IR.mask, Pte.IW.mask
ADDR, NEXT_LEVEL_LOW = Pte.ADDR.mask, Pte.NEXT_LEVEL.low
SIZED = 7 << NEXT_LEVEL_LOW

VARIANTS = {f"amdv1-{mode}level": Table(AMDV1, mode - 1, 12, 9, 9, mode - 1, 12 + 9 * mode, 52) for mode in (3, 4, 5)}
VARIANTS["amdv1-6level"] = Table(AMDV1, 5, 12, 9, 10, 5, 64, 52)
#: Every power of two from 4 KiB; the largest leaf a map makes covers half of the largest level's items.
SIZES = (1 << 52) - (1 << 12)


def load(t: Table, level: int, pte: int) -> tuple[int, int, int, int]:
    """-> kind, output address, lg2 of the leaf, level of the next table"""
    if pte & PR == 0:
        return EMPTY, 0, 0, 0
    below = pte >> NEXT_LEVEL_LOW & 7
    oa = pte & ADDR
    if below == 0:
        lg2 = 12 + 9 * level
        return LEAF, oa & ~((1 << lg2) - 1), lg2, 0
    if below != 7:
        if below > level:
            return BAD, 0, 0, 0
        return TABLE, oa, 0, below - 1
    lg2 = 13
    while oa >> (lg2 - 1) & 1:
        # The lowest zero above bit 12 tells the size.
        lg2 += 1
    if lg2 < 12 + 9 * level or lg2 >= 12 + 9 * (level + 1):
        return BAD, 0, 0, 0
    return LEAF, oa & ~((1 << lg2) - 1), lg2, 0


def rights(t: Table, pte: int) -> int:
    """What the entry allows; those of tables and leaf are combined by and."""
    allowed = EXECUTE
    if pte & IR:
        allowed |= READ
    if pte & IW:
        allowed |= WRITE
    return allowed


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
    """Whether a leaf was written."""
    return pte & D


def clean(t: Table, pte: int) -> int:
    """The leaf, not written."""
    return pte & ~D
