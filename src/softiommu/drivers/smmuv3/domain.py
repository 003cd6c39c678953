"""A domain of SMMUv3: a table of stage 1 or stage 2 in memory, and the invalidations that its changes need."""

from __future__ import annotations

from collections.abc import Iterator
from errno import EBUSY, EINVAL, ENOMEM
from typing import TYPE_CHECKING, NamedTuple

from softiommu.drivers.driver import DirtyReport, DomainFlags, Prot, Range, unsupported
from softiommu.drivers.smmuv3 import pages
from softiommu.drivers.smmuv3.queue import Command, atc_inv, every_atc
from softiommu.errors import ModelError, UapiError
from softiommu.hardware.smmuv3.commands import (
    TLBI_TG,
    Address1,
    Asid0,
    El2Va0,
    Op,
    Va0,
    Vaa0,
    Vmid0,
    VmidAsid0,
)
from softiommu.hardware.smmuv3.tables import Config, Eats, Ste0, Ste1
from softiommu.pagetable.engine import PageTable, Run, TableRange
from softiommu.pagetable.kinds import NO_MEMORY, OK

if TYPE_CHECKING:
    from softiommu.drivers.smmuv3.driver import SmmuDriver

#: More commands than this cost more than forgetting the address space.
_MOST_COMMANDS = 64
_MOST_GRANULES = 31


#: The words of an STE.
Entry = tuple[int, ...]

#: A stream that is blocked, without an event.
ABORT: Entry = (Ste0.of(V=1, CONFIG=Config.ABORT), 0, 0, 0, 0, 0, 0, 0)
_INCOMING = 1


class Route(NamedTuple):
    """A stream, or one of its substreams, that a domain translates."""

    sid: int
    pasid: int | None


