"""Two stages: the tables of the first lie at addresses that the second translates, and so does its output."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from softiommu.memory.physical import Space
from softiommu.pagetable.kinds import (
    ASK,
    DESCEND,
    FORBIDDEN,
    GLOBAL,
    HW_ACCESSED,
    NO_ATOMICS,
    OK,
    OUT_OF_RANGE,
    READ,
    RIGHTS,
    WRITE,
    Table,
)
from softiommu.pagetable.walk import (
    MASK,
    Result,
    Tree,
    Walk,
    after,
    entry,
    grant,
    index,
    known_entries,
    new,
    one_stage,
    outside,
    reach,
    signed,
    unset,
)

if TYPE_CHECKING:
    from softiommu.memory.physical import PhysicalMemory

#: Which walk decided: the first stage's; the second's of the output; the second's of a table entry, read or written.
STAGE1, STAGE2, FETCH_READ, FETCH_WRITE = 1, 2, 3, 4

NO_WALK = (0, 0, 0, 0, 0, 0, 0)


class Stage(NamedTuple):
    """A table of some format with its root."""

    table: Table
    root: int


class NestedWalk(NamedTuple):
    """How a nested walk ended. `stage2` is the second-stage walk that decided, of a table fetch or of the output."""

    status: int
    pa: int
    #: lg2 of what can be cached as one translation: the smaller of both leaves.
    lg2: int
    allowed: int
    stage1: Walk | None
    stage2: Walk | None
    #: Set when a first-stage table entry failed in the second stage: the address of the entry.
    fetch_ipa: int | None = None
    #: What was done to that entry: READ, or WRITE when its flags were to be set.
    fetch_want: int = READ


def nested_walk(first: Stage, second: Stage, memory: PhysicalMemory, iova: int, want: int = 0) -> NestedWalk:
    """Translate `iova` by the first stage, its tables and its output by the second."""
    quick = known_walk(first, second, memory, iova, want)
    if quick is not None:
        return quick
    where, inner, outer = _walk(two_stages, first, second, memory, iova, want)
    if where == STAGE2 and outer[0] == OK:
        space = memory.space
        known = known_entries(second.table, want, space)
        if known is not None:
            known.learn(space.words, known.place(second.root), inner[1])
            _learn_first(first, second, space, iova, want)
    return _ended(where, inner, outer)


def known_walk(
    first: Stage, second: Stage, memory: PhysicalMemory, iova: int, want: int, shown: list[int] | None = None
) -> NestedWalk | None:
    """A nested walk that meets only what is known, and so changes nothing. The second stage's leaves for the first's
    tables are added to `shown`."""
    space = memory.space
    known = known_entries(second.table, want, space)
    if known is None:
        return None
    inner = _first_known(first, second, space, iova, want, shown)
    outer = None if inner is None else known.find(space.words, second.root, inner[1])
    return None if inner is None or outer is None else _translated(new(Walk, inner), new(Walk, outer))


def walk_first(first: Stage, second: Stage, memory: PhysicalMemory, iova: int, want: int = 0) -> NestedWalk:
    """Translate `iova` by the first stage alone, whose tables the second shows: `stage1` has the output."""
    quick = _first_known(first, second, memory.space, iova, want)
    if quick is not None:
        return NestedWalk(OK, 0, 0, quick[3] & GLOBAL, new(Walk, quick), Walk(*NO_WALK))
    where, inner, outer = _walk(first_of_two, first, second, memory, iova, want)
    if where == STAGE2:
        _learn_first(first, second, memory.space, iova, want)
    return _ended(where, inner, outer)


def _first_known(
    first: Stage, second: Stage, space: Space, iova: int, want: int, shown: list[int] | None = None
) -> Result | None:
    """The first stage's walk, if it meets only what is known."""
    known = known_entries(first.table, want, space)
    fetch = known_entries(second.table, _fetch_want(want, READ), space)
    if known is None or fetch is None:
        return None
    return known.nested(fetch, space.words, (first.root, second.root), iova, shown)


def _learn_first(first: Stage, second: Stage, space: Space, iova: int, want: int) -> None:
    known = known_entries(first.table, want, space)
    fetch = known_entries(second.table, _fetch_want(want, READ), space)
    if known is None or fetch is None:
        return
    words, host = space.words, Tree(second.table, space, second.root)

    def shown(ipa: int) -> int | None:
        fetch.learn(words, fetch.place(second.root), ipa)
        found = one_stage(host, ipa, 0)
        return found[1] if found[0] == OK else None

    known.learn(words, known.place(first.root), iova, shown)


