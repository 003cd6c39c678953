"""Device and process directories, as a driver of a RISC-V IOMMU writes them: who is translated by which domain."""

from __future__ import annotations

from collections.abc import Callable
from errno import ENODEV, ENOMEM
from typing import TYPE_CHECKING

from softiommu.drivers.riscv.domain import RiscvDomain, Route
from softiommu.drivers.riscv.nested import RiscvNested
from softiommu.drivers.riscv.processes import ProcessDirectory, check_together, guests_of
from softiommu.drivers.riscv.queue import EVERYWHERE, CommandQueue, device_tlb
from softiommu.errors import UapiError
from softiommu.hardware.riscv.commands import Command, Iodir0
from softiommu.hardware.riscv.registers import Capabilities
from softiommu.hardware.riscv.tables import (
    BASE_DC,
    BASE_DDI,
    EXTENDED_DC,
    EXTENDED_DDI,
    PDT_WIDTH,
    DirectoryEntry,
    PdtMode,
    ProcessTa,
    Tc,
    directory_index,
)
from softiommu.memory.physical import PAGE, PhysicalMemory

if TYPE_CHECKING:
    from softiommu.drivers.function import Function

#: The process that requests without a process id belong to, where there is a process directory.
_NO_PASID = 0


def _nothing(enable: bool) -> None:
    """The function's ATS is somebody else's business."""


class Stream:
    """What a device id is routed through. `mode` is how large its process directories are, where it can have such."""

    def __init__(self, mode: PdtMode | None, pdt: ProcessDirectory | None) -> None:
        self.mode, self.pdt = mode, pdt
        #: The directory that is used while guests' first stages are processes: it lies under their second stage.
        self.nested_pdt: ProcessDirectory | None = None
        #: By process id; None: of requests without one.
        self.domains: dict[int | None, RiscvDomain | RiscvNested] = {}

    @property
    def directory(self) -> ProcessDirectory | None:
        """The directory in which processes are now."""
        return self.nested_pdt if guests_of(self.domains) else self.pdt


