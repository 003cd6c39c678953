"""A page table that software fills: map, unmap, translate, and harvest dirty leaves, in any format."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from softiommu.pagetable import formats
from softiommu.pagetable.kinds import ALREADY_MAPPED, ARM64, EMPTY, LEAF, NO_MEMORY, OK, OUT_OF_RANGE, TABLE, Table
from softiommu.pagetable.walk import Walk, index, skipped, span_lg2, walk

if TYPE_CHECKING:
    from softiommu.memory.physical import PhysicalMemory


class Leaf(NamedTuple):
    """A leaf: 2**lg2 bytes from `iova` to `oa`. `at` is the address of its first entry."""

    iova: int
    oa: int
    lg2: int
    level: int
    at: int
    pte: int


class Removed(NamedTuple):
    """What an unmap took away, and so what must be flushed before it is used again."""

    length: int
    leaves: list[Leaf]
    #: Addresses of tables that are no longer linked: to be freed after the flush.
    tables: list[int]


class PageTable:
    """A table of one variant in physical memory, from its root down."""

    def __init__(self, memory: PhysicalMemory, table: Table, root: int | None = None) -> None:
        self.memory, self.table = memory, table
        self.sizes = formats.sizes(table)
        self._root_bytes = 8 << table.top_bits
        self.root = memory.alloc(self._root_bytes, max(self._root_bytes, 4096)) if root is None else root

    # Mapping

    def map(self, iova: int, oa: int, length: int, prot: int) -> tuple[int, int]:
        """Map a run with the largest leaves that fit: a status, and the bytes mapped before it stopped."""
        t = self.table
        if (iova + length - 1) >> t.input_bits or (oa + length - 1) >> t.output_bits:
            return OUT_OF_RANGE, 0
        done = 0
        while done < length:
            lg2 = self.best_size(iova + done, oa + done, length - done)
            status = self._map_leaf(iova + done, oa + done, lg2, prot)
            if status != OK:
                return status, done
            done += 1 << lg2
        return OK, done

    def best_size(self, iova: int, oa: int, length: int) -> int:
        """lg2 of the largest leaf that fits the alignment of both addresses and the length."""
        fitting = self.sizes & (1 << length.bit_length()) - 1
        low = iova | oa
        if low:
            fitting &= ((low & -low) << 1) - 1
        return fitting.bit_length() - 1

    def _map_leaf(self, iova: int, oa: int, lg2: int, prot: int) -> int:
        t, memory = self.table, self.memory
        leaf_level = min((lg2 - t.granule_lg2) // t.bits, t.leaf_top)
        table, level = self.root, t.top
        while level > leaf_level:
            at = table + (index(t, level, iova) << 3)
            kind, below, _, next_level = formats.load(t, level, memory.read_u64(at))
            if kind == TABLE and next_level == level - 1:
                table, level = below, next_level
                continue
            if kind != EMPTY:
                return ALREADY_MAPPED
            try:
                below = memory.alloc(8 << t.bits, 8 << t.bits)
            except MemoryError:
                return NO_MEMORY
            memory.write_u64(at, formats.link(t, level, below))
            table, level = below, level - 1
        item = span_lg2(t, leaf_level)
        first = table + (index(t, leaf_level, iova) << 3)
        entries = range(first, first + (8 << lg2 - item), 8)
        if any(formats.load(t, leaf_level, memory.read_u64(at))[0] != EMPTY for at in entries):
            return ALREADY_MAPPED
        # Entries of an Arm contiguous run hold their own addresses; other formats repeat one entry.
        step = 1 << item if t.fmt == ARM64 else 0
        for number, at in enumerate(entries):
            memory.write_u64(at, formats.leaf(t, leaf_level, oa + number * step, lg2, prot))
        return OK

    # Unmapping

    def unmap(self, iova: int, length: int) -> Removed:
        """Remove every leaf that the range meets. A leaf that is cut goes whole, as the kernel's drivers do it."""
        leaves = list(self.leaves(iova, iova + length - 1))
        tables: list[int] = []
        for leaf in leaves:
            count = 1 << leaf.lg2 - span_lg2(self.table, leaf.level)
            for at in range(leaf.at, leaf.at + 8 * count, 8):
                self.memory.write_u64(at, 0)
        if leaves:
            last = leaves[-1].iova + (1 << leaves[-1].lg2) - 1
            self._prune(self.root, self.table.top, (leaves[0].iova, last), 0, tables)
        return Removed(sum(1 << leaf.lg2 for leaf in leaves), leaves, tables)

    def _prune(self, table: int, level: int, window: tuple[int, int], base: int, tables: list[int]) -> bool:
        """Unlink the empty tables below `table` that the window meets; whether it is empty itself."""
        t, memory = self.table, self.memory
        span = span_lg2(t, level)
        width = t.top_bits if level == t.top else t.bits
        if level:
            first = max(window[0] - base, 0) >> span
            last = min(window[1] - base >> span, (1 << width) - 1)
            for number in range(first, last + 1):
                at = table + (number << 3)
                kind, below, _, next_level = formats.load(t, level, memory.read_u64(at))
                if kind == TABLE and self._prune(below, next_level, window, base + (number << span), tables):
                    memory.write_u64(at, 0)
                    tables.append(below)
        return not any(memory.read(table, 8 << width))

    def free_tables(self, tables: list[int]) -> None:
        """Give unlinked tables back, once nothing can walk them any more."""
        for table in tables:
            self.memory.free(table)

    def destroy(self) -> None:
        """Give every table back."""
        tables = [below for _, _, below in self._tables(self.root, self.table.top)]
        self.free_tables(tables)
        self.memory.free(self.root)

    def _tables(self, table: int, level: int) -> Iterator[tuple[int, int, int]]:
        """Every link below `table`: the entry's address, its level, and the table it leads to."""
        t = self.table
        width = t.top_bits if level == t.top else t.bits
        for at in range(table, table + (8 << width), 8):
            kind, below, _, next_level = formats.load(t, level, self.memory.read_u64(at))
            if kind == TABLE:
                yield from self._tables(below, next_level)
                yield at, level, below

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
            kind, oa, lg2, below = formats.load(t, level, pte)
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

    def harvest(self, first: int, last: int, clear: bool) -> list[Leaf]:
        """The leaves in the range that were written since they were cleared; a TLB flush must follow a clear."""
        t, written = self.table, []
        for leaf in self.leaves(first, last):
            count = 1 << leaf.lg2 - span_lg2(t, leaf.level)
            entries = range(leaf.at, leaf.at + 8 * count, 8)
            marked = [at for at in entries if formats.dirty(t, self.memory.read_u64(at))]
            if marked:
                written.append(leaf)
            if clear:
                for at in marked:
                    self.memory.write_u64(at, formats.clean(t, self.memory.read_u64(at)))
        return written
