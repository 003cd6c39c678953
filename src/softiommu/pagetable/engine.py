"""A page table that software fills: map, unmap, translate, and harvest dirty leaves, in any format.

Small changes run as plain Python; those of many pages load the compiled kernels. Both do the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from softiommu.pagetable import formats, mapper
from softiommu.pagetable.kinds import LEAF, NEED_TABLES, NO_MEMORY, OUT_OF_RANGE, TABLE, Table
from softiommu.pagetable.walk import Tree, Walk, signed, skipped, span_lg2, walk

if TYPE_CHECKING:
    from softiommu.memory.physical import PhysicalMemory

#: A change of more leaves than this is worth loading the compiled kernels (5 ms of plain Python).
PLAIN_LEAVES = 4096
#: Triples that a kernel reports at once, plain and compiled.
_FEW, _MANY = 64, 4096


class Leaf(NamedTuple):
    """A leaf: 2**lg2 bytes from `iova` to `oa`. `at` is the address of its first entry."""

    iova: int
    oa: int
    lg2: int
    level: int
    at: int
    pte: int


class Run(NamedTuple):
    """`length` bytes from `iova`, in leaves of 2**lg2 bytes each."""

    iova: int
    length: int
    lg2: int

    @property
    def last(self) -> int:
        """The last address."""
        return self.iova + self.length - 1


class TableRange(NamedTuple):
    """A table at `pa` that is no longer linked; it translated `iova`..`last`, and held entries of `level`."""

    iova: int
    last: int
    level: int
    pa: int


class Removed(NamedTuple):
    """What an unmap took away, and so what must be flushed before it is used again."""

    length: int
    ranges: list[Run]
    #: Tables that are no longer linked: to be freed after the flush.
    tables: list[TableRange]


class _Kernels(NamedTuple):
    """The kernels as plain Python or compiled, what they work on, and how they are given arrays."""

    code: Any
    tree: Tree
    array: Any
    triples: int

    def report(self) -> Any:
        """An empty array of triples."""
        return self.array([0] * (3 * self.triples + 1))


class PageTable:
    """A table of one variant in physical memory, from its root down. Nobody else writes it, but for flags.

    `compiled` chooses the kernels; None: by the size of the change.
    """

    def __init__(
        self, memory: PhysicalMemory, table: Table, root: int | None = None, compiled: bool | None = None
    ) -> None:
        self.memory, self.table, self.compiled = memory, table, compiled
        self.sizes = formats.sizes(table)
        root_bytes = 8 << table.top_bits
        self._owns_root = root is None
        self.root = memory.alloc(root_bytes, max(root_bytes, 4096)) if root is None else root
        self._tables: set[int] = set()
        #: How many leaves there are.
        self._count = 0

    def _kernels(self, leaves: int) -> _Kernels:
        if self.compiled if self.compiled is not None else leaves > PLAIN_LEAVES:
            import numpy as np

            from softiommu.pagetable import jit

            return _Kernels(
                jit, Tree(self.table, self.memory.arrays, self.root), lambda items: np.array(items, np.int64), _MANY
            )
        return _Kernels(mapper, Tree(self.table, self.memory.space, self.root), list, _FEW)

    # Mapping

    def map(self, iova: int, oa: int, length: int, prot: int) -> tuple[int, int]:
        """Map a run with the largest leaves that fit: a status, and the bytes mapped before it stopped."""
        t = self.table
        if (iova + length - 1) >> t.input_bits or (oa + length - 1) >> t.output_bits:
            return OUT_OF_RANGE, 0
        leaves = self._leaves_in(iova, oa, length)
        kernels = self._kernels(leaves)
        done, tables = 0, 0
        while True:
            fresh = self._stock(tables)
            if tables and not fresh:
                status = NO_MEMORY
                break
            stock = kernels.array([1, *fresh])
            start = signed(iova + done), oa + done
            status, more = kernels.code.map_range(kernels.tree, stock, start, length - done, prot, self.sizes)
            self._keep(fresh, int(stock[0]) - 1)
            done += more
            if status != NEED_TABLES:
                break
            tables = min(max(t.top, 8 * tables), 4096)
        self._count += leaves if done == length else self._leaves_in(iova, oa, done)
        return status, done

    def _leaves_in(self, iova: int, oa: int, length: int) -> int:
        """How many leaves a run takes."""
        granule, leaves = self.table.granule_lg2, 0
        if length >> granule == 1:
            return 1
        while length >> granule:
            lg2 = mapper.best_size(self.table, iova, oa, length, self.sizes)
            run = min(length, mapper.until_larger(iova, lg2, self.sizes)) >> lg2
            leaves, length = leaves + run, length - (run << lg2)
            iova, oa = iova + (run << lg2), oa + (run << lg2)
        return leaves

    def _stock(self, count: int) -> list[int]:
        """Up to `count` new tables: as many as there is memory for."""
        size = 8 << self.table.bits
        fresh: list[int] = []
        try:
            while len(fresh) < count:
                fresh.append(self.memory.alloc(size, size))
        except MemoryError:
            pass  # the kernel goes on with what there is
        return fresh

    def _keep(self, fresh: list[int], used: int) -> None:
        self._tables.update(fresh[:used])
        for pa in fresh[used:]:
            self.memory.free(pa)

    # Unmapping

    def unmap(self, iova: int, length: int) -> Removed:
        """Remove every leaf that the range meets. A leaf that is cut goes whole, as the kernel's drivers do it."""
        t = self.table
        page, last = self._window(iova, iova + length - 1)
        kernels = self._kernels(min(last - page + 1, self._count))
        path, ranges, tables = kernels.array([0] * (t.top + 1)), [], []
        while page <= last:
            leaves, gone = kernels.report(), kernels.report()
            page = kernels.code.unmap_range(kernels.tree, page, last, path, leaves, gone)
            ranges += self._runs(leaves)
            tables += [self._table_range(*triple) for triple in _triples(gone)]
        removed = sum(run.length for run in ranges)
        self._count -= sum(run.length >> run.lg2 for run in ranges)
        self._tables.difference_update(table.pa for table in tables)
        return Removed(removed, ranges, tables)

    def _window(self, first: int, last: int) -> tuple[int, int]:
        """A range of addresses as granules, as far as the table goes."""
        t = self.table
        return first >> t.granule_lg2, min(last, (1 << t.input_bits) - 1) >> t.granule_lg2

    def _runs(self, found: Any) -> list[Run]:
        lg2 = self.table.granule_lg2
        return [Run(page << lg2, count << lg2, size) for page, count, size in _triples(found)]

    def _table_range(self, page: int, level: int, pa: int) -> TableRange:
        span = span_lg2(self.table, level + 1)
        first = page << self.table.granule_lg2 >> span << span
        return TableRange(first, first + (1 << span) - 1, level, pa)

    def free_tables(self, tables: list[TableRange]) -> None:
        """Give unlinked tables back, once nothing can walk them any more."""
        for table in tables:
            self.memory.free(table.pa)

    def destroy(self) -> None:
        """Give every table back."""
        for pa in self._tables:
            self.memory.free(pa)
        self._tables.clear()
        if self._owns_root:
            self.memory.free(self.root)

    # Growing

    def grow(self, table: Table) -> None:
        """Put a root of one more level above this one: what was mapped stays, and `table` translates more addresses.
        MemoryError; whoever walks the table must be told of the new root."""
        root_bytes = 8 << table.top_bits
        root = self.memory.alloc(root_bytes, max(root_bytes, 4096))
        self.memory.write_u64(root, formats.link(table, table.top, self.root))
        self._tables.add(self.root)
        self.table, self.root, self.sizes = table, root, formats.sizes(table)

    # Looking

    def translate(self, iova: int, want: int = 0) -> Walk:
        """A walk by hand (iova_to_phys)."""
        return walk(self.table, self.memory, self.root, iova, want)

    def leaves(self, first: int, last: int) -> Iterator[Leaf]:
        """Every leaf that meets `first`..`last`, ascending."""
        last = min(last, (1 << self.table.input_bits) - 1)
        if first <= last:
            yield from self._leaves(self.root, self.table.top, (first, last), 0)

    def _leaves(self, table: int, level: int, window: tuple[int, int], base: int) -> Iterator[Leaf]:
        t, memory = self.table, self.memory
        span = span_lg2(t, level)
        width = t.top_bits if level == t.top else t.bits
        number = max(window[0] - base, 0) >> span
        last = min(window[1] - base >> span, (1 << width) - 1)
        while number <= last:
            at = table + (number << 3)
            pte = memory.read_u64(at)
            kind, oa, lg2, below = formats.load(t, level, signed(pte))
            count = 1
            if kind == TABLE and not (below < level - 1 and skipped(t, level, below, base + (number << span))):
                yield from self._leaves(oa, below, window, base + (number << span))
            elif kind == LEAF:
                count = 1 << lg2 - span
                start = number & ~(count - 1)
                yield Leaf(base + (start << span), oa, lg2, level, table + (start << 3), pte)
                number = start
            number += count

    # Dirty tracking

    def harvest(self, first: int, last: int, clear: bool) -> list[Run]:
        """The leaves in the range that were written since they were cleared; a TLB flush must follow a clear."""
        t = self.table
        page, end = self._window(first, last)
        kernels = self._kernels(min(end - page + 1, self._count))
        path, written = kernels.array([0] * (t.top + 1)), []
        while page <= end:
            found = kernels.report()
            page = kernels.code.harvest_range(kernels.tree, page, end, int(clear), path, found)
            written += self._runs(found)
        return written


def _triples(found: Any) -> Iterator[tuple[int, int, int]]:
    for end in range(0, 3 * int(found[0]), 3):
        yield int(found[end + 1]), int(found[end + 2]), int(found[end + 3])
