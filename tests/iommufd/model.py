"""What an IOAS must do, told by brute force: a dict of small units of I/O address, lists of ranges, no cleverness."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from errno import EADDRINUSE, EEXIST, EINVAL, ENOENT, ENOMEM, ENOSPC, EPERM
from typing import NamedTuple

from softiommu.memory.client import Backing

PAGE, UNIT = 4096, 512
TOP = 2**64 - 1


class RefusedError(Exception):
    """The model expects this errno."""

    def __init__(self, errno: int) -> None:
        super().__init__(errno)
        self.errno = errno


class Source:
    """Memory of one map: pages of `backing`, and why a page of it cannot be pinned (0: it can)."""

    def __init__(self, backing: Backing, writable: bool, trouble: Callable[[int], int]) -> None:
        self.backing, self.writable, self.trouble = backing, writable, trouble
        #: How many areas pin each page.
        self.pins: Counter[int] = Counter()


class Ledger:
    """Every source of a test, and how many pages may be pinned."""

    def __init__(self) -> None:
        self.sources: list[Source] = []
        self.limit = TOP // PAGE

    @property
    def pinned(self) -> int:
        """Pages pinned, each once for each source."""
        return sum(len(source.pins) for source in self.sources)

    def count(self, backing: Backing, page: int) -> int:
        """How many sources pin a page."""
        return sum(source.backing is backing and page in source.pins for source in self.sources)


class Area(NamedTuple):
    """`length` bytes of a source from its address `va`, at `iova`."""

    iova: int
    length: int
    source: Source
    va: int
    prot: int

    @property
    def pages(self) -> list[int]:
        """The addresses of the pages it touches."""
        return [page * PAGE for page in range(self.va // PAGE, (self.va + self.length - 1) // PAGE + 1)]


class Domain(NamedTuple):
    """A page table: its smallest page and its aperture."""

    hwpt: int
    smallest: int
    first: int
    last: int


class Model:
    """One IOAS. `units` says for each mapped unit which area it is in."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.units: dict[int, Area] = {}
        self.reserved: list[tuple[int, int, object]] = []
        self.allowed: list[tuple[int, int]] = []
        self.domains: list[Domain] = []
        self.large_pages = True

    @property
    def areas(self) -> list[Area]:
        """The areas by address."""
        return sorted(set(self.units.values()), key=lambda area: area.iova)

    @property
    def alignment(self) -> int:
        """What every area must be a multiple of."""
        return max([1 if self.large_pages else PAGE] + [domain.smallest for domain in self.domains])

    # Mapping

    def map(self, pieces: list[tuple[Source, int, int]], length: int, iova: int | None, prot: int) -> int:
        """Map pieces (source, address, length) in a row; where. RefusedError, with nothing changed."""
        if length % self.alignment:
            raise RefusedError(EINVAL)
        if iova is None:
            iova = self.allocate(pieces[0][1], length)
        else:
            self._check_fixed(iova, length)
        new = [Area(iova + sum(p[2] for p in pieces[:n]), p[2], p[0], p[1], prot) for n, p in enumerate(pieces)]
        for area in new:
            if prot & 2 and not area.source.writable:
                raise RefusedError(EPERM)
            if area.va % PAGE % self.alignment:
                raise RefusedError(EINVAL)
        if self.domains:
            self._pin(new)
        for area in new:
            for at in range(area.iova, area.iova + area.length, UNIT):
                self.units[at] = area
        return iova

    def _check_fixed(self, iova: int, length: int) -> None:
        if iova % self.alignment:
            raise RefusedError(EINVAL)
        if any(first <= iova + length - 1 and iova <= last for first, last, _ in self.reserved):
            raise RefusedError(EINVAL)
        if any(at in self.units for at in range(iova, iova + length, UNIT)):
            raise RefusedError(EEXIST)

    def allocate(self, address: int, length: int) -> int:
        """The lowest candidate that fits: one for each place where a free stretch begins."""
        step = 1
        while step < length:
            step *= 2
        while address % step:
            step //= 2
        step = min(step, 2 << 20)
        if step < self.alignment:
            raise RefusedError(EINVAL)
        used = [(first, last) for first, last, _ in self.reserved]
        used += [(area.iova, area.iova + area.length - 1) for area in self.areas]
        for low, high in join(self.allowed) if self.allowed else [(0, TOP)]:
            low, high = max(low, PAGE), min(high, TOP - PAGE)
            low = -(-low // step) * step | address % PAGE
            for start in sorted([low] + [last + 1 for _, last in used if low <= last + 1 <= high]):
                at = -(-start // step) * step | address % PAGE
                if at + length - 1 > high or any(first <= start <= last for first, last in used):
                    continue
                if not any(first <= at + length - 1 and start <= last for first, last in used):
                    return at
        raise RefusedError(ENOSPC)

    def _pin(self, areas: list[Area]) -> None:
        """Pin areas one after the other; all or none."""
        done: list[Area] = []
        try:
            for area in areas:
                self._pin_one(area)
                done.append(area)
                if self.domains and (area.iova | area.length | area.va) % min(self.alignment, PAGE):
                    raise RefusedError(EINVAL)
        except RefusedError:
            for area in done:
                self.unpin(area)
            raise

    def _pin_one(self, area: Area) -> None:
        missing = [page for page in area.pages if page not in area.source.pins]
        for page in missing:
            if area.source.trouble(page):
                raise RefusedError(area.source.trouble(page))
        if self.ledger.pinned + len(missing) > self.ledger.limit:
            raise RefusedError(ENOMEM)
        area.source.pins.update(area.pages)

    def unpin(self, area: Area) -> None:
        """An area is gone, or its last domain."""
        area.source.pins -= Counter(area.pages)

    def pieces(self, iova: int, length: int) -> list[tuple[Source, int, int]]:
        """What a copy of a range is made of. ENOENT: a hole."""
        if any(at not in self.units for at in range(iova, iova + length, UNIT)):
            raise RefusedError(ENOENT)
        parts = []
        at = iova
        while at < iova + length:
            area = self.units[at]
            size = min(area.iova + area.length, iova + length) - at
            parts.append((area.source, area.va + at - area.iova, size))
            at += size
        return parts

    def unmap(self, iova: int, length: int) -> int:
        """Remove areas from below; ENOENT at one that is cut, with the earlier ones removed, or when there is none."""
        done = 0
        for at in range(iova, iova + length, UNIT):
            area = self.units.get(at)
            if area is None:
                continue
            if area.iova < iova or area.iova + area.length > iova + length:
                raise RefusedError(ENOENT)
            self.remove(area)
            done += area.length
        if not done:
            raise RefusedError(ENOENT)
        return done

    def vfio_unmap(self, iova: int, length: int) -> int:
        """The same for VFIO: an empty range is no error, and without large pages its ends cut areas."""
        if not self.large_pages:
            self._cut(iova + length)
            self._cut(iova)
        if not any(at in self.units for at in range(iova, iova + length, UNIT)):
            return 0
        return self.unmap(iova, length)

    def _cut(self, iova: int) -> None:
        area = self.units.get(iova)
        if area is None or area.iova == iova:
            return
        offset = iova - area.iova
        if offset % self.alignment:
            raise RefusedError(EINVAL)
        parts = (
            area._replace(length=offset),
            Area(iova, area.length - offset, area.source, area.va + offset, area.prot),
        )
        for part in parts:
            if self.domains:
                area.source.pins.update(part.pages)
            for at in range(part.iova, part.iova + part.length, UNIT):
                self.units[at] = part
        if self.domains:
            self.unpin(area)

    def remove(self, area: Area) -> None:
        """Forget an area."""
        if self.domains:
            self.unpin(area)
        for at in range(area.iova, area.iova + area.length, UNIT):
            del self.units[at]

    # Ranges and domains

    def reserve(self, first: int, last: int, owner: object) -> None:
        """Keep a range free."""
        if any(area.iova <= last and first < area.iova + area.length for area in self.areas):
            raise RefusedError(EADDRINUSE)
        if any(low <= last and first <= high for low, high in self.allowed):
            raise RefusedError(EADDRINUSE)
        self.reserved.append((first, last, owner))

    def allow(self, ranges: list[tuple[int, int]]) -> None:
        """Replace the allowed ranges."""
        for index, (first, last) in enumerate(ranges):
            if first >= last or any(low <= last and first <= high for low, high in ranges[:index]):
                raise RefusedError(EINVAL)
        for first, last in ranges:
            if any(low <= last and first <= high for low, high, _ in self.reserved):
                raise RefusedError(EADDRINUSE)
        self.allowed = ranges

    def _check_alignment(self, alignment: int) -> None:
        if any((area.iova | area.length | area.va % PAGE) % alignment for area in self.areas):
            raise RefusedError(EADDRINUSE)

    def add_domain(self, domain: Domain) -> None:
        """A page table joins: all areas are pinned, or nothing changes."""
        self._check_alignment(max(domain.smallest, self.alignment))
        before = list(self.reserved)
        try:
            if domain.first:
                self.reserve(0, domain.first - 1, domain.hwpt)
            self.reserve(domain.last + 1, TOP, domain.hwpt)
            if not self.domains:
                self._pin(self.areas)
        except RefusedError:
            self.reserved = before
            raise
        self.domains.append(domain)

    def remove_domain(self, hwpt: int) -> None:
        """A page table leaves."""
        self.domains = [domain for domain in self.domains if domain.hwpt != hwpt]
        self.reserved = [entry for entry in self.reserved if entry[2] != hwpt]
        if not self.domains:
            for area in self.areas:
                self.unpin(area)

    def set_large_pages(self, value: int) -> None:
        """The option HUGE_PAGES."""
        if value > 1:
            raise RefusedError(EINVAL)
        if bool(value) == self.large_pages:
            return
        if not value and self.domains and self.units:
            raise RefusedError(EINVAL)
        if not value:
            self._check_alignment(PAGE)
        self.large_pages = bool(value)


def join(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges that touch, made one; ascending."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if joined and joined[-1][1] + 1 == first:
            joined[-1] = (joined[-1][0], last)
        else:
            joined.append((first, last))
    return joined
