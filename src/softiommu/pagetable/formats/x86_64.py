"""x86-64 tables: VT-d first stage and AMD guest tables, 4 or 5 levels, leaves of 4 KiB, 2 MiB and 1 GiB.

Intel SDM volume 3, 4.5; VT-d 3.6 "First-stage translation"; AMD IOMMU 2.2.6. Level 0 is the page table, 1 the page
directory, 2 the PDPT, 3 the PML4, 4 the PML5.
"""

from __future__ import annotations

from softiommu.pagetable.kinds import BAD, EMPTY, EXECUTE, LEAF, READ, TABLE, WRITE, X86_64, Table
from softiommu.words import Word, bit, bits


class Pte(Word):
    """An entry of any level; PS is PAT at level 0."""

    P = bit(0)
    RW = bit(1)
    US = bit(2)
    PWT = bit(3)
    PCD = bit(4)
    A = bit(5)
    D = bit(6)
    PS = bit(7)
    G = bit(8)
    EA = bit(10)
    ADDR = bits(51, 12)
    XD = bit(63)


P, RW, US, A, D, PS = Pte.P.mask, Pte.RW.mask, Pte.US.mask, Pte.A.mask, Pte.D.mask, Pte.PS.mask
ADDR, XD_LOW, PAT_LARGE = Pte.ADDR.mask, Pte.XD.low, 1 << 12

VARIANTS = {
    "x86-64-4level": Table(X86_64, 3, 12, 9, 9, 2, 48, 52),
    "x86-64-5level": Table(X86_64, 4, 12, 9, 9, 2, 57, 52),
}
SIZES = 1 << 12 | 1 << 21 | 1 << 30


def load(t: Table, level: int, pte: int) -> tuple[int, int, int, int]:
    """-> kind, output address, lg2 of the leaf, level of the next table"""
    if pte & P == 0:
        return EMPTY, 0, 0, 0
    if level == 0:
        return LEAF, pte & ADDR, 12, 0
    if pte & PS == 0:
        return TABLE, pte & ADDR, 0, level - 1
    lg2 = 12 + 9 * level
    low = (1 << lg2) - 1
    if level > t.leaf_top or pte & ADDR & low & ~PAT_LARGE:
        return BAD, 0, 0, 0
    return LEAF, pte & ADDR & ~low, lg2, 0


def rights(t: Table, pte: int) -> int:
    """What the entry allows; those of tables and leaf are combined by and."""
    allowed = READ
    if pte & RW:
        allowed |= WRITE
    if pte >> XD_LOW == 0:
        allowed |= EXECUTE
    return allowed


def leaf(t: Table, level: int, oa: int, lg2: int, prot: int) -> int:
    """The entry of a leaf; accessed and dirty are set ahead, so that hardware has nothing to write."""
    pte = oa | P | US | A | D
    if prot & WRITE:
        pte |= RW
    if level:
        pte |= PS
    return pte


def link(t: Table, level: int, table: int) -> int:
    """The entry of a table."""
    return table | P | RW | US | A


def dirty(t: Table, pte: int) -> int:
    """Whether a leaf was written."""
    return pte & D


def clean(t: Table, pte: int) -> int:
    """The leaf, not written."""
    return pte & ~D
