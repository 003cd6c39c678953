"""What is merged: leaves of a child, each shown as far as the parent maps what it leads to, with the rights of both."""

from __future__ import annotations

from collections.abc import Iterable

from sortedcontainers import SortedDict

from softiommu.drivers.driver import DirtyReport, PagingDomain, Range
from softiommu.drivers.shadow_parent import Gone, ParentDomain, Run
from softiommu.drivers.shadow_walk import Leaf
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
        parent.add_child(self)

    def __len__(self) -> int:
        return len(self._entries)

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
                start = leaf.first >> leaf.lg2 << leaf.lg2
                low, high = min(low, start), max(high, start + (1 << leaf.lg2) - 1)
            if (low, high) == (first, last):
                return first, last
            first, last = low, high

    def add(self, leaf: Leaf) -> None:
        """Merge a leaf, for whose addresses there is none. UapiError: it is not merged."""
        entry = Entry(self, leaf)
        gpa, end = entry.gpas
        self._entries[leaf.first] = entry
        self.parent.index.add(gpa, end, entry)
        self.parent.work.merged += 1
        try:
            for run in list(self.parent.meeting(gpa, end)):
                self.show(leaf, run)
        except UapiError:
            self.drop(leaf)
            self.out.flush()
            raise

    def drop(self, leaf: Leaf) -> None:
        """Take a leaf out; `out.flush` completes it."""
        self._forget(self._entries.pop(leaf.first))
        self.parent.work.dropped += 1
        self._unmap(leaf, leaf.first, leaf.last)

    def _unmap(self, leaf: Leaf, first: int, last: int) -> None:
        """Unmap addresses of a leaf. The parent keeps what was written through them."""
        if self.parent.tracks:
            self.out.read_dirty(Range(first, last), Through(leaf, self.parent), False)
        self.out.unmap(first, last - first + 1)

    def drop_all(self, first: int, last: int) -> None:
        """Take out every leaf that meets the range, and complete it."""
        leaves = self.meeting(first, last)
        for leaf in leaves:
            self.drop(leaf)
        if leaves:
            self.out.flush()

    def replace(self, first: int, last: int, leaves: Iterable[Leaf]) -> None:
        """Make these the leaves of a range that cuts none. Those that are as before are not touched. UapiError: not
        all could be merged."""
        new = {leaf.first: leaf for leaf in leaves}
        gone = []
        for leaf in self.meeting(first, last):
            if new.get(leaf.first) == leaf:
                del new[leaf.first]
            else:
                gone.append(leaf)
        for leaf in gone:
            self.drop(leaf)
        if gone:
            self.out.flush()
        for leaf in new.values():
            self.add(leaf)

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
        gpa, end = entry.gpas
        self.parent.index.remove(gpa, end, entry)


def _meets(leaf: Leaf, run: Run) -> bool:
    return run.first <= leaf.gpa + leaf.last - leaf.first and leaf.gpa <= run.last


def _shared(leaf: Leaf, run: Run | Gone | Range) -> tuple[int, int]:
    """The addresses of a leaf that lead to a run."""
    last = leaf.gpa + leaf.last - leaf.first
    return (
        leaf.first + max(leaf.gpa, run.first) - leaf.gpa,
        leaf.first + min(last, run.last) - leaf.gpa,
    )
