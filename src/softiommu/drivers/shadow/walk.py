"""A guest's table, read out of its memory: every leaf of a range, and which tables led there.

It is the walk of `pagetable.walk`, for a range at once. Accessed and dirty flags are set ahead, as by a device that
uses every page: what is merged may be used at any time, and nobody will look at the guest's table then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from errno import ENOMEM
from struct import unpack
from typing import NamedTuple, Protocol

from softiommu.drivers.driver import Prot, Range
from softiommu.errors import UapiError
from softiommu.pagetable.kinds import DESCEND, HW_ACCESSED, LENIENT, OK, READ, WRITE, Table
from softiommu.pagetable.walk import MASK, after, entry, grant, span_lg2

_PAGE = 4096
_WANT = READ | WRITE | LENIENT
_PROTS = {allowed: Prot(allowed) for allowed in range(4)}

#: More than these nobody merges: tables may be linked in circles, and so have as many leaves as one likes.
MOST_LEAVES, MOST_TABLES = 1 << 20, 1 << 14


class Leaf(NamedTuple):
    """Addresses `first`..`last` lead to the guest-physical ones from `gpa`: a leaf of 2**lg2 bytes, or part of it; or
    several of a table that lie together, and have the same rights."""

    first: int
    last: int
    gpa: int
    prot: Prot
    lg2: int

    @property
    def leaves(self) -> int:
        """How many of the guest's leaves it is."""
        return (self.last >> self.lg2) - (self.first >> self.lg2) + 1

    def part(self, first: int, last: int) -> Leaf:
        """What of it lies in a range that it meets."""
        if first <= self.first and self.last <= last:
            return self
        low = max(first, self.first)
        return Leaf(low, min(last, self.last), self.gpa + low - self.first, self.prot, self.lg2)

    def agrees(self, other: Leaf) -> bool:
        """Whether both lead to the same where they meet, as leaves of one size."""
        there = self.gpa - self.first == other.gpa - other.first
        return there and self.prot is other.prot and self.lg2 == other.lg2


class Visited(NamedTuple):
    """A table at guest-physical `gpa`, of `size` bytes, translates `first`..`last`."""

    first: int
    last: int
    level: int
    gpa: int
    size: int


class Found(NamedTuple):
    """What a range of a table holds."""

    leaves: list[Leaf]
    tables: list[Visited]
    #: Entries that were read.
    entries: int


class Memory(Protocol):
    """The guest's memory."""

    def read(self, address: int, length: int) -> bytes | None:
        """Bytes within one page; None where there are none."""
        ...

    def write_words(self, address: int, words: Sequence[int]) -> bool:
        """Store words of 8 bytes within one page, each at once; whether they could be stored."""
        ...


class _Place(NamedTuple):
    """A table on the way: where it is, the first address it translates, and the bits of all links to it and of any."""

    gpa: int
    level: int
    base: int
    every: int
    some: int


class GuestTable:
    """A table of some format in a guest's memory."""

    def __init__(self, table: Table, root: int, memory: Memory) -> None:
        self.table, self.root, self._memory = table, root, memory

    def read(self, window: Range, room: int = MOST_LEAVES) -> Found:
        """Every leaf that meets the window, whole; ascending. ENOMEM: more of them than `room`, or too many tables."""
        found = _Reading(self.table, self._memory, window, room)
        found.visit(_Place(self.root, self.table.top, 0, -1, 0))
        return Found(found.leaves, found.tables, found.entries)


