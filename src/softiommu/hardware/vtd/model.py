"""One remapping hardware unit: registers, translation, ATS and page requests.

It knows memory, its registers and its queues. Nothing that it caches is forgotten but by a command (or a register that
the architecture says forgets): a translation that software did not invalidate stays, as in a machine.
"""

from __future__ import annotations

from softiommu.hardware.cache import Entry
from softiommu.hardware.iommu import (
    ALL,
    AtsIommu,
    Endpoint,
    PageRequest,
    Request,
    ResponseCode,
    Translation,
    TranslationFaultError,
)
from softiommu.hardware.vtd.caches import Caches, Selection, Shapes
from softiommu.hardware.vtd.events import ATS_ANSWERS, AddressType, Reason, Unreported
from softiommu.hardware.vtd.faults import Event, FaultLog, Interrupt
from softiommu.hardware.vtd.pages import PageRequests
from softiommu.hardware.vtd.paging import NOTHING, PASS_THROUGH, Paging, absent
from softiommu.hardware.vtd.presets import LEGACY, check
from softiommu.hardware.vtd.queue import Queue, window
from softiommu.hardware.vtd.registers import (
    Cap,
    Ccmd,
    Ecap,
    EventControl,
    Fsts,
    Gcmd,
    Ics,
    IotlbCommand,
    IotlbRegisters,
    Pmen,
    Prs,
    Registers,
    Ttm,
)
from softiommu.hardware.vtd.remapper import InterruptFaultError, Message, Remapper
from softiommu.hardware.vtd.tables import FUNCTION_MASKS
from softiommu.hardware.vtd.walker import (
    INTERRUPTS,
    WIDEST,
    Context,
    QuietFaultError,
    Route,
    Walker,
    check_mode,
    fault_kind,
)
from softiommu.memory.physical import PhysicalMemory
from softiommu.pagetable.kinds import EXECUTE, WRITE
from softiommu.pagetable.walk import new
from softiommu.registers import RegisterFile

_LEGACY = Ttm.LEGACY


