"""x86-64 tables: VT-d first stage and AMD guest tables, 4 or 5 levels, leaves of 4 KiB, 2 MiB and 1 GiB.

Intel SDM volume 3, 4.5; VT-d 3.6 "First-stage translation" and 9.7; AMD IOMMU 2.2.6. Level 0 is the page table, 1 the
page directory, 2 the PDPT, 3 the PML4, 4 the PML5. Whether an input is canonical is the IOMMU's business.
"""

from __future__ import annotations

from softiommu.pagetable.kinds import (
    BAD,
    EMPTY,
    EXECUTE,
    GLOBAL,
    HW_ACCESSED,
    HW_DIRTY,
    LEAF,
    PRIVILEGED,
    PRIVILEGED_LOW,
    READ,
    TABLE,
    WRITE,
    X86_64,
    Table,
)
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
G, EA, ADDR, XD_LOW, PAT_LARGE = Pte.G.mask, Pte.EA.mask, Pte.ADDR.mask, Pte.XD.low, 1 << 12

#: Options: privileged writes need RW; XD is no reserved bit; user pages are not executed by privileged accesses; EA.
WPE, NXE, SMEP, EAFE = 16, 32, 64, 128
_USUAL = HW_ACCESSED | HW_DIRTY | WPE | NXE

VARIANTS = {
    "x86-64-4level": Table(X86_64, 3, 12, 9, 9, 2, 48, 52, _USUAL),
    "x86-64-5level": Table(X86_64, 4, 12, 9, 9, 2, 57, 52, _USUAL),
}
SIZES = 1 << 12 | 1 << 21 | 1 << 30


def load(t: Table, level: int, pte: int) -> tuple[int, int, int, int]:
    """-> kind, output address, lg2 of the leaf, level of the next table"""
    if pte & P == 0:
        return EMPTY, 0, 0, 0
    if t.option & NXE == 0 and pte >> XD_LOW & 1:
        return BAD, 0, 0, 0
    if level == 0:
        return LEAF, pte & ADDR, 12, 0
    if pte & PS == 0:
        return TABLE, pte & ADDR, 0, level - 1
    lg2 = 12 + 9 * level
    low = (1 << lg2) - 1
    if level > t.leaf_top or pte & ADDR & low & ~PAT_LARGE:
        return BAD, 0, 0, 0
    return LEAF, pte & ADDR & ~low, lg2, 0


def rights(t: Table, pte: int, every: int, some: int) -> int:
    """What a leaf allows below tables that all have the bits `every`, and of which some have the bits `some`."""
    allowed = READ
    if pte & every & RW:
        allowed |= WRITE
    if (pte | some) >> XD_LOW & 1 == 0:
        allowed |= EXECUTE
    both = allowed << PRIVILEGED_LOW
    if t.option & WPE == 0:
        both |= WRITE << PRIVILEGED_LOW
    if pte & every & US:
        if t.option & SMEP:
            both &= ~(EXECUTE << PRIVILEGED_LOW)
        both |= allowed
    return both | GLOBAL if pte & G else both


def used(t: Table, kind: int, pte: int, want: int) -> int:
    """The entry after an access by it."""
    if t.option & HW_ACCESSED == 0:
        return pte
    pte |= A
    if t.option & EAFE:
        pte |= EA
    if kind == LEAF and want & WRITE:
        pte |= D
    return pte


def leaf(t: Table, level: int, oa: int, lg2: int, prot: int) -> int:
    """The entry of a leaf. Where hardware does not set the dirty flag, it is set ahead."""
    pte = oa | P | A
    if prot & PRIVILEGED == 0:
        pte |= US
    if prot & WRITE:
        pte |= RW
        if t.option & HW_DIRTY == 0:
            pte |= D
    if level:
        pte |= PS
    return pte


def link(t: Table, level: int, table: int) -> int:
    """The entry of a table."""
    return table | P | RW | US | A


def dirty(t: Table, pte: int) -> int:
    """Not 0: the leaf was written."""
    return pte & D


def clean(t: Table, pte: int) -> int:
    """The leaf, not written."""
    return pte & ~D
