"""A domain of the AMD IOMMU: a host (v1) or guest (v2) table in memory, and the invalidations that its changes need."""

from __future__ import annotations

from collections.abc import Iterator
from errno import ENOMEM
from typing import TYPE_CHECKING

from softiommu.drivers.amd.queue import EVERYWHERE, Command, device_tlb, pages_of
from softiommu.drivers.driver import DirtyReport, DomainFlags, Prot, Range, unsupported
from softiommu.drivers.hidden import KEPT, Places
from softiommu.errors import ModelError, UapiError
from softiommu.hardware.amd.tables import GUEST_TABLES, HOST_TABLES, Gcr3Entry
from softiommu.pagetable.engine import PageTable, TableRange
from softiommu.pagetable.formats import VARIANTS, sizes
from softiommu.pagetable.kinds import HW_DIRTY, NO_MEMORY, OK

if TYPE_CHECKING:
    from softiommu.drivers.amd.driver import AmdDriver
    from softiommu.drivers.amd.process import AmdProcess
    from softiommu.drivers.amd.routes import Route
    from softiommu.drivers.amd.viommu import AmdViommu

#: Levels of a new host table, as in Linux.
_FIRST_MODE = 3
#: The end of the addresses of a host table of four levels: more would be walked for GCR3 tables alone.
_FOUR_LEVELS = 1 << 48
#: Leaves of 512 GiB, which Linux leaves out for an erratum.
_LEFT_OUT = 1 << 39


