"""Kernels that change a table of ours: map, unmap and harvest runs of leaves.

They trust the table, since nobody else writes it. Positions are counted in granules (`page`), so that they are
positive whatever the width of the input. What a kernel finds or gives back it reports in an array of triples, of which
the first element counts them; when that is full, or when it needs tables, it stops and is called again.
"""

from __future__ import annotations

from typing import Any

from softiommu.memory.physical import Space
from softiommu.pagetable.formats import clean, dirty, leaf, link, load, run_step
from softiommu.pagetable.kinds import ALREADY_MAPPED, EMPTY, LEAF, NEED_TABLES, OK, TABLE, Table
from softiommu.pagetable.walk import Tree, index, span_lg2

#: Longer than any run of leaves.
_ENDLESS = 1 << 60


def best_size(t: Table, iova: int, oa: int, length: int, sizes: int) -> int:
    """lg2 of the largest leaf of the bitmap `sizes` that fits the alignment of both addresses and the length."""
    low = iova | oa | _ENDLESS
    fitting = sizes & ((low & -low) << 1) - 1
    best = lg2 = t.granule_lg2
    while fitting >> lg2 and length >> lg2:
        if fitting >> lg2 & 1:
            best = lg2
        lg2 += 1
    return best


def until_larger(iova: int, lg2: int, sizes: int) -> int:
    """How many bytes from `iova` a leaf larger than 2**lg2 cannot start."""
    larger = sizes >> lg2 + 1
    if larger == 0:
        return _ENDLESS
    size = (larger & -larger) << lg2 + 1
    return size - (iova & size - 1)


