"""VT-d second-stage tables: 3, 4 or 5 levels (39, 48, 57 bits), leaves of 4 KiB, 2 MiB and 1 GiB.

VT-d 3.7 "Second-stage translation", 9.8 "Second-stage paging entries". Level 0 is SS-PTE, 1 SS-PDE, 2 SS-PDPE, ...
Hardware sets accessed and dirty flags where the PASID entry says so (SSADE): HW_ACCESSED with HW_DIRTY.
"""

from __future__ import annotations

from softiommu.pagetable.kinds import (
    BAD,
    EMPTY,
    EXECUTE,
    HW_ACCESSED,
    LEAF,
    PRIVILEGED_LOW,
    READ,
    TABLE,
    VTDSS,
    WRITE,
    Table,
)
from softiommu.words import Word, bit, bits


class Pte(Word):
    """An entry of any level."""

    R = bit(0)
    W = bit(1)
    X = bit(2)
    EMT = bits(5, 3)
    IPAT = bit(6)
    PS = bit(7)
    A = bit(8)
    D = bit(9)
    SNP = bit(11)
    ADDR = bits(51, 12)
    TM = bit(62)


R, W, PS, A, D, SNP, TM = (f.mask for f in (Pte.R, Pte.W, Pte.PS, Pte.A, Pte.D, Pte.SNP, Pte.TM))
ADDR = Pte.ADDR.mask

#: Options: a leaf's SNP is reserved (no snoop control, ECAP.SC); its TM is (no device TLBs, ECAP.DT).
NO_SNOOP_CONTROL, NO_DEVICE_TLBS = 16, 32

VARIANTS = {
    "vtdss-39": Table(VTDSS, 2, 12, 9, 9, 2, 39, 52),
    "vtdss-48": Table(VTDSS, 3, 12, 9, 9, 2, 48, 52),
    "vtdss-57": Table(VTDSS, 4, 12, 9, 9, 2, 57, 52),
}
#: A wish of a map beside its rights: DMA through the leaf is coherent whatever the device asks for.
SNOOP = 8
SIZES = 1 << 12 | 1 << 21 | 1 << 30


def load(t: Table, level: int, pte: int) -> tuple[int, int, int, int]:
    """-> kind, output address, lg2 of the leaf, level of the next table"""
    if pte & (R | W) == 0:
        return EMPTY, 0, 0, 0
    if level and pte & PS == 0:
        if pte & (SNP | TM):
            return BAD, 0, 0, 0
        return TABLE, pte & ADDR, 0, level - 1
    lg2 = 12 + 9 * level
    if level > t.leaf_top or pte & ADDR & (1 << lg2) - 1 or (t.option & NO_SNOOP_CONTROL and pte & SNP):
        return BAD, 0, 0, 0
    if t.option & NO_DEVICE_TLBS and pte & TM:
        return BAD, 0, 0, 0
    return LEAF, pte & ADDR, lg2, 0


def rights(t: Table, pte: int, every: int, some: int) -> int:
    """What a leaf allows below tables that all have the bits `every`."""
    allowed = EXECUTE
    if pte & every & R:
        allowed |= READ
    if pte & every & W:
        allowed |= WRITE
    return allowed | allowed << PRIVILEGED_LOW


def used(t: Table, kind: int, pte: int, want: int) -> int:
    """The entry after an access by it."""
    if t.option & HW_ACCESSED == 0:
        return pte
    if kind == LEAF and want & WRITE:
        return pte | A | D
    return pte | A


def leaf(t: Table, level: int, oa: int, lg2: int, prot: int) -> int:
    """The entry of a leaf."""
    pte = oa
    if prot & READ:
        pte |= R
    if prot & WRITE:
        pte |= W
    if prot & SNOOP:
        pte |= SNP
    if level:
        pte |= PS
    return pte


def link(t: Table, level: int, table: int) -> int:
    """The entry of a table."""
    return table | R | W


def dirty(t: Table, pte: int) -> int:
    """Not 0: the leaf was written."""
    return pte & D


def clean(t: Table, pte: int) -> int:
    """The leaf, not written."""
    return pte & ~D
