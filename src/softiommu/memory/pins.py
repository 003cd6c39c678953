"""Page sets: the memory behind a mapping, and which of its pages are pinned (the kernel's iopt_pages).

A page set belongs to one MAP; copies share it. A page is pinned while any hold covers it and is counted once, whatever
the number of domains and accesses that hold it. Pinning decides what the page is: what the program does to its address
space afterwards does not change what devices see.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator
from errno import EFAULT, EINVAL, ENODEV
from typing import NamedTuple, Protocol

from softiommu.errors import UapiError
from softiommu.memory.accounts import Accounts, Mode, Payer
from softiommu.memory.client import PAGE_SIZE, Backing, Extent, Mm
from softiommu.memory.files import DmabufFile, HostFile
from softiommu.memory.frames import Frames, Run


class Source(Protocol):
    """Where a page set's pages come from. `start` is the address of its first byte (address or file offset)."""

    @property
    def start(self) -> int:
        """Virtual address or file offset of the first byte."""
        ...

    def pages(self, offset: int, length: int, write: bool) -> list[Extent]:
        """The pages at page-aligned `offset` from the source's first page; EFAULT or EINVAL when there are none."""
        ...


class Segment(NamedTuple):
    """Pinned pages `first`..`last` of a page set, and the bytes of the backing they are."""

    first: int
    last: int
    backing: Backing
    offset: int

    def cut(self, first: int, last: int) -> Segment:
        """The part of it inside `first`..`last`."""
        start = max(first, self.first)
        return Segment(start, min(last, self.last), self.backing, self.offset + (start - self.first) * PAGE_SIZE)


class Hold:
    """A claim on pages `first`..`last` of a page set."""

    __slots__ = ("first", "last")

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last


class Physical:
    """The machine's memory as page sets need it: frames, accounts, and the page sets that have pins."""

    def __init__(self, frames: Frames, accounts: Accounts) -> None:
        self.frames, self.accounts = frames, accounts
        self.pinned: set[PageSet] = set()
        self._uses: Counter[Hashable] = Counter()

    def use(self, segments: list[Segment]) -> None:
        """These pages were pinned."""
        for segment in segments:
            key = segment.backing.key
            self._uses[key] += segment.last - segment.first + 1
            self.frames.busy(key)

    def unuse(self, segments: list[Segment]) -> None:
        """These pages are no longer pinned."""
        for segment in segments:
            key = segment.backing.key
            self._uses[key] -= segment.last - segment.first + 1
            if not self._uses[key]:
                del self._uses[key]
                self.frames.idle(key)

    def pin_count(self, backing: Backing, offset: int) -> int:
        """How many page sets pin the page that holds byte `offset` of `backing`."""
        start = offset - offset % PAGE_SIZE
        return next(self.pin_counts(Extent(backing, start, PAGE_SIZE)))[0]

    def pin_counts(self, extent: Extent) -> Iterator[tuple[int, int]]:
        """The pages of an extent in order: how many page sets pin them, and for how many pages on that is so."""
        changes: Counter[int] = Counter()
        pages = extent.length // PAGE_SIZE
        for segment in (
            s for page_set in self.pinned for s in page_set.segments if s.backing.key == extent.backing.key
        ):
            first = (segment.offset - extent.offset) // PAGE_SIZE
            last = first + segment.last - segment.first
            if last >= 0 and first < pages:
                changes[max(first, 0)] += 1
                changes[min(last + 1, pages)] -= 1
        pins = at = 0
        for page in sorted(changes):
            if page > at:
                yield pins, page - at
            pins, at = pins + changes[page], page
        if at < pages:
            yield pins, pages - at


