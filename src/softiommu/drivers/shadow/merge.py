"""What is merged: leaves of a child, each shown as far as the parent maps what it leads to, with the rights of both."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator

from sortedcontainers import SortedDict

from softiommu.drivers.driver import DirtyReport, PagingDomain, Range
from softiommu.drivers.shadow.parent import Gone, ParentDomain, Run
from softiommu.drivers.shadow.walk import Leaf
from softiommu.errors import UapiError


class Entry:
    """A leaf of a child in its shadow."""

    __slots__ = ("_merge", "alive", "leaf")

    def __init__(self, merge: Merge, leaf: Leaf) -> None:
        self._merge, self.leaf, self.alive = merge, leaf, True

    @property
    def gpas(self) -> tuple[int, int]:
        """The parent's addresses that it leads to, first and last."""
        leaf = self.leaf
        return leaf.gpa, leaf.gpa + leaf.last - leaf.first

    def shown(self, run: Run) -> None:
        """The parent maps some of them now."""
        self._merge.show(self.leaf, run)

    def hidden(self, gone: Gone) -> None:
        """The parent does not map them any more."""
        self._merge.hide(self.leaf, gone)

    def flush(self) -> None:
        """Complete that."""
        self._merge.out.flush()

    def read_dirty(self, window: Range, report: DirtyReport | None, clear: bool) -> None:
        """What was written through it."""
        leaf = self.leaf
        first, last = _shared(leaf, window)
        through = None if report is None else Through(leaf, report)
        self._merge.out.read_dirty(Range(first, last), through, clear)


class Through:
    """Reports what was written at addresses of a leaf as written where it leads to."""

    def __init__(self, leaf: Leaf, report: DirtyReport) -> None:
        self._leaf, self._report = leaf, report

    def record(self, iova: int, length: int) -> None:
        """The shadow's page may be larger than the leaf."""
        leaf = self._leaf
        first, last = max(iova, leaf.first), min(iova + length - 1, leaf.last)
        if first <= last:
            self._report.record(leaf.gpa + first - leaf.first, last - first + 1)


class Merge:
    """The leaves of one child over `parent`, shown in `out`. None overlaps another."""

    def __init__(self, parent: ParentDomain, out: PagingDomain) -> None:
        self.parent, self.out = parent, out
        self._entries: SortedDict[int, Entry] = SortedDict()
        self._count = 0
        parent.add_child(self)

    def __len__(self) -> int:
        """How many leaves there are."""
        return self._count

    def meeting(self, first: int, last: int) -> list[Leaf]:
        """The leaves that have an address of `first`..`last`, ascending."""
        entries = self._entries
        place = entries.bisect_right(first) - 1
        found = []
        if place >= 0 and (below := entries.peekitem(place)[1].leaf).first < first <= below.last:
            found.append(below)
        return found + [entries[key].leaf for key in entries.irange(first, last)]

    def whole(self, first: int, last: int) -> tuple[int, int]:
        """The range, widened to all of each leaf that it cuts: an invalidation of a part forgets a leaf whole."""
        while True:
            low, high = first, last
            for leaf in self.meeting(first, last):
                size = 1 << leaf.lg2
                low = min(low, max(first, leaf.first) & -size)
                high = max(high, min(last, leaf.last) | size - 1)
            if (low, high) == (first, last):
                return first, last
            first, last = low, high

    def add(self, leaf: Leaf) -> None:
        """Merge a leaf, for whose addresses there is none. UapiError: it is not merged."""
        self._note(leaf)
        self.parent.work.merged += leaf.leaves
        self._show_all(leaf)

    def drop(self, leaf: Leaf) -> None:
        """Take a leaf out; `out.flush` completes it."""
        self._forget(self._entries.pop(leaf.first))
        self.parent.work.dropped += leaf.leaves
        self._unmap(leaf, leaf.first, leaf.last)

    def _note(self, leaf: Leaf) -> None:
        """From now on it is a leaf, and depends on the parent."""
        entry = Entry(self, leaf)
        self._entries[leaf.first] = entry
        self._count += leaf.leaves
        self.parent.index.add(*entry.gpas, entry)

    def _show_all(self, leaf: Leaf) -> None:
        """Map all of a leaf that the parent maps. UapiError: it is a leaf no more."""
        try:
            for run in list(self.parent.meeting(leaf.gpa, leaf.gpa + leaf.last - leaf.first)):
                self.show(leaf, run)
        except UapiError:
            self.drop(leaf)
            self.out.flush()
            raise

    def _unmap(self, leaf: Leaf, first: int, last: int) -> int:
        """Unmap addresses of a leaf; how many bytes. The parent keeps what was written through them."""
        if self.parent.tracks:
            self.out.read_dirty(Range(first, last), Through(leaf, self.parent), False)
        return self.out.unmap(first, last - first + 1)

    def drop_all(self, first: int, last: int) -> None:
        """Take out what lies in a range that cuts none of the guest's leaves, and complete it."""
        self.replace(first, last, ())

    def replace(self, first: int, last: int, leaves: Iterable[Leaf]) -> None:
        """Make these, which ascend, the leaves of a range that cuts none of the guest's. Those that are as before stay.
        UapiError: not all could be merged."""
        new, cut = list(leaves), False
        stay: list[Leaf] = []
        again: list[Leaf] = []
        for leaf in self.meeting(first, last):
            parts = list(_same(leaf, first, last, new))
            stay += parts
            if parts != [leaf]:
                again += self._cut(leaf, parts)
                cut = True
        if cut:
            self.out.flush()
        self._show_again(again)
        for leaf in new:
            for part in _without(leaf, stay):
                self.add(part)

    def _show_again(self, leaves: list[Leaf]) -> None:
        """Show what was hidden with its neighbours. UapiError: what cannot be shown is a leaf no more."""
        for number, leaf in enumerate(leaves, 1):
            try:
                self._show_all(leaf)
            except UapiError:
                for rest in leaves[number:]:
                    self.drop(rest)
                raise

    def _cut(self, leaf: Leaf, parts: list[Leaf]) -> list[Leaf]:
        """Leave only some parts of a leaf; those that must be shown again.

        They are where they were in one large page with what goes, which went whole, or stayed; and while the parent
        changes, which tells the leaf of it, and not what is left of that.
        """
        self._forget(self._entries.pop(leaf.first))
        for part in parts:
            self._note(part)
        hurt = self.parent.changes
        for gone in _without(leaf, parts):
            self.parent.work.dropped += gone.leaves
            removed = self._unmap(leaf, gone.first, gone.last)
            hurt = hurt or (bool(parts) and removed != sum(self._shown(gone)))
        if not hurt:
            return []
        self._unmap(leaf, leaf.first, leaf.last)
        return parts

    def _shown(self, leaf: Leaf) -> Iterator[int]:
        """How many bytes of it the parent shows, run by run."""
        for run in self.parent.meeting(leaf.gpa, leaf.gpa + leaf.last - leaf.first):
            if (leaf.prot & run.prot).value:
                first, last = _shared(leaf, run)
                yield last - first + 1

    def show(self, leaf: Leaf, run: Run) -> None:
        """Map what of a leaf leads to a run of the parent."""
        first, last = _shared(leaf, run)
        prot = leaf.prot & run.prot
        if prot.value:
            self.out.map(first, run.pa + leaf.gpa + first - leaf.first - run.first, last - first + 1, prot)
            if self.parent.tracks:
                # Some drivers' new leaves count as written.
                self.out.read_dirty(Range(first, last), None, True)

    def hide(self, leaf: Leaf, gone: Gone) -> None:
        """Unmap what of a leaf led to what the parent lost. A run that was cut goes whole; its rest is shown again."""
        rest = [run for run in gone.rest if _meets(leaf, run)]
        parts = [_shared(leaf, gone), *(_shared(leaf, run) for run in rest)]
        first, last = min(part[0] for part in parts), max(part[1] for part in parts)
        self._unmap(leaf, first, last)
        if rest:
            self.out.flush()
            for run in rest:
                self.show(leaf, run)

    def free(self) -> None:
        """Nothing depends on the parent any more. `out` goes with everything in it."""
        for entry in self._entries.values():
            self._forget(entry)
        self._entries.clear()
        self.parent.remove_child(self)
        self.out.free()

    def _forget(self, entry: Entry) -> None:
        entry.alive = False
        self._count -= entry.leaf.leaves
        gpa, end = entry.gpas
        self.parent.index.remove(gpa, end, entry)


