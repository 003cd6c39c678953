"""Device table entries and GCR3 tables, as a driver of the AMD IOMMU writes them: who is translated by which domain."""

from __future__ import annotations

from collections.abc import Callable
from errno import ENOMEM
from typing import TYPE_CHECKING, NamedTuple

from softiommu.drivers.amd.gcr3 import Gcr3Table, check_together, processes_of
from softiommu.drivers.amd.nested import AmdNested
from softiommu.drivers.amd.process import AmdProcess
from softiommu.drivers.amd.queue import EVERYWHERE, Command, CommandBuffer, device_tlb, entry_of, pages_of
from softiommu.errors import UapiError
from softiommu.hardware.amd.registers import DeviceTableBase, Efr
from softiommu.hardware.amd.tables import DTE_SIZE, Dte, Dte0, Dte1, Dte2, Gcr3Entry, Had
from softiommu.memory.physical import PAGE, PhysicalMemory

if TYPE_CHECKING:
    from softiommu.drivers.amd.domain import AmdDomain

_DEVICES = 1 << 16
#: Of guest tables; the others have five.
_LEVELS = 4
_HALF = DTE_SIZE // 2
#: Nobody is translated, and nobody passes.
_BLOCKED = Dte(Dte0.of(V=1, TV=1))


class Route(NamedTuple):
    """A device, or one of its PASIDs, that a domain translates."""

    sid: int
    pasid: int | None


class Stream:
    """A requester id: its domain, those of its PASIDs, and its GCR3 tables if it has any."""

    def __init__(self, sid: int, ats: bool, pri: bool, glx: int) -> None:
        self.sid, self.ats, self.pri, self.glx = sid, ats, pri, glx
        #: By PASID; None: of requests without one.
        self.domains: dict[int | None, AmdDomain | AmdNested | AmdProcess] = {}
        self.gcr3: Gcr3Table | None = None
        #: The one that is used while PASIDs have guests' tables: it lies under the host table below these.
        self.nested_gcr3: Gcr3Table | None = None
        #: Lets the function ask for translations, or not; and whether it may not, since a guest has it.
        self.set_ats: Callable[[bool], None] | None = None
        self.silent = False

    def silence(self, silent: bool) -> None:
        """Turn the function's ATS off, or on again."""
        if self.ats and self.silent != silent and self.set_ats is not None:
            self.set_ats(not silent)
        self.silent = silent

    @property
    def may_ask(self) -> bool:
        """Whether the function may ask for translations: if all of its guests empty its TLB."""
        guests = [domain for domain in self.domains.values() if isinstance(domain, AmdNested | AmdProcess)]
        return self.ats and all(domain.uses_ats for domain in guests)

    @property
    def did(self) -> int:
        """The domain id of its guest translations, when it has a GCR3 table."""
        return 0 if self.gcr3 is None else self.gcr3.did

    @property
    def nested_did(self) -> int:
        """The same of its nested ones."""
        return 0 if self.nested_gcr3 is None else self.nested_gcr3.did

    @property
    def table(self) -> Gcr3Table | None:
        """The GCR3 table that the device table entry leads to."""
        if processes_of(self.domains):
            return self.nested_gcr3
        base = self.domains.get(None)
        return self.gcr3 if self.domains.keys() - {None} or (base is not None and base.guest) else None


