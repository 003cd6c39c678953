"""A domain of VT-d: a first- or second-stage table in memory, and the invalidations that its changes need."""

from __future__ import annotations

from errno import EINVAL, ENOMEM
from typing import TYPE_CHECKING, NamedTuple

from softiommu.drivers.driver import DirtyReport, DomainFlags, Prot, Range, unsupported
from softiommu.drivers.vtd.queue import ALL_OF_PASID, DOMAIN, PAGES, PAGES_OF_PASID, Descriptor, device_tlb
from softiommu.drivers.vtd.routes import EVERYWHERE
from softiommu.errors import ModelError, UapiError
from softiommu.hardware.vtd.commands import Iotlb0, PasidIotlb0, Range as Pages, Type
from softiommu.hardware.vtd.tables import WIDTHS, Pasid0, Pasid1, Pasid2, Pgtt
from softiommu.pagetable.engine import PageTable, TableRange
from softiommu.pagetable.formats import VARIANTS, vtdss
from softiommu.pagetable.kinds import HW_DIRTY, NO_MEMORY, OK, Table

if TYPE_CHECKING:
    from softiommu.drivers.vtd.driver import VtdDriver
    from softiommu.drivers.vtd.nested import VtdNestedDomain

#: More page-selective commands than this cost more than forgetting the domain.
_MOST_RANGES = 8


class Route(NamedTuple):
    """A stream, or one of its PASIDs, that a domain translates."""

    sid: int
    pasid: int | None


