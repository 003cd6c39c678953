"""One walker for every format: from a root and an input address to an output address, or why there is none.

The levels, the index and the order of checks are here; what an entry means is its format's business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from softiommu.memory.physical import BadAddressError
from softiommu.pagetable.formats import load, rights, table_rights
from softiommu.pagetable.kinds import (
    BAD_TABLE,
    EMPTY,
    EXECUTE,
    FORBIDDEN,
    LEAF,
    MALFORMED,
    NOT_MAPPED,
    OK,
    OUT_OF_RANGE,
    READ,
    TABLE,
    WRITE,
    Table,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from softiommu.memory.physical import PhysicalMemory


class Walk(NamedTuple):
    """How a walk ended: the output address and the leaf's size, or the entry that stopped it."""

    status: int
    oa: int
    #: lg2 of the leaf; 0 when there is none.
    lg2: int
    #: What the entries on the way allow together.
    allowed: int
    #: Level and address of the last entry read, and the entry.
    level: int
    at: int
    pte: int


ALL = READ | WRITE | EXECUTE


def index(t: Table, level: int, iova: int) -> int:
    """The number of the entry that `iova` selects in a table of `level`."""
    width = t.top_bits if level == t.top else t.bits
    return iova >> t.granule_lg2 + t.bits * level & (1 << width) - 1


def span_lg2(t: Table, level: int) -> int:
    """lg2 of the bytes that one entry of `level` translates."""
    return t.granule_lg2 + t.bits * level


def skipped(t: Table, level: int, below: int, iova: int) -> int:
    """The index bits between a table and the one its entry leads to: they must be 0 where levels are skipped."""
    low = t.granule_lg2 + t.bits * (below + 1)
    high = t.granule_lg2 + t.bits * level
    return iova >> low & (1 << high - low) - 1


def walk(t: Table, memory: PhysicalMemory, root: int, iova: int, want: int = 0) -> Walk:
    """Translate one address for an access that wants the rights `want` (0 asks for none)."""
    return walk_by(t, memory.read_u64, root, iova, want)


def walk_by(t: Table, fetch: Callable[[int], int], root: int, iova: int, want: int = 0) -> Walk:
    """The same with entries that `fetch` reads by address; it raises BadAddressError where there are none."""
    if iova >> t.input_bits:
        return Walk(OUT_OF_RANGE, 0, 0, 0, t.top, 0, 0)
    table, level, allowed = root, t.top, ALL
    while True:
        at = table + (index(t, level, iova) << 3)
        try:
            pte = fetch(at)
        except BadAddressError:
            return Walk(BAD_TABLE, 0, 0, allowed, level, at, 0)
        kind, oa, lg2, below = load(t, level, pte)
        if kind == TABLE:
            if below < level - 1 and skipped(t, level, below, iova):
                return Walk(NOT_MAPPED, 0, 0, allowed, level, at, pte)
            allowed &= table_rights(t, pte)
            table, level = oa, below
            continue
        if kind == LEAF:
            allowed &= rights(t, pte)
            status = FORBIDDEN if want & ~allowed else OK
            return Walk(status, oa | iova & (1 << lg2) - 1, lg2, allowed, level, at, pte)
        return Walk(NOT_MAPPED if kind == EMPTY else MALFORMED, 0, 0, allowed, level, at, pte)
