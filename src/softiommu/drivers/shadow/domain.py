"""Children in software: a guest's own table (bind + invalidate), and one that the program fills (map and unmap)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from errno import EINVAL
from typing import TYPE_CHECKING

from sortedcontainers import SortedDict

from softiommu.abi.generic_invalidation import Outcome, Target
from softiommu.abi.iommufd import HwptVtdS1Invalidate, InvalidateDataType, VtdInvFlags
from softiommu.drivers.driver import (
    DirtyReport,
    DomainFlags,
    NestedDomain,
    PageFault,
    PagingDomain,
    Prot,
    Range,
    unsupported,
)
from softiommu.drivers.generic_invalidation import Invalidation, carry_out, is_generic
from softiommu.drivers.shadow.merge import Merge
from softiommu.drivers.shadow.walk import MOST_LEAVES, GuestTable, Leaf, Visited
from softiommu.drivers.user_data import Handled, UserArray
from softiommu.errors import UapiError

if TYPE_CHECKING:
    from softiommu.drivers.shadow.data import Binding
    from softiommu.drivers.shadow.parent import Gone, ParentDomain, Run

_PAGE_LG2 = 12
_ALL_PAGES = _LAST = (1 << 64) - 1
#: More levels than any table has.
_TOP = 64
#: What the program maps is one leaf, whatever its size.
_WHOLE_LG2 = 64


class Link:
    """A table of a guest, in its parent's addresses."""

    __slots__ = ("_domain", "alive", "table")

    def __init__(self, domain: BoundDomain, table: Visited) -> None:
        self._domain, self.table, self.alive = domain, table, True

    def shown(self, run: Run) -> None:
        """The table, or a part of it, can be read now."""
        self._domain.read_again(self.table.first, self.table.last)

    def hidden(self, gone: Gone) -> None:
        """It cannot any more: what it translates is translated no longer."""
        table = self.table
        if gone.first <= table.gpa and table.gpa + table.size - 1 <= gone.last:
            self._domain.lost(table)
        else:
            self._domain.read_again(table.first, table.last)

    def flush(self) -> None:
        """That is complete."""

    def read_dirty(self, window: Range, report: DirtyReport | None, clear: bool) -> None:
        """Its flags are set when it is read, and recorded then."""


