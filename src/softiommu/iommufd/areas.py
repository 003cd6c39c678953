"""The map of one IOAS: which I/O addresses lead to which pages (the kernel's io_pagetable).

Areas never overlap. Every domain of the IOAS holds every area; accesses reach the same pages without a domain.
"""

from __future__ import annotations

from collections.abc import Iterator
from errno import EADDRINUSE, EBUSY, EDEADLOCK, EEXIST, EINVAL, ENOENT, EOVERFLOW, EPERM
from functools import partial
from typing import TYPE_CHECKING

from sortedcontainers import SortedDict

from softiommu.drivers.driver import PagingDomain, Prot, Range
from softiommu.errors import UapiError
from softiommu.iommufd.area import MAX, Area, Elm, Piece, Pinner, Progress
from softiommu.iommufd.iova import RangeSet, find_free, hole_before
from softiommu.memory.client import PAGE_SIZE
from softiommu.memory.pins import DmabufSource

if TYPE_CHECKING:
    pass

_MOST_HINTS = 64


class IoPageTable:
    """Areas, reserved and allowed ranges, and the domains and accesses that see the areas."""

    def __init__(self) -> None:
        self.areas: SortedDict[int, Area] = SortedDict()
        self.reserved = RangeSet()
        self.allowed: list[Range] = []
        self.domains: list[PagingDomain] = []
        self.accesses: list[Pinner] = []
        self.alignment = 1
        self.large_pages = True
        self._used = (self.reserved, self.areas)
        #: For sizes and alignments that were asked for: no lower place than this fits.
        self._hints: dict[tuple[int, int, int], int] = {}

    # Looking up

    def overlapping(self, first: int, last: int) -> Area | None:
        """The lowest area that meets `first`..`last`."""
        areas = self.areas
        area: Area | None = areas.get(first)
        if area is not None:
            return area
        starts = areas.keys()
        index = areas.bisect_left(first)
        if index and (area := areas[starts[index - 1]]).last >= first:
            return area
        if index < len(areas) and (area := areas[starts[index]]).iova <= last:
            return area
        return None

    def pieces(self, first: int, last: int) -> Iterator[Piece]:
        """The areas that cover `first`.. without a gap, cut to the range. Stops at the first gap."""
        at = first
        while at <= last:
            area = self.overlapping(at, at)
            if area is None:
                return
            end = min(last, area.last)
            yield Piece(area, at, end)
            at = end + 1

    def contiguous(self, first: int, last: int) -> list[Piece]:
        """The same, for a range that must be mapped whole: ENOENT."""
        pieces = list(self.pieces(first, last))
        if not pieces or pieces[-1].last != last:
            gap = pieces[-1].last + 1 if pieces else first
            raise UapiError(ENOENT, f"iova {gap:#x} of {first:#x}..{last:#x} is not mapped")
        return pieces

    # Mapping

    def map(self, elms: list[Elm], length: int, iova: int | None, prot: Prot) -> int:
        """Show `elms` one after the other, at `iova` or where there is room; the first I/O address. Errors in the
        kernel's order (EINVAL, EOVERFLOW, EEXIST, ENOSPC, EPERM, EFAULT, ENOMEM); nothing is left of a failed map."""
        if not length or length & (self.alignment - 1):
            raise UapiError(EINVAL, f"length {length:#x} is not a multiple of the alignment {self.alignment:#x}")
        if iova is None:
            iova = self._allocate(elms[0], length)
        else:
            self._check_iova(iova, length)
        new: list[Area] = []
        filled = 0
        try:
            at = iova
            for elm in elms:
                new.append(self._insert(elm, at, prot))
                at += elm.length
            for area in new:
                self._fill(area)
                filled += 1
        except UapiError:
            for index, area in enumerate(new):
                self.remove(area) if index < filled else self._drop(area)
            raise
        return iova

    def _allocate(self, elm: Elm, length: int) -> int:
        source = elm.pages.source.start
        address = source - source % PAGE_SIZE + elm.start
        key = (length, address & -address, address % PAGE_SIZE)
        hints = self._hints
        iova = find_free(self._used, self.allowed, address, length, self.alignment, hints.get(key, 0))
        if len(hints) >= _MOST_HINTS:
            hints.clear()
        hints[key] = iova
        return iova

    def _check_iova(self, iova: int, length: int) -> None:
        if iova & (self.alignment - 1):
            raise UapiError(EINVAL, f"iova {iova:#x} is not a multiple of the alignment {self.alignment:#x}")
        last = iova + length - 1
        if last > MAX:
            raise UapiError(EOVERFLOW, f"iova {iova:#x} + length {length:#x} wraps")
        taken = self.reserved.overlapping(iova, last)
        if taken:
            raise UapiError(EINVAL, f"iova {iova:#x}..{last:#x} meets the reserved range {taken[0]:#x}..{taken[1]:#x}")
        area = self.overlapping(iova, last)
        if area:
            raise UapiError(EEXIST, f"iova {iova:#x}..{last:#x} overlaps the area {area.iova:#x}..{area.last:#x}")

    def _insert(self, elm: Elm, iova: int, prot: Prot) -> Area:
        if prot.writable and not elm.pages.writable:
            raise UapiError(EPERM, "the memory was mapped without WRITE, so it cannot be mapped again with it")
        if elm.start % PAGE_SIZE & (self.alignment - 1):
            raise UapiError(
                EINVAL,
                f"offset {elm.start % PAGE_SIZE:#x} in the page is not a multiple of the alignment {self.alignment:#x}",
            )
        area = Area(iova, elm.length, elm.pages, elm.start, prot)
        self.areas[iova] = area
        elm.pages.areas += 1
        self._watch(area)
        return area

    def _watch(self, area: Area) -> None:
        """Hear of it when the area's memory is a dma-buf that its exporter takes back."""
        source = area.pages.source
        if isinstance(source, DmabufSource) and not area.revoked:
            area.on_revoke = partial(self._revoke, area)
            source.file.on_revoke.append(area.on_revoke)

    def _unwatch(self, area: Area) -> None:
        source = area.pages.source
        if isinstance(source, DmabufSource) and area.on_revoke in source.file.on_revoke:
            source.file.on_revoke.remove(area.on_revoke)

    def _revoke(self, area: Area) -> None:
        for domain in self.domains:
            self.unfill_domain(area, domain)
        area.revoked = True

    def _fill(self, area: Area) -> None:
        """Pin the area and map it in every domain; undone by `_drop` when it raises."""
        for index, domain in enumerate(self.domains):
            try:
                self.fill_domain(area, domain)
            except UapiError:
                for other in self.domains[:index]:
                    self.unfill_domain(area, other)
                raise

    def fill_domain(self, area: Area, domain: PagingDomain) -> None:
        """Map the area in one domain, pinning it for the first. EFAULT, ENOMEM: the domain is as before."""
        if area.hold is None:
            area.hold = area.pages.hold(area.page(area.iova), area.page(area.last))
        if area.revoked:
            return
        if (area.iova | area.length | area.start) & ((domain.page_sizes & -domain.page_sizes) - 1):
            # A copy keeps the pieces of its source, which may be smaller than this domain's pages.
            raise UapiError(
                EINVAL, f"the area {area.iova:#x}..{area.last:#x} is not a multiple of the domain's smallest page"
            )
        done = area.iova
        try:
            for iova, run in area.runs():
                # Without large pages an area may be cut at any page, so no entry may span two.
                step = run.length if self.large_pages else PAGE_SIZE
                for at in range(0, run.length, step):
                    domain.map(iova + at, run.pa + at, step, area.prot)
                    done = iova + at + step
        except UapiError:
            if done > area.iova:
                domain.unmap(area.iova, done - area.iova)
                domain.flush()
            raise

    def unfill_domain(self, area: Area, domain: PagingDomain) -> None:
        """Take the area out of one domain; its pages stay pinned."""
        if not area.revoked:
            domain.unmap(area.iova, area.length)
            domain.flush()

    # Unmapping

    def unmap(self, first: int, last: int, progress: Progress | None = None) -> int:
        """Remove every area in `first`..`last`, in ascending order; the bytes removed (0 when there was none).
        EBUSY: a hardware queue lives on the area. ENOENT: an area is cut by the range. Earlier ones stay removed."""
        done = progress or Progress()
        while (area := self.overlapping(first, last)) is not None:
            if area.locks:
                raise UapiError(EBUSY, f"area {area.iova:#x}..{area.last:#x} holds a hardware queue")
            if area.iova < first or area.last > last:
                raise UapiError(
                    ENOENT,
                    f"{first:#x}..{last:#x} cuts the area {area.iova:#x}..{area.last:#x}, which is not whole in it",
                )
            self._evict(area)
            self.remove(area)
            done.bytes += area.length
        return done.bytes

    def remove(self, area: Area) -> None:
        """Take an area out of the domains and the map, and unpin what only it held."""
        for domain in self.domains:
            self.unfill_domain(area, domain)
        self._drop(area)

    def _drop(self, area: Area) -> None:
        if area.hold is not None:
            area.pages.release(area.hold)
            area.hold = None
        area.pages.areas -= 1
        self._unwatch(area)
        del self.areas[area.iova]
        freed = hole_before(self._used, area.iova)
        for key, hint in self._hints.items():
            if hint > freed:
                self._hints[key] = freed

    def _evict(self, area: Area) -> None:
        """Ask the accesses to let go of the area's pages."""
        if not area.accesses:
            return
        for access in list(self.accesses):
            access.unmap(area.iova, area.length)
        if area.accesses:
            raise UapiError(EDEADLOCK, f"area {area.iova:#x}..{area.last:#x} is pinned by an access that keeps it")

    def cut(self, iova: int) -> None:
        """Make `iova` the start of an area, where one crosses it (VFIO type 1 unmaps parts). EINVAL: not possible."""
        area = self.overlapping(iova, iova)
        if area is None or iova - 1 <= area.iova:
            return
        offset = iova - area.iova
        if self.large_pages or area.locks or area.accesses or offset & (self.alignment - 1):
            raise UapiError(EINVAL, f"the area {area.iova:#x}..{area.last:#x} cannot be cut at {iova:#x}")
        low = Area(area.iova, offset, area.pages, area.start, area.prot)
        high = Area(iova, area.length - offset, area.pages, area.start + offset, area.prot)
        for part in (low, high):
            if area.hold is not None:
                part.hold = area.pages.hold(part.page(part.iova), part.page(part.last))
            part.revoked = area.revoked
            self.areas[part.iova] = part
            self._watch(part)
        self._unwatch(area)
        area.pages.areas += 1
        if area.hold is not None:
            area.pages.release(area.hold)

    # Ranges

    def reserve(self, first: int, last: int, owner: object) -> None:
        """Keep a range free of mappings for `owner`. EADDRINUSE: it meets an area or an allowed range."""
        area = self.overlapping(first, last)
        if area:
            raise UapiError(
                EADDRINUSE, f"reserving {first:#x}..{last:#x} meets the area {area.iova:#x}..{area.last:#x}"
            )
        for allowed in self.allowed:
            if allowed.first <= last and first <= allowed.last:
                raise UapiError(
                    EADDRINUSE,
                    f"reserving {first:#x}..{last:#x} meets the allowed range {allowed.first:#x}..{allowed.last:#x}",
                )
        self.reserved.add(first, last, owner)
        self._hints.clear()

    def unreserve(self, owner: object) -> None:
        """Give back every range of `owner`."""
        self.reserved.remove(owner)
        self._hints.clear()

    def set_allowed(self, ranges: list[Range]) -> None:
        """Replace the allowed ranges. EADDRINUSE: one meets a reserved range; the old list stays."""
        for wanted in ranges:
            taken = self.reserved.overlapping(wanted.first, wanted.last)
            if taken:
                raise UapiError(
                    EADDRINUSE,
                    f"the allowed range {wanted.first:#x}..{wanted.last:#x} meets "
                    f"the reserved {taken[0]:#x}..{taken[1]:#x}",
                )
        self.allowed = sorted(ranges)
        self._hints.clear()

    def free_ranges(self) -> list[Range]:
        """The addresses outside every reserved range."""
        return [Range(first, last) for first, last in self.reserved.holes(0, MAX)]

    # Alignment

    def wanted_alignment(self) -> int:
        """What domains, accesses and the large-pages option ask of every area together."""
        wanted = 1 if self.large_pages else PAGE_SIZE
        for domain in self.domains:
            wanted = max(wanted, domain.page_sizes & -domain.page_sizes)
        for access in self.accesses:
            wanted = max(wanted, access.alignment)
        return wanted

    def check_alignment(self, alignment: int) -> None:
        """EADDRINUSE: an area is not a multiple of it."""
        for area in self.areas.values():
            if (area.iova | area.length | area.start % PAGE_SIZE) & (alignment - 1):
                raise UapiError(
                    EADDRINUSE,
                    f"the area {area.iova:#x}..{area.last:#x} is not aligned to {alignment:#x}, which is needed now",
                )

    def update_alignment(self) -> None:
        """Recompute the alignment after a domain, an access or an option changed. EADDRINUSE: areas are in the way."""
        wanted = self.wanted_alignment()
        if wanted > self.alignment:
            self.check_alignment(wanted)
        self.alignment = wanted

    # Domains and accesses

    def add_domain(self, domain: PagingDomain) -> None:
        """Let a domain show every area. EINVAL: its pages are too large; EADDRINUSE: aperture or alignment in the way;
        EFAULT, ENOMEM: an area cannot be pinned. Nothing changes when it raises."""
        smallest = domain.page_sizes & -domain.page_sizes
        if smallest > PAGE_SIZE:
            raise UapiError(EINVAL, f"the domain's smallest page is {smallest:#x} bytes: at most {PAGE_SIZE:#x} work")
        self.check_alignment(max(smallest, self.alignment))
        try:
            if domain.aperture.first:
                self.reserve(0, domain.aperture.first - 1, domain)
            if domain.aperture.last != MAX:
                self.reserve(domain.aperture.last + 1, MAX, domain)
            self._fill_all(domain)
        except UapiError:
            self.unreserve(domain)
            raise
        self.domains.append(domain)
        self.update_alignment()

    def _fill_all(self, domain: PagingDomain) -> None:
        filled: list[Area] = []
        try:
            for area in self.areas.values():
                self.fill_domain(area, domain)
                filled.append(area)
        except UapiError:
            for area in filled:
                self.unfill_domain(area, domain)
            self._release_unheld()
            raise

    def remove_domain(self, domain: PagingDomain) -> None:
        """Take every area out of a domain, and its aperture out of the reserved ranges."""
        self.domains.remove(domain)
        for area in self.areas.values():
            self.unfill_domain(area, domain)
        self._release_unheld()
        self.unreserve(domain)
        self.update_alignment()

    def _release_unheld(self) -> None:
        """Without a domain no area is pinned by the map itself."""
        if self.domains:
            return
        for area in self.areas.values():
            if area.hold is not None:
                area.pages.release(area.hold)
                area.hold = None

    def add_access(self, access: Pinner) -> None:
        """Let an access reach the areas. EADDRINUSE: one is not aligned as it needs."""
        self.accesses.append(access)
        try:
            self.update_alignment()
        except UapiError:
            self.accesses.remove(access)
            raise

    def remove_access(self, access: Pinner) -> None:
        """The access is gone."""
        self.accesses.remove(access)
        self.update_alignment()
