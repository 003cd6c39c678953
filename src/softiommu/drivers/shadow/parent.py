"""A nesting parent in software: an ordinary domain that remembers what it maps, and tells all that depends on it.

Its input addresses are what a guest calls physical. What a child merged is found by them through the reverse index, so
that a change costs what depends on it, and not what its children hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

from sortedcontainers import SortedDict

from softiommu.drivers.driver import DirtyReport, DomainFlags, PagingDomain, Prot, Range
from softiommu.drivers.shadow.index import ReverseIndex
from softiommu.errors import UapiError
from softiommu.memory.physical import BadAddressError, PhysicalMemory

_PAGE = 4096


@dataclass
class Work:
    """What nesting in software has done, counted."""

    #: Leaves of children that were put into shadows, and taken out.
    merged: int = 0
    dropped: int = 0
    #: Ranges of guests' tables that were read (again), and the tables and entries that were read for that.
    ranges: int = 0
    tables: int = 0
    entries: int = 0
    #: Leaves and tables of children that a change of their parent reached.
    reached: int = 0


class Run(NamedTuple):
    """Addresses `first`..`last` of a parent lead to physical ones from `pa`."""

    first: int
    last: int
    pa: int
    prot: Prot


class Gone(NamedTuple):
    """Addresses that a parent does not map any more, and what is left of the run that they were of."""

    first: int
    last: int
    rest: tuple[Run, ...] = ()


class Dependent(Protocol):
    """A leaf or a table of a child that lies at addresses of the parent."""

    #: Cleared when it is no longer part of its child.
    alive: bool

    def shown(self, run: Run) -> None:
        """The parent maps these addresses now."""
        ...

    def hidden(self, gone: Gone) -> None:
        """The parent does not map them any more."""
        ...

    def flush(self) -> None:
        """The parent's flush: complete what `hidden` began."""
        ...

    def read_dirty(self, window: Range, report: DirtyReport | None, clear: bool) -> None:
        """Report (and clear) what was written through it, in the parent's addresses."""
        ...


class Child(Protocol):
    """What is nested on a parent."""

    @property
    def out(self) -> PagingDomain:
        """Its shadow."""
        ...


