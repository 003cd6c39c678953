"""Device and process directories, as a driver of a RISC-V IOMMU writes them: who is translated by which domain."""

from __future__ import annotations

from collections.abc import Callable
from errno import EINVAL, ENODEV, ENOMEM
from typing import TYPE_CHECKING

from softiommu.drivers.riscv_domain import RiscvDomain, Route
from softiommu.drivers.riscv_nested import RiscvNested
from softiommu.drivers.riscv_queue import EVERYWHERE, CommandQueue, device_tlb
from softiommu.errors import UapiError
from softiommu.hardware.riscv.commands import Command, Iodir0
from softiommu.hardware.riscv.registers import Capabilities
from softiommu.hardware.riscv.tables import (
    BASE_DC,
    BASE_DDI,
    EXTENDED_DC,
    EXTENDED_DDI,
    PC,
    PDI,
    PDT_LEVELS,
    PDT_WIDTH,
    DirectoryEntry,
    PdtMode,
    Pdtp,
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
    """What a device id is routed through. `pdt` is its process directory, where it can have processes."""

    def __init__(self, pdt: Pdtp | None) -> None:
        self.pdt = pdt
        #: By process id; None: of requests without one.
        self.domains: dict[int | None, RiscvDomain | RiscvNested] = {}


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
                self._streams[sid] = Stream(self._directory(function.pasid_bits) if function.pasid_bits else None)
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
        """Whether a stream's function may ask for translations now."""
        base = stream.domains.get(None)
        return bool(stream.domains) and (not isinstance(base, RiscvNested) or base.uses_ats) and self.uses_ats(sid)

    def pasid_bits(self, wanted: int) -> int:
        """How wide the process ids are that a function of `wanted` bits can use."""
        mode = self._pdt_mode(wanted)
        return 0 if mode is None else min(wanted, PDT_WIDTH[mode])

    def guest_of(self, sid: int) -> RiscvNested | None:
        """The guest's context that a stream is attached to."""
        stream = self._streams.get(sid)
        base = None if stream is None else stream.domains.get(None)
        return base if isinstance(base, RiscvNested) else None

    @property
    def process_bits(self) -> int:
        """How wide the process ids of the largest directory are."""
        return max((PDT_WIDTH[mode] for mode in self._pdts), default=0)

    def _pdt_mode(self, wanted: int) -> PdtMode | None:
        """The smallest directory that has room; else the largest."""
        fitting = [mode for mode in self._pdts if PDT_WIDTH[mode] >= wanted]
        return min(fitting) if fitting else max(self._pdts, default=None)

    def _directory(self, wanted: int) -> Pdtp | None:
        mode = self._pdt_mode(wanted)
        return None if mode is None else Pdtp.of(MODE=mode, PPN=self._page("a process directory") >> 12)

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

    def _process(self, pdt: Pdtp, pid: int) -> int:
        """The address of a process context."""
        table = pdt.PPN << 12
        for level in range(PDT_LEVELS[pdt.MODE] - 1, 0, -1):
            table = self._linked(table + 8 * directory_index(level, pid, PDI), "a process directory")
        return table + PC * directory_index(0, pid, PDI)

    # Routes

    def reserve(self, sid: int, pasid: int | None, domain: RiscvDomain | RiscvNested) -> None:
        """Make what a route will need, and see that it can be. EINVAL: a second stage beside processes; ENOMEM."""
        stream = self._streams[sid]
        whole = domain if pasid is None else stream.domains.get(None)
        if whole is not None and not whole.first and (pasid is not None or stream.domains.keys() - {None}):
            raise UapiError(EINVAL, "a directory of processes under a second stage would be the guest's")
        if stream.pdt is not None and domain.first:
            self._process(stream.pdt, _NO_PASID if pasid is None else pasid)

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
        if stream.pdt is not None and (domain is None or (isinstance(domain, RiscvDomain) and domain.first)):
            self._put_process(sid, stream.pdt, _NO_PASID if pasid is None else pasid, domain)
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

    def _put_process(self, sid: int, pdt: Pdtp, pid: int, domain: RiscvDomain | None) -> None:
        """Change a process context. The hardware never sees half of one: it is not valid and forgotten meanwhile."""
        at = self._process(pdt, pid)
        if ProcessTa(self._memory.read_u64(at)).V:
            self._memory.write_u64(at, 0)
            self._queue.submit((Iodir0.of(COMMAND=Command.IODIR_INVAL_PDT, DV=1, DID=sid, PID=pid), 0))
        if domain is not None:
            self._memory.write_u64(at + 8, domain.iosatp)
            self._memory.write_u64(at, ProcessTa.of(V=1, PSCID=domain.ta.PSCID))

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
        domain, pdt = stream.domains.get(None), stream.pdt
        if not stream.domains:
            return [0] * (self._dc_bytes // 8)
        asks = int(self.asks_for_pages(sid))
        tc = self._tc.replace(EN_ATS=int(self.uses_ats(sid)), EN_PRI=asks, PRPR=asks)
        if pdt is not None and (domain is None or domain.first):
            words: list[int] = [tc.replace(PDTV=1, DPE=1), 0, 0, pdt]
        else:
            assert domain is not None, "processes need a directory"
            words = domain.context(tc)
        return words + [0] * (self._dc_bytes // 8 - len(words))