def _same(leaf: Leaf, first: int, last: int, new: list[Leaf]) -> Iterator[Leaf]:
    """The parts of a leaf, as long as can be, that lie outside of a range, or are as in `new`, which ascend."""
    found = [Range(leaf.first, first - 1)] if leaf.first < first else []
    for other in _from(new, leaf.first):
        if other.first > leaf.last:
            break
        low, high = max(leaf.first, other.first), min(leaf.last, other.last)
        if low <= high and leaf.agrees(other):
            found.append(Range(low, high))
    if last < leaf.last:
        found.append(Range(last + 1, leaf.last))
    start, end = None, 0
    for part in found:
        if start is not None and part.first != end + 1:
            yield leaf.part(start, end)
            start = None
        start, end = part.first if start is None else start, part.last
    if start is not None:
        yield leaf.part(start, end)


def _without(leaf: Leaf, parts: list[Leaf]) -> Iterator[Leaf]:
    """What of a leaf is in none of these, which ascend."""
    at = leaf.first
    for part in _from(parts, at):
        if part.first > leaf.last:
            break
        if part.first > at:
            yield leaf.part(at, part.first - 1)
        at = max(at, part.last + 1)
    if at <= leaf.last:
        yield leaf.part(at, leaf.last)


def _from(leaves: list[Leaf], at: int) -> Iterator[Leaf]:
    """Those of leaves, which ascend, from the one on that may have an address."""
    for number in range(max(bisect_right(leaves, at, key=_first) - 1, 0), len(leaves)):
        yield leaves[number]


def _first(leaf: Leaf) -> int:
    return leaf.first


def _meets(leaf: Leaf, run: Run) -> bool:
    return run.first <= leaf.gpa + leaf.last - leaf.first and leaf.gpa <= run.last


def _shared(leaf: Leaf, run: Run | Gone | Range) -> tuple[int, int]:
    """The addresses of a leaf that lead to a run."""
    last = leaf.gpa + leaf.last - leaf.first
    return (
        leaf.first + max(leaf.gpa, run.first) - leaf.gpa,
        leaf.first + min(last, run.last) - leaf.gpa,
    )
