"""A domain of a RISC-V IOMMU: a first- or second-stage table in memory, and the invalidations that its changes need."""

from __future__ import annotations

from errno import EINVAL, ENOMEM, EOPNOTSUPP
from typing import TYPE_CHECKING, NamedTuple

from softiommu.drivers.driver import DirtyReport, DomainFlags, Prot, Range, unsupported
from softiommu.drivers.hidden import KEPT, Places
from softiommu.drivers.riscv.queue import EVERYWHERE, device_tlb
from softiommu.errors import ModelError, UapiError
from softiommu.hardware.riscv.commands import Command, Iotinval0, Iotinval1
from softiommu.hardware.riscv.tables import FIRST_STAGE, SECOND_STAGE, DeviceTa, Iohgatp, Iosatp, ProcessTa, Tc
from softiommu.pagetable.engine import PageTable, Run, TableRange
from softiommu.pagetable.formats import VARIANTS
from softiommu.pagetable.kinds import HW_ACCESSED, HW_DIRTY, NO_MEMORY, OK

if TYPE_CHECKING:
    from softiommu.drivers.riscv.driver import RiscvDriver
    from softiommu.drivers.riscv.slice import RiscvSlice

#: Pointers in directories have a page number of 44 bits.
_DIRECTORIES = 1 << 56
#: More commands than this cost more than forgetting the address space.
_MOST_COMMANDS = 64


class Route(NamedTuple):
    """A stream, or one of its processes, that a domain translates."""

    sid: int
    pasid: int | None