class AmdDomain:
    """A page table that devices behind one IOMMU share. `guest`: a v2 table, which PASIDs can have."""

    #: Leaves say that DMA through them is coherent (FC); guest tables' is, too.
    cache_coherent = True

    def __init__(self, driver: AmdDriver, flags: DomainFlags = DomainFlags.NONE, guest: bool = False) -> None:
        self.owner, self.flags, self.guest = driver, flags, guest
        #: DTE.Mode: the levels of a host table. It grows with the addresses that are mapped.
        self.mode = 0 if guest else _FIRST_MODE
        largest = VARIANTS[GUEST_TABLES[int(driver.efr.GATS > 0)] if guest else HOST_TABLES[driver.most_levels]]
        table = largest if guest else VARIANTS[HOST_TABLES[_FIRST_MODE]]
        if guest:
            # The driver does not track dirty pages of guest tables: it sets their flags ahead.
            table = table._replace(option=table.option & ~HW_DIRTY)
        try:
            self.pages = PageTable(driver.memory, table)
        except MemoryError as error:
            raise UapiError(ENOMEM, "no memory for a page table") from error
        try:
            #: A guest table's translations have the domain id of the device that uses it.
            self.did = 0 if guest else driver.take_did()
        except UapiError:
            self.pages.destroy()
            raise
        self.page_sizes = sizes(largest) & ~_LEFT_OUT
        # The upper half of a guest table's addresses, beyond the gap, is left alone.
        end = 1 << largest.input_bits - int(guest)
        #: Where GCR3 tables of devices whose PASIDs are nested on it lie, if it was made for such.
        self.hidden: Places | None = None
        if not guest and DomainFlags.PASID in flags:
            end = min(end, _FOUR_LEVELS) - KEPT
            self.hidden = Places(Range(end, end + KEPT - 1))
        self.aperture = Range(0, end - 1)
        self.tracks_dirty = False
        self.routes: list[Route] = []
        #: The guests over this table.
        self.viommus: list[AmdViommu] = []
        #: The guests' tables for PASIDs over this one.
        self.processes: list[AmdProcess] = []
        self._removed: tuple[int, int] | None = None
        self._tables: list[TableRange] = []

    @property
    def gcr3(self) -> Gcr3Entry:
        """The GCR3 entry that leads to a guest table."""
        return Gcr3Entry.of(V=1, ADDR=self.pages.root >> 12)

    def map(self, iova: int, pa: int, length: int, prot: Prot) -> None:
        """Fill the table. ENOMEM: none of it is mapped then."""
        self._reach(iova + length - 1)
        status, done = self.pages.map(iova, pa, length, prot.value)
        if status == OK:
            if self.owner.np_cache:
                self._gather(iova, iova + length - 1)
                self.flush()
            return
        if done:
            self.unmap(iova, done)
            self.flush()
        if status == NO_MEMORY:
            raise UapiError(ENOMEM, "no memory for a page table")
        raise ModelError(f"{iova:#x}..{iova + length - 1:#x} cannot be mapped: status {status}")

    def _reach(self, last: int) -> None:
        """Add levels until an address can be mapped, and tell the hardware. ENOMEM."""
        mode = self.mode
        try:
            while not self.guest and self.mode < self.owner.most_levels and last >> self.pages.table.input_bits:
                self.pages.grow(VARIANTS[HOST_TABLES[self.mode + 1]])
                self.pages.sizes &= ~_LEFT_OUT
                self.mode += 1
        except MemoryError as error:
            raise UapiError(ENOMEM, "no memory for a page table") from error
        finally:
            if self.mode != mode:
                self._refresh()

    def _refresh(self) -> None:
        """Write the device table entries of the domain anew."""
        nested = [domain for viommu in self.viommus for domain in viommu.nested]
        routes = [route for domain in (*nested, *self.processes) for route in domain.routes]
        for sid in dict.fromkeys(route.sid for route in (*self.routes, *routes)):
            self.owner.routes.table.write(self.owner.routes.streams[sid])

    def unmap(self, iova: int, length: int) -> int:
        """Empty the table; `flush` completes it."""
        removed = self.pages.unmap(iova, length)
        for run in removed.ranges:
            self._gather(run.iova, run.last)
        self._tables += removed.tables
        return removed.length

    def _gather(self, first: int, last: int) -> None:
        """One range is flushed at the end; but on a virtual IOMMU, whose flush costs by its size, each by itself."""
        old = self._removed
        if old is not None and self.owner.np_cache and (first > old[1] + 1 or last + 1 < old[0]):
            self._forget(*old)
            old = None
        self._removed = (first, last) if old is None else (min(first, old[0]), max(last, old[1]))

    def flush(self) -> None:
        """Invalidate what was removed, then give the tables back that nothing leads to any more."""
        if self._removed is not None:
            self._forget(*self._removed)
        self.pages.free_tables(self._tables)
        self._removed, self._tables = None, []

    def _forget(self, first: int, last: int) -> None:
        ranges = list(_aligned(first, last)) if self.owner.np_cache else [(first, last)]
        self.owner.queue.submit(*(command for window in ranges for command in self._commands(*window)))

    def _commands(self, first: int, last: int) -> list[Command]:
        """Forget a range wherever it may be cached. A device's TLB is emptied after the IOTLB that fills it."""
        streams = self.owner.routes.streams
        if self.guest:
            cached = [pages_of(streams[sid].did, pasid or 0, first, last) for sid, pasid in self.routes]
            guests = []
        else:
            ids = [did for viommu in self.viommus for did, _ in viommu.dids.values()]
            ids += [streams[route.sid].nested_did for process in self.processes for route in process.routes]
            cached = [pages_of(did, None, first, last) for did in dict.fromkeys((self.did, *ids))]
            nested = [domain for viommu in self.viommus for domain in viommu.nested]
            guests = [route.sid for domain in (*nested, *self.processes) if domain.uses_ats for route in domain.routes]
        cached += [device_tlb(sid, pasid, first, last) for sid, pasid in self.routes if streams[sid].ats]
        # Nobody knows which addresses of which of a guest's PASIDs lead here: all of them go.
        return cached + [device_tlb(sid, None, *EVERYWHERE) for sid in dict.fromkeys(guests) if streams[sid].ats]

    def iova_to_pa(self, iova: int) -> int | None:
        """What the table says."""
        found = self.pages.translate(iova)
        return found.oa if found.status == OK else None

    def enforce_cache_coherency(self) -> bool:
        """It always is."""
        return True

    def set_dirty_tracking(self, enable: bool) -> None:
        """Let the hardware set dirty flags, or not (DTE.HAD)."""
        if DomainFlags.DIRTY_TRACKING not in self.flags:
            raise unsupported("the domain was made without dirty tracking")
        if enable == self.tracks_dirty:
            return
        self.tracks_dirty = enable
        self._refresh()
        # What was cached before may be written without a flag.
        self._forget(*EVERYWHERE)

    def read_dirty(self, window: Range, report: DirtyReport | None, clear: bool) -> None:
        """Report the leaves that were written; those that are cleared are flushed, so that they can be set again."""
        if DomainFlags.DIRTY_TRACKING not in self.flags:
            raise unsupported("the domain was made without dirty tracking")
        for run in self.pages.harvest(window.first, window.last, clear):
            if report is not None:
                report.record(run.iova, run.length)
            if clear:
                self._gather(run.iova, run.last)
        if clear:
            self.flush()

    def free(self) -> None:
        """Forget everything of the domain, and give its tables and its id back."""
        self._forget(*EVERYWHERE)
        self.pages.free_tables(self._tables)
        self.pages.destroy()
        if self.did:
            self.owner.give_did(self.did)


def _aligned(first: int, last: int) -> Iterator[tuple[int, int]]:
    """A range cut in aligned powers of two."""
    while first <= last:
        left = last - first + 1
        size = 1 << left.bit_length() - 1
        if first:
            size = min(size, first & -first)
        yield first, first + size - 1
        first += size
