"""VMSAv8-64 tables of SMMUv3, stage 1 and stage 2: granules of 4, 16 and 64 KiB, contiguous leaves, 52-bit with 64 KiB.

Arm ARM DDI 0487, D8.3 "Translation table descriptor formats"; Arm IHI 0070, 3.4. The manual's level 3 (pages) is level
0 here, its level 2 is 1, and so on.
"""

from __future__ import annotations

from softiommu.pagetable.kinds import ARM64, EMPTY, EXECUTE, LEAF, READ, TABLE, WRITE, Table
from softiommu.words import Word, bit, bits


class Pte(Word):
    """A stage 1 descriptor. AP is S2AP (read, write) at stage 2."""

    VALID = bit(0)
    TYPE = bit(1)
    ATTR = bits(5, 2)
    AP = bits(7, 6)
    SH = bits(9, 8)
    AF = bit(10)
    NG = bit(11)
    ADDR = bits(47, 12)
    DBM = bit(51)
    CONTIG = bit(52)
    PXN = bit(53)
    XN = bit(54)


STAGE2 = 1

VALID, TYPE, AF, CONTIG = Pte.VALID.mask, Pte.TYPE.mask, Pte.AF.mask, Pte.CONTIG.mask
DBM, XN, ADDR, NG = Pte.DBM.mask, Pte.XN.mask, Pte.ADDR.mask, Pte.NG.mask
AP_USER, AP_READ_ONLY, S2AP_READ, S2AP_WRITE = 1 << 6, 1 << 7, 1 << 6, 1 << 7
ATTR_WRITE_BACK_S2, SH_INNER = 0xF << 2, 3 << 8
AP_TABLE_READ_ONLY = 1 << 62


def _table(lg2: int, top: int, top_bits: int, leaf_top: int, input_bits: int, output_bits: int, stage: int) -> Table:
    return Table(ARM64, top, lg2, lg2 - 3, top_bits, leaf_top, input_bits, output_bits, stage)


VARIANTS = {
    "arm64-4k-48-s1": _table(12, 3, 9, 2, 48, 48, 0),
    "arm64-4k-39-s1": _table(12, 2, 9, 2, 39, 48, 0),
    "arm64-4k-48-s2": _table(12, 3, 9, 2, 48, 48, STAGE2),
    "arm64-4k-40-s2": _table(12, 2, 10, 2, 40, 48, STAGE2),
    "arm64-16k-47-s1": _table(14, 2, 11, 1, 47, 48, 0),
    "arm64-16k-40-s2": _table(14, 1, 15, 1, 40, 48, STAGE2),
    "arm64-64k-48-s1": _table(16, 2, 6, 1, 48, 48, 0),
    "arm64-64k-52-s1": _table(16, 2, 10, 2, 52, 52, 0),
    "arm64-64k-48-s2": _table(16, 2, 6, 1, 48, 48, STAGE2),
}


def sizes(t: Table) -> int:
    """Bitmap of leaf sizes: pages and blocks, and runs of 16, 32 or 128 of them by the contiguous hint."""
    found = 0
    for level in range(t.leaf_top + 1):
        lg2 = t.granule_lg2 + t.bits * level
        found |= 1 << lg2
        if level < 2:
            found |= 1 << lg2 + contiguous_lg2(t, level)
    return found


def contiguous_lg2(t: Table, level: int) -> int:
    """How many leaves one contiguous run has, as a logarithm (D8.7.1): 16; with 16 KiB 128 pages or 32 blocks; 32."""
    if t.granule_lg2 == 14:
        return 7 if level == 0 else 5
    return 5 if t.granule_lg2 == 16 else 4


def load(t: Table, level: int, pte: int) -> tuple[int, int, int, int]:
    """-> kind, output address, lg2 of the leaf, level of the next table"""
    if pte & VALID == 0:
        return EMPTY, 0, 0, 0
    oa = pte & ADDR & ~((1 << t.granule_lg2) - 1)
    if t.output_bits == 52:
        oa |= (pte >> 12 & 0xF) << 48
    if level and pte & TYPE:
        return TABLE, oa, 0, level - 1
    if level == 0 and pte & TYPE == 0:
        return EMPTY, 0, 0, 0  # reserved: treated as invalid
    if level > t.leaf_top:
        return EMPTY, 0, 0, 0  # a block where the granule has none: treated as invalid
    lg2 = t.granule_lg2 + t.bits * level
    if pte & CONTIG and level < 2:
        # Each entry of a run holds its own address; the run as a whole is one leaf.
        lg2 += contiguous_lg2(t, level)
    return LEAF, oa & ~((1 << lg2) - 1), lg2, 0


def rights(t: Table, pte: int) -> int:
    """What the entry allows; those of tables and leaf are combined by and."""
    if t.option & STAGE2:
        allowed = EXECUTE
        if pte & S2AP_READ:
            allowed |= READ
        if pte & S2AP_WRITE:
            allowed |= WRITE
        return allowed
    allowed = READ
    if pte & AP_READ_ONLY == 0:
        allowed |= WRITE
    if pte & XN == 0:
        allowed |= EXECUTE
    return allowed


def table_rights(t: Table, pte: int) -> int:
    """What a table descriptor leaves: at stage 1 APTable can take writing away."""
    if t.option & STAGE2 == 0 and pte & AP_TABLE_READ_ONLY:
        return READ | EXECUTE
    return READ | WRITE | EXECUTE


def leaf(t: Table, level: int, oa: int, lg2: int, prot: int) -> int:
    """The entry of a leaf at `oa`, which is one of a run when `lg2` is larger than the level's."""
    pte = oa & ADDR | VALID | AF | SH_INNER
    if t.output_bits == 52:
        pte |= (oa >> 48 & 0xF) << 12
    if level == 0:
        pte |= TYPE
    if lg2 != t.granule_lg2 + t.bits * level:
        pte |= CONTIG
    if t.option & STAGE2:
        pte |= ATTR_WRITE_BACK_S2
        if prot & READ:
            pte |= S2AP_READ
        if prot & WRITE:
            pte |= S2AP_WRITE
        return pte
    pte |= AP_USER | NG
    if prot & WRITE == 0:
        pte |= AP_READ_ONLY
    return pte


def link(t: Table, level: int, table: int) -> int:
    """The entry of a table."""
    pte = table & ADDR | VALID | TYPE
    if t.output_bits == 52:
        pte |= (table >> 48 & 0xF) << 12
    return pte


def dirty(t: Table, pte: int) -> int:
    """Whether a leaf that hardware may make writable (DBM) was written."""
    if pte & DBM == 0:
        return 0
    if t.option & STAGE2:
        return pte & S2AP_WRITE
    return 0 if pte & AP_READ_ONLY else 1


def clean(t: Table, pte: int) -> int:
    """The leaf, not written: read-only until hardware makes it writable again."""
    if pte & DBM == 0:
        return pte
    if t.option & STAGE2:
        return pte & ~S2AP_WRITE
    return pte | AP_READ_ONLY
