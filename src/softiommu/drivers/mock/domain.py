"""The mock's page table: entries of every power of two from 2 KiB, with a dirty bit for each."""

from __future__ import annotations

from errno import EINVAL

from sortedcontainers import SortedDict

from softiommu.abi import iommufd_test as test
from softiommu.drivers.driver import DirtyReport, DomainFlags, Prot, Range
from softiommu.errors import UapiError

_GRANULE = int(test.Mock.PAGE_SIZE)
_HUGE = int(test.Mock.HUGE_PAGE_SIZE)
_LEVEL_LG2 = 9
_MAX_LG2 = 63


class Entry:
    """A leaf: 2**lg2 bytes from `iova` to `pa`."""

    __slots__ = ("dirty", "iova", "lg2", "pa")

    def __init__(self, iova: int, pa: int, lg2: int) -> None:
        self.iova, self.pa, self.lg2 = iova, pa, lg2
        self.dirty: set[int] = set()

    @property
    def length(self) -> int:
        """In bytes."""
        return 1 << self.lg2


class MockDomain:
    """A paging domain of the mock."""

    cache_coherent = True

    def __init__(self, owner: object, flags: DomainFlags, huge: bool, per_item: bool) -> None:
        self.owner, self.flags, self.huge = owner, flags, huge
        if per_item:
            self.page_sizes = _HUGE | 4096 if huge else -_GRANULE & (1 << 64) - 1
        else:
            self.page_sizes = _HUGE | _GRANULE if huge else _GRANULE
        self.aperture = Range(test.Mock.APERTURE_START, test.Mock.APERTURE_LAST)
        if huge and per_item:
            self.aperture = Range(0, (1 << 54) - 1)
        self.tracking = False
        self._per_item = per_item
        self._entries: SortedDict[int, Entry] = SortedDict()

    def map(self, iova: int, pa: int, length: int, prot: Prot) -> None:
        """Fill with the largest entries that length and both alignments allow."""
        while length:
            lg2 = self._best(iova, pa, length)
            self._entries[iova] = Entry(iova, pa, lg2)
            size = 1 << lg2
            iova, pa, length = iova + size, pa + size, length - size

    def _best(self, iova: int, pa: int, length: int) -> int:
        limit = min(length.bit_length() - 1, _MAX_LG2)
        sizes = self.page_sizes & ((1 << limit + 1) - 1)
        low = iova | pa
        if low:
            sizes &= ((low & -low) << 1) - 1
        return sizes.bit_length() - 1

    def unmap(self, iova: int, length: int) -> int:
        """Remove whole entries; the bytes removed."""
        done = 0
        for key in list(self._entries.irange(iova, iova + length - 1)):
            done += self._entries.pop(key).length
        return done

    def flush(self) -> None:
        """The mock caches no translations."""

    def find(self, iova: int) -> Entry | None:
        """The entry that translates `iova`."""
        index = self._entries.bisect_right(iova) - 1
        if index < 0:
            return None
        entry: Entry = self._entries.peekitem(index)[1]
        return entry if iova < entry.iova + entry.length else None

    def iova_to_pa(self, iova: int) -> int | None:
        """What the table says."""
        entry = self.find(iova)
        return None if entry is None else entry.pa + iova - entry.iova

    def enforce_cache_coherency(self) -> bool:
        """Always coherent."""
        return True

    def set_dirty_tracking(self, enable: bool) -> None:
        """Record writes from now on, or stop."""
        self.tracking = enable

    def mark(self, iova: int) -> bool:
        """The device writes at `iova`; whether it counts. EINVAL: tracking is off."""
        if not self.tracking:
            raise UapiError(EINVAL, "dirty tracking is off")
        entry = self.find(iova)
        if entry is None:
            # The generic page table counts every address it was asked for.
            return self._per_item
        entry.dirty.add(iova - iova % _GRANULE)
        return True

    def read_dirty(self, window: Range, report: DirtyReport | None, clear: bool) -> None:
        """Report the written entries that meet the window."""
        if report is not None and not self.tracking and not self._per_item:
            return
        first = self.find(window.first)
        start = window.first if first is None else first.iova
        for key in list(self._entries.irange(start, window.last)):
            entry = self._entries[key]
            if not entry.dirty:
                continue
            dirty = self._in_window(entry, window)
            if report is not None:
                self._report(entry, dirty, window.first, report)
            if clear:
                entry.dirty -= dirty

    def _in_window(self, entry: Entry, window: Range) -> set[int]:
        """The dirty granules that a report of `window` is about: all of an entry that has one bit."""
        if self._per_item or (self.huge and entry.length >= _HUGE):
            return set(entry.dirty)
        return {granule for granule in entry.dirty if window.first <= granule <= window.last}

    def _report(self, entry: Entry, dirty: set[int], start: int, report: DirtyReport) -> None:
        if not dirty:
            return
        if not self._per_item:
            step = _HUGE if self.huge and entry.length >= _HUGE else _GRANULE
            for granule in sorted({granule - granule % step for granule in dirty}):
                report.record(granule, step)
            return
        # One dirty bit for the entry. The kernel reports an entry of n items of its level as n - 1 of them.
        item = 11
        while entry.lg2 >= item + _LEVEL_LG2:
            item += _LEVEL_LG2
        items = 1 << entry.lg2 - item
        reported = max(1, items - 1) << item
        if start < entry.iova + reported:
            report.record(entry.iova, reported)
        else:
            # A read that starts at the last item: the kernel never returns from it, we report that item.
            report.record(entry.iova + reported, 1 << item)

    def free(self) -> None:
        """The table is empty by now."""
        self._entries.clear()
