"""The stream table and the tables of context descriptors, as a driver of SMMUv3 writes them: who is translated by
which domain."""

from __future__ import annotations

from collections.abc import Callable
from errno import EBUSY, EINVAL, ENODEV, ENOMEM
from typing import TYPE_CHECKING

from softiommu.drivers.smmuv3.domain import ABORT, SmmuDomain
from softiommu.drivers.smmuv3.entries import used_of_cd, used_of_ste, write_entry
from softiommu.drivers.smmuv3.nested import SmmuNested
from softiommu.drivers.smmuv3.queue import CommandQueue, atc_inv, every_atc
from softiommu.errors import UapiError
from softiommu.hardware.smmuv3.commands import CfgiCd0, Leaf1, Op, Stream0
from softiommu.hardware.smmuv3.registers import Idr0, Idr1, StrtabBase, StrtabBaseCfg
from softiommu.hardware.smmuv3.tables import (
    CD_BYTES,
    LEAF_LG2,
    STE_BYTES,
    Cd0,
    Config,
    Eats,
    L1Cd,
    L1Std,
    S1Dss,
    S1Fmt,
    Ste0,
    Ste1,
    Strw,
)
from softiommu.memory.physical import PAGE, PhysicalMemory

if TYPE_CHECKING:
    from softiommu.drivers.function import Function

Target = SmmuDomain | SmmuNested

#: log2 of the streams behind one level-1 descriptor, and of the most level-1 descriptors.
_SPLIT, _MOST_L1 = 8, 17
#: More substreams than this have a two-level table.
_LINEAR_LG2 = LEAF_LG2[S1Fmt.LEAVES_64K]

_WRITE_BACK, _INNER, _INCOMING = 1, 3, 1


class ContextTable:
    """The context descriptors of one stream: 2**bits of them."""

    def __init__(self, memory: PhysicalMemory, queue: CommandQueue, sid: int, bits: int, may_split: bool) -> None:
        self._memory, self._queue, self._sid, self.bits = memory, queue, sid, bits
        self.fmt = S1Fmt.LEAVES_64K if may_split and bits > _LINEAR_LG2 else S1Fmt.LINEAR
        size = 8 << bits - _LINEAR_LG2 if self.fmt else CD_BYTES << bits
        self.base = new_table(memory, size, "a table of context descriptors")

    def at(self, ssid: int) -> int:
        """The address of a descriptor; its leaf is made where it is missing. ENOMEM."""
        if not self.fmt:
            return self.base + CD_BYTES * ssid
        where = self.base + 8 * (ssid >> _LINEAR_LG2)
        entry = L1Cd(self._memory.read_u64(where))
        if not entry.V:
            leaf = new_table(self._memory, CD_BYTES << _LINEAR_LG2, "context descriptors")
            entry = L1Cd.of(V=1, L2PTR=leaf >> 12)
            self._memory.write_u64(where, entry)
            self._forget(ssid, False)  # that there was none may be cached
        return (entry.L2PTR << 12) + CD_BYTES * (ssid & (1 << _LINEAR_LG2) - 1)

    def _forget(self, ssid: int, leaf: bool) -> None:
        low = CfgiCd0.of(OPCODE=Op.CFGI_CD, SSID=ssid, SID=self._sid)
        self._queue.submit((low, Leaf1.of(LEAF=int(leaf))))

    def write(self, ssid: int, words: tuple[int, ...]) -> None:
        """Change a descriptor."""
        write_entry(self._memory, self.at(ssid), words, used_of_cd, lambda: self._forget(ssid, True))

    def clear(self, ssid: int) -> None:
        """A substream has no context."""
        self.write(ssid, (0,) * 8)


