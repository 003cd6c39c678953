"""One SMMUv3: registers, configuration and translation caches, queues, events, ATS and stalls.

It knows memory, its registers and its queues. Nothing that it caches is forgotten but by a command.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from softiommu.hardware.cache import Shape
from softiommu.hardware.iommu import ALL, AtsIommu, Endpoint, PageRequest, Request, StallingIommu, Translation
from softiommu.hardware.smmuv3 import walker
from softiommu.hardware.smmuv3.ats import Ats
from softiommu.hardware.smmuv3.broadcast import Broadcast, Listener, selection
from softiommu.hardware.smmuv3.configuration import Configuration
from softiommu.hardware.smmuv3.events import EVENT_BYTES, REQUEST_BYTES, Event
from softiommu.hardware.smmuv3.faults import SmmuFaultError
from softiommu.hardware.smmuv3.presets import QEMU, Identity
from softiommu.hardware.smmuv3.queue import CommandQueue
from softiommu.hardware.smmuv3.records import RecordQueue
from softiommu.hardware.smmuv3.registers import CmdqProd, Cons, Cr0, Gerror
from softiommu.hardware.smmuv3.rules import RegisterRules
from softiommu.hardware.smmuv3.signals import Signals, Wire
from softiommu.hardware.smmuv3.stalls import Resumed, Stalls
from softiommu.hardware.smmuv3.streams import Stream
from softiommu.hardware.smmuv3.tables import Config
from softiommu.hardware.smmuv3.tlb import Tlb
from softiommu.memory.physical import PhysicalMemory
from softiommu.pagetable.kinds import PRIVILEGED
from softiommu.pagetable.walk import new

#: A look into an enumeration takes as long as ten into a module.
_ABORT = Config.ABORT


class Shapes(NamedTuple):
    """How large the caches are: leaves; STEs and CDs; level-1 descriptors of both."""

    iotlb: Shape = Shape(16, 8)
    configuration: Shape = Shape(8, 8)
    directories: Shape = Shape(4, 4)


class Smmu(RegisterRules):
    """An SMMU. `interrupt(address, data)` is a message to where there is no memory, `wired` an output that is
    asserted, `resumed` is told how a stalled transaction goes on."""

    def __init__(
        self,
        memory: PhysicalMemory,
        identity: Identity = QEMU,
        shapes: Shapes | None = None,
        interrupt: Callable[[int, int], None] | None = None,
        wired: Callable[[Wire], None] | None = None,
        resumed: Resumed | None = None,
    ) -> None:
        identity.check()
        super().__init__(identity)
        shapes, registers = shapes or Shapes(), self.registers
        self._memory = memory
        #: CR0ACK.SMMUEN.
        self.enabled = False
        self.configuration = Configuration(memory, identity, registers, shapes.configuration, shapes.directories)
        self.tlb = Tlb(shapes.iotlb)
        self.signals = Signals(memory, registers, interrupt, wired)
        events = RecordQueue(memory, registers, self.signals, Wire.EVENTQ, EVENT_BYTES, identity.idr1.EVENTQS)
        requests = RecordQueue(memory, registers, self.signals, Wire.PRIQ, REQUEST_BYTES, identity.idr1.PRIQS)
        self.stalls = Stalls(events, identity.idr5.STALL_MAX, resumed)
        self.ats = Ats(self, requests)
        self._commands = CommandQueue(self, memory)

    def counts(self) -> dict[str, int]:
        """As `machine.counts.CountingIommu` has it."""
        return self.tlb.iotlb.cache.counters.told()

    # Translation

    def translate(
        self, sid: int, iova: int, want: int, pasid: int | None = None, privileged: bool = False
    ) -> Translation:
        """Where a transaction goes. SmmuFaultError: it is blocked or stalled, and recorded as the tables say."""
        request = new(Request, (sid, iova, want, pasid, privileged))
        try:
            if not self.enabled:
                return self._while_disabled(request)
            stream = self.configuration.stream(request)
            if stream.privcfg or stream.instcfg:
                request = stream.override(request)
            if stream.config == _ABORT:
                raise SmmuFaultError(Event.SILENT, request)
            return self.lookup(stream, request, 0)
        except SmmuFaultError as fault:
            self.stalls.report(fault)
            raise

    def _while_disabled(self, request: Request) -> Translation:
        """SMMUEN is 0: GBPA says what happens (3.11)."""
        if self.registers.GBPA.ABORT or request.iova >> self.identity.oas:
            raise SmmuFaultError(Event.SILENT, request)
        return Translation(request.iova, self.identity.oas, ALL)

    def untranslated(self, request: Request) -> Translation:
        """The address as it is, if it is an address. SmmuFaultError."""
        if request.iova >> self.identity.oas:
            raise SmmuFaultError(Event.F_ADDR_SIZE, request)
        return Translation(request.iova, self.identity.oas, ALL)

    def lookup(self, stream: Stream, request: Request, how: int) -> Translation:
        """Translate by what the stream has: the IOTLB, then tables. `how` may be LENIENT. SmmuFaultError."""
        context = self.configuration.context(stream, request)
        if context is None:
            whole = self.untranslated(request)
            return whole if stream.second is None else self.by_stage2(stream, request, how)
        half = walker.half_of(context, request)
        tags, everyone = context.tags[request.privileged], context.global_tags[request.privileged]
        cached = self.tlb.find(tags, request.iova, everyone)
        if cached is not None and not request.want & ~cached[1].allowed:
            lg2, entry = cached
            return new(Translation, (entry.oa | request.iova & (1 << lg2) - 1, lg2, entry.allowed))
        found = walker.first_stage(self._memory, stream, context, half, request, how)
        self.tlb.fill(tags, request.iova, found, everyone, context.private)
        return new(Translation, (found.pa, found.lg2, found.allowed))

    def by_stage2(self, stream: Stream, request: Request, how: int) -> Translation:
        """Translate an intermediate address by stage 2 alone. SmmuFaultError."""
        tags = stream.stage2_tags[request.privileged]
        cached = self.tlb.find(tags, request.iova)
        if cached is not None and not request.want & ~cached[1].allowed:
            lg2, entry = cached
            return new(Translation, (entry.oa | request.iova & (1 << lg2) - 1, lg2, entry.allowed))
        want = request.want | how | (PRIVILEGED if request.privileged else 0)
        found = walker.second_stage(self._memory, stream, request, request.iova, want)
        self.tlb.fill(tags, request.iova, found)
        return new(Translation, (found.pa, found.lg2, found.allowed))

    def to_intermediate(self, stream: Stream, request: Request, how: int) -> Translation:
        """The intermediate address of a transaction, with the rights of both stages. SmmuFaultError."""
        context = self.configuration.context(stream, request)
        if context is None:
            return self.by_stage2(stream, request, how)._replace(pa=request.iova)
        half = walker.half_of(context, request)
        found = walker.first_stage(self._memory, stream, context, half, request, how)
        return Translation(found.ipa, found.lg2, found.allowed)

    def listen(self, sid: int, heard: Callable[[bool], None]) -> None:
        """From now on this function hears how its stalled transactions go on."""
        self.stalls.listeners[sid] = heard

    def hear(self, message: Broadcast) -> None:
        """A CPU's TLB maintenance comes by; heard where software lets the SMMU take part in it (CR2.PTM, 6.3.12)."""
        cr2 = self.registers.CR2
        if not self.identity.idr0.BTM or cr2.PTM:
            return
        chosen = selection(message, bool(cr2.E2H))
        if chosen is not None:
            self.tlb.drop(chosen)

    # ATS

    def connect(self, sid: int, endpoint: Endpoint) -> None:
        """From now on this function hears of invalidations and responses."""
        self.ats.connect(sid, endpoint)

    def ats_translate(
        self, sid: int, iova: int, want: int, pasid: int | None = None, privileged: bool = False
    ) -> Translation:
        """Answer a translation request. SmmuFaultError: the completion is UR or CA (its `response`)."""
        try:
            return self.ats.translate(Request(sid, iova, want, pasid, privileged))
        except SmmuFaultError as fault:
            self.stalls.report(fault)
            raise

    def admit_translated(self, sid: int, pa: int, want: int, pasid: int | None = None) -> Translation:
        """Where a transaction with a translated address goes. SmmuFaultError: the device may not send such."""
        try:
            return self.ats.admit(Request(sid, pa, want, pasid))
        except SmmuFaultError as fault:
            self.stalls.report(fault)
            raise

    def page_request(self, request: PageRequest) -> None:
        """Queue a page request for software, or answer it."""
        self.ats.page_request(request)

    # Registers

    def read(self, offset: int, width: int) -> int:
        """Software reads a register (4 or 8 bytes)."""
        return self.registers.read(offset, width)

    def write(self, offset: int, width: int, value: int) -> None:
        """Software writes a register (4 or 8 bytes)."""
        self.registers.write(offset, width, value)

    def on_write_CR0(self, old: Cr0, new: Cr0) -> None:
        """It takes effect at once. Bits of absent features stay 0; no page requests are taken without translation."""
        idr0 = self.identity.idr0
        kept = new.replace(
            PRIQEN=new.PRIQEN & idr0.PRI & new.SMMUEN, ATSCHK=new.ATSCHK & idr0.ATS, VMW=new.VMW if idr0.VMW else 0
        )
        self.registers.CR0 = self.registers.CR0ACK = kept
        self.enabled = bool(kept.SMMUEN)
        if old.SMMUEN and not kept.SMMUEN:
            self.stalls.terminate(None)
        self._commands.run()
        self.stalls.write()

    def on_write_CMDQ_PROD(self, old: CmdqProd, new: CmdqProd) -> None:
        """The doorbell of the command queue."""
        self._commands.run()

    def on_write_GERRORN(self, old: Gerror, new: Gerror) -> None:
        """An error that is acknowledged lets its queue go on."""
        self._commands.run()
        self.stalls.write()

    def on_write_EVENTQ_CONS(self, old: Cons, new: Cons) -> None:
        """There may be room for events that wait."""
        self.stalls.write()


_: type[AtsIommu] = Smmu
_stalling: type[StallingIommu] = Smmu
_listening: type[Listener] = Smmu
