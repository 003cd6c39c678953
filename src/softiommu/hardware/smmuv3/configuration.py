"""From a stream and a substream to what they are translated by: stream table, STE, CD. Arm IHI 0070, 3.3 and 5.

What is read is kept until a CFGI command names it, also an STE, a CD, or a level-1 descriptor of CDs that is wrong;
only a level-1 descriptor of STEs that leads nowhere is read again.
"""

from __future__ import annotations

from collections.abc import Set
from typing import TYPE_CHECKING

from softiommu.hardware.cache import Cache, Shape
from softiommu.hardware.iommu import Request
from softiommu.hardware.smmuv3.contexts import Context, read_context
from softiommu.hardware.smmuv3.events import Class, Event
from softiommu.hardware.smmuv3.faults import SmmuFaultError, Where
from softiommu.hardware.smmuv3.streams import Stream, read_stream
from softiommu.hardware.smmuv3.tables import (
    CD_BYTES,
    LEAF_LG2,
    STE_BYTES,
    L1Cd,
    L1Std,
    S1Dss,
)
from softiommu.hardware.smmuv3.walker import second_stage
from softiommu.memory.physical import BadAddressError
from softiommu.pagetable.kinds import READ

if TYPE_CHECKING:
    from softiommu.hardware.smmuv3.presets import Identity
    from softiommu.hardware.smmuv3.registers import Registers
    from softiommu.memory.physical import PhysicalMemory

_SPLITS = (6, 8, 10)