class Routes:
    """The device directory, of `levels` levels from `root`."""

    def __init__(
        self, memory: PhysicalMemory, queue: CommandQueue, capabilities: Capabilities, root: int, levels: int
    ) -> None:
        self._memory, self._queue, self._root, self._levels = memory, queue, root, levels
        self._ddi = EXTENDED_DDI if capabilities.MSI_FLAT else BASE_DDI
        self._dc_bytes = EXTENDED_DC if capabilities.MSI_FLAT else BASE_DC
        have = {PdtMode.PD8: capabilities.PD8, PdtMode.PD17: capabilities.PD17, PdtMode.PD20: capabilities.PD20}
        self._pdts = [mode for mode, there in have.items() if there]
        updates = int(capabilities.AMO_HWAD)
        self._tc = Tc.of(V=1, SADE=updates, GADE=updates)
        self._streams: dict[int, Stream] = {}
        self._has_ats = bool(capabilities.ATS)
        self._ats: set[int] = set()
        self._pri: set[int] = set()
        #: What lets the function of a stream ask for translations, or not.
        self._set_ats: dict[int, Callable[[bool], None]] = {}

    # Structures

    def prepare(self, function: Function) -> None:
        """A function is there: each of its ids gets a place in the directory. ENODEV: there is none; ENOMEM."""
        for sid in function.sids:
            if sid >> self._ddi[self._levels]:
                raise UapiError(ENODEV, f"device id {sid:#x} has no place in a directory of {self._levels} levels")
            self._context(sid)
            if sid not in self._streams:
                mode = self._pdt_mode(function.pasid_bits) if function.pasid_bits else None
                self._streams[sid] = Stream(mode, None if mode is None else ProcessDirectory(self._memory, mode))
        if function.ats and self._has_ats:
            self._ats.add(function.sids[0])
            if function.pri:
                self._pri.add(function.sids[0])
            if function.set_ats is not None:
                self._set_ats[function.sids[0]] = function.set_ats

    def uses_ats(self, sid: int) -> bool:
        """Whether a stream has a device TLB that is used."""
        return sid in self._ats

    def asks_for_pages(self, sid: int) -> bool:
        """Whether a stream makes page requests."""
        return sid in self._pri

    def _may_ask(self, sid: int, stream: Stream) -> bool:
        """Whether a stream's function may ask for translations now: if all of its guests empty its TLB."""
        domains = stream.domains.values()
        allow = all(domain.uses_ats for domain in domains if isinstance(domain, RiscvNested))
        return bool(domains) and allow and self.uses_ats(sid)

    def pasid_bits(self, wanted: int) -> int:
        """How wide the process ids are that a function of `wanted` bits can use."""
        mode = self._pdt_mode(wanted)
        return 0 if mode is None else min(wanted, PDT_WIDTH[mode])

    def guest_of(self, sid: int, pid: int) -> RiscvNested | None:
        """The guest's context that a request of a stream went by; `pid` is 0 where it had no process."""
        stream = self._streams.get(sid)
        if stream is None:
            return None
        found = stream.domains.get(pid or None)
        if found is None and not guests_of(stream.domains):
            found = stream.domains.get(None)
        return found if isinstance(found, RiscvNested) else None

    @property
    def process_bits(self) -> int:
        """How wide the process ids of the largest directory are."""
        return max((PDT_WIDTH[mode] for mode in self._pdts), default=0)

    def _pdt_mode(self, wanted: int) -> PdtMode | None:
        """The smallest directory that has room; else the largest."""
        fitting = [mode for mode in self._pdts if PDT_WIDTH[mode] >= wanted]
        return min(fitting) if fitting else max(self._pdts, default=None)

    def _page(self, what: str) -> int:
        try:
            return self._memory.alloc(PAGE)
        except MemoryError as error:
            raise UapiError(ENOMEM, f"no memory for {what}") from error

    def _linked(self, at: int, what: str) -> int:
        """The table that a directory's entry leads to; it is made where it is missing."""
        entry = DirectoryEntry(self._memory.read_u64(at))
        if not entry.V:
            entry = DirectoryEntry.of(V=1, PPN=self._page(what) >> 12)
            self._memory.write_u64(at, entry)
        return entry.PPN << 12

    def _context(self, sid: int) -> int:
        """The address of a device context."""
        table = self._root
        for level in range(self._levels - 1, 0, -1):
            table = self._linked(table + 8 * directory_index(level, sid, self._ddi), "a device directory")
        return table + self._dc_bytes * directory_index(0, sid, self._ddi)

    # Routes

    def reserve(self, sid: int, pasid: int | None, domain: RiscvDomain | RiscvNested) -> None:
        """Make what a route will need, and see that it can be. EINVAL as `check_together`; ENOMEM."""
        stream = self._streams[sid]
        after = {**stream.domains, pasid: domain}
        check_together(after)
        guests = guests_of(after)
        if guests and stream.nested_pdt is None:
            assert stream.mode is not None, "a device with PASIDs can have a directory"
            stream.nested_pdt = ProcessDirectory(self._memory, stream.mode, guests[0].slice.parent)
        directory = stream.nested_pdt if guests else stream.pdt
        if directory is not None:
            for pid in {_NO_PASID, pasid or _NO_PASID}:
                directory.context(pid)

    def settle(self, sid: int) -> None:
        """Give back what no route needs any more, or what one that came to nothing had made."""
        stream = self._streams[sid]
        if stream.nested_pdt is not None and not guests_of(stream.domains):
            stream.nested_pdt.free()
            stream.nested_pdt = None

    def route(self, sid: int, pasid: int | None, domain: RiscvDomain | RiscvNested | None) -> None:
        """Route a stream or one of its processes through a domain, or block it."""
        stream = self._streams[sid]
        old = stream.domains.get(pasid)
        if old is domain:
            return
        asked = self._may_ask(sid, stream)
        if domain is not None:
            stream.domains[pasid] = domain
        else:
            del stream.domains[pasid]
        self._put_processes(sid, stream, pasid)
        if not self._may_ask(sid, stream):
            self._set_ats.get(sid, _nothing)(False)
        self._put_device(sid, stream)
        if not asked and self._may_ask(sid, stream):
            self._set_ats.get(sid, _nothing)(True)
        # Until the hardware has forgotten the old one, its invalidations are for this route, too.
        if old is not None:
            if self.uses_ats(sid):
                self._queue.submit(device_tlb(sid, pasid, 0, EVERYWHERE))
            old.routes.remove(Route(sid, pasid))
            if isinstance(old, RiscvNested):
                old.slice.forget_all()
        if domain is not None:
            domain.routes.append(Route(sid, pasid))
        self.settle(sid)

    def _put_processes(self, sid: int, stream: Stream, pasid: int | None) -> None:
        """Bring a process context to what its domain says, in each directory that has it; and that of requests without
        a process id, for which a directory is new when the first process comes."""
        for directory in filter(None, (stream.pdt, stream.nested_pdt)):
            for pid in {None, pasid}:
                domain = stream.domains.get(pid) if directory is stream.directory else None
                self._put_process(sid, directory.context(pid or _NO_PASID), pid or _NO_PASID, domain)

    def _put_process(self, sid: int, at: int, pid: int, domain: RiscvDomain | RiscvNested | None) -> None:
        """Change a process context. The hardware never sees half of one: it is not valid and forgotten meanwhile."""
        ta, fsc = (0, 0) if domain is None else domain.process()
        if (self._memory.read_u64(at), self._memory.read_u64(at + 8)) == (ta, fsc):
            return
        if ProcessTa(self._memory.read_u64(at)).V:
            self._memory.write_u64(at, 0)
            self._queue.submit((Iodir0.of(COMMAND=Command.IODIR_INVAL_PDT, DV=1, DID=sid, PID=pid), 0))
        self._memory.write_u64(at + 8, fsc)
        self._memory.write_u64(at, ta)

    def _put_device(self, sid: int, stream: Stream) -> None:
        """Change a device context, in the same way, if it has to change."""
        at, words = self._context(sid), self._words(sid, stream)
        if [self._memory.read_u64(at + 8 * number) for number in range(len(words))] == words:
            return
        if Tc(self._memory.read_u64(at)).V:
            self._memory.write_u64(at, 0)
            self._queue.submit((Iodir0.of(COMMAND=Command.IODIR_INVAL_DDT, DV=1, DID=sid), 0))
        for number in range(len(words) - 1, -1, -1):
            self._memory.write_u64(at + 8 * number, words[number])

    def _words(self, sid: int, stream: Stream) -> list[int]:
        domain, pdt, guests = stream.domains.get(None), stream.directory, guests_of(stream.domains)
        if not stream.domains:
            return [0] * (self._dc_bytes // 8)
        translations = self._may_ask(sid, stream)
        asks = int(translations and self.asks_for_pages(sid))
        tc = self._tc.replace(EN_ATS=int(translations), EN_PRI=asks, PRPR=asks)
        if guests and pdt is not None:
            default, updates = domain is not guests[0].slice.parent, guests[0].sets_flags
            tc = tc.replace(PDTV=1, DPE=int(default), SADE=int(updates))
            words: list[int] = [tc, guests[0].slice.iohgatp, 0, pdt.pdtp]
        elif pdt is not None and (domain is None or domain.first):
            words = [tc.replace(PDTV=1, DPE=1), 0, 0, pdt.pdtp]
        else:
            assert domain is not None, "processes need a directory"
            words = domain.context(tc)
        return words + [0] * (self._dc_bytes // 8 - len(words))