class SmmuDomain:
    """A page table that devices behind one SMMU share. `first`: of stage 1, which an ASID names; else of stage 2,
    which a VMID names."""

    cache_coherent = False

    def __init__(self, driver: SmmuDriver, flags: DomainFlags, first: bool) -> None:
        self.owner, self.flags, self.first = driver, flags, first
        dirty = DomainFlags.DIRTY_TRACKING in flags
        have = driver.limits
        table = pages.stage1(have, dirty) if first else pages.stage2(have)
        self._ids = driver.asids if first else driver.vmids
        self.id = self._ids.take()
        try:
            self.pages = PageTable(driver.memory, table)
        except MemoryError as error:
            self._ids.give(self.id)
            raise UapiError(ENOMEM, "no memory for a page table") from error
        # The kernel's tables have no runs of leaves.
        lg2, width = table.granule_lg2, table.bits
        self.page_sizes = sum(1 << lg2 + width * level for level in range(table.leaf_top + 1))
        self.pages.sizes &= self.page_sizes
        self.aperture = Range(0, (1 << table.input_bits) - 1)
        self.routes: list[Route] = []
        #: The streams of guests whose STEs lie over this stage 2.
        self.nested: list[Route] = []
        #: How many vIOMMUs are made over it.
        self.viommus = 0
        self._own_id = self.id
        self._removed: list[Run] = []
        self._tables: list[TableRange] = []

    # What configuration says of it

    @property
    def context(self) -> tuple[int, ...]:
        """The CD of stage 1."""
        return pages.context(self.pages.table, self.pages.root, self.id, self.owner.idr0)

    #: Whether devices may ask for translations.
    uses_ats = True

    def entry(self, ats: bool) -> Entry:
        """The STE of stage 2."""
        tags, root = pages.second(self.pages.table, self.pages.root, self.id, self.owner.idr0)
        attributes = Ste1.of(EATS=Eats.FULL if ats else Eats.OFF, SHCFG=_INCOMING)
        return Ste0.of(V=1, CONFIG=Config.S2), attributes, tags, root, 0, 0, 0, 0

    def join(self, route: Route) -> None:
        """A stream, or a substream, is routed through it from now on."""
        self.routes.append(route)

    def leave(self, route: Route) -> None:
        """It is not any more."""
        self.routes.remove(route)

    # A VM's VMID

    def share_vmid(self, vmid: int) -> None:
        """Take the VMID that a VM has on its CPUs, so that what these broadcast is for this stage 2, too. EINVAL: no
        VMID of this SMMU; EBUSY: another domain has it, or a vIOMMU over this one rests on another."""
        if not 0 < vmid <= self._ids.last:
            raise UapiError(EINVAL, f"VMID {vmid:#x} is none of 0x1..{self._ids.last:#x}")
        if self.viommus and vmid != self.id:
            raise UapiError(EBUSY, f"a vIOMMU over the parent rests on VMID {self.id:#x}, and not on {vmid:#x}")
        if vmid != self.id and not self._ids.claim(vmid):
            raise UapiError(EBUSY, f"another domain has VMID {vmid:#x}")
        self._rename(vmid)

    def take_own_vmid(self) -> None:
        """No VM's VMID is shared any more. What the SMMU has cached under it goes, before another VM has it."""
        shared = self.id
        if shared != self._own_id:
            self._rename(self._own_id)
            self._ids.give(shared)

    def _rename(self, vmid: int) -> None:
        old, self.id = self.id, vmid
        if vmid == old:
            return
        for route in (*self.routes, *self.nested):
            self.owner.routes.renew(route.sid)
        self.owner.queue.submit((Vmid0.of(OPCODE=Op.TLBI_S12_VMALL, VMID=old), 0))

    # Mapping

    def map(self, iova: int, pa: int, length: int, prot: Prot) -> None:
        """Fill the table. ENOMEM: none of it is mapped then; EINVAL: no right, which no leaf can say."""
        if not prot.value:
            raise UapiError(EINVAL, "a leaf without any right is no leaf")
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
        for run in removed.ranges:
            self._gather(run)
        self._tables += removed.tables
        return removed.length

    def _gather(self, run: Run) -> None:
        last = self._removed[-1] if self._removed else None
        if last is not None and last.last + 1 == run.iova and last.lg2 == run.lg2:
            self._removed[-1] = last._replace(length=last.length + run.length)
        else:
            self._removed.append(run)

    def flush(self) -> None:
        """Invalidate what was removed, then give the tables back that nothing leads to any more."""
        if not self._removed and not self._tables:
            return
        commands = list(self._ranges(leaf=not self._tables))
        self._forget(commands if len(commands) <= _MOST_COMMANDS else [], [(r.iova, r.last) for r in self._removed])
        self.pages.free_tables(self._tables)
        self._removed, self._tables = [], []

    def _forget(self, commands: list[Command], ranges: list[tuple[int, int]]) -> None:
        """Carry out invalidations (none: of the whole address space), then those of device TLBs, which could be
        filled again before."""
        nested = [(Vmid0.of(OPCODE=Op.TLBI_NH_ALL, VMID=self.id), 0)] if self._is_parent else []
        self.owner.queue.submit(*(commands or [self._all()]), *nested)
        uses_ats = self.owner.routes.uses_ats
        cached = [route for route in self.routes if uses_ats(route.sid)]
        if len(ranges) > _MOST_COMMANDS:
            ranges = []
        where = ranges or [(0, 2**64 - 1)]
        if cached:
            self.owner.queue.submit(*(atc_inv(*route, *each) for route in cached for each in where))
        # Which of a guest's addresses led here is the guest's own knowledge.
        for route in self.nested:
            if uses_ats(route.sid):
                self.owner.queue.submit(*every_atc(route.sid))

    @property
    def _is_parent(self) -> bool:
        """A guest's first stages lie over it: what is cached of both stages is theirs."""
        return DomainFlags.NEST_PARENT in self.flags

    def _all(self) -> Command:
        """Forget the address space."""
        if not self.first:
            return Vmid0.of(OPCODE=Op.TLBI_S12_VMALL, VMID=self.id), 0
        if self.owner.is_host:
            return Asid0.of(OPCODE=Op.TLBI_EL2_ASID, ASID=self.id), 0
        return VmidAsid0.of(OPCODE=Op.TLBI_NH_ASID, ASID=self.id), 0

    def _ranges(self, leaf: bool) -> Iterator[Command]:
        """Forget what was removed, by address. `leaf`: no table was."""
        for run in self._removed:
            if self.owner.has_ranges:
                yield from self._by_range(run, leaf)
            else:
                for at in range(run.iova, run.last + 1, 1 << run.lg2):
                    yield self._by_address(Address1.of(LEAF=int(leaf), ADDR=at >> 12))

    def _by_range(self, run: Run, leaf: bool) -> Iterator[Command]:
        """Range commands of up to 31 * 2**SCALE granules each."""
        t = self.pages.table
        at, granules = run.iova, run.length >> t.granule_lg2
        ttl = 3 - (run.lg2 - t.granule_lg2) // t.bits if leaf else 0
        if not leaf and granules & _MOST_GRANULES == 1:
            granules += 1  # a command for one granule without a level is reserved
        where = Address1.of(LEAF=int(leaf), TTL=ttl, TG=_range_code(t.granule_lg2))
        while granules:
            scale = (granules & -granules).bit_length() - 1
            number = granules >> scale & _MOST_GRANULES
            yield self._by_address(where.replace(ADDR=at >> 12), NUM=number - 1, SCALE=scale)
            at += number << scale + t.granule_lg2
            granules -= number << scale

    def _by_address(self, where: Address1, **fields: int) -> Command:
        if not self.first:
            return Vaa0.of(OPCODE=Op.TLBI_S2_IPA, VMID=self.id, **fields), where
        if self.owner.is_host:
            return El2Va0.of(OPCODE=Op.TLBI_EL2_VA, ASID=self.id, **fields), where
        return Va0.of(OPCODE=Op.TLBI_NH_VA, ASID=self.id, **fields), where

    def iova_to_pa(self, iova: int) -> int | None:
        """What the table says."""
        found = self.pages.translate(iova)
        return found.oa if found.status == OK else None

    def enforce_cache_coherency(self) -> bool:
        """No SMMU overrides what a device asks for at this place."""
        return False

    # Dirty tracking

    def set_dirty_tracking(self, enable: bool) -> None:
        """The hardware sets dirty flags as long as the domain lives; the manager clears them before it starts."""
        self._check_tracking()

    def _check_tracking(self) -> None:
        if DomainFlags.DIRTY_TRACKING not in self.flags:
            raise unsupported("the domain was made without dirty tracking")

    def read_dirty(self, window: Range, report: DirtyReport | None, clear: bool) -> None:
        """Report the leaves that were written; those that are cleared are flushed, so that they can be set again."""
        self._check_tracking()
        for run in self.pages.harvest(window.first, window.last, clear):
            if report is not None:
                report.record(run.iova, run.length)
            if clear:
                self._gather(run)
        if clear:
            self.flush()

    def free(self) -> None:
        """Forget everything of the domain, and give its tables and its id back."""
        self._forget([], [])
        self.pages.free_tables(self._tables)
        self.pages.destroy()
        self._ids.give(self._own_id)


def _range_code(granule_lg2: int) -> int:
    return next(code for code, lg2 in TLBI_TG.items() if lg2 == granule_lg2)
