"""Random tables: leaves of all sizes and rights at random places, and entries changed so that they mean something else
or nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import NamedTuple

import numpy as np

from softiommu.memory.physical import BadAddressError
from softiommu.pagetable import formats
from softiommu.pagetable.engine import PageTable
from softiommu.pagetable.kinds import OK, TABLE, Table
from softiommu.pagetable.walk import index, signed

_MASK = (1 << 64) - 1


class Aim(NamedTuple):
    """A mapped address that leads to a place that is known, and the leaf's size."""

    iova: int
    lg2: int


class Wish(NamedTuple):
    """What leaves are to be made: of which sizes (a bitmap), with which rights, at addresses of how many bits and
    without which; and where each is to lead."""

    sizes: int
    rights: tuple[int, ...]
    width: int
    without: int
    aim: Callable[[], int]


def populate(random: Random, pages: PageTable, wish: Wish, count: int) -> list[Aim]:
    """Map `count` leaves."""
    sizes = [lg2 for lg2 in range(64) if wish.sizes >> lg2 & 1]
    bases = _bases(random, wish.width)
    found = []
    for _ in range(count):
        lg2 = (
            sizes[min(int(random.expovariate(1.2)), len(sizes) - 1)] if random.random() < 0.8 else random.choice(sizes)
        )
        target = wish.aim()
        reach = max(lg2 + 2, random.choice((16, 22, 24, 31)))
        iova = (random.choice(bases) ^ random.getrandbits(reach)) & (1 << wish.width) - 1 & -(1 << lg2) & ~wish.without
        oa = target & -(1 << lg2)
        if pages.map(iova, oa, 1 << lg2, random.choice(wish.rights))[0] == OK:
            found.append(Aim(iova + (target - oa), lg2))
    return found


def _bases(random: Random, width: int) -> list[int]:
    """Few places where mappings lie close together, so that they share tables; both ends among them."""
    top = (1 << width) - (1 << 22)
    return [0, top, 1 << width - 1, *(random.getrandbits(width) for _ in range(4))]


class Step(NamedTuple):
    """An entry that a walk meets."""

    level: int
    at: int
    entry: int


def path(pages: PageTable, iova: int, shift: int = 0) -> list[Step]:
    """The entries that a walk meets; links show addresses that are `shift` above the tables."""
    t, table, level = pages.table, pages.root, pages.table.top
    iova &= (1 << t.input_bits) - 1
    found = []
    while True:
        at = table + (index(t, level, iova) << 3)
        try:
            entry = pages.memory.read_u64(at)
        except BadAddressError:
            return found
        found.append(Step(level, at, entry))
        kind, oa, _, below = formats.load(t, level, signed(entry))
        if kind != TABLE:
            return found
        table, level = oa - shift, below


class Limits(NamedTuple):
    """Where entries may be changed, but those at `keep`; where no entry may point, and where a link may; and what is
    made of an entry before it is stored."""

    within: range
    keep: frozenset[int]
    avoid: range
    is_table: Callable[[int], bool]
    tame: Callable[[Table, int, int], int]


def spoil(random: Random, pages: PageTable, aims: list[Aim], count: int, limits: Limits) -> None:
    """Change `count` entries on the ways to `aims`."""
    memory = pages.memory
    for _ in range(count if aims else 0):
        way = path(pages, random.choice(aims).iova)
        step = random.choice(way[-2:]) if random.random() < 0.8 else random.choice(way)
        entry = limits.tame(pages.table, step.level, _changed(random, pages, *step))
        kind, oa, *_ = formats.load(pages.table, step.level, signed(entry))
        if step.at in limits.keep or step.at not in limits.within or oa in limits.avoid:
            continue
        if kind != TABLE or limits.is_table(oa):
            memory.write_u64(step.at, entry)


def _changed(random: Random, pages: PageTable, level: int, at: int, entry: int) -> int:
    how = random.randrange(8)
    if how == 0:
        return 0
    if how == 1:
        return random.getrandbits(64)
    if how == 2:
        # A table that is its own child, or a leaf that shows the table.
        return formats.link(pages.table, max(level, 1), at & -(8 << pages.table.bits)) & _MASK
    if how == 3:
        return entry ^ 1 << random.randrange(12) ^ 1 << random.randrange(12)
    if how == 4:
        return entry ^ 1 << random.randrange(36, 64)
    return entry ^ 1 << random.randrange(64)


def _entries(pages: PageTable, table: int, level: int) -> Iterator[tuple[int, int]]:
    """(address, entry) of what is not 0 in a table."""
    bits = pages.table.top_bits if level == pages.table.top else pages.table.bits
    words = np.frombuffer(pages.memory.read(table, 8 << bits), np.uint64)
    for number in np.flatnonzero(words):
        yield table + 8 * int(number), int(words[number])


def tables(pages: PageTable) -> list[tuple[int, int]]:
    """(address, level) of all tables, as long as nothing is spoiled."""
    found = []
    waiting = [(pages.root, pages.table.top)]
    while waiting:
        table, level = waiting.pop()
        found.append((table, level))
        for _, entry in _entries(pages, table, level):
            kind, oa, _, below = formats.load(pages.table, level, signed(entry))
            if kind == TABLE:
                waiting.append((oa, below))
    return found


def relocate(pages: PageTable, own: list[tuple[int, int]], shift: int, region: range) -> None:
    """Let every link of `own` tables to something in `region` show it `shift` above: where a second stage has it."""
    t = pages.table
    for table, level in own:
        for at, entry in _entries(pages, table, level):
            kind, oa, *_ = formats.load(t, level, signed(entry))
            if kind == TABLE and oa in region:
                moved = formats.link(t, level, oa) ^ formats.link(t, level, oa + shift)
                pages.memory.write_u64(at, entry ^ moved & _MASK)
