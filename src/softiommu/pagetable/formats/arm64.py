"""VMSAv8-64 tables of SMMUv3, stage 1 and stage 2: granules of 4, 16 and 64 KiB, contiguous leaves, 52-bit addresses.

Arm ARM DDI 0487, D8.3 "Translation table descriptor formats", D8.4 (permissions), D8.5 (flags), D8.7.1 (contiguous);
Arm IHI 0070, 3.4. The manual's level 3 (pages) is level 0 here, its level 2 is 1, and so on to -1, which is 4.
"""

from __future__ import annotations

from softiommu.pagetable.kinds import (
    ALL_RIGHTS,
    ARM64,
    EMPTY,
    EXECUTE,
    GLOBAL,
    HW_DIRTY,
    LEAF,
    PRIVILEGED,
    PRIVILEGED_LOW,
    READ,
    TABLE,
    WRITE,
    Table,
)
from softiommu.words import Word, bit, bits


class Pte(Word):
    """A stage 1 block or page. At stage 2, ATTR has two bits more below AP (S2AP: read, write), PXN and XN are XN."""

    VALID = bit(0)
    TYPE = bit(1)
    ATTR = bits(4, 2)
    NS = bit(5)
    AP = bits(7, 6)
    SH = bits(9, 8)
    AF = bit(10)
    NG = bit(11)
    ADDR = bits(49, 12)
    DBM = bit(51)
    CONTIG = bit(52)
    PXN = bit(53)
    XN = bit(54)


class TableDescriptor(Word):
    """A stage 1 table. The limits are ignored at stage 2."""

    VALID = bit(0)
    TYPE = bit(1)
    ADDR = bits(49, 12)
    PXN_TABLE = bit(59)
    XN_TABLE = bit(60)
    AP_TABLE = bits(62, 61)
    NS_TABLE = bit(63)


VALID, TYPE, AF, CONTIG = Pte.VALID.mask, Pte.TYPE.mask, Pte.AF.mask, Pte.CONTIG.mask
DBM, PXN, XN, NG = Pte.DBM.mask, Pte.PXN.mask, Pte.XN.mask, Pte.NG.mask
ADDR_48, ADDR_50 = (1 << 48) - (1 << 12), Pte.ADDR.mask
AP_USER, AP_READ_ONLY, S2AP_READ, S2AP_WRITE = 1 << 6, 1 << 7, 1 << 6, 1 << 7
PXN_TABLE, XN_TABLE = TableDescriptor.PXN_TABLE.mask, TableDescriptor.XN_TABLE.mask
AP_TABLE_NO_USER, AP_TABLE_READ_ONLY = 1 << 61, 1 << 62
ATTR_WRITE_BACK_S2, SH_INNER = 0xF << 2, 3 << 8

#: Options: stage 2; its XN has two bits; 52-bit addresses with 4 and 16 KiB.
STAGE2, XNX, DS = 16, 32, 64
#: Options of stage 1: PAN; what can be written is not executed; tables set no limits (HADx); one privilege level (EL2).
PAN, WXN, NO_HIERARCHY, ONE_LEVEL = 128, 256, 1024, 2048
#: Option: a clear access flag is no fault (AFFD).
AFFD = 4096