class ParentDomain:
    """A domain that others are nested on. `inner` is what the devices' IOMMU walks for it."""

    def __init__(self, inner: PagingDomain, flags: DomainFlags, memory: PhysicalMemory, work: Work) -> None:
        self.inner, self.flags, self.memory, self.work = inner, flags, memory, work
        self.owner = inner.owner
        self.page_sizes = inner.page_sizes
        self.index: ReverseIndex[Dependent] = ReverseIndex()
        self._runs: SortedDict[int, Run] = SortedDict()
        self._pending: dict[Dependent, None] = {}
        self._children: list[Child] = []
        self._tracks = False
        #: Whether those that depend on it are being told of a change.
        self.changes = False
        #: Pages that were written through leaves which are in no shadow any more.
        self._written: set[int] = set()

    @property
    def aperture(self) -> Range:
        """The addresses it can translate."""
        return self.inner.aperture

    @property
    def cache_coherent(self) -> bool:
        """Whether DMA through it is coherent whatever the device asks for."""
        return self.inner.cache_coherent

    # What it maps

    def meeting(self, first: int, last: int) -> Iterator[Run]:
        """The runs that have an address of `first`..`last`, ascending."""
        runs = self._runs
        place = runs.bisect_right(first) - 1
        if place >= 0:
            below = runs.peekitem(place)[1]
            if below.first < first <= below.last:
                yield below
        yield from [runs[key] for key in runs.irange(first, last)]

    def map(self, iova: int, pa: int, length: int, prot: Prot) -> None:
        """Map a run, also in every shadow that has leaves or tables there. UapiError: it is mapped nowhere."""
        self.inner.map(iova, pa, length, prot)
        run = Run(iova, iova + length - 1, pa, prot)
        self._runs[iova] = run
        try:
            self._tell(run, lambda who: who.shown(run))
        except UapiError:
            self.unmap(iova, length)
            self.flush()
            raise

    def unmap(self, iova: int, length: int) -> int:
        """Empty the range, also in every shadow; `flush` completes it."""
        last = iova + length - 1
        met = list(self.meeting(iova, last))
        done = self.inner.unmap(iova, length)
        for run in met:
            gone = self._lost(run, iova, last)
            if gone is not None:
                self._tell(gone, partial(self._hide, gone))
                self._forget_written(gone.first, gone.last)
        return done

    def _hide(self, gone: Gone, who: Dependent) -> None:
        who.hidden(gone)
        self._pending[who] = None

    def _lost(self, run: Run, first: int, last: int) -> Gone | None:
        """What an unmap took of a run: a leaf that is cut went whole. What is still mapped stays."""
        low, high = max(run.first, first), min(run.last, last)
        rest = []
        if run.first < low or high < run.last:
            translate = self.inner.iova_to_pa
            if translate(low) is not None:
                return None
            while low > run.first and translate(low - 1) is None:
                low -= _PAGE
            while high < run.last and translate(high + 1) is None:
                high += _PAGE
            parts = ((run.first, low - 1), (high + 1, run.last))
            rest = [Run(start, end, run.pa + start - run.first, run.prot) for start, end in parts if start <= end]
        del self._runs[run.first]
        self._runs.update({part.first: part for part in rest})
        return Gone(low, high, tuple(rest))

    def _tell(self, change: Run | Gone, tell: Callable[[Dependent], None]) -> None:
        """Tell those who depend on a run, as long as they do."""
        self.changes = True
        try:
            for who in self.index.meeting(change.first, change.last):
                if who.alive:
                    self.work.reached += 1
                    tell(who)
        finally:
            self.changes = False

    def flush(self) -> None:
        """Complete the invalidations of the domain and of every shadow that was reached."""
        self.inner.flush()
        pending, self._pending = self._pending, {}
        for who in pending:
            who.flush()

    def iova_to_pa(self, iova: int) -> int | None:
        """What the domain says."""
        return self.inner.iova_to_pa(iova)

    # The memory that it shows

    def read(self, address: int, length: int) -> bytes | None:
        """Bytes within one page, as a device would read them. None: it could not."""
        for run in self.meeting(address, address):
            if run.prot.readable and address + length - 1 <= run.last:
                try:
                    return self.memory.read(run.pa + address - run.first, length)
                except BadAddressError:
                    return None
        return None

    def write_words(self, address: int, words: Sequence[int]) -> bool:
        """Store words within one page, as hardware stores the flags of entries; whether it could."""
        for run in self.meeting(address, address):
            if run.prot.writable:
                try:
                    for number, word in enumerate(words):
                        self.memory.write_u64(run.pa + address - run.first + 8 * number, word)
                except BadAddressError:
                    return False
                self.record(address, 8 * len(words))
                return True
        return False

    # Options

    def enforce_cache_coherency(self) -> bool:
        """As the domain does. Shadows that are made afterwards are coherent, too; those that are filled stay as they
        are."""
        return self.cache_coherent or (not self.index and self.inner.enforce_cache_coherency())

    # Writes

    @property
    def tracks(self) -> bool:
        """Whether it records writes."""
        return self._tracks

    def add_child(self, child: Child) -> None:
        """A child comes; its shadow records writes if the parent does."""
        self._children.append(child)
        if self._tracks:
            child.out.set_dirty_tracking(True)

    def remove_child(self, child: Child) -> None:
        """It goes."""
        self._children.remove(child)

    def set_dirty_tracking(self, enable: bool) -> None:
        """Record writes through the domain and through every shadow, or stop. EOPNOTSUPP: it was made without."""
        self.inner.set_dirty_tracking(enable)
        self._tracks = enable
        for child in self._children:
            child.out.set_dirty_tracking(enable)

    def read_dirty(self, window: Range, report: DirtyReport | None, clear: bool) -> None:
        """Report (and clear) what was written: through the domain, through shadows, and through what these had."""
        self.inner.read_dirty(window, report, clear)
        for who in self.index.meeting(*window):
            who.read_dirty(window, report, clear)
        pages = [page for page in self._written if window.first <= page <= window.last] if self._written else []
        for page in pages:
            if report is not None:
                report.record(page, _PAGE)
        if clear:
            self._written.difference_update(pages)

    def record(self, iova: int, length: int) -> None:
        """Written by way of a child, and not to be seen in its shadow."""
        if self._tracks:
            self._written.update(range(iova & -_PAGE, iova + length, _PAGE))

    def _forget_written(self, first: int, last: int) -> None:
        if self._written:
            self._written -= {page for page in self._written if first <= page <= last}

    def free(self) -> None:
        """Give the domain back. No child is left."""
        self.inner.free()


_: type[PagingDomain] = ParentDomain
