"""Context entries and PASID tables, as a driver of VT-d writes them: who is translated by which domain."""

from __future__ import annotations

from errno import ENOMEM
from typing import TYPE_CHECKING, Protocol

from softiommu.drivers.driver import unsupported
from softiommu.drivers.vtd.queue import (
    ALL_OF_PASID,
    DEVICE,
    DOMAIN,
    ONE_PASID,
    InvalidationQueue,
    device_tlb,
)
from softiommu.errors import UapiError
from softiommu.hardware.vtd.commands import Context, Iotlb0, PasidCache0, PasidIotlb0, Type
from softiommu.hardware.vtd.registers import Cap, Ecap
from softiommu.hardware.vtd.tables import (
    ContextHigh,
    ContextLow,
    Pasid0,
    Pasid1,
    Pasid2,
    PasidDirectoryEntry,
    Pgtt,
    RootEntry,
    ScalableContext0,
    ScalableContext1,
    ScalableRootHalf,
    TranslationType,
)
from softiommu.memory.physical import PAGE, PhysicalMemory

if TYPE_CHECKING:
    from softiommu.drivers.function import Function

#: All addresses, as a power of two of pages.
EVERYWHERE = 52


class Routed(Protocol):
    """What a stream can be routed through."""

    def pasid_words(self) -> tuple[Pasid0, Pasid1, Pasid2]:
        """Its PASID table entry; a legacy entry says less of the same."""
        ...


class LegacyRoutes:
    """Legacy mode: a context entry for each stream."""

    def __init__(self, memory: PhysicalMemory, queue: InvalidationQueue, cap: Cap, ecap: Ecap) -> None:
        self._memory, self._queue, self._cap = memory, queue, cap
        self._ats: set[int] = set()
        self._has_device_tlbs = bool(ecap.DT)
        self.root = memory.alloc(PAGE)

    def prepare(self, function: Function) -> None:
        """A function is there. Its own stream asks for translations where it and the hardware can."""
        if function.ats and self._has_device_tlbs:
            self._ats.add(function.sids[0])

    def uses_ats(self, sid: int) -> bool:
        """Whether a stream has a device TLB that is used."""
        return sid in self._ats

    def knows(self, sid: int) -> bool:
        """Every stream can be routed."""
        return True

    def reserve(self, sid: int, pasid: int | None) -> int:
        """The address of a stream's context entry; its context table is made where it is missing. ENOMEM;
        EOPNOTSUPP: a PASID."""
        if pasid is not None:
            raise unsupported("legacy mode has no PASIDs")
        at = self.root + 16 * (sid >> 8)
        root = RootEntry(self._memory.read_u64(at))
        if not root.P:
            root = RootEntry.of(P=1, CTP=new_table(self._memory, PAGE, "a context table") >> 12)
            self._memory.write_u64(at, root)
        return (root.CTP << 12) + 16 * (sid & 0xFF)

    def route(self, sid: int, pasid: int | None, domain: Routed | None) -> None:
        """Route a stream through a domain, or block it. The hardware never sees half of an entry: it is not present
        and forgotten while it changes."""
        at = self.reserve(sid, pasid)
        if ContextLow(self._memory.read_u64(at)).P:
            did = ContextHigh(self._memory.read_u64(at + 8)).DID
            self._memory.write_u64(at, 0)
            self._forget(sid, did)
        if domain is None:
            return
        how, tags, _ = domain.pasid_words()
        kind = TranslationType.DEVICE_TLB if self.uses_ats(sid) else TranslationType.UNTRANSLATED
        self._memory.write_u64(at + 8, ContextHigh.of(AW=how.AW, DID=tags.DID))
        self._memory.write_u64(at, ContextLow.of(P=1, TT=kind, SSPTPTR=how.SSPTPTR))
        if self._cap.CM:
            self._forget(sid, tags.DID)

    def _forget(self, sid: int, did: int) -> None:
        self._queue.submit((Context.of(TYPE=Type.CONTEXT, G=DEVICE, DID=did, SID=sid), 0))
        self._queue.submit((Iotlb0.of(TYPE=Type.IOTLB, G=DOMAIN, DID=did), 0))
        if self.uses_ats(sid):
            self._queue.submit(device_tlb(sid, None, 0, EVERYWHERE))

    def refresh(self, sid: int, pasid: int | None, domain: Routed) -> None:
        """Never asked: nothing of a context entry changes while a domain is attached."""