class PageSet:
    """`length` bytes of a source from its first byte, shared by the areas that map them."""

    def __init__(
        self, physical: Physical, source: Source, length: int, writable: bool, payer: Payer, mode: Mode
    ) -> None:
        self.source, self.length, self.writable = source, length, writable
        self.payer, self.mode = payer, mode
        self.areas = 0
        #: Offset of the first byte in its page.
        self.skew = source.start % PAGE_SIZE
        self.segments: list[Segment] = []
        self._holds: list[Hold] = []
        self._physical = physical

    def hold(self, first: int, last: int) -> Hold:
        """Pin pages `first`..`last` (those not pinned yet). EFAULT, ENOMEM: nothing changed."""
        hold = Hold(first, last)
        missing = list(_uncovered(hold, self._holds)) if self._holds else [(first, last)]
        new: list[Segment] = []
        for start, end in missing:
            new += self._resolve(start, end)
        self._physical.accounts.charge(self.payer, _count(missing), self.mode)
        self._holds.append(hold)
        if new:
            self.segments = sorted(self.segments + new) if self.segments else new
            self._physical.pinned.add(self)
            self._physical.use(new)
        return hold

    def release(self, hold: Hold) -> None:
        """Drop a claim; pages that nothing else holds are unpinned."""
        self._holds.remove(hold)
        if not self._holds:
            self._physical.accounts.uncharge(self.payer, self.pinned_pages, self.mode)
            self._physical.unuse(self.segments)
            self.segments = []
            self._physical.pinned.discard(self)
            return
        freed = list(_uncovered(hold, self._holds))
        if not freed:
            return
        self._physical.accounts.uncharge(self.payer, _count(freed), self.mode)
        gone = [segment.cut(*part) for segment in self.segments for part in freed if _meet(segment, part)]
        self._physical.unuse(gone)
        self.segments = [part for segment in self.segments for part in _without(segment, freed)]

    @property
    def pinned_pages(self) -> int:
        """How many pages are pinned now."""
        return sum(segment.last - segment.first + 1 for segment in self.segments)

    def change_payer(self, payer: Payer) -> None:
        """Charge the pinned pages to another process and let the old one off. ENOMEM: nothing changed."""
        if self.mode is Mode.NONE:
            # The kernel moves the owner and leaves the counts, so that a later unpin takes them off the new one.
            self.payer = payer
            return
        pages = self.pinned_pages
        self._physical.accounts.charge(payer, pages, self.mode)
        self._physical.accounts.uncharge(self.payer, pages, self.mode)
        self.payer = payer

    def runs(self, first_byte: int, length: int) -> Iterator[Run]:
        """The physical runs of pinned bytes from `first_byte` (counted from the first page's start)."""
        end = first_byte + length
        for segment in self.segments:
            start, stop = segment.first * PAGE_SIZE, (segment.last + 1) * PAGE_SIZE
            low, high = max(start, first_byte), min(stop, end)
            if low < high:
                yield from self._physical.frames.runs(segment.backing, segment.offset + low - start, high - low)

    def extents(self, first_byte: int, length: int, write: bool) -> Iterator[Extent]:
        """The bytes themselves, pinned or not, in order: EFAULT where there are none."""
        position, end = first_byte, first_byte + length
        while position < end:
            page = position // PAGE_SIZE
            segment = next((s for s in self.segments if s.first <= page <= s.last), None)
            if segment is None:
                later = (s.first * PAGE_SIZE for s in self.segments if s.first > page)
                stop = min(end, min(later, default=end))
                segments = self._resolve(page, (stop - 1) // PAGE_SIZE, write)
            else:
                stop = min(end, (segment.last + 1) * PAGE_SIZE)
                segments = [segment]
            for part in segments:
                size = min(stop, (part.last + 1) * PAGE_SIZE) - position
                yield Extent(part.backing, part.offset + position - part.first * PAGE_SIZE, size)
                position += size

    def _resolve(self, first: int, last: int, write: bool | None = None) -> list[Segment]:
        wanted = (last - first + 1) * PAGE_SIZE
        extents = self.source.pages(first * PAGE_SIZE, wanted, self.writable if write is None else write)
        segments: list[Segment] = []
        for extent in extents:
            count = extent.length // PAGE_SIZE
            segments.append(Segment(first, first + count - 1, extent.backing, extent.offset))
            first += count
        if first != last + 1:
            raise UapiError(EFAULT, "the memory behind the mapping has a hole")
        return segments


def _meet(segment: Segment, part: tuple[int, int]) -> bool:
    return segment.first <= part[1] and part[0] <= segment.last


def _count(ranges: list[tuple[int, int]]) -> int:
    return sum(last - first + 1 for first, last in ranges)


def _uncovered(hold: Hold, others: list[Hold]) -> Iterator[tuple[int, int]]:
    """The parts of `hold` that none of `others` covers."""
    at = hold.first
    for other in sorted(others, key=lambda h: h.first):
        if other.last < at:
            continue
        if other.first > hold.last:
            break
        if other.first > at:
            yield at, other.first - 1
        at = other.last + 1
    if at <= hold.last:
        yield at, hold.last


def _without(segment: Segment, freed: list[tuple[int, int]]) -> Iterator[Segment]:
    """The parts of `segment` outside the ascending ranges `freed`."""
    at = segment.first
    for first, last in freed:
        if last < at or first > segment.last:
            continue
        if first > at:
            yield segment.cut(at, first - 1)
        at = last + 1
    if at <= segment.last:
        yield segment.cut(at, segment.last)


class VaSource:
    """Memory of an address space, by virtual address (IOAS_MAP)."""

    def __init__(self, mm: Mm, va: int) -> None:
        self.start = va
        self._mm = mm

    def pages(self, offset: int, length: int, write: bool) -> list[Extent]:
        """What the addresses name when the page is pinned. EFAULT: a hole, no permission, or the process is gone."""
        return list(self._mm.extents(self.start - self.start % PAGE_SIZE + offset, length, write))


class FileSource:
    """Memory of a file, by offset (IOAS_MAP_FILE)."""

    def __init__(self, file: HostFile | None, start: int) -> None:
        self.start = start
        self._file = file
        self._backing = file.backing() if file else None

    def pages(self, offset: int, length: int, write: bool) -> list[Extent]:
        """EINVAL: the file is no memory (memfd, shmem, hugetlbfs), or the range passes its end."""
        begin = self.start - self.start % PAGE_SIZE + offset
        if self._file is None or self._backing is None:
            raise UapiError(EINVAL, "the file is not memory: only memfd, shmem and hugetlbfs files can be pinned")
        if begin + length > -(-self._file.size() // PAGE_SIZE) * PAGE_SIZE:
            raise UapiError(EINVAL, f"file offset {begin:#x}..{begin + length - 1:#x} passes the end of the file")
        return [Extent(self._backing, begin, length)]


class DmabufSource:
    """Memory of an exporter that may take it back (a dma-buf)."""

    def __init__(self, file: DmabufFile, start: int) -> None:
        self.file, self.start = file, start

    def pages(self, offset: int, length: int, write: bool) -> list[Extent]:
        """ENODEV while the exporter has revoked the buffer."""
        if self.file.revoked:
            raise UapiError(ENODEV, "the dma-buf is revoked")
        return [Extent(self.file.backing, self.start - self.start % PAGE_SIZE + offset, length)]