class _Reading:
    """One reading of a range, depth first."""

    def __init__(self, table: Table, memory: Memory, window: Range, room: int) -> None:
        self.leaves: list[Leaf] = []
        self.tables: list[Visited] = []
        self.entries = self.count = 0
        #: Entries, and up to which of them nothing needs to be tried: they do not lie together.
        self._unlike: tuple[tuple[int, ...], int] = (), 0
        self._table, self._memory, self._window, self._room = table, memory, window, room
        #: Whether the last leaf is of the table that is read.
        self._open = False

    def visit(self, place: _Place) -> None:
        """Read the entries of a table that the window meets, and what they lead to."""
        t, window = self._table, self._window
        span = span_lg2(t, place.level)
        width = t.top_bits if place.level == t.top else t.bits
        self._note(place, span + width, 8 << width)
        low = max(window.first - place.base, 0) >> span
        high = min(window.last - place.base >> span, (1 << width) - 1)
        self._open = False
        for start, ptes in self._pages(place.gpa, low, high):
            at = 0
            while at < len(ptes):
                at += self._entry(place, place.base + (start + at << span), ptes, at) if ptes[at] else 1
        self._open = False

    def _note(self, place: _Place, lg2: int, size: int) -> None:
        if len(self.tables) >= MOST_TABLES:
            raise UapiError(ENOMEM, f"the guest's table has more than {MOST_TABLES} tables in the range")
        self.tables.append(Visited(place.base, place.base + (1 << lg2) - 1, place.level, place.gpa, size))

    def _pages(self, gpa: int, low: int, high: int) -> Iterator[tuple[int, tuple[int, ...]]]:
        """The entries of a table page by page, each with the number of its first: a page that the parent does not show
        has none."""
        while low <= high:
            at = gpa + (low << 3)
            count = min(high - low + 1, _PAGE - at % _PAGE >> 3)
            raw = self._memory.read(at, count << 3)
            if raw is not None:
                self.entries += count
                yield low, unpack(f"<{count}q", raw)
            low += count

    def _entry(self, place: _Place, iova: int, ptes: tuple[int, ...], at: int) -> int:
        """Read an entry, and those after it that are like it: how many."""
        t, pte = self._table, ptes[at]
        span = span_lg2(t, place.level)
        status, oa, lg2, below = entry(t, place.level, iova, pte)
        allowed = grant(t, pte, place.every, place.some, _WANT)[1] if status == OK else 0
        flags = after(t, status, pte, _WANT, allowed) ^ pte
        count = 1
        if status == OK and lg2 == span:
            count = self._alike(place, iova, ptes, at, (oa, allowed, flags))
        if flags and not self._store(place, iova, [one ^ flags for one in ptes[at : at + count]]):
            return count
        if status == DESCEND:
            self.visit(_Place(oa, below, iova, place.every & pte, place.some | pte))
        elif status == OK and allowed & (READ | WRITE):
            self._found(iova, oa, count, _PROTS[allowed & (READ | WRITE)], lg2, span)
        return count

    def _store(self, place: _Place, iova: int, ptes: list[int]) -> bool:
        """Set flags, as hardware does, of the entries from that of an address on; whether they could be."""
        where = place.gpa + (iova - place.base >> span_lg2(self._table, place.level) << 3)
        can = self._table.option & HW_ACCESSED != 0
        return can and self._memory.write_words(where, [pte & MASK for pte in ptes])

    def _alike(self, place: _Place, iova: int, ptes: tuple[int, ...], at: int, like: tuple[int, int, int]) -> int:
        """How many entries from a leaf on lead to where the one before ends; `like`: where the first does, and what
        rights all have, and flags to set.

        They differ by the same step each. If the last is such a leaf, so are those between: a carry beyond the bits of
        the address would be seen there.
        """
        end = at + 1
        if end == len(ptes) or (self._unlike[0] is ptes and end < self._unlike[1]):
            return 1
        step, wanted = ptes[end] - ptes[at], ptes[end]
        while step and end < len(ptes) and ptes[end] == wanted:
            end, wanted = end + 1, wanted + step
        t, final, span = self._table, ptes[end - 1], span_lg2(self._table, place.level)
        far = end - 1 - at << span
        status, oa, lg2, _ = entry(t, place.level, iova + far, final)
        if (status, lg2) == (OK, span):
            allowed = grant(t, final, place.every, place.some, _WANT)[1]
            if (oa - far, allowed, after(t, status, final, _WANT, allowed) ^ final) == like:
                return end - at
        self._unlike = ptes, end
        return 1

    def _found(self, iova: int, oa: int, count: int, prot: Prot, lg2: int, span: int) -> None:
        """Note leaves, together with the one before where they go on. ENOMEM."""
        self.count += count
        if self.count > self._room:
            raise UapiError(ENOMEM, f"a shadow has no room for more than {MOST_LEAVES} leaves")
        leaf = Leaf(iova, iova + (count << span) - 1, oa, prot, lg2)
        before = self.leaves[-1] if self._open and lg2 == span else None
        if before is not None and before.last + 1 == iova and before.agrees(leaf):
            self.leaves[-1] = before._replace(last=leaf.last)
        else:
            self.leaves.append(leaf)
        self._open = True
