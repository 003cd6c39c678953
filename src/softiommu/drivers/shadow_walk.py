"""A guest's table, read out of its memory: every leaf of a range, and which tables led there.

It is the walk of `pagetable.walk`, for a range at once. Accessed and dirty flags are set ahead, as by a device that
uses every page: what is merged may be used at any time, and nobody will look at the guest's table then.
"""

from __future__ import annotations

from collections.abc import Iterator
from errno import ENOMEM
from struct import unpack
from typing import NamedTuple, Protocol

from softiommu.drivers.driver import Prot, Range
from softiommu.errors import UapiError
from softiommu.pagetable.kinds import DESCEND, HW_ACCESSED, LENIENT, OK, READ, WRITE, Table
from softiommu.pagetable.walk import MASK, after, entry, grant, span_lg2

_PAGE = 4096
_WANT = READ | WRITE | LENIENT

#: More than these nobody merges: tables may be linked in circles, and so have as many leaves as one likes.
MOST_LEAVES, MOST_TABLES = 1 << 20, 1 << 14


class Leaf(NamedTuple):
    """Addresses `first`..`last` lead to the guest-physical ones from `gpa`: a leaf of 2**lg2 bytes, or part of it."""

    first: int
    last: int
    gpa: int
    prot: Prot
    lg2: int

    def part(self, first: int, last: int) -> Leaf:
        """What of it lies in a range that it meets."""
        low = max(first, self.first)
        return Leaf(low, min(last, self.last), self.gpa + low - self.first, self.prot, self.lg2)


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

    def write_u64(self, address: int, value: int) -> bool:
        """Store a word; whether it could be stored."""
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
        """Every leaf that meets the window, whole. ENOMEM: more of them than `room`, or too many tables."""
        found = _Reading(self.table, self._memory, window, room)
        found.visit(_Place(self.root, self.table.top, 0, -1, 0))
        return Found(found.leaves, found.tables, found.entries)


class _Reading:
    """One reading of a range, depth first."""

    def __init__(self, table: Table, memory: Memory, window: Range, room: int) -> None:
        self.leaves: list[Leaf] = []
        self.tables: list[Visited] = []
        self.entries = 0
        self._table, self._memory, self._window, self._room = table, memory, window, room

    def visit(self, place: _Place) -> None:
        """Read the entries of a table that the window meets, and what they lead to."""
        t, window = self._table, self._window
        span = span_lg2(t, place.level)
        width = t.top_bits if place.level == t.top else t.bits
        self._note(place, span + width, 8 << width)
        low = max(window.first - place.base, 0) >> span
        high = min(window.last - place.base >> span, (1 << width) - 1)
        for number, pte in self._words(place.gpa, low, high):
            self._entry(place, place.base + (number << span), place.gpa + (number << 3), pte)

    def _note(self, place: _Place, lg2: int, size: int) -> None:
        if len(self.tables) >= MOST_TABLES:
            raise UapiError(ENOMEM, f"the guest's table has more than {MOST_TABLES} tables in the range")
        self.tables.append(Visited(place.base, place.base + (1 << lg2) - 1, place.level, place.gpa, size))

    def _words(self, gpa: int, low: int, high: int) -> Iterator[tuple[int, int]]:
        """The entries of a table that are not 0, page by page: a page that the parent does not show has none."""
        while low <= high:
            at = gpa + (low << 3)
            count = min(high - low + 1, _PAGE - at % _PAGE >> 3)
            raw = self._memory.read(at, count << 3)
            if raw is not None:
                self.entries += count
                for number, pte in enumerate(unpack(f"<{count}q", raw), low):
                    if pte:
                        yield number, pte
            low += count

    def _entry(self, place: _Place, iova: int, at: int, pte: int) -> None:
        t = self._table
        status, oa, lg2, below = entry(t, place.level, iova, pte)
        allowed = grant(t, pte, place.every, place.some, _WANT)[1] if status == OK else 0
        new = after(t, status, pte, _WANT, allowed)
        if new != pte and (t.option & HW_ACCESSED == 0 or not self._memory.write_u64(at, new & MASK)):
            return
        if status == DESCEND:
            self.visit(_Place(oa, below, iova, place.every & pte, place.some | pte))
        elif status == OK and allowed & (READ | WRITE):
            if len(self.leaves) >= self._room:
                raise UapiError(ENOMEM, f"a shadow has no room for more than {MOST_LEAVES} leaves")
            last = iova + (1 << span_lg2(t, place.level)) - 1
            self.leaves.append(Leaf(iova, last, oa, Prot(allowed & (READ | WRITE)), lg2))