class Configuration:
    """The configuration of one SMMU, with its caches: STEs, CDs, and level-1 descriptors of both."""

    def __init__(
        self, memory: PhysicalMemory, identity: Identity, registers: Registers, shape: Shape, directories: Shape
    ) -> None:
        self._memory, self._identity, self._registers = memory, identity, registers
        #: An event in place of an entry that is wrong.
        self.streams: Cache[int, Stream | Event] = Cache(shape)
        #: By stream and substream.
        self.contexts: Cache[tuple[int, int], Context | Event] = Cache(shape)
        #: Level-1 descriptors, by the stream's index; and by stream and the substream's index.
        self.stream_directories: Cache[int, L1Std] = Cache(directories)
        self.context_directories: Cache[tuple[int, int], L1Cd] = Cache(directories)

    # Streams

    def stream(self, request: Request) -> Stream:
        """The STE of a transaction's stream. SmmuFaultError."""
        found = self.streams.get(request.sid)
        if found is None:
            found = read_stream(self.entry(request), self._identity, self._registers.CR2) or Event.C_BAD_STE
            self.streams.put(request.sid, found)
        if isinstance(found, Event):
            raise SmmuFaultError(found, request)
        return found

    def entry(self, request: Request) -> list[int]:
        """The words of the STE of a transaction's stream, from memory. SmmuFaultError."""
        return self._words(self._ste_address(request), STE_BYTES, Event.F_STE_FETCH, request)

    @property
    def split(self) -> int:
        """log2 of the streams behind one level-1 descriptor; 0: the table is linear."""
        shape = self._registers.STRTAB_BASE_CFG
        if shape.FMT != 1 or not self._identity.idr0.ST_LEVEL:
            return 0
        return shape.SPLIT if shape.SPLIT in _SPLITS else _SPLITS[0]

    def _ste_address(self, request: Request) -> int:
        shape, split, sid = self._registers.STRTAB_BASE_CFG, self.split, request.sid
        lg2 = min(shape.LOG2SIZE, self._identity.idr1.SIDSIZE)
        if sid >> lg2:
            raise self._bad_stream(request)
        base = self._registers.STRTAB_BASE.ADDR << 6
        if not split:
            return (base & ~((1 << lg2 + 6) - 1)) + STE_BYTES * sid
        base &= ~((1 << max(6, lg2 - split + 3)) - 1)
        descriptor = self.stream_directories.get(sid >> split)
        if descriptor is None:
            words = self._words(base + 8 * (sid >> split), 8, Event.F_STE_FETCH, request)
            descriptor = L1Std(words[0])
            if not 1 <= descriptor.SPAN <= min(11, split + 1):
                raise self._bad_stream(request)
            self.stream_directories.put(sid >> split, descriptor)
        number = sid & (1 << split) - 1
        if number >> descriptor.SPAN - 1:
            raise self._bad_stream(request)
        # The table is aligned to its size (5.1).
        table = (descriptor.L2PTR << 6) & ~((1 << descriptor.SPAN + 5) - 1)
        return table + STE_BYTES * number

    def _bad_stream(self, request: Request) -> SmmuFaultError:
        fault = SmmuFaultError(Event.C_BAD_STREAMID, request)
        fault.recorded = bool(self._registers.CR2.RECINVSID)
        return fault

    # Contexts

    def context(self, stream: Stream, request: Request) -> Context | None:
        """The CD of a transaction; None: stage 1 does not translate it. SmmuFaultError."""
        ssid = request.pasid
        if not stream.has_stage1:
            if ssid is not None:
                raise SmmuFaultError(Event.C_BAD_SUBSTREAMID, request)
            return None
        if ssid is None:
            if stream.cdmax and stream.s1dss != S1Dss.SSID0:
                if stream.s1dss == S1Dss.BYPASS:
                    return None
                raise SmmuFaultError(Event.F_STREAM_DISABLED, request)
            ssid = 0
        elif not stream.cdmax or ssid >> stream.cdmax:
            raise SmmuFaultError(Event.C_BAD_SUBSTREAMID, request)
        elif not ssid and stream.s1dss == S1Dss.SSID0:
            raise SmmuFaultError(Event.F_STREAM_DISABLED, request)
        found = self.contexts.get((request.sid, ssid))
        if found is None:
            found = self._read_context(stream, ssid, request)
            self.contexts.put((request.sid, ssid), found)
        if isinstance(found, Event):
            raise SmmuFaultError(found, request)
        return found

    def _read_context(self, stream: Stream, ssid: int, request: Request) -> Context | Event:
        at = stream.context_table
        leaf_lg2 = LEAF_LG2.get(stream.s1fmt) if stream.cdmax else None
        if leaf_lg2 is not None:
            at = self._context_leaf(stream, ssid, leaf_lg2, request)
            ssid &= (1 << leaf_lg2) - 1
        at = self._physical(stream, at + CD_BYTES * ssid, request)
        words = self._words(at, CD_BYTES, Event.F_CD_FETCH, request)
        return read_context(words, self._identity, stream) or Event.C_BAD_CD

    def _context_leaf(self, stream: Stream, ssid: int, leaf_lg2: int, request: Request) -> int:
        """Of a two-level table: the address of the leaf that has a substream's descriptor."""
        key = (request.sid, ssid >> leaf_lg2)
        descriptor = self.context_directories.get(key)
        if descriptor is None:
            at = self._physical(stream, stream.context_table + 8 * key[1], request)
            descriptor = L1Cd(self._words(at, 8, Event.F_CD_FETCH, request)[0])
            self.context_directories.put(key, descriptor)
        if not descriptor.V or (descriptor.L2PTR << 12) >> self._identity.oas:
            raise SmmuFaultError(Event.C_BAD_SUBSTREAMID, request._replace(pasid=request.pasid or 0))
        return (descriptor.L2PTR << 12) & ~((1 << leaf_lg2 + 6) - 1)

    def _physical(self, stream: Stream, ipa: int, request: Request) -> int:
        """Where a structure lies: its address is an intermediate one where there are two stages."""
        if stream.second is None:
            return ipa
        return second_stage(self._memory, stream, request, ipa, READ, Class.CD).pa

    def _words(self, pa: int, length: int, event: Event, request: Request) -> list[int]:
        try:
            return [self._memory.read_u64(pa + offset) for offset in range(0, length, 8)]
        except BadAddressError as error:
            raise SmmuFaultError(event, request, Where(address=pa)) from error

    # Commands

    def forget_all(self) -> None:
        """CFGI_ALL."""
        for cache in (self.streams, self.contexts, self.stream_directories, self.context_directories):
            cache.drop(lambda key, value: True)

    def forget_streams(self, first: int, last: int, leaf: bool) -> None:
        """CFGI_STE and CFGI_STE_RANGE: STEs, and what was read through them; without `leaf` level-1 descriptors too."""
        self.streams.drop(lambda sid, _: first <= sid <= last)
        self.forget_contexts(first, last, None, False)
        split = self.split
        if not leaf:
            self.stream_directories.drop(lambda index, _: first >> split <= index <= last >> split)

    def forget_named(self, contexts: Set[tuple[int, int]], streams: Set[int], links: Set[int]) -> None:
        """Many CFGI_CD and CFGI_CD_ALL: substreams, all of `streams`, and the level-1 descriptors of `links`."""
        self.contexts.drop(lambda key, _: key in contexts or key[0] in streams)
        self.context_directories.drop(lambda key, _: key[0] in links)

    def forget_contexts(self, first: int, last: int, ssid: int | None, leaf: bool) -> None:
        """CFGI_CD (one substream) and CFGI_CD_ALL."""
        self.contexts.drop(lambda key, _: first <= key[0] <= last and ssid in (None, key[1]))
        if not leaf:
            # How many descriptors one covers is not known here: all of the stream's are dropped.
            self.context_directories.drop(lambda key, _: first <= key[0] <= last)