def _walk(
    kernel: Callable[[Tree, Tree, int, int], tuple[int, Result, Result]],
    first: Stage,
    second: Stage,
    memory: PhysicalMemory,
    iova: int,
    want: int,
) -> tuple[int, Result, Result]:
    where, inner, outer = kernel(*_trees(first, second, memory.space), signed(iova), want)
    if ASK in (inner[0], outer[0]):
        return kernel(*_trees(first, second, memory.anywhere), signed(iova), want)
    return where, inner, outer


def _ended(where: int, inner: Result, outer: Result) -> NestedWalk:
    stage1, stage2 = (Walk(*raw[:6], raw[6] & MASK) for raw in (inner, outer))
    if where == STAGE1:
        return NestedWalk(stage1.status, 0, 0, stage1.allowed, stage1, None)
    if where != STAGE2:
        fetch_want = READ if where == FETCH_READ else WRITE
        return NestedWalk(stage2.status, 0, 0, 0, None, stage2, stage1.at, fetch_want)
    return _translated(stage1, stage2)


def _translated(stage1: Walk, stage2: Walk) -> NestedWalk:
    allowed = stage1.allowed & (stage2.allowed | GLOBAL)
    return NestedWalk(stage2.status, stage2.oa, min(stage1.lg2, stage2.lg2), allowed, stage1, stage2)


def _trees(first: Stage, second: Stage, space: Space) -> tuple[Tree, Tree]:
    return Tree(first.table, space, first.root), Tree(second.table, space, second.root)


# Kernels


def two_stages(tree1: Tree, tree2: Tree, iova: int, want: int) -> tuple[int, Result, Result]:
    """Translate one address -> which walk decided, the first stage's, the second stage's last."""
    where, inner, outer = first_of_two(tree1, tree2, iova, want)
    if where == STAGE2:
        return where, inner, one_stage(tree2, inner[1], want)
    return where, inner, outer


def first_of_two(tree1: Tree, tree2: Tree, iova: int, want: int) -> tuple[int, Result, Result]:
    """`two_stages` up to the first stage's output (STAGE2), which the second stage has still to translate."""
    t1, mem = tree1.table, tree1.mem
    if outside(t1, iova):
        return STAGE1, (OUT_OF_RANGE, 0, 0, 0, t1.top, 0, 0), NO_WALK
    table, level, allowed, every, some = tree1.root, t1.top, 0, -1, 0
    while True:
        ipa = table + (index(t1, level, iova) << 3)
        where, outer = _fetch(tree2, ipa, want, READ)
        if outer[0] != OK:
            return where, (outer[0], 0, 0, 0, level, ipa, 0), outer
        at = outer[1] >> 3
        pte = mem.words[at]
        status, oa, lg2, below = entry(t1, level, iova, pte)
        if status == OK:
            status, allowed = grant(t1, pte, every, some, want)
        new = after(t1, status, pte, want, allowed)
        if new != pte:
            if t1.option & (HW_ACCESSED | NO_ATOMICS) != HW_ACCESSED:
                return STAGE1, (unset(t1), oa, lg2, allowed, level, ipa, pte), NO_WALK
            where, outer = _fetch(tree2, ipa, want, WRITE)
            if outer[0] != OK:
                return where, (outer[0], 0, 0, 0, level, ipa, 0), outer
            mem.words[at] = new
        if status != DESCEND:
            return STAGE2 if status == OK else STAGE1, (status, oa, lg2, allowed, level, ipa, new), NO_WALK
        table, level, every, some = oa, below, every & pte, some | pte


def _fetch(tree2: Tree, ipa: int, want: int, use: int) -> tuple[int, Result]:
    """The second stage's walk for a first-stage table entry that is read or written. Where it leads can be reached."""
    where = FETCH_READ if use == READ else FETCH_WRITE
    found = one_stage(tree2, ipa, _fetch_want(want, use))
    if found[0] != OK:
        return where, found
    if found[3] & use == 0:
        return where, (FORBIDDEN, found[1], found[2], found[3], found[4], found[5], found[6])
    status = reach(tree2.mem, found[1])
    if status != OK:
        return STAGE1, (status, found[1], found[2], found[3], found[4], found[5], found[6])
    return where, found


def _fetch_want(want: int, use: int) -> int:
    """What the second stage is asked for. A walk that only looks leaves no trace here either, but needs the right."""
    return use if want & RIGHTS else 0


def nested_many(tree1: Tree, tree2: Tree, iovas: Any, want: int, oas: Any, ends: Any) -> int:
    """`two_stages` for each of `iovas`: physical addresses and statuses into arrays; -> how many are OK."""
    good = 0
    for number in range(len(iovas)):
        where, first, second = two_stages(tree1, tree2, iovas[number], want)
        status = first[0] if where == STAGE1 else second[0]
        oas[number] = second[1] if where == STAGE2 else 0
        ends[number] = status
        good += status == OK
    return good