def _table(lg2: int, input_bits: int, output_bits: int, option: int, concatenated: int = 0) -> Table:
    """A variant by its input size. Stage 2 may start one level later with up to 16 tables side by side."""
    bits_ = lg2 - 3
    top = -(-(input_bits - lg2) // bits_) - 1 - (1 if concatenated else 0)
    wide = output_bits == 52
    leaf_top = {12: 3 if wide else 2, 14: 2 if wide else 1, 16: 2 if wide else 1}[lg2]
    if wide and lg2 != 16:
        option |= DS
    top_bits = input_bits - lg2 - bits_ * top
    return Table(ARM64, top, lg2, bits_, top_bits, min(leaf_top, top), input_bits, output_bits, option)


VARIANTS = {
    "arm64-4k-48-s1": _table(12, 48, 48, 0),
    "arm64-4k-39-s1": _table(12, 39, 48, 0),
    "arm64-4k-52-s1": _table(12, 52, 52, 0),
    "arm64-4k-48-s2": _table(12, 48, 48, STAGE2),
    "arm64-4k-40-s2": _table(12, 40, 48, STAGE2, 2),
    "arm64-16k-47-s1": _table(14, 47, 48, 0),
    "arm64-16k-48-s1": _table(14, 48, 48, 0),
    "arm64-16k-40-s2": _table(14, 40, 48, STAGE2, 16),
    "arm64-64k-48-s1": _table(16, 48, 48, 0),
    "arm64-64k-52-s1": _table(16, 52, 52, 0),
    "arm64-64k-48-s2": _table(16, 48, 48, STAGE2),
    "arm64-64k-52-s2": _table(16, 52, 52, STAGE2),
}


def sizes(t: Table) -> int:
    """Bitmap of leaf sizes: pages and blocks, and runs of 16, 32 or 128 of them by the contiguous hint."""
    found = 0
    for level in range(t.leaf_top + 1):
        lg2 = t.granule_lg2 + t.bits * level
        found |= 1 << lg2 | 1 << lg2 + contiguous_lg2(t, level)
    return found


def contiguous_lg2(t: Table, level: int) -> int:
    """How many leaves one contiguous run has, as a logarithm (D8.7.1): 16; with 16 KiB 128 pages or 32 blocks; 32."""
    run = 4
    if t.granule_lg2 == 16:
        run = 5
    elif t.granule_lg2 == 14:
        run = 7 if level == 0 else 5
        if level > 1:
            return 0
    return run if level < t.top or run <= t.top_bits else 0


def _address(t: Table, pte: int) -> int:
    if t.option & DS:
        return pte & ADDR_50 & ~((1 << t.granule_lg2) - 1) | (pte >> 8 & 3) << 50
    oa = pte & ADDR_48 & ~((1 << t.granule_lg2) - 1)
    if t.granule_lg2 == 16 and t.output_bits == 52:
        oa |= (pte >> 12 & 0xF) << 48
    return oa


def _placed(t: Table, oa: int) -> int:
    """An address in its place in a descriptor."""
    if t.option & DS:
        return oa & ADDR_50 | (oa >> 50 & 3) << 8
    if t.output_bits == 52:
        return oa & ADDR_48 | (oa >> 48 & 0xF) << 12
    return oa & ADDR_48


def load(t: Table, level: int, pte: int) -> tuple[int, int, int, int]:
    """-> kind, output address, lg2 of the leaf, level of the next table"""
    if pte & VALID == 0:
        return EMPTY, 0, 0, 0
    oa = _address(t, pte)
    if level and pte & TYPE:
        return TABLE, oa, 0, level - 1
    if (level == 0 and pte & TYPE == 0) or level > t.leaf_top:
        return EMPTY, 0, 0, 0  # reserved encodings, and blocks where the granule has none: treated as invalid
    lg2 = t.granule_lg2 + t.bits * level
    if pte & CONTIG:
        # Each entry of a run holds its own address; the run as a whole is one leaf.
        lg2 += contiguous_lg2(t, level)
    return LEAF, oa & ~((1 << lg2) - 1), lg2, 0


def rights(t: Table, pte: int, every: int, some: int) -> int:
    """What a leaf allows below tables of which some set the limits `some` (stage 1 only)."""
    if t.option & STAGE2:
        return _stage2_rights(t, pte)
    writable = pte & AP_READ_ONLY == 0 or (t.option & HW_DIRTY and pte & DBM)
    allowed = READ | WRITE if writable else READ
    both = allowed << PRIVILEGED_LOW
    if pte & AP_USER or t.option & ONE_LEVEL:
        both |= allowed
    if pte & XN == 0:
        both |= EXECUTE
    if pte & (XN if t.option & ONE_LEVEL else PXN) == 0:
        both |= EXECUTE << PRIVILEGED_LOW
    if t.option & NO_HIERARCHY == 0:
        both &= _table_limits(t, some)
    both = _restrict(t, both)
    return both if pte & NG else both | GLOBAL


def _table_limits(t: Table, some: int) -> int:
    both = ALL_RIGHTS
    if some & AP_TABLE_NO_USER and t.option & ONE_LEVEL == 0:
        both &= ~(READ | WRITE)
    if some & AP_TABLE_READ_ONLY:
        both &= ~(WRITE | WRITE << PRIVILEGED_LOW)
    if some & XN_TABLE:
        both &= ~EXECUTE
    if some & (XN_TABLE if t.option & ONE_LEVEL else PXN_TABLE):
        both &= ~(EXECUTE << PRIVILEGED_LOW)
    return both


def _restrict(t: Table, both: int) -> int:
    """What rights forbid each other (D8.4.1): users' write and privileged execution; PAN; WXN."""
    if t.option & ONE_LEVEL == 0:
        if both & WRITE:
            both &= ~(EXECUTE << PRIVILEGED_LOW)
        if t.option & PAN and both & READ:
            both &= ~((READ | WRITE) << PRIVILEGED_LOW)
    if t.option & WXN:
        if both & WRITE:
            both &= ~EXECUTE
        if both & WRITE << PRIVILEGED_LOW:
            both &= ~(EXECUTE << PRIVILEGED_LOW)
    return both


def _stage2_rights(t: Table, pte: int) -> int:
    allowed = 0
    if pte & S2AP_READ:
        allowed |= READ
    if pte & S2AP_WRITE or (t.option & HW_DIRTY and pte & DBM):
        allowed |= WRITE
    both = allowed | allowed << PRIVILEGED_LOW
    # XN: 0 everybody, 1 only users, 2 nobody, 3 only privileged; without XNX the lower bit counts for nothing.
    xn = pte >> 53 & (3 if t.option & XNX else 2)
    if xn == 0 or xn == 1:
        both |= EXECUTE
    if xn == 0 or xn == 3:
        both |= EXECUTE << PRIVILEGED_LOW
    return both


def used(t: Table, kind: int, pte: int, want: int) -> int:
    """The entry after an access by it: AF; and DBM made writable by a write."""
    if kind == TABLE:
        return pte
    if t.option & AFFD == 0:
        pte |= AF
    if t.option & HW_DIRTY and want & WRITE and pte & DBM:
        return pte | S2AP_WRITE if t.option & STAGE2 else pte & ~AP_READ_ONLY
    return pte


def leaf(t: Table, level: int, oa: int, lg2: int, prot: int) -> int:
    """The entry of a leaf at `oa`, which is one of a run when `lg2` is larger than the level's. AF is set ahead."""
    pte = _placed(t, oa) | VALID | AF
    if t.option & DS == 0:
        pte |= SH_INNER  # with DS, bits 9:8 are address bits
    if level == 0:
        pte |= TYPE
    if lg2 != t.granule_lg2 + t.bits * level:
        pte |= CONTIG
    if prot & WRITE and t.option & HW_DIRTY:
        pte |= DBM
    if t.option & STAGE2:
        pte |= ATTR_WRITE_BACK_S2
        if prot & READ:
            pte |= S2AP_READ
        if prot & WRITE:
            pte |= S2AP_WRITE
        return pte
    pte |= NG
    if prot & PRIVILEGED == 0:
        pte |= AP_USER
    if prot & WRITE == 0:
        pte |= AP_READ_ONLY
    return pte


def link(t: Table, level: int, table: int) -> int:
    """The entry of a table."""
    return _placed(t, table) | VALID | TYPE


def dirty(t: Table, pte: int) -> int:
    """Not 0: a leaf that hardware may make writable (DBM) was written."""
    if pte & DBM == 0:
        return 0
    if t.option & STAGE2:
        return pte & S2AP_WRITE
    return ~pte & AP_READ_ONLY


def clean(t: Table, pte: int) -> int:
    """The leaf, not written: read-only until hardware makes it writable again."""
    if pte & DBM == 0:
        return pte
    if t.option & STAGE2:
        return pte & ~S2AP_WRITE
    return pte | AP_READ_ONLY
