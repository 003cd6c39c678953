"""One walker for every format: from a root and an input address to an output address, or why there is none.

The levels, the index and the order of checks are here; what an entry means is its format's business. The kernels take
and give plain numbers and run as plain Python or compiled: addresses and entries are signed 64-bit in them.

Flags are stored after the entry was read: a program that changes its table at that very moment may lose its change.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from softiommu.memory.physical import ABSENT, DIRECT, Space
from softiommu.pagetable.formats import load, rights, used
from softiommu.pagetable.kinds import (
    ADDRESS_SIZE,
    ASK,
    BAD,
    BAD_TABLE,
    DESCEND,
    EMPTY,
    FORBIDDEN,
    GLOBAL,
    HW_ACCESSED,
    LEAF,
    LENIENT,
    MALFORMED,
    NO_ATOMICS,
    NOT_ACCESSED,
    NOT_MAPPED,
    OK,
    OUT_OF_RANGE,
    PRIVILEGED,
    PRIVILEGED_LOW,
    RIGHTS,
    TABLE,
    Table,
)
from softiommu.pagetable.known import Known, Place

if TYPE_CHECKING:
    from softiommu.memory.physical import PhysicalMemory

#: status, output address, lg2, allowed, level, address of the last entry, the entry: the fields of Walk.
Result = tuple[int, int, int, int, int, int, int]

MASK = (1 << 64) - 1
#: `new(Walk, fields)` takes a third of the time of `Walk(*fields)`.
new = tuple.__new__


class Tree(NamedTuple):
    """A table with the memory that it lies in, from its root: what kernels work on."""

    table: Table
    mem: Space
    root: int


class Walk(NamedTuple):
    """How a walk ended: the output address and the leaf's size, or the entry that stopped it."""

    status: int
    oa: int
    #: lg2 of the leaf; 0 when there is none.
    lg2: int
    #: What the entries on the way allow together (for a privileged access if it was one), and GLOBAL.
    allowed: int
    #: Level and address of the last entry read, and the entry.
    level: int
    at: int
    pte: int


def walk(t: Table, memory: PhysicalMemory, root: int, iova: int, want: int = 0) -> Walk:
    """Translate one address for an access that wants the rights `want` (0 only looks)."""
    space = memory.space
    known = known_entries(t, want, space)
    if known is not None:
        quick = known.find(space.words, root, iova)
        if quick is not None:
            return new(Walk, quick)
    found = one_stage(Tree(t, space, root), signed(iova), want)
    if found[0] == OK and known is not None:
        known.learn(space.words, known.place(root), iova)
    if found[0] == ASK:
        found = one_stage(Tree(t, memory.anywhere, root), signed(iova), want)
    return Walk(*found[:6], found[6] & MASK)


#: By variant and want: what is known, or how many walks there were until something is.
_known: dict[tuple[Table, int], Known | int] = {}
_WALKS_BEFORE, _VARIANTS = 16, 512


def known_entries(t: Table, want: int, space: Space) -> Known | None:
    """What walks for `want` know of a variant: nothing, until there were some; nor where to read a word is to ask."""
    if type(space.words) is not memoryview:
        return None
    found = _known.get((t, want), 0)
    if not isinstance(found, int):
        return found
    if len(_known) >= _VARIANTS:
        _known.clear()
    _known[t, want] = found + 1 if found < _WALKS_BEFORE else Known(t, partial(_judge, t, want))
    return None


def _judge(t: Table, want: int, level: int, pte: int, every: int, some: int) -> tuple[int, int, int, int, int, bool]:
    status, oa, lg2, below = entry(t, level, 0, pte)
    allowed = 0
    if status == OK:
        status, allowed = grant(t, pte, every, some, want)
    return status, oa, lg2, below, allowed, after(t, status, pte, want, allowed) == pte


def last_step(t: Table, mem: Space, place: Place, iova: int, want: int) -> Result:
    """The end of a walk from a table of level 0 that an earlier one came to, as hardware does by a cached link.

    It is one turn of the loop in `one_stage`, which compiles to half its speed when both call the same function.
    """
    table, level, every, some = place
    at = table + (index(t, level, iova) << 3)
    status, allowed = reach(mem, at), 0
    if status != OK:
        return status, 0, 0, 0, level, at, 0
    pte = mem.words[at >> 3]
    status, oa, lg2, _ = entry(t, level, iova, pte)
    if status == OK:
        status, allowed = grant(t, pte, every, some, want)
    new = after(t, status, pte, want, allowed)
    if new != pte:
        if t.option & (HW_ACCESSED | NO_ATOMICS) != HW_ACCESSED:
            return unset(t), oa, lg2, allowed, level, at, pte
        mem.words[at >> 3] = new
    return status, oa, lg2, allowed, level, at, new


