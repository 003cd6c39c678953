"""A second-stage domain of VT-d: a table in memory, and the invalidations that its changes need."""

from __future__ import annotations

from errno import ENOMEM
from typing import TYPE_CHECKING

from softiommu.drivers.driver import DirtyReport, DomainFlags, Prot, Range, unsupported
from softiommu.errors import ModelError, UapiError
from softiommu.hardware.vtd.tables import WIDTHS
from softiommu.pagetable.engine import PageTable, TableRange
from softiommu.pagetable.formats import VARIANTS, vtdss
from softiommu.pagetable.kinds import NO_MEMORY, OK

if TYPE_CHECKING:
    from softiommu.drivers.vtd import VtdDriver

#: More page-selective commands than this cost more than forgetting the domain.
_MOST_RANGES = 8


class VtdDomain:
    """A page table that devices behind one unit share."""

    flags = DomainFlags.NONE

    def __init__(self, driver: VtdDriver) -> None:
        self.owner = driver
        self.aw = max(aw for aw in WIDTHS if driver.cap.SAGAW >> aw & 1)
        table = VARIANTS[WIDTHS[self.aw]]
        try:
            self.pages = PageTable(driver.memory, table)
        except MemoryError as error:
            raise UapiError(ENOMEM, "no memory for a page table") from error
        self.did = driver.take_did()
        large = 1 << 21 if driver.cap.SSLPS & 1 else 0
        self.page_sizes = 1 << 12 | large | (1 << 30 if driver.cap.SSLPS & 2 else 0)
        self.pages.sizes &= self.page_sizes
        self.aperture = Range(0, (1 << min(table.input_bits, driver.cap.MGAW + 1)) - 1)
        self.cache_coherent = bool(driver.ecap.SC)
        self._snoop = 0
        self._removed: list[tuple[int, int]] = []
        self._tables: list[TableRange] = []

    def map(self, iova: int, pa: int, length: int, prot: Prot) -> None:
        """Fill the table. ENOMEM: none of it is mapped then."""
        status, done = self.pages.map(iova, pa, length, prot.value | self._snoop)
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
        ranges = [_power_of_two(first, last) for first, last in self._removed]
        most = self.owner.cap.MAMV if self.owner.cap.PSI else -1
        if len(ranges) > _MOST_RANGES or any(am > most for _, am in ranges):
            self.owner.flush_domain(self.did)
        else:
            self.owner.flush_pages(self.did, ranges, leaves_only=not self._tables)
        self.pages.free_tables(self._tables)
        self._removed, self._tables = [], []

    def iova_to_pa(self, iova: int) -> int | None:
        """What the table says."""
        found = self.pages.translate(iova)
        return found.oa if found.status == OK else None

    def enforce_cache_coherency(self) -> bool:
        """From now on leaves are mapped with SNP; those that are mapped get it."""
        if not self.owner.ecap.SC:
            return False
        self._snoop = vtdss.SNOOP
        for leaf in list(self.pages.leaves(0, self.aperture.last)):
            self.owner.memory.write_u64(leaf.at, leaf.pte | vtdss.SNP)
            self._gather(leaf.iova, 1 << leaf.lg2)
        self.flush()
        return True

    def set_dirty_tracking(self, enable: bool) -> None:
        """Never asked: the domain has no DIRTY_TRACKING."""
        raise unsupported("legacy mode has no dirty tracking")

    def read_dirty(self, window: Range, report: DirtyReport | None, clear: bool) -> None:
        """Never asked: the domain has no DIRTY_TRACKING."""
        raise unsupported("legacy mode has no dirty tracking")

    def free(self) -> None:
        """Forget everything of the domain, and give its tables and its id back."""
        self.owner.flush_domain(self.did)
        self.pages.free_tables(self._tables)
        self.pages.destroy()
        self.owner.give_did(self.did)


def _power_of_two(first: int, last: int) -> tuple[int, int]:
    """The smallest aligned power of two of pages that covers a range: its address, and its logarithm (AM)."""
    am = (first ^ last).bit_length() - 12 if first ^ last >= 1 << 12 else 0
    return first & ~((1 << 12 + am) - 1), am