class BoundDomain:
    """A guest's table over a parent, shadowed in `out`. While no device is attached it is empty."""

    def __init__(self, parent: ParentDomain, out: PagingDomain, binding: Binding, reserved: Sequence[Range]) -> None:
        self.owner, self.out, self.binding = out.owner, out, binding
        self.routes: set[tuple[object, int | None]] = set()
        self._parent = parent
        self._merge = Merge(parent, out)
        self._guest = GuestTable(binding.table, binding.root, parent)
        self._reserved = sorted(reserved)
        self._links: SortedDict[tuple[int, int], Link] = SortedDict()

    def check(self, recoverable: bool) -> None:
        """Whether a device may be attached; `recoverable`: the device asks again for what was not there. EINVAL."""
        binding, aperture = self.binding, self.out.aperture
        if binding.refusal:
            raise UapiError(EINVAL, binding.refusal)
        if not binding.caching_mode and not recoverable:
            raise UapiError(
                EINVAL,
                "a shadow hears of new mappings only by invalidations, and the guest does not promise them "
                "(CACHING_MODE), nor are the device's faults recoverable",
            )
        if aperture.first or aperture.last < binding.window.last:
            raise UapiError(
                EINVAL,
                f"the guest's addresses go to {binding.window.last:#x}, those of the IOMMU only to {aperture.last:#x}",
            )
        smallest = self.out.page_sizes & -self.out.page_sizes
        if smallest > 1 << binding.table.granule_lg2:
            raise UapiError(EINVAL, f"the IOMMU's smallest page of {smallest:#x} bytes is larger than the guest's")

    # Devices

    def enter(self, route: tuple[object, int | None]) -> None:
        """A route comes: for the first, the guest's table is merged. ENOMEM: nothing is."""
        first = not self.routes
        self.routes.add(route)
        if first:
            try:
                self.read_again(*self.binding.window)
            except UapiError:
                self.leave(route)
                raise

    def leave(self, route: tuple[object, int | None]) -> None:
        """A route is gone: with the last, everything is forgotten."""
        self.routes.discard(route)
        if not self.routes:
            self._merge.drop_all(*self.binding.window)
            self._unlink(0, _LAST, _TOP)

    def resolve(self, fault: PageFault) -> bool:
        """A device found nothing at an address: read the guest's table there again. Whether there is something now."""
        page = fault.addr >> _PAGE_LG2 << _PAGE_LG2
        want = Prot(fault.perm & 3)
        self.read_again(page, page + (1 << _PAGE_LG2) - 1)
        there = self.out.iova_to_pa(page) is not None
        return there and all(leaf.prot & want == want for leaf in self._merge.meeting(page, page))

    # The guest's table

    def read_again(self, first: int, last: int) -> None:
        """Merge a range of the guest's table as it is now. ENOMEM: some of the range may be translated no more."""
        window = self.binding.window
        first, last = max(first, window.first), min(last, window.last)
        if not self.routes or first > last:
            return
        first, last = self._merge.whole(first, last)
        last = min(last, window.last)
        work = self._parent.work
        work.ranges += 1
        try:
            found = self._guest.read(Range(first, last), MOST_LEAVES - len(self._merge))
        except UapiError:
            self._merge.drop_all(first, last)
            raise
        work.tables += len(found.tables)
        work.entries += found.entries
        self._relink(first, last, found.tables)
        leaves = (part for leaf in found.leaves for part in self._allowed(leaf.part(first, last)))
        self._merge.replace(first, last, leaves)

    def _allowed(self, leaf: Leaf) -> Iterator[Leaf]:
        """What of a leaf lies outside the ranges that the IOMMU keeps for itself."""
        first = leaf.first
        for kept in self._reserved:
            if kept.last < first or leaf.last < kept.first:
                continue
            if first < kept.first:
                yield leaf.part(first, kept.first - 1)
            first = kept.last + 1
        if first <= leaf.last:
            yield leaf.part(first, leaf.last)

    def _relink(self, first: int, last: int, tables: list[Visited]) -> None:
        """Remember which tables translate a range now, and so which addresses of the parent they lie at."""
        seen = {(table.first, table.level): table for table in tables}
        for key in list(self._links.irange((first, 0), (last, _TOP))):
            if key not in seen and self._links[key].table.last <= last:
                self._forget(key)
        for key, table in seen.items():
            old = self._links.get(key)
            if old is not None and old.table == table:
                continue
            if old is not None:
                self._forget(key)
            link = self._links[key] = Link(self, table)
            self._parent.index.add(table.gpa, table.gpa + table.size - 1, link)

    def _forget(self, key: tuple[int, int]) -> None:
        link = self._links.pop(key)
        link.alive = False
        table = link.table
        self._parent.index.remove(table.gpa, table.gpa + table.size - 1, link)

    def _unlink(self, first: int, last: int, below: int) -> None:
        """Forget the tables of levels below this one in a range."""
        for key in list(self._links.irange((first, 0), (last, _TOP))):
            if key[1] < below:
                self._forget(key)

    def lost(self, table: Visited) -> None:
        """A table is not there any more, nor what it led to. Where it lay is remembered: it may come back."""
        self._unlink(table.first, table.last, table.level)
        self._merge.drop_all(*self._merge.whole(table.first, min(table.last, self.binding.window.last)))

    # The guest's invalidations

    def invalidate(self, entries: UserArray, handled: Handled) -> None:
        """Entries of VT-d's type, or of the generic one: the ranges are read again. EINVAL: another type; EINVAL,
        EOPNOTSUPP, E2BIG, EFAULT, EOVERFLOW, ENOMEM at an entry: those before it are done."""
        if is_generic(entries):
            carry_out(entries, handled, self._generic)
            return
        kind = InvalidateDataType.HWPT_INVALIDATE_DATA_VTD_S1
        if entries.data_type != kind:
            raise UapiError(EINVAL, f"entries of type {entries.data_type:#x} are not for a table that is shadowed")
        for index in range(entries.entry_num):
            window = _window(entries.entry(index, HwptVtdS1Invalidate, kind), index)
            if window is not None:
                self.read_again(*window)
            handled.count += 1

    def _generic(self, asked: Invalidation) -> Outcome:
        if asked.device is not None:
            raise UapiError(EINVAL, f"no vIOMMU names a device {asked.device:#x}")
        if asked.targets != Target.CONFIG and any(asked.reaches(pasid) for _, pasid in self.routes):
            self.read_again(*(asked.window or (0, _LAST)))
        return Outcome.NONE

    def free(self) -> None:
        """Give the shadow back."""
        self._unlink(0, _LAST, _TOP)
        self._merge.free()