class ScalableRoutes:
    """Scalable mode: a PASID directory for each stream; its requests without PASID use entry 0."""

    def __init__(self, memory: PhysicalMemory, queue: InvalidationQueue, cap: Cap, ecap: Ecap) -> None:
        self._memory, self._queue, self._cap, self._ecap = memory, queue, cap, ecap
        self._ats: set[int] = set()
        #: A directory has an entry for 64 PASIDs each, and at least 128 of them.
        self._pdts = max(ecap.PSS + 1 - 13, 0) if ecap.PASID else 0
        self.root = memory.alloc(PAGE)

    def prepare(self, function: Function) -> None:
        """Give a function's own stream its context entry, with an empty PASID directory. ENOMEM.

        Linux makes none for the id that a bridge gives to requests: in scalable mode these are blocked.
        """
        sid = function.sids[0]
        if function.ats and self._ecap.DT:
            self._ats.add(sid)
        at = self._context(sid)
        if ScalableContext0(self._memory.read_u64(at)).P:
            return
        directory = new_table(self._memory, 8 << self._pdts + 7, "a PASID directory")
        word = ScalableContext0.of(
            P=1,
            DTE=int(sid in self._ats),
            PASIDE=int(bool(function.pasid_bits and self._ecap.PASID)),
            PRE=int(sid in self._ats and function.pri and bool(self._ecap.PRS)),
            PDTS=self._pdts,
            PASIDDIRPTR=directory >> 12,
        )
        self._memory.write_u64(at + 8, ScalableContext1.of(RID_PASID=0))
        self._memory.write_u64(at, word)
        if self._cap.CM:
            self._queue.submit((Context.of(TYPE=Type.CONTEXT, G=DEVICE, SID=sid), 0))

    def _context(self, sid: int) -> int:
        at = self.root + 16 * (sid >> 8) + 8 * (sid >> 7 & 1)
        root = ScalableRootHalf(self._memory.read_u64(at))
        if not root.P:
            root = ScalableRootHalf.of(P=1, CTP=new_table(self._memory, PAGE, "a context table") >> 12)
            self._memory.write_u64(at, root)
        return (root.CTP << 12) + 32 * (sid & 0x7F)

    def uses_ats(self, sid: int) -> bool:
        """Whether a stream has a device TLB that is used."""
        return sid in self._ats

    def knows(self, sid: int) -> bool:
        """Whether a stream has a context entry."""
        return bool(ScalableContext0(self._memory.read_u64(self._context(sid))).P)

    def reserve(self, sid: int, pasid: int | None) -> int:
        """The address of a PASID table entry; its table is made where it is missing. ENOMEM."""
        context = ScalableContext0(self._memory.read_u64(self._context(sid)))
        number = pasid or 0
        at = (context.PASIDDIRPTR << 12) + 8 * (number >> 6)
        entry = PasidDirectoryEntry(self._memory.read_u64(at))
        if not entry.P:
            entry = PasidDirectoryEntry.of(P=1, SMPTBLPTR=new_table(self._memory, PAGE, "a PASID table") >> 12)
            self._memory.write_u64(at, entry)
        return (entry.SMPTBLPTR << 12) + 64 * (number & 63)

    def route(self, sid: int, pasid: int | None, domain: Routed | None) -> None:
        """Route a stream, or one of its PASIDs, through a domain, or block it. The entry is not present and forgotten
        while it changes."""
        at = self.reserve(sid, pasid)
        old = Pasid0(self._memory.read_u64(at))
        if old.P:
            did = Pasid1(self._memory.read_u64(at + 8)).DID
            self._memory.write_u64(at, old.replace(P=0))
            self._forget(sid, pasid, did, old.PGTT)
        if domain is None:
            return
        how, tags, stage1 = domain.pasid_words()
        for number, word in enumerate((tags, stage1, 0, 0, 0, 0, 0), 1):
            self._memory.write_u64(at + 8 * number, word)
        self._memory.write_u64(at, how)
        if self._cap.CM:
            self._forget(sid, pasid, tags.DID, how.PGTT)

    def refresh(self, sid: int, pasid: int | None, domain: Routed) -> None:
        """A domain's options changed: dirty tracking, snooping. The entry stays present (6.2.3)."""
        at = self.reserve(sid, pasid)
        how, tags, _ = domain.pasid_words()
        self._memory.write_u64(at + 8, tags)
        self._memory.write_u64(at, how)
        self._forget(sid, pasid, tags.DID, how.PGTT)

    def _forget(self, sid: int, pasid: int | None, did: int, pgtt: Pgtt) -> None:
        number = pasid or 0
        self._queue.submit((PasidCache0.of(TYPE=Type.PASID_CACHE, G=ONE_PASID, DID=did, PASID=number), 0))
        if pgtt in (Pgtt.FIRST, Pgtt.NESTED):
            self._queue.submit((PasidIotlb0.of(TYPE=Type.PASID_IOTLB, G=ALL_OF_PASID, DID=did, PASID=number), 0))
        else:
            self._queue.submit((Iotlb0.of(TYPE=Type.IOTLB, G=DOMAIN, DID=did), 0))
        if self.uses_ats(sid):
            self._queue.submit(device_tlb(sid, pasid, 0, EVERYWHERE))


Routes = LegacyRoutes | ScalableRoutes


def new_table(memory: PhysicalMemory, size: int, what: str) -> int:
    """Zeroed memory for a structure. ENOMEM."""
    try:
        return memory.alloc(size, size if size > PAGE else PAGE)
    except MemoryError as error:
        raise UapiError(ENOMEM, f"no memory for {what}") from error