class Unit:
    """A remapping hardware unit. `interrupt(address, data)` is an event's MSI write; host addresses have `host_bits`.

    ConfigError: capabilities that no hardware can have together.
    """

    def __init__(
        self,
        memory: PhysicalMemory,
        cap: Cap = LEGACY.cap,
        ecap: Ecap = LEGACY.ecap,
        shapes: Shapes | None = None,
        interrupt: Interrupt | None = None,
        host_bits: int = WIDEST,
    ) -> None:
        check(cap, ecap)
        self.registers = Registers(self)
        self.registers.CAP, self.registers.ECAP = cap, ecap
        self.caches = self.new_caches(shapes or Shapes())
        self._events = [Event(self.registers, kind, interrupt) for kind in ("FE", "IE", "PE")]
        self.log = FaultLog(self.registers, self._events[0])
        self.pages = PageRequests(self.registers, memory, self._events[2])
        self._iotlb_registers = IotlbRegisters(self)
        #: Registers whose place the capabilities tell, by where they begin.
        self._files: tuple[tuple[range, RegisterFile], ...] = (
            (range(ecap.IRO * 16, ecap.IRO * 16 + 16), self._iotlb_registers),
            (range(cap.FRO * 16, cap.FRO * 16 + 16 * (cap.NFR + 1)), self.log.records),
        )
        self._walker = Walker(memory, cap, ecap, host_bits)
        self._paging = Paging(memory, cap, self.caches.links)
        self._remapper = Remapper(memory, self.caches.interrupts)
        self._queue = Queue(self, memory)
        self._rtaddr = self.registers.RTADDR
        #: What the root table in use is of.
        self.table_mode = self._rtaddr.TTM
        #: The state of TE, and that of the mode: they are asked at each request.
        self._translates = self._scalable = False

    def counts(self) -> dict[str, int]:
        """As `machine.counts.CountingIommu` has it, and those of both stages."""
        return self.caches.iotlb.cache.counters.told() | self._paging.counts()

    def new_caches(self, shapes: Shapes) -> Caches:
        """The caches of a unit that is made."""
        return Caches(shapes)

    # Requests

    def translate(
        self, sid: int, iova: int, want: int, pasid: int | None = None, privileged: bool = False
    ) -> Translation:
        """Where a request of a device goes. TranslationFaultError: blocked (and recorded, unless FPD forbids it)."""
        request = new(Request, (sid, iova, want, pasid, privileged))
        if pasid is None and want & WRITE and iova in INTERRUPTS:
            return Translation(iova, 12, WRITE)  # an interrupt request: never translated
        if not self._translates:
            return self._protect(Translation(iova, 64, ALL), request)
        try:
            return self._translate(request)
        except TranslationFaultError as fault:
            self._record(fault, AddressType.UNTRANSLATED)
            raise

    def _record(self, fault: TranslationFaultError, kind: AddressType, is_page_request: bool = False) -> None:
        if not isinstance(fault, QuietFaultError) and isinstance(fault.reason, Reason):
            self.log.record(fault, kind, is_page_request)

    def _translate(self, request: Request, asks: bool = False) -> Translation:
        """Translate a request; `asks`: it is one of a device's own TLB."""
        route, request = self._route(request)
        if asks and not route.device_tlb:
            missing = Reason.DEVICE_TLB_NOT_ENABLED if route.scalable else Reason.REQUEST_BLOCKED_BY_TT
            raise fault_kind(route.quiet)(missing, request)
        if request.privileged or request.want & EXECUTE:
            self._admit(route, request)
        tags = route.privileged_tags if request.privileged else route.tags
        cached = self.caches.iotlb.find(tags, request.iova)
        if cached is not None:
            lg2, entry = cached
            if not entry.allowed:
                raise fault_kind(route.quiet)(absent(route, request), request)
            if request.want and not request.want & ~entry.allowed:
                return new(Translation, (entry.oa | request.iova & (1 << lg2) - 1, lg2, entry.allowed))
        found = self._paging.translate(route, request, lenient=asks)
        # Only in caching mode (CM) does the hardware remember that nothing is there (6.1).
        if found.cacheable or (found == NOTHING and self.registers.CAP.CM):
            first = found.pa & ~((1 << found.lg2) - 1)
            self.caches.iotlb.fill(tags, request.iova, found.lg2, Entry(first, found.cacheable))
        if found == NOTHING:
            raise fault_kind(route.quiet)(absent(route, request), request)
        answer = Translation(found.pa, found.lg2, found.cacheable if asks else found.allowed)
        return self._protect(answer, request) if route.pgtt == PASS_THROUGH else answer

    def _route(self, request: Request) -> tuple[Route, Request]:
        """The route of a request, and the request with the privilege that it then has."""
        if not self._scalable:
            return self._legacy(request), request
        context = self._context(request)
        pasid = self._walker.pasid_of(context, request)
        if request.pasid is None and context.rid_privileged:
            request = request._replace(privileged=True)
        route = self.caches.pasids.get((request.sid, pasid))
        if route is None:
            route = self._walker.route(context, pasid, request)
            self.caches.pasids.put((request.sid, pasid), route)
        return route, request

    def _legacy(self, request: Request) -> Route:
        if self.table_mode is not _LEGACY or request.pasid is not None:
            check_mode(self._rtaddr, request)
        route = self.caches.legacy.get(request.sid)
        if route is None:
            route = self._walker.legacy(self._rtaddr, request)
            self.caches.legacy.put(request.sid, route)
        return route

    def _context(self, request: Request) -> Context:
        context = self.caches.contexts.get(request.sid)
        if context is None:
            context = self._walker.context(self._rtaddr, request)
            self.caches.contexts.put(request.sid, context)
        return context

    def _admit(self, route: Route, request: Request) -> None:
        """Whether the PASID entry takes this kind of request, whatever is cached. TranslationFaultError."""
        if not route.scalable:
            return
        if request.want & EXECUTE and not route.stage1.ERE:
            raise fault_kind(route.quiet)(Reason.EXECUTE_REQUESTS_DISABLED, request)
        if request.privileged and not route.stage1.SRE:
            raise fault_kind(route.quiet)(Reason.SUPERVISOR_REQUESTS_DISABLED, request)

    def _protect(self, found: Translation, request: Request) -> Translation:
        """Block requests to protected memory that are not remapped (11.4.8). It is no fault to be reported."""
        registers = self.registers
        if registers.PMEN.EPM:
            low = (registers.PLMBASE.ADDR, registers.PLMLIMIT.ADDR) if registers.CAP.PLMR else (1, 0)
            high = (registers.PHMBASE.ADDR, registers.PHMLIMIT.ADDR) if registers.CAP.PHMR else (1, 0)
            if any(first <= found.pa >> 21 <= last for first, last in (low, high)):
                raise TranslationFaultError(Unreported.PROTECTED_MEMORY, request)
            return found._replace(lg2=min(found.lg2, 21))
        return found

    # Devices with a TLB of their own

    def connect(self, sid: int, endpoint: Endpoint) -> None:
        """From now on this function hears of invalidations and responses."""
        self.pages.endpoints[sid] = endpoint

    def ats_translate(
        self, sid: int, iova: int, want: int, pasid: int | None = None, privileged: bool = False
    ) -> Translation:
        """Answer a translation request; `allowed` without READ and WRITE: nothing is there.
        TranslationFaultError: the completion is UR or CA."""
        request = Request(sid, iova, want, pasid, privileged)
        if not self._translates:
            raise TranslationFaultError(Reason.REQUEST_BLOCKED_BY_TT, request)
        if pasid is None and iova in INTERRUPTS:
            return Translation(iova, 12, 0)  # such addresses are for untranslated requests only
        try:
            return self._translate(request, asks=True)
        except TranslationFaultError as fault:
            if fault.reason in ATS_ANSWERS:
                return Translation(iova, 12, 0)
            self._record(fault, AddressType.TRANSLATION)
            raise

    def admit_translated(self, sid: int, pa: int, want: int, pasid: int | None = None) -> Translation:
        """Where a request with a translated address goes. TranslationFaultError: the device may not send such."""
        request = Request(sid, pa, want, pasid)
        try:
            return self._admit_translated(request)
        except TranslationFaultError as fault:
            self._record(fault, AddressType.TRANSLATED)
            raise

    def _admit_translated(self, request: Request) -> Translation:
        if not self._translates:
            raise TranslationFaultError(Reason.REQUEST_BLOCKED_BY_TT, request)
        if self._scalable:
            context = self._context(request)
            allowed, quiet, missing = context.device_tlb, context.quiet, Reason.DEVICE_TLB_NOT_ENABLED
        else:
            route = self._legacy(request)
            allowed, quiet, missing = route.device_tlb, route.quiet, Reason.REQUEST_BLOCKED_BY_TT
        if not allowed:
            raise fault_kind(quiet)(missing, request)
        if request.iova in INTERRUPTS:
            blocked = Reason.SCALABLE_OUTPUT_IN_INTERRUPT_RANGE if self._scalable else Reason.OUTPUT_IN_INTERRUPT_RANGE
            raise fault_kind(quiet)(blocked, request)
        return self._protect(Translation(request.iova, 12, ALL), request)

    def page_request(self, request: PageRequest) -> None:
        """Queue a page request for software. What may not be queued is answered as invalid, and is a fault."""
        asked = Request(request.sid, request.iova, request.want, request.pasid, request.privileged)
        try:
            self._check_page_request(asked)
        except TranslationFaultError as fault:
            self._record(fault, AddressType.UNTRANSLATED, is_page_request=True)
            self.pages.answer(request, ResponseCode.INVALID)
            return
        self.pages.add(request)

    def _check_page_request(self, request: Request) -> None:
        if not self._scalable:
            check_mode(self._rtaddr, request)
            raise TranslationFaultError(Reason.RTA_PAGE_REQUEST, request)
        context = self._context(request)
        if not context.page_requests:
            raise fault_kind(context.quiet)(Reason.PAGE_REQUESTS_NOT_ENABLED, request)
        self._walker.pasid_of(context, request)

    # Interrupts

    def remap(self, sid: int, address: int, data: int) -> Message:
        """The message that the local APICs get for an interrupt of a device. TranslationFaultError: blocked."""
        message = Message(address, data)
        if not self.registers.GSTS.IRE:
            return message
        try:
            return self._remapper.remap(sid, message, bool(self.registers.GSTS.CFI))
        except InterruptFaultError as fault:
            if not fault.quiet:
                self.log.record_interrupt(sid, int(fault.reason), fault.index)
            raise

    def complete_wait(self) -> None:
        """A wait descriptor that asked for an event is done."""
        if not self.registers.ICS.IWC:
            self.registers.ICS = self.registers.ICS.replace(IWC=1)
            self._events[1].happen()

    # Registers

    def _file(self, offset: int) -> tuple[int, RegisterFile]:
        for where, file in self._files:
            if offset in where:
                return offset - where.start, file
        return offset, self.registers

    def read(self, offset: int, width: int) -> int:
        """Software reads a register (4 or 8 bytes)."""
        at, file = self._file(offset)
        return file.read(at, width)

    def write(self, offset: int, width: int, value: int) -> None:
        """Software writes a register (4 or 8 bytes)."""
        at, file = self._file(offset)
        file.write(at, width, value)

    def on_write_GCMD(self, old: Gcmd, new: Gcmd) -> None:  # the register's name
        """Levels follow the command; one-shot bits act once (11.4.4)."""
        cap, ecap = self.registers.CAP, self.registers.ECAP
        has = {Gcmd.TE: 1, Gcmd.QIE: ecap.QI, Gcmd.IRE: ecap.IR, Gcmd.CFI: ecap.IR}
        levels = sum(field.mask for field, there in has.items() if there)
        status = int(self.registers.GSTS) & ~levels | int(new) & levels
        if new.SRTP:
            self._rtaddr = self.registers.RTADDR
            self.table_mode = self._rtaddr.TTM
            self._scalable = bool(self.table_mode == Ttm.SCALABLE and ecap.SMTS)
            status |= Gcmd.SRTP.mask
            if cap.ESRTPS:
                self.caches.forget_all()
        if new.SIRTP and ecap.IR:
            self._remapper.table = self.registers.IRTA
            status |= Gcmd.SIRTP.mask
            if cap.ESIRTPS:
                self.caches.forget_interrupts(0, 0xFFFF)
        self.registers.GSTS = status
        self._translates = bool(status & Gcmd.TE.mask)
        if not self.registers.GSTS.QIE:
            self.registers.IQH = 0
        self._queue.run()

    def on_write_IQT(self, old: int, new: int) -> None:  # the register's name
        """The doorbell of the invalidation queue."""
        self._queue.run()

    def on_write_FSTS(self, old: Fsts, new: Fsts) -> None:  # the register's name
        """Errors of the queue that are cleared let it go on."""
        self.log.cleared()
        self._queue.run()

    def on_write_FECTL(self, old: EventControl, new: EventControl) -> None:
        """An event that was pending goes out when it is unmasked (11.4.10)."""
        self._events[0].unmask()

    def on_write_IECTL(self, old: EventControl, new: EventControl) -> None:
        """An event that was pending goes out when it is unmasked (11.4.22)."""
        self._events[1].unmask()

    def on_write_PECTL(self, old: EventControl, new: EventControl) -> None:
        """An event that was pending goes out when it is unmasked (11.4.32)."""
        self._events[2].unmask()

    def on_write_ICS(self, old: Ics, new: Ics) -> None:
        """A completion that software has seen is not pending (11.4.21)."""
        if not new.IWC:
            self._events[1].serviced()

    def on_write_PRS(self, old: Prs, new: Prs) -> None:
        """Page requests that software has seen are not pending (11.4.31)."""
        if not int(new):
            self._events[2].serviced()

    def on_write_PMEN(self, old: Pmen, new: Pmen) -> None:
        """Protection follows its enable at once."""
        self.registers.PMEN = new.replace(PRS=new.EPM)

    def on_write_CCMD(self, old: Ccmd, new: Ccmd) -> None:
        """Invalidate the context cache, unless the queue does that; CAIG says what was done (11.4.6.1)."""
        if not new.ICC:
            return
        chosen = {
            1: Selection(),
            2: Selection(did=new.DID),
            3: Selection(sid=new.SID, sid_mask=FUNCTION_MASKS[new.FM]),
        }.get(new.CIRG)
        works = chosen is not None and not self.registers.GSTS.QIE
        if works and chosen is not None:
            self.caches.forget_contexts(chosen)
        self.registers.CCMD = new.replace(ICC=0, CAIG=new.CIRG if works else 0)

    def on_write_IOTLB(self, old: IotlbCommand, new: IotlbCommand) -> None:
        """Invalidate the IOTLB, unless the queue does that; IAIG says what was done (11.4.6.3)."""
        if not new.IVT:
            return
        iva = self._iotlb_registers.IVA
        pages = window(iva, self.registers.CAP.MAMV)
        page = Selection(did=new.DID, window=pages, leaves_only=bool(iva.IH)) if pages is not None else None
        chosen = {1: Selection(), 2: Selection(did=new.DID), 3: page}.get(new.IIRG)
        works = chosen is not None and not self.registers.GSTS.QIE
        if works and chosen is not None:
            self.caches.forget_translations(chosen)
        self._iotlb_registers.IOTLB = new.replace(IVT=0, IAIG=new.IIRG if works else 0)


_: type[AtsIommu] = Unit