class Stream:
    """What one stream is routed through."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.bits = 0
        self.ats = self.pri = False
        #: Its transactions stall where a page is missing.
        self.stalls = False
        #: Lets the device ask for translations, or not.
        self.set_ats: Callable[[bool], None] = lambda enable: None
        self.table: ContextTable | None = None
        self.domain: Target | None = None
        self.pasids: dict[int, Target] = {}

    @property
    def asks_for_pages(self) -> bool:
        """Whether it makes page requests."""
        return self.pri and self.uses_ats

    @property
    def uses_ats(self) -> bool:
        """Whether the device TLB is used: the device has one, and nobody forbids it."""
        return self.ats and (self.domain is None or self.domain.uses_ats)


class Routes:
    """The stream table; with two levels where the hardware has them and stream ids are wide."""

    def __init__(self, memory: PhysicalMemory, queue: CommandQueue, idr0: Idr0, idr1: Idr1, strw: Strw) -> None:
        self._memory, self._queue, self._idr0, self._idr1, self._strw = memory, queue, idr0, idr1, strw
        self._streams: dict[int, Stream] = {}
        self._split = _SPLIT if idr0.ST_LEVEL and idr1.SIDSIZE > _SPLIT else 0
        bits = min(idr1.SIDSIZE, _SPLIT + _MOST_L1) if self._split else idr1.SIDSIZE
        self.bits = bits
        size = 8 << bits - _SPLIT if self._split else STE_BYTES << bits
        self._table = new_table(memory, size, "the stream table")
        if not self._split:
            self._block(self._table, 1 << bits)
        self.base = StrtabBase.of(ADDR=self._table >> 6, RA=1)
        self.shape = StrtabBaseCfg.of(LOG2SIZE=bits, SPLIT=self._split, FMT=int(bool(self._split)))

    def _block(self, table: int, count: int) -> None:
        """Streams that are not there are aborted."""
        for number in range(count):
            self._memory.write_u64(table + STE_BYTES * number, int(ABORT[0]))

    def prepare(self, function: Function) -> None:
        """A function is there: each of its streams gets a place in the table. ENODEV: there is none; ENOMEM."""
        for number, sid in enumerate(function.sids):
            if sid >> self.bits:
                raise UapiError(ENODEV, f"stream id {sid:#x} has no place in a table of 2**{self.bits}")
            if sid not in self._streams:
                self._streams[sid] = Stream(self._place(sid))
            stream = self._streams[sid]
            stream.bits = max(stream.bits, self.pasid_bits(function.pasid_bits))
            stream.ats = stream.ats or bool(not number and function.ats and self._idr0.ATS)
            stream.pri = stream.pri or bool(not number and function.pri and self._idr0.PRI)
            stream.stalls = stream.stalls or bool(not number and self._may_stall(function))
            if not number and function.set_ats is not None:
                stream.set_ats = function.set_ats

    def _may_stall(self, function: Function) -> bool:
        """Whether a function waits for pages without asking for them. One with a TLB of its own does not: what it
        asks for is answered, also that there is nothing."""
        if function.ats and self._idr0.ATS:
            return False
        return self._idr0.STALL_MODEL == 2 or (self._idr0.STALL_MODEL == 0 and function.stalls)

    def stalls(self, sid: int) -> bool:
        """Whether transactions of a stream stall where a page is missing."""
        return self._streams[sid].stalls

    def pasid_bits(self, wanted: int) -> int:
        """How wide the substream ids are that a function can use."""
        return min(wanted, self._idr1.SSIDSIZE) if self._idr0.S1P else 0

    def _place(self, sid: int) -> int:
        if not self._split:
            return self._table + STE_BYTES * sid
        where = self._table + 8 * (sid >> _SPLIT)
        entry = L1Std(self._memory.read_u64(where))
        if not entry.SPAN:
            leaf = new_table(self._memory, STE_BYTES << _SPLIT, "stream table entries")
            self._block(leaf, 1 << _SPLIT)
            entry = L1Std.of(SPAN=_SPLIT + 1, L2PTR=leaf >> 6)
            self._memory.write_u64(where, entry)
        return (entry.L2PTR << 6) + STE_BYTES * (sid & (1 << _SPLIT) - 1)

    def uses_ats(self, sid: int) -> bool:
        """Whether a stream has a device TLB that is used."""
        return self._streams[sid].uses_ats

    def asks_for_pages(self, sid: int) -> bool:
        """Whether a stream makes page requests."""
        return self._streams[sid].asks_for_pages

    def reserve(self, sid: int, pasid: int | None, domain: Target) -> None:
        """Make what a route will need, and see that it can be. EBUSY, EINVAL: stage 2 beside PASIDs; ENOMEM."""
        stream = self._streams[sid]
        if pasid is None and not domain.first and stream.pasids:
            raise UapiError(EBUSY, "PASIDs are in use: stage 2 has none")
        if pasid is not None and stream.domain is not None and not stream.domain.first:
            raise UapiError(EINVAL, "stage 2 has no PASIDs")
        if domain.first:
            if stream.table is None:
                stream.table = ContextTable(self._memory, self._queue, sid, stream.bits, bool(self._idr0.CD2L))
            stream.table.at(pasid or 0)

    def route(self, sid: int, pasid: int | None, domain: Target | None) -> None:
        """Route a stream, or one of its substreams, through a domain, or block it."""
        stream, had = self._streams[sid], self._streams[sid].uses_ats
        leaves_guest = pasid is None and isinstance(stream.domain, SmmuNested)
        if pasid is None:
            stream.domain = domain
        elif domain is not None:
            stream.pasids[pasid] = domain
        elif stream.pasids.pop(pasid, None) is None:
            return
        context = domain.context if isinstance(domain, SmmuDomain) and domain.first else None
        # A context is there before the stream uses it, and goes when it does not.
        if context is not None and stream.table is not None:
            word, *rest = context
            stream.table.write(pasid or 0, (int(word) | Cd0.S.mask * int(stream.stalls), *rest))
        elif pasid is not None and stream.table is not None:
            stream.table.clear(pasid)
        if had and not stream.uses_ats:
            stream.set_ats(False)
        self.renew(sid)
        if pasid is None and context is None and stream.table is not None:
            stream.table.clear(0)
        if stream.stalls and stream.domain is None and not stream.pasids:
            self._queue.submit((Stream0.of(OPCODE=Op.STALL_TERM, SID=sid), 0))
        if had:
            self._queue.submit(*(every_atc(sid) if leaves_guest else (atc_inv(sid, pasid),)))
        elif stream.uses_ats:
            stream.set_ats(True)

    def renew(self, sid: int) -> None:
        """What a stream's domain says of it has changed: write the STE again, without a gap where one word differs."""
        stream = self._streams[sid]
        write_entry(self._memory, stream.at, self._words(stream), used_of_ste, lambda: self._forget(sid))

    def _forget(self, sid: int) -> None:
        self._queue.submit((Stream0.of(OPCODE=Op.CFGI_STE, SID=sid), Leaf1.of(LEAF=1)))

    def _words(self, stream: Stream) -> tuple[int, ...]:
        """The STE of a stream."""
        domain, table = stream.domain, stream.table
        if domain is not None and not domain.first:
            how, attributes, *rest = domain.entry(stream.uses_ats)
            return how, int(attributes) | _ppar(stream), *rest
        if table is None or (domain is None and not stream.pasids):
            return ABORT
        how = Ste0.of(V=1, CONFIG=Config.S1, S1FMT=table.fmt, S1CONTEXTPTR=table.base >> 6, S1CDMAX=table.bits)
        attributes = Ste1.of(
            S1DSS=S1Dss.SSID0 if domain is not None else S1Dss.TERMINATE,
            S1CIR=_WRITE_BACK,
            S1COR=_WRITE_BACK,
            S1CSH=_INNER,
            S1STALLD=int(self._idr0.STALL_MODEL == 0 and not stream.stalls),
            EATS=Eats.FULL if stream.uses_ats else Eats.OFF,
            STRW=self._strw,
            SHCFG=_INCOMING,
        )
        return how, attributes | _ppar(stream), 0, 0, 0, 0, 0, 0


def _ppar(stream: Stream) -> int:
    """What an STE says of automatic answers: they bear a request's PASID, as the driver's do."""
    return Ste1.PPAR.mask if stream.asks_for_pages else 0


def new_table(memory: PhysicalMemory, size: int, what: str) -> int:
    """Zeroed memory for a structure, aligned to its size. ENOMEM."""
    size = max(size, PAGE)
    try:
        return memory.alloc(size, size)
    except MemoryError as error:
        raise UapiError(ENOMEM, f"no memory for {what}") from error