def map_range(tree: Tree, stock: Any, start: tuple[int, int], length: int, prot: int, sizes: int) -> tuple[int, int]:
    """Map a run from `start` (iova, oa) with the largest leaves that fit -> a status, and the bytes mapped.

    New tables are taken from `stock`, whose first element is the position of the next.
    """
    t = tree.table
    done = 0
    while done < length:
        iova, oa = start[0] + done, start[1] + done
        lg2 = best_size(t, iova, oa, length - done, sizes)
        level = min((lg2 - t.granule_lg2) // t.bits, t.leaf_top)
        status, table = table_for(tree, stock, iova, level)
        if status != OK:
            return status, done
        run = min(length - done, until_larger(iova, lg2, sizes)) >> lg2
        status, filled = fill(tree, (table, level), lg2, (iova, oa), run, prot)
        done += filled
        if status != OK:
            return status, done
    return OK, done


def table_for(tree: Tree, stock: Any, iova: int, leaf_level: int) -> tuple[int, int]:
    """The table of `leaf_level` on the way to `iova`, made where there was none."""
    t = tree.table
    words = tree.mem.words
    table, level = tree.root, t.top
    while level > leaf_level:
        at = table + (index(t, level, iova) << 3) >> 3
        kind, below, _, _ = load(t, level, words[at])
        if kind == EMPTY:
            if stock[0] >= len(stock):
                return NEED_TABLES, 0
            below = stock[stock[0]]
            stock[0] += 1
            words[at] = link(t, level, below)
        elif kind != TABLE:
            return ALREADY_MAPPED, 0
        table, level = below, level - 1
    return OK, table


def fill(tree: Tree, place: tuple[int, int], lg2: int, start: tuple[int, int], run: int, prot: int) -> tuple[int, int]:
    """Write up to `run` leaves of 2**lg2 bytes, as far as the table goes -> a status, and the bytes mapped."""
    t, (table, level) = tree.table, place
    words = tree.mem.words
    iova, oa = start
    span = span_lg2(t, level)
    copies, apart = 1 << lg2 - span, run_step(t, span)
    number = index(t, level, iova)
    width = t.top_bits if level == t.top else t.bits
    run = min(run, (1 << width) - number >> lg2 - span)
    at = (table >> 3) + number
    for count in range(run):
        for copy in range(copies):
            if load(t, level, words[at + copy])[0] != EMPTY:
                return ALREADY_MAPPED, count << lg2
        for copy in range(copies):
            words[at + copy] = leaf(t, level, oa + copy * apart, lg2, prot)
        at += copies
        oa += 1 << lg2
    return OK, run << lg2


def lowest(tree: Tree, page: int, path: Any) -> tuple[int, int]:
    """The lowest table on the way to `page`, and its level; path[level] is the entry that leads to a level's table."""
    t, mem = tree.table, tree.mem
    table, level = tree.root, t.top
    while level:
        at = table + (index(t, level, page << t.granule_lg2) << 3)
        kind, below, _, _ = load(t, level, mem.words[at >> 3])
        if kind != TABLE:
            break
        level -= 1
        path[level] = at
        table = below
    return table, level


def record(found: Any, page: int, count: int, third: int) -> bool:
    """Add a triple, or extend the last one when it goes on there; whether there was room."""
    end = 3 * found[0]
    if end and found[end] == third and found[end - 2] + found[end - 1] == page:
        found[end - 1] += count
        return True
    if end + 3 >= len(found):
        return False
    found[end + 1], found[end + 2], found[end + 3] = page, count, third
    found[0] += 1
    return True


def unmap_range(tree: Tree, page: int, last: int, path: Any, leaves: Any, tables: Any) -> int:
    """Clear every leaf that meets `page`..`last` -> the page to go on from.

    Triples in `leaves`: first page, pages, lg2 of each leaf. In `tables` those that became empty and are no longer
    linked: first page, level, address.
    """
    t = tree.table
    while page <= last:
        if 3 * leaves[0] + 4 > len(leaves) or 3 * (tables[0] + t.top) + 4 > len(tables):
            return page
        place = lowest(tree, page, path)
        first = page
        page = clear(tree, place, page, last, leaves)
        prune(tree, path, place, first, tables)
    return page


def clear(tree: Tree, place: tuple[int, int], page: int, last: int, leaves: Any) -> int:
    """Clear the leaves of one table, up to its end, a link, or `last` -> the page to go on from."""
    t, (table, level) = tree.table, place
    words = tree.mem.words
    span = t.bits * level
    width = t.top_bits if level == t.top else t.bits
    number = page >> span & (1 << width) - 1
    while number < 1 << width and page <= last:
        kind, _, lg2, _ = load(t, level, words[(table >> 3) + number])
        if kind == TABLE:
            return page
        if kind != LEAF:
            number += 1
            page = (page >> span) + 1 << span
            continue
        # A leaf that is cut goes whole, as the kernel's drivers do it.
        size = lg2 - t.granule_lg2
        copies = 1 << size - span
        page = page >> size << size
        number &= ~(copies - 1)
        if not record(leaves, page, 1 << size, lg2):
            return page
        for copy in range(copies):
            words[(table >> 3) + number + copy] = 0
        number += copies
        page += 1 << size
    return page


def prune(tree: Tree, path: Any, place: tuple[int, int], page: int, tables: Any) -> None:
    """Unlink a table that is empty, then the one above it if that became empty, and so on."""
    t, (table, level) = tree.table, place
    while level < t.top and is_empty(tree.mem, table, 1 << t.bits):
        end = 3 * tables[0]
        tables[end + 1], tables[end + 2], tables[end + 3] = page, level, table
        tables[0] += 1
        at = path[level]
        tree.mem.words[at >> 3] = 0
        level += 1
        table = at & ~((8 << t.bits) - 1)


def is_empty(mem: Space, table: int, entries: int) -> bool:
    """Whether a table has no entry. (Compiled, this is a loop: jit.py.)"""
    empty: bool = mem.words[table >> 3 : (table >> 3) + entries].tobytes() == bytes(8 * entries)
    return empty


def harvest_range(tree: Tree, page: int, last: int, clear_them: int, path: Any, found: Any) -> int:
    """Find the leaves of `page`..`last` that were written, and clean them if told -> the page to go on from."""
    while page <= last:
        if 3 * found[0] + 4 > len(found):
            return page
        place = lowest(tree, page, path)
        page = harvest_table(tree, place, page, last, clear_them, found)
    return page


def harvest_table(tree: Tree, place: tuple[int, int], page: int, last: int, clear_them: int, found: Any) -> int:
    """The same for one table, up to its end, a link, or `last`."""
    t, (table, level) = tree.table, place
    words = tree.mem.words
    span = t.bits * level
    width = t.top_bits if level == t.top else t.bits
    number = page >> span & (1 << width) - 1
    while number < 1 << width and page <= last:
        kind, _, lg2, _ = load(t, level, words[(table >> 3) + number])
        if kind == TABLE:
            return page
        size = lg2 - t.granule_lg2 if kind == LEAF else span
        copies = 1 << size - span
        page = page >> size << size
        number &= ~(copies - 1)
        if kind == LEAF and any_dirty(tree, (table >> 3) + number, copies):
            if not record(found, page, 1 << size, lg2):
                return page
            if clear_them:
                for at in range((table >> 3) + number, (table >> 3) + number + copies):
                    words[at] = clean(t, words[at])
        number += copies
        page += 1 << size
    return page


def any_dirty(tree: Tree, first: int, copies: int) -> bool:
    """Whether any entry of one leaf says that it was written."""
    for at in range(first, first + copies):  # noqa: SIM110 - compiled code knows no generators
        if dirty(tree.table, tree.mem.words[at]):
            return True
    return False