class VtdDomain:
    """A page table that devices behind one unit share. `first`: of the first stage, which has no write-only leaves."""

    def __init__(self, driver: VtdDriver, flags: DomainFlags = DomainFlags.NONE, first: bool = False) -> None:
        self.owner, self.flags, self.first = driver, flags, first
        self.aw = max(aw for aw in WIDTHS if driver.cap.SAGAW >> aw & 1)
        table = _first_table(driver) if first else VARIANTS[WIDTHS[self.aw]]
        try:
            self.pages = PageTable(driver.memory, table)
        except MemoryError as error:
            raise UapiError(ENOMEM, "no memory for a page table") from error
        self.did = driver.take_did()
        large = 1 | driver.cap.FS1GP << 1 if first else driver.cap.SSLPS
        self.page_sizes = 1 << 12 | (large & 1) << 21 | (large >> 1 & 1) << 30
        self.pages.sizes &= self.page_sizes
        # The upper half of a first stage's addresses, beyond the gap, is left alone.
        width = table.input_bits - 1 if first else min(table.input_bits, driver.cap.MGAW + 1)
        self.aperture = Range(0, (1 << width) - 1)
        self.snoops = self.tracks_dirty = False
        self.routes: list[Route] = []
        #: The guests' tables over this one.
        self.children: list[VtdNestedDomain] = []
        self._was_mapped = False
        self._removed: list[tuple[int, int]] = []
        self._tables: list[TableRange] = []

    @property
    def cache_coherent(self) -> bool:
        """Whether DMA through it is coherent whatever the device asks for."""
        return self.snoops

    def pasid_words(self) -> tuple[Pasid0, Pasid1, Pasid2]:
        """The PASID entry of what is attached to it."""
        ecap, root = self.owner.ecap, self.pages.root >> 12
        tags = Pasid1.of(DID=self.did, PWSNP=ecap.SMPWCS, PGSNP=int(self.first and self.snoops))
        if self.first:
            five = int(self.pages.table.input_bits == 57)
            return Pasid0.of(P=1, PGTT=Pgtt.FIRST), tags, Pasid2.of(FSPM=five, FSPTPTR=root)
        how = Pasid0.of(P=1, AW=self.aw, PGTT=Pgtt.SECOND, SSADE=int(self.tracks_dirty), SSPTPTR=root)
        return how, tags, Pasid2(0)

    def map(self, iova: int, pa: int, length: int, prot: Prot) -> None:
        """Fill the table. ENOMEM: none of it is mapped then; EINVAL: no right, which a second stage cannot say."""
        status, done = self.pages.map(iova, pa, length, self._leaf(prot))
        self._was_mapped = True
        if status == OK:
            if self.owner.cap.CM:
                self._gather(iova, length)
                self.flush()
            return
        if done:
            self.unmap(iova, done)
            self.flush()
        if status == NO_MEMORY:
            raise UapiError(ENOMEM, "no memory for a page table")
        raise ModelError(f"{iova:#x}..{iova + length - 1:#x} cannot be mapped: status {status}")

    def _leaf(self, prot: Prot) -> int:
        """The rights and wishes of a new leaf."""
        if self.first:
            return prot.value
        if not prot.value:
            raise UapiError(EINVAL, "a second-stage leaf without any right is no leaf")
        if DomainFlags.NEST_PARENT in self.flags and not prot.writable:
            raise UapiError(EINVAL, "no mapping of a nest parent is for reading only (erratum 772415)")
        if self.owner.quirks.write_only_is_readable:
            prot |= Prot.READ
        return prot.value | (vtdss.SNOOP if self.snoops else 0)

    def unmap(self, iova: int, length: int) -> int:
        """Empty the table; `flush` completes it."""
        removed = self.pages.unmap(iova, length)
        for run in removed.ranges:
            self._gather(run.iova, run.length)
        self._tables += removed.tables
        return removed.length

    def _gather(self, iova: int, length: int) -> None:
        if self._removed and self._removed[-1][1] + 1 == iova:
            self._removed[-1] = (self._removed[-1][0], iova + length - 1)
        else:
            self._removed.append((iova, iova + length - 1))

    def flush(self) -> None:
        """Invalidate what was removed, then give the tables back that nothing leads to any more."""
        if not self._removed and not self._tables:
            return
        ranges = [smallest_block(first, last) for first, last in self._removed]
        most = self.owner.cap.MAMV if self.owner.cap.PSI else -1
        if len(ranges) > _MOST_RANGES or any(am > most for _, am in ranges):
            self._forget([], False)
        else:
            self._forget(ranges, leaves_only=not self._tables)
        self.pages.free_tables(self._tables)
        self._removed, self._tables = [], []

    def _forget(self, ranges: list[tuple[int, int]], leaves_only: bool) -> None:
        """Forget 2**am pages from each address (address, am); all of the domain where no range is given."""
        self.owner.queue.submit(*self._iotlb(ranges, leaves_only))
        where = ranges or [(0, EVERYWHERE)]
        cached = [route for route in self.routes if self.owner.routes.uses_ats(route.sid)]
        # A device TLB is emptied after the IOTLB, from which it would be filled again.
        self.owner.queue.submit(*(device_tlb(*route, at, am) for route in cached for at, am in where))
        for child in self.children:
            child.forget_all()

    def _iotlb(self, ranges: list[tuple[int, int]], leaves_only: bool) -> list[Descriptor]:
        pages = [Pages.of(ADDR=at >> 12, AM=am, IH=int(leaves_only)) for at, am in ranges]
        if not self.first:
            low = Iotlb0.of(TYPE=Type.IOTLB, G=PAGES if pages else DOMAIN, DID=self.did)
            return [(low, page) for page in pages or [Pages(0)]]
        how = PasidIotlb0.of(TYPE=Type.PASID_IOTLB, G=PAGES_OF_PASID if pages else ALL_OF_PASID, DID=self.did)
        pasids = sorted({route.pasid or 0 for route in self.routes})
        return [(how.replace(PASID=pasid), page) for pasid in pasids for page in pages or [Pages(0)]]

    def iova_to_pa(self, iova: int) -> int | None:
        """What the table says."""
        found = self.pages.translate(iova)
        return found.oa if found.status == OK else None

    def enforce_cache_coherency(self) -> bool:
        """From now on a second stage's leaves are mapped with SNP, and a first stage's PASID entries snoop. A second
        stage that was ever mapped stays as it is."""
        if self.snoops:
            return True
        if not self.owner.ecap.SC or (not self.first and self._was_mapped):
            return False
        self.snoops = True
        self._refresh()
        return True

    def _refresh(self) -> None:
        for route in self.routes:
            self.owner.routes.refresh(*route, self)
        for child in self.children:
            child.refresh()

    def set_dirty_tracking(self, enable: bool) -> None:
        """Let the hardware set dirty flags, or not (SSADE)."""
        if DomainFlags.DIRTY_TRACKING not in self.flags:
            raise unsupported("the domain was made without dirty tracking")
        if enable != self.tracks_dirty:
            self.tracks_dirty = enable
            self._refresh()

    def read_dirty(self, window: Range, report: DirtyReport | None, clear: bool) -> None:
        """Report the leaves that were written; those that are cleared are flushed, so that they can be set again."""
        if DomainFlags.DIRTY_TRACKING not in self.flags:
            raise unsupported("the domain was made without dirty tracking")
        for run in self.pages.harvest(window.first, window.last, clear):
            if report is not None:
                report.record(run.iova, run.length)
            if clear:
                self._gather(run.iova, run.length)
        if clear:
            self.flush()

    def free(self) -> None:
        """Forget everything of the domain, and give its tables and its id back."""
        self._forget([], False)
        self.pages.free_tables(self._tables)
        self.pages.destroy()
        self.owner.give_did(self.did)


def _first_table(driver: VtdDriver) -> Table:
    """A first stage's table: the widest; the driver sets its dirty flags itself, ahead."""
    table = VARIANTS["x86-64-5level" if driver.cap.FS5LP else "x86-64-4level"]
    return table._replace(option=table.option & ~HW_DIRTY)


def smallest_block(first: int, last: int) -> tuple[int, int]:
    """The smallest aligned power of two of pages that covers a range: its address, and its logarithm (AM)."""
    am = (first ^ last).bit_length() - 12 if first ^ last >= 1 << 12 else 0
    return first & ~((1 << 12 + am) - 1), am