def _window(entry: HwptVtdS1Invalidate, index: int) -> Range | None:
    """The addresses that an entry is about; None: no page."""
    if entry.flags & ~int(VtdInvFlags.LEAF) or entry.reserved:
        raise unsupported(f"entry {index} has flags {entry.flags:#x}, reserved {entry.reserved:#x}")
    if entry.addr & (1 << _PAGE_LG2) - 1 or (entry.npages == _ALL_PAGES and entry.addr):
        raise UapiError(EINVAL, f"entry {index}: {entry.npages:#x} pages from {entry.addr:#x} are no range")
    last = entry.addr + (entry.npages << _PAGE_LG2) - 1
    return Range(entry.addr, min(last, _LAST)) if entry.npages else None


class MappedDomain:
    """A table that the program fills with addresses of the parent, shadowed in `out`."""

    def __init__(self, parent: ParentDomain, out: PagingDomain, flags: DomainFlags) -> None:
        self.owner, self.out, self.flags = out.owner, out, flags
        self.page_sizes = out.page_sizes
        self._merge = Merge(parent, out)

    @property
    def aperture(self) -> Range:
        """The addresses it can translate."""
        return self.out.aperture

    @property
    def cache_coherent(self) -> bool:
        """Whether DMA through it is coherent whatever the device asks for."""
        return self.out.cache_coherent

    def map(self, iova: int, pa: int, length: int, prot: Prot) -> None:
        """Merge a run that leads to addresses of the parent from `pa`, whether the parent maps them or not. ENOMEM."""
        self._merge.add(Leaf(iova, iova + length - 1, pa, prot, _WHOLE_LG2))

    def unmap(self, iova: int, length: int) -> int:
        """Take out what is mapped in the range; `flush` completes it."""
        last = iova + length - 1
        done, rests = 0, []
        for leaf in self._merge.meeting(iova, last):
            low, high = max(leaf.first, iova), min(leaf.last, last)
            self._merge.drop(leaf)
            rests += [leaf.part(*rest) for rest in ((leaf.first, low - 1), (high + 1, leaf.last)) if rest[0] <= rest[1]]
            done += high - low + 1
        if rests:
            self.out.flush()
            for rest in rests:
                self._merge.add(rest)
        return done

    def flush(self) -> None:
        """Complete the invalidations that `unmap` gathered."""
        self.out.flush()

    def iova_to_pa(self, iova: int) -> int | None:
        """The parent's address that was mapped."""
        for leaf in self._merge.meeting(iova, iova):
            return leaf.gpa + iova - leaf.first
        return None

    def enforce_cache_coherency(self) -> bool:
        """As the shadow can."""
        return self.out.enforce_cache_coherency()

    def set_dirty_tracking(self, enable: bool) -> None:
        """Never asked: none is made with it. Its parent tracks what is written through it."""
        raise unsupported("a child tracks no writes: its parent does")

    def read_dirty(self, window: Range, report: DirtyReport | None, clear: bool) -> None:
        """Never asked: none is made with it."""
        raise unsupported("a child tracks no writes: its parent does")

    def free(self) -> None:
        """Give the shadow back."""
        self._merge.free()


_: tuple[type[NestedDomain], type[PagingDomain]] = (BoundDomain, MappedDomain)