class RiscvDomain:
    """A page table that devices behind one IOMMU share. `first`: of the first stage, which a PSCID names; else of the
    second, which a GSCID names."""

    cache_coherent = False

    def __init__(self, driver: RiscvDriver, flags: DomainFlags, first: bool) -> None:
        self.owner, self.flags, self.first = driver, flags, first
        self._mode = driver.first_mode if first else driver.second_mode
        table = VARIANTS[FIRST_STAGE[driver.first_mode] if first else SECOND_STAGE[driver.second_mode]]
        if DomainFlags.DIRTY_TRACKING in flags:
            table = table._replace(option=table.option | HW_ACCESSED | HW_DIRTY)
        try:
            self.pages = PageTable(driver.memory, table)
        except MemoryError as error:
            raise UapiError(ENOMEM, "no memory for a page table") from error
        self._ids = driver.pscids if first else driver.gscids
        try:
            self.id = self._ids.take()
        except UapiError:
            self.pages.destroy()
            raise
        self.page_sizes = self.pages.sizes
        # Addresses of a first stage are sign-extended: the upper half is left alone.
        end = 1 << table.input_bits - int(first)
        #: Where directories of processes nested on it lie, if it was made for PASIDs.
        self.hidden: Places | None = None
        if not first and DomainFlags.PASID in flags:
            end = min(end, _DIRECTORIES) - KEPT
            self.hidden = Places(Range(end, end + KEPT - 1))
        self.aperture = Range(0, end - 1)
        self.routes: list[Route] = []
        #: The guests over this one.
        self.slices: list[RiscvSlice] = []
        self._tracks_dirty = False
        self._removed: list[Run] = []
        self._tables: list[TableRange] = []

    # What contexts say of it

    @property
    def iohgatp(self) -> Iohgatp:
        """The second stage of a device context."""
        if self.first:
            return Iohgatp(0)
        return Iohgatp.of(MODE=self._mode, GSCID=self.id, PPN=self.pages.root >> 12)

    @property
    def ta(self) -> DeviceTa:
        """The tags of a device or process context."""
        return DeviceTa.of(PSCID=self.id if self.first else 0)

    @property
    def iosatp(self) -> Iosatp:
        """The first stage of a device or process context."""
        return Iosatp.of(MODE=self._mode, PPN=self.pages.root >> 12) if self.first else Iosatp(0)

    def process(self) -> tuple[int, int]:
        """The words of a process context; all 0: a second stage is no process."""
        return (ProcessTa.of(V=1, PSCID=self.id), self.iosatp) if self.first else (0, 0)

    def context(self, tc: Tc) -> list[int]:
        """A device context without processes."""
        return [tc, self.iohgatp, self.ta, self.iosatp]

    # Mapping

    def map(self, iova: int, pa: int, length: int, prot: Prot) -> None:
        """Fill the table. ENOMEM: none of it is mapped then; EOPNOTSUPP: no right, which no leaf can say."""
        if not prot.value:
            raise UapiError(EOPNOTSUPP, "a leaf without any right is no leaf")
        status, done = self.pages.map(iova, pa, length, prot.value)
        if status == OK:
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
        self._removed += removed.ranges
        self._tables += removed.tables
        return removed.length

    def flush(self) -> None:
        """Invalidate what was removed, then give the tables back that nothing leads to any more."""
        if not self._removed and not self._tables:
            return
        # A command with an address is about leaves, or (NL) about what leads to them, too.
        few = sum(run.length >> run.lg2 for run in self._removed) <= _MOST_COMMANDS
        each = few and (not self._tables or bool(self.owner.capabilities.NL))
        self._forget(self._removed if each else [], non_leaf=bool(self._tables))
        self.pages.free_tables(self._tables)
        self._removed, self._tables = [], []

    def _forget(self, runs: list[Run], non_leaf: bool = False) -> None:
        """Forget leaves, and what leads to them; all of the domain where no run is given."""
        leaves = [(place, run.lg2) for run in runs for place in range(run.iova, run.last, 1 << run.lg2)]
        where = leaves or [(0, EVERYWHERE)]
        how = {"AV": 1, "NL": int(non_leaf)} if leaves else {}
        spaces = [space.replace(**how) for space in self._spaces()]
        self.owner.queue.submit(*((space, Iotinval1.of(PAGE=place >> 12)) for space in spaces for place, _ in where))
        # A device TLB is emptied after the IOTLB, from which it would be filled again.
        cached = [route for route in self.routes if self.owner.routes.uses_ats(route.sid)]
        self.owner.queue.submit(*(device_tlb(*route, *leaf) for route in cached for leaf in where))
        # Nobody knows which addresses of a guest lead to these.
        guests = [route for slice in self.slices for route in slice.cached()]
        self.owner.queue.submit(*(device_tlb(*route, 0, EVERYWHERE) for route in guests))

    def _spaces(self) -> list[Iotinval0]:
        """What names the domain in commands: its id, and those of the guests over it."""
        if self.first:
            return [Iotinval0.of(COMMAND=Command.IOTINVAL_VMA, PSCV=1, PSCID=self.id)]
        ids = [self.id, *(slice.id for slice in self.slices)]
        return [Iotinval0.of(COMMAND=Command.IOTINVAL_GVMA, GV=1, GSCID=id) for id in ids]

    def iova_to_pa(self, iova: int) -> int | None:
        """What the table says."""
        found = self.pages.translate(iova)
        return found.oa if found.status == OK else None

    def enforce_cache_coherency(self) -> bool:
        """The hardware cannot."""
        return False

    # Dirty tracking

    def set_dirty_tracking(self, enable: bool) -> None:
        """The hardware sets dirty flags all the time: only what is read of them changes."""
        if DomainFlags.DIRTY_TRACKING not in self.flags:
            raise unsupported("the domain was made without dirty tracking")
        self._tracks_dirty = enable

    def read_dirty(self, window: Range, report: DirtyReport | None, clear: bool) -> None:
        """Report the leaves that were written; those that are cleared are flushed, so that they can be set again.
        EINVAL: nothing is tracked."""
        if DomainFlags.DIRTY_TRACKING not in self.flags:
            raise unsupported("the domain was made without dirty tracking")
        if report is not None and not self._tracks_dirty:
            raise UapiError(EINVAL, "dirty tracking is off")
        written = self.pages.harvest(window.first, window.last, clear)
        for run in written:
            if report is not None:
                report.record(run.iova, run.length)
        if clear:
            self._removed += written
            self.flush()

    def free(self) -> None:
        """Forget everything of the domain, and give its tables and its id back."""
        self._forget([])
        self.pages.free_tables(self._tables)
        self.pages.destroy()
        self._ids.give(self.id)
