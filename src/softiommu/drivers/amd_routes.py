"""Device table entries and GCR3 tables, as a driver of the AMD IOMMU writes them: who is translated by which domain."""

from __future__ import annotations

from collections.abc import Callable
from errno import EINVAL, ENOMEM
from typing import TYPE_CHECKING, NamedTuple

from softiommu.drivers.amd_nested import AmdNested
from softiommu.drivers.amd_queue import EVERYWHERE, Command, CommandBuffer, device_tlb, entry_of, pages_of
from softiommu.errors import UapiError
from softiommu.hardware.amd.registers import DeviceTableBase, Efr
from softiommu.hardware.amd.tables import DTE_SIZE, Dte, Dte0, Dte1, Dte2, Gcr3Entry, Had
from softiommu.memory.physical import PAGE, PhysicalMemory

if TYPE_CHECKING:
    from softiommu.drivers.amd_domain import AmdDomain

_DEVICES = 1 << 16
_HALF = DTE_SIZE // 2
#: Nobody is translated, and nobody passes.
_BLOCKED = Dte(Dte0.of(V=1, TV=1))


class Route(NamedTuple):
    """A device, or one of its PASIDs, that a domain translates."""

    sid: int
    pasid: int | None


class Stream:
    """A requester id: its domain, those of its PASIDs, and its GCR3 table if it has one."""

    def __init__(self, sid: int, ats: bool, pri: bool, glx: int) -> None:
        self.sid, self.ats, self.pri, self.glx = sid, ats, pri, glx
        self.base: AmdDomain | AmdNested | None = None
        self.pasids: dict[int, AmdDomain] = {}
        self.gcr3 = 0
        #: The domain id of its guest translations, when it has a GCR3 table.
        self.did = 0
        self.tables: list[int] = []
        #: Lets the function ask for translations, or not; and whether it may not, since a guest has it.
        self.set_ats: Callable[[bool], None] | None = None
        self.silent = False

    def silence(self, silent: bool) -> None:
        """Turn the function's ATS off, or on again."""
        if self.ats and self.silent != silent and self.set_ats is not None:
            self.set_ats(not silent)
        self.silent = silent

    @property
    def guest(self) -> bool:
        """Whether the device table entry leads to the GCR3 table."""
        return bool(self.pasids) or (self.base is not None and self.base.guest)


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
        q1 = Dte1.of(I=int(stream.ats))
        q0 = Dte0.of(V=1, TV=1, IR=1, IW=1, PPR=int(stream.pri), GPRP=int(stream.pri))
        if stream.guest:
            q0 = q0.replace(GV=1, GIoV=1, GLX=stream.glx)
            q2 = Dte2.of(GuestPagingMode=int(self._five_levels))
            return Dte(q0, q1.replace(DomainID=stream.did), q2).with_gcr3_root(stream.gcr3)
        domain = stream.base
        if domain is None:
            return Dte(Dte0.of(V=1), Dte1(0))
        host = domain.viommu.parent if isinstance(domain, AmdNested) else domain
        had = Had.ACCESSED_AND_DIRTY if host.tracks_dirty else Had.NONE
        q0 = q0.replace(Mode=host.mode, HostPageTableRoot=host.pages.root >> 12, HAD=had)
        entry = Dte(q0, q1.replace(DomainID=host.did))
        return domain.entry(entry) if isinstance(domain, AmdNested) else entry


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

    def check(self, sid: int, pasid: int | None, domain: AmdDomain | AmdNested) -> None:
        """EINVAL: host tables and PASIDs of one device cannot work together, since the entry would nest them."""
        stream = self.streams[sid]
        if pasid is None and not domain.guest and stream.pasids:
            raise UapiError(EINVAL, "a device with PASIDs needs a domain with guest tables")
        if pasid is not None and not domain.guest:
            raise UapiError(EINVAL, "a PASID needs a domain with guest tables")
        if pasid is not None and stream.base is not None and not stream.base.guest:
            raise UapiError(EINVAL, "a device on host tables has no PASIDs")

    def reserve(self, sid: int, pasid: int | None, domain: AmdDomain | AmdNested) -> None:
        """Make what a route needs. ENOMEM; nothing that the device sees has changed."""
        if not domain.guest:
            return
        stream = self.streams[sid]
        if not stream.gcr3:
            gcr3 = new_table(self._memory, PAGE, "a GCR3 table")
            try:
                stream.did = domain.owner.take_did()
            except UapiError:
                self._memory.free(gcr3)
                raise
            stream.gcr3 = gcr3
            stream.tables.append(gcr3)
        self._slot(stream, pasid or 0)

    def _slot(self, stream: Stream, pasid: int) -> int:
        """The address of a PASID's entry in the GCR3 table; tables are made on the way. ENOMEM."""
        table = stream.gcr3
        for level in range(stream.glx, 0, -1):
            at = table + 8 * (pasid >> 9 * level & 0x1FF)
            entry = Gcr3Entry(self._memory.read_u64(at))
            if not entry.V:
                entry = Gcr3Entry.of(V=1, ADDR=new_table(self._memory, PAGE, "a GCR3 table") >> 12)
                stream.tables.append(entry.ADDR << 12)
                self._memory.write_u64(at, entry)
            table = entry.ADDR << 12
        return table + 8 * (pasid & 0x1FF)

    def route(self, sid: int, pasid: int | None, domain: AmdDomain | AmdNested | None) -> None:
        """Route a device, or one of its PASIDs, through a domain, or block it; and let the hardware forget the old."""
        stream = self.streams[sid]
        old = stream.base if pasid is None else stream.pasids.get(pasid)
        if isinstance(domain, AmdNested):
            stream.silence(True)
        if pasid is None:
            stream.base = domain
        elif domain is None or isinstance(domain, AmdNested):
            stream.pasids.pop(pasid, None)
        else:
            stream.pasids[pasid] = domain
        if stream.gcr3:
            plain = None if isinstance(domain, AmdNested) else domain
            root = plain.pages.root >> 12 if plain is not None and plain.guest else 0
            self._memory.write_u64(self._slot(stream, pasid or 0), Gcr3Entry.of(V=int(bool(root)), ADDR=root))
        self.table.write(stream)
        if domain is not None and not isinstance(domain, AmdNested):
            stream.silence(False)
        if old is not None:
            self._queue.submit(*self.forget(stream, pasid, old))

    def forget(self, stream: Stream, pasid: int | None, domain: AmdDomain | AmdNested) -> list[Command]:
        """The commands after which nothing of a route's old domain is cached."""
        number = (pasid or 0) if domain.guest else None
        did = stream.did if domain.guest else domain.did
        commands = [pages_of(did, number, *EVERYWHERE)]
        if stream.ats:
            commands.append(device_tlb(stream.sid, pasid, *EVERYWHERE))
        return commands


def new_table(memory: PhysicalMemory, size: int, what: str) -> int:
    """Zeroed memory for a structure. ENOMEM."""
    try:
        return memory.alloc(size)
    except MemoryError as error:
        raise UapiError(ENOMEM, f"no memory for {what}") from error
