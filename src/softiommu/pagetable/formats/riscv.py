"""RISC-V tables: Sv39, Sv48, Sv57 and their x4 forms for the second stage; Svnapot 64 KiB; Svpbmt.

RISC-V privileged architecture, 12.3 to 12.6 "Sv39".."Sv57", 18.5 "Two-stage address translation" (x4), chapters
"Svnapot" and "Svpbmt". Level is `i` of the algorithm. The x4 forms take two bits more at the root (16 KiB). Whether an
input is sign-extended is the IOMMU's business. HW_ACCESSED with HW_DIRTY is SADE or GADE: without, a clear flag faults.
"""

from __future__ import annotations

from softiommu.pagetable.kinds import (
    BAD,
    EMPTY,
    EXECUTE,
    GLOBAL,
    HW_DIRTY,
    LEAF,
    PRIVILEGED,
    PRIVILEGED_LOW,
    READ,
    RISCV,
    TABLE,
    WRITE,
    Table,
)
from softiommu.words import Word, bit, bits


class Pte(Word):
    """An entry of any level."""

    V = bit(0)
    R = bit(1)
    W = bit(2)
    X = bit(3)
    U = bit(4)
    G = bit(5)
    A = bit(6)
    D = bit(7)
    RSW = bits(9, 8)
    PPN = bits(53, 10)
    PBMT = bits(62, 61)
    N = bit(63)


V, R, W, X, U, G, A, D = (f.mask for f in (Pte.V, Pte.R, Pte.W, Pte.X, Pte.U, Pte.G, Pte.A, Pte.D))
RWX, PPN, RESERVED, PBMT_LOW, N_LOW = R | W | X, Pte.PPN.mask, 0x1F << 54, Pte.PBMT.low, Pte.N.low
RSW_HIGH = 3 << 59  # reserved without Svrsw60t59b
NAPOT_64K = 1 << 13  # ppn[3:0] is 0b1000
N = -1 << 63  # entries are signed in a kernel

#: Options: the second stage, where every access is a user's; privileged data accesses may use user pages; no Svpbmt;
#: Svrsw60t59b, with which bits 60 and 59 are software's.
STAGE2, SUM, NO_PBMT, MORE_RSW = 16, 32, 64, 128

VARIANTS = {
    "riscv-sv39": Table(RISCV, 2, 12, 9, 9, 2, 39, 56),
    "riscv-sv48": Table(RISCV, 3, 12, 9, 9, 3, 48, 56),
    "riscv-sv57": Table(RISCV, 4, 12, 9, 9, 4, 57, 56),
    "riscv-sv39x4": Table(RISCV, 2, 12, 9, 11, 2, 41, 56, STAGE2),
    "riscv-sv48x4": Table(RISCV, 3, 12, 9, 11, 3, 50, 56, STAGE2),
    "riscv-sv57x4": Table(RISCV, 4, 12, 9, 11, 4, 59, 56, STAGE2),
}
SIZES = 1 << 12 | 1 << 16 | 1 << 21 | 1 << 30 | 1 << 39 | 1 << 48


def load(t: Table, level: int, pte: int) -> tuple[int, int, int, int]:
    """-> kind, output address, lg2 of the leaf, level of the next table"""
    if pte & V == 0:
        return EMPTY, 0, 0, 0
    oa = (pte & PPN) << 2
    pbmt = pte >> PBMT_LOW & 3
    napot = pte >> N_LOW & 1
    if pte & RSW_HIGH and t.option & MORE_RSW == 0:
        return BAD, 0, 0, 0
    if pte & RESERVED or pte & (R | W) == W or pbmt == 3 or (pbmt and t.option & NO_PBMT):
        return BAD, 0, 0, 0
    if pte & RWX == 0:
        if level == 0 or pte & (A | D | U) or napot or pbmt:
            return BAD, 0, 0, 0
        return TABLE, oa, 0, level - 1
    lg2 = 12 + 9 * level
    if napot:
        if level or oa & 0xFFFF != 0x8000:
            return BAD, 0, 0, 0
        return LEAF, oa & ~0xFFFF, 16, 0
    if oa & ((1 << lg2) - 1):
        return BAD, 0, 0, 0
    return LEAF, oa, lg2, 0


def rights(t: Table, pte: int, every: int, some: int) -> int:
    """What a leaf allows: tables set no limits. G of any entry on the way makes the mapping global."""
    allowed = 0
    if pte & R:
        allowed |= READ
    if pte & W:
        allowed |= WRITE
    if pte & X:
        allowed |= EXECUTE
    if t.option & STAGE2:
        return allowed | allowed << PRIVILEGED_LOW if pte & U else 0
    if pte & U == 0:
        both = allowed << PRIVILEGED_LOW
    elif t.option & SUM:
        both = allowed | (allowed & (READ | WRITE)) << PRIVILEGED_LOW
    else:
        both = allowed
    return both | GLOBAL if (pte | some) & G else both


def used(t: Table, kind: int, pte: int, want: int) -> int:
    """The entry after an access by it: only leaves have flags."""
    if kind == TABLE:
        return pte
    if want & WRITE:
        return pte | A | D
    return pte | A


def leaf(t: Table, level: int, oa: int, lg2: int, prot: int) -> int:
    """The entry of a leaf. There is no write without read. Dirty is set ahead where hardware does not set it."""
    pte = oa >> 2 | V | R | A
    if prot & PRIVILEGED == 0:
        pte |= U
    if prot & EXECUTE:
        pte |= X
    if prot & WRITE:
        pte |= W
        if t.option & HW_DIRTY == 0:
            pte |= D
    if lg2 == 16:
        pte |= NAPOT_64K | N
    return pte


def link(t: Table, level: int, table: int) -> int:
    """The entry of a table."""
    return table >> 2 | V


def dirty(t: Table, pte: int) -> int:
    """Not 0: the leaf was written."""
    return pte & D


def clean(t: Table, pte: int) -> int:
    """The leaf, not written."""
    return pte & ~D