def signed(word: int) -> int:
    """A 64-bit number as kernels know it."""
    return word - (word >> 63 << 64)


# Kernels


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


def reach(mem: Space, at: int) -> int:
    """Whether there is a word at an address: OK, BAD_TABLE, or ASK its owner."""
    if at < 0 or at >= mem.limit:
        return ASK
    present = mem.present[at >> mem.shift]
    if present == DIRECT:
        return OK
    return BAD_TABLE if present == ABSENT else ASK


def outside(t: Table, iova: int) -> bool:
    """Whether an address has more bits than the table translates."""
    return t.input_bits < 64 and iova >> t.input_bits != 0


def entry(t: Table, level: int, iova: int, pte: int) -> tuple[int, int, int, int]:
    """What one entry says -> status (DESCEND to go on, OK at a leaf), output address, lg2 of the leaf, level below."""
    kind, oa, lg2, below = load(t, level, pte)
    if kind == EMPTY:
        return NOT_MAPPED, 0, 0, 0
    if kind == BAD:
        return MALFORMED, 0, 0, 0
    if oa >> t.output_bits:
        return ADDRESS_SIZE, oa, lg2, 0
    if kind == LEAF:
        return OK, oa | iova & (1 << lg2) - 1, lg2, 0
    if below < level - 1 and skipped(t, level, below, iova):
        return NOT_MAPPED, 0, 0, 0
    return DESCEND, oa, 0, below


def grant(t: Table, pte: int, every: int, some: int, want: int) -> tuple[int, int]:
    """Whether an access gets what it wants of a leaf -> OK or FORBIDDEN, and what it may do, with GLOBAL.

    `every` has the bits that all tables on the way have, `some` those that any has.
    """
    both = rights(t, pte, every, some)
    allowed = (both >> PRIVILEGED_LOW if want & PRIVILEGED else both) & RIGHTS
    lacking = want & RIGHTS & ~allowed
    if lacking and want & LENIENT == 0:
        return FORBIDDEN, allowed | both & GLOBAL
    return OK, allowed | both & GLOBAL


def one_stage(tree: Tree, iova: int, want: int) -> Result:
    """Translate one address. ASK: an entry lies where this kernel may not look."""
    t, mem = tree.table, tree.mem
    if outside(t, iova):
        return OUT_OF_RANGE, 0, 0, 0, t.top, 0, 0
    table, level, allowed, every, some = tree.root, t.top, 0, -1, 0
    while True:
        at = table + (index(t, level, iova) << 3)
        status = reach(mem, at)
        if status != OK:
            return status, 0, 0, 0, level, at, 0
        pte = mem.words[at >> 3]
        status, oa, lg2, below = entry(t, level, iova, pte)
        if status == OK:
            status, allowed = grant(t, pte, every, some, want)
        new = after(t, status, pte, want, allowed)
        if new != pte:
            if t.option & (HW_ACCESSED | NO_ATOMICS) != HW_ACCESSED:
                return unset(t), oa, lg2, allowed, level, at, pte
            mem.words[at >> 3] = new
        if status != DESCEND:
            return status, oa, lg2, allowed, level, at, new
        table, level, every, some = oa, below, every & pte, some | pte


def unset(t: Table) -> int:
    """How a walk ends that finds a flag which nobody sets: software is to do it, or the hardware cannot."""
    return BAD_TABLE if t.option & HW_ACCESSED else NOT_ACCESSED


def after(t: Table, status: int, pte: int, want: int, allowed: int) -> int:
    """The entry as an access leaves it: one that only looks, or is refused, leaves no trace."""
    if status == OK and want & allowed & RIGHTS:
        return used(t, LEAF, pte, want & allowed)
    if status == DESCEND and t.option & HW_ACCESSED and want & RIGHTS:
        return used(t, TABLE, pte, want)
    return pte


def walk_many(tree: Tree, iovas: Any, want: int, oas: Any, ends: Any) -> int:
    """`one_stage` for each of `iovas`: output addresses and statuses into arrays; -> how many are OK."""
    good = 0
    for number in range(len(iovas)):
        found = one_stage(tree, iovas[number], want)
        oas[number] = found[1]
        ends[number] = found[0]
        good += found[0] == OK
    return good