class DeviceTable:
    """The device table of one IOMMU, in one segment for all 2**16 devices."""

    def __init__(self, memory: PhysicalMemory, queue: CommandBuffer, efr: Efr) -> None:
        self._memory, self._queue, self._five_levels = memory, queue, efr.GATS > 0
        self._base = new_table(memory, _DEVICES * DTE_SIZE, "the device table")
        memory.write(self._base, _BLOCKED.to_bytes() * _DEVICES)

    @property
    def register(self) -> DeviceTableBase:
        """What tells the hardware where it is."""
        return DeviceTableBase.of(SIZE=_DEVICES * DTE_SIZE // PAGE - 1, BASE=self._base >> 12)

    def entry(self, sid: int) -> Dte:
        """The entry of a device."""
        return Dte.from_bytes(self._memory.read(self._base + sid * DTE_SIZE, DTE_SIZE))

    def write(self, stream: Stream) -> bool:
        """Bring a device's entry to what its domains ask for, and let the hardware forget the old one; whether it
        changed.

        The hardware reads halves of 16 bytes. What it may find between two of them is never a translation that mixes
        both entries: the half that is not used comes first, and where both are used the device is blocked between.
        """
        old, new = self.entry(stream.sid), self._wanted(stream)
        if old == new:
            return False
        modes = old.q2.GuestPagingMode != new.q2.GuestPagingMode
        if old.q0.V and old.q0.GV and new.q0.GV and modes:
            self._store(stream.sid, _BLOCKED, low_first=True)
            self._store(stream.sid, new, low_first=False)
        else:
            self._store(stream.sid, new, low_first=bool(old.q0.GV and not new.q0.GV))
        return True

    def _store(self, sid: int, dte: Dte, low_first: bool) -> None:
        at, raw = self._base + sid * DTE_SIZE, dte.to_bytes()
        halves = [(at, raw[:_HALF]), (at + _HALF, raw[_HALF:])]
        for place, half in halves if low_first else reversed(halves):
            self._memory.write(place, half)
        self._queue.submit(entry_of(sid))

    def _wanted(self, stream: Stream) -> Dte:
        q1 = Dte1.of(I=int(stream.may_ask))
        q0 = Dte0.of(V=1, TV=1, IR=1, IW=1, PPR=int(stream.pri), GPRP=int(stream.pri))
        base, table, processes = stream.domains.get(None), stream.table, processes_of(stream.domains)
        if table is not None:
            parent = processes[0].parent if processes else None
            five = processes[0].levels > _LEVELS if processes else self._five_levels
            q0 = q0.replace(GV=1, GIoV=int(base is None or base is not parent), GLX=stream.glx, **_host(parent))
            entry = Dte(q0, q1.replace(DomainID=table.did), Dte2.of(GuestPagingMode=int(five)))
            return entry.with_gcr3_root(table.root)
        if base is None:
            return Dte(Dte0.of(V=1), Dte1(0))
        assert not isinstance(base, AmdProcess), "what has processes has a GCR3 table"
        host = base.viommu.parent if isinstance(base, AmdNested) else base
        entry = Dte(q0.replace(**_host(host)), q1.replace(DomainID=host.did))
        return base.entry(entry) if isinstance(base, AmdNested) else entry


def _host(domain: AmdDomain | None) -> dict[str, int]:
    """The fields of a device table entry that a host table gives."""
    if domain is None:
        return {}
    had = Had.ACCESSED_AND_DIRTY if domain.tracks_dirty else Had.NONE
    return {"Mode": domain.mode, "HostPageTableRoot": domain.pages.root >> 12, "HAD": had}


class Routes:
    """Who is translated by which domain."""

    def __init__(self, memory: PhysicalMemory, queue: CommandBuffer, efr: Efr) -> None:
        self._memory, self._queue = memory, queue
        self.table = DeviceTable(memory, queue, efr)
        self._glx = efr.GLXSup
        self.streams: dict[int, Stream] = {}

    def add(self, sid: int, ats: bool, pri: bool, pasid_bits: int) -> Stream:
        """A device is there. It is blocked."""
        stream = self.streams.get(sid)
        if stream is None:
            glx = min(max(-(-pasid_bits // 9) - 1, 0), self._glx)
            stream = self.streams[sid] = Stream(sid, ats, pri, glx)
            self.table.write(stream)
        return stream

    def check(self, sid: int, pasid: int | None, domain: AmdDomain | AmdNested | AmdProcess) -> None:
        """Whether a device's entry can say it beside what it says. EINVAL."""
        check_together({**self.streams[sid].domains, pasid: domain})

    def reserve(self, sid: int, pasid: int | None, domain: AmdDomain | AmdNested | AmdProcess) -> None:
        """Make what a route needs. ENOMEM; EINVAL: the parent has no place for it. Nothing that the device sees has
        changed."""
        stream = self.streams[sid]
        if isinstance(domain, AmdProcess):
            if stream.nested_gcr3 is None:
                stream.nested_gcr3 = Gcr3Table(domain.owner, stream.glx, domain.parent)
            stream.nested_gcr3.slot(pasid or 0)
        elif domain.guest:
            if stream.gcr3 is None:
                stream.gcr3 = Gcr3Table(domain.owner, stream.glx)
            stream.gcr3.slot(pasid or 0)

    def settle(self, sid: int) -> None:
        """Give back what no route needs any more, or what one that came to nothing had made."""
        stream = self.streams[sid]
        if stream.nested_gcr3 is None or processes_of(stream.domains):
            return
        self._queue.submit(pages_of(stream.nested_did, None, *EVERYWHERE))
        stream.nested_gcr3.free()
        stream.nested_gcr3 = None

    def route(self, sid: int, pasid: int | None, domain: AmdDomain | AmdNested | AmdProcess | None) -> None:
        """Route a device, or one of its PASIDs, through a domain, or block it; and let the hardware forget the old."""
        stream = self.streams[sid]
        old = stream.domains.pop(pasid, None)
        if domain is not None:
            stream.domains[pasid] = domain
        if not stream.may_ask:
            stream.silence(True)
        for each, entry in ((old, Gcr3Entry(0)), (domain, None)):
            if each is None or isinstance(each, AmdNested) or not each.guest:
                continue
            table = stream.nested_gcr3 if isinstance(each, AmdProcess) else stream.gcr3
            assert table is not None, "it was reserved"
            self._memory.write_u64(table.slot(pasid or 0), each.gcr3 if entry is None else entry)
        self.table.write(stream)
        if stream.domains and stream.may_ask:
            stream.silence(False)
        if old is not None:
            self._queue.submit(*self.forget(stream, pasid, old))
        self.settle(sid)

    def forget(self, stream: Stream, pasid: int | None, domain: AmdDomain | AmdNested | AmdProcess) -> list[Command]:
        """The commands after which nothing of a route's old domain is cached."""
        if isinstance(domain, AmdProcess):
            commands = [pages_of(stream.nested_did, pasid or 0, *EVERYWHERE)]
        elif domain.guest:
            commands = [pages_of(stream.did, pasid or 0, *EVERYWHERE)]
        else:
            ids = dict.fromkeys(filter(None, (domain.did, stream.nested_did)))
            commands = [pages_of(did, None, *EVERYWHERE) for did in ids]
        if stream.ats:
            commands.append(device_tlb(stream.sid, pasid, *EVERYWHERE))
        return commands


def new_table(memory: PhysicalMemory, size: int, what: str) -> int:
    """Zeroed memory for a structure. ENOMEM."""
    try:
        return memory.alloc(size)
    except MemoryError as error:
        raise UapiError(ENOMEM, f"no memory for {what}") from error
