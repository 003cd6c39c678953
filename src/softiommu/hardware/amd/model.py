"""One AMD IOMMU: registers, caches, the command buffer, both logs, and interrupts.

It knows memory, its registers and its rings. Nothing that it caches is forgotten but by a command: device table entries
by INVALIDATE_DEVTAB_ENTRY, translations and GCR3 entries by INVALIDATE_IOMMU_PAGES, remapping entries by
INVALIDATE_INTERRUPT_TABLE, and all of them by INVALIDATE_IOMMU_ALL.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from softiommu.hardware.amd.events import BadRequest, BadTranslationRequest, Code, DeviceEvent, Record
from softiommu.hardware.amd.face import Face
from softiommu.hardware.amd.faults import (
    EventError,
    PageFaultError,
    bad_request,
    hardware_error,
    page_fault,
    page_request,
)
from softiommu.hardware.amd.interrupts import Remapper
from softiommu.hardware.amd.logs import EVENTS, PAGE_REQUESTS, Log
from softiommu.hardware.amd.presets import FULL, Preset
from softiommu.hardware.amd.queue import CommandQueue
from softiommu.hardware.amd.ranges import CONTROLLED, INTERRUPTS, is_interrupt, special
from softiommu.hardware.amd.registers import CapabilityHeader, Efr, Efr2
from softiommu.hardware.amd.tables import Dte
from softiommu.hardware.amd.walker import NESTED, NO_GUEST, Route, Walker, tags
from softiommu.hardware.cache import Cache, Entry, Iotlb, Page, PageCache, Shape
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
from softiommu.hardware.links import Links
from softiommu.memory.physical import BadAddressError, PhysicalMemory
from softiommu.pagetable.kinds import LENIENT, READ, RIGHTS, WRITE
from softiommu.pagetable.walk import new

_HARDWARE_ERRORS = (Code.DEV_TAB_HARDWARE_ERROR, Code.PAGE_TAB_HARDWARE_ERROR, Code.COMMAND_HARDWARE_ERROR)
_EVERYWHERE = (0, (1 << 64) - 1)


class Shapes(NamedTuple):
    """How large the caches are."""

    iotlb: Shape = Shape(16, 8)
    devices: Shape = Shape(8, 8)
    guests: Shape = Shape(8, 8)
    interrupts: Shape = Shape(8, 8)
    links: Shape = Shape(8, 8)


class CachedEntry:
    """A device table entry in the cache, what it says, and whether a fault of its device was told (DTE.SE)."""

    def __init__(self, dte: Dte) -> None:
        self.dte = dte
        self.route: Route | None = None
        self.told = False


def _is_nested(found: tuple[int, ...]) -> bool:
    return bool(found[2] & NESTED)


class AmdIommu(Face):
    """An IOMMU. `interrupt(address, data)` sends its MSI, `wire(level)` drives its pin while MSI is off."""

    def __init__(
        self,
        memory: PhysicalMemory,
        efr: Efr = FULL.efr,
        efr2: Efr2 = FULL.efr2,
        shapes: Shapes | None = None,
        interrupt: Callable[[int, int], None] | None = None,
        wire: Callable[[bool], None] | None = None,
        header: CapabilityHeader = FULL.header,
    ) -> None:
        super().__init__(Preset(efr, efr2, header), interrupt, wire)
        shapes = shapes or Shapes()
        self.iotlb = Iotlb(shapes.iotlb)
        self.devices: Cache[int, CachedEntry] = Cache(shapes.devices)
        #: The GCR3 table's entries by (domain, PASID).
        self.guests: Cache[tuple[int, int], int] = Cache(shapes.guests)
        #: Links to tables of single stages.
        self.links: Links = PageCache(shapes.links)
        self.remapper = Remapper(memory, self.registers, shapes.interrupts)
        self._walker = Walker(memory, self.registers, efr, efr2, self.links)
        self._events = Log(self.signals, memory, EVENTS, "EventOverflow", "EventLogInt")
        self._page_requests = Log(self.signals, memory, PAGE_REQUESTS, "PprOverflow", "PprInt")
        self.commands = CommandQueue(self, memory)
        self._endpoints: dict[int, Endpoint] = {}

    def ring_doorbell(self) -> None:
        """Software wrote a register that may let the command buffer go on."""
        self.commands.run()

    def counts(self) -> dict[str, int]:
        """As `machine.counts.CountingIommu` has it."""
        return self.iotlb.cache.counters.told()

    # Translation

    def translate(
        self, sid: int, iova: int, want: int, pasid: int | None = None, privileged: bool = False
    ) -> Translation:
        """Where a request of a device goes. TranslationFaultError: blocked, and logged unless its entry forbids it."""
        if not self.enabled:
            return Translation(iova, 64, ALL)
        request = new(Request, (sid, iova, want, pasid, privileged))
        entry = None
        try:
            entry = self._entry(request)
            if iova in INTERRUPTS and is_interrupt(request):
                self.remapper.admit(entry.dte, request)
                return Translation(iova, 12, WRITE)
            return self._translate(entry.route or self._route(entry, request), request)
        except EventError as fault:
            if not _is_quiet(entry, fault):
                self.log(fault.record)
            raise

    def _entry(self, request: Request) -> CachedEntry:
        entry = self.devices.get(request.sid)
        if entry is None:
            entry = CachedEntry(self._walker.entry(request))
            self.devices.put(request.sid, entry)
        return entry

    def _route(self, entry: CachedEntry, request: Request) -> Route:
        if entry.route is None:
            entry.route = self._walker.route(entry.dte, request)
        return entry.route

    def _translate(self, route: Route, request: Request) -> Translation:
        if not route.valid:
            return Translation(request.iova, 64, ALL)
        if request.pasid is None and (self.excluding or request.iova in CONTROLLED):
            forwarded = special(self.registers, route.dte.q1, request)
            if forwarded is not None:
                return forwarded
        if not route.translates:
            raise page_fault(request, route.domain, request.pasid)
        guest = route.guest_pasid(request.pasid)
        if guest is None:
            if request.pasid is not None:
                raise bad_request(request, BadRequest.PASID)
            if route.host is None:
                return self._walker.host(route, request)._replace(allowed=route.rights)
        return self._by_tables(route, request, guest)

    def _by_tables(self, route: Route, request: Request, guest: int | None) -> Translation:
        tag = tags(route, request, guest)
        cached = self.iotlb.find(tag, request.iova)
        if cached is not None:
            lg2, (page, allowed, *_) = cached
            allowed &= route.rights
            if not request.want & RIGHTS & ~allowed:
                return new(Translation, (page | request.iova & (1 << lg2) - 1, lg2, allowed))
        try:
            if guest is None:
                found = self._walker.host(route, request)
            else:
                found = self._walker.guest(route, request, guest, self._guest_root(route, request, guest))
        except BadAddressError as error:  # an entry's flags could not be set
            raise hardware_error(Code.PAGE_TAB_HARDWARE_ERROR, request, route.domain, guest, error.pa) from error
        if request.want & RIGHTS and found.allowed & (READ | WRITE):
            page = found.pa & ~((1 << found.lg2) - 1)
            kept = found.allowed & ~_untracked(route, request, guest)
            self.iotlb.fill(tag, request.iova, found.lg2, Entry(page, kept))
        return Translation(found.pa, found.lg2, found.allowed & route.rights)

    def _guest_root(self, route: Route, request: Request, guest: int) -> int:
        root = self.guests.get((route.domain, guest))
        if root is None:
            root = self._walker.guest_root(route, request, guest)
            self.guests.put((route.domain, guest), root)
        return root

    def remap_interrupt(self, sid: int, address: int, data: int) -> tuple[int, int]:
        """The message that goes out for a device's. TranslationFaultError: it is blocked, and logged."""
        if not self.enabled:
            return address, data
        request = Request(sid, address, WRITE)
        dte = None
        try:
            dte = self._entry(request).dte
            if not self.remapper.admit(dte, request):
                return address, data
            return self.remapper.remap(dte, request, address, data)
        except EventError as fault:
            hidden = isinstance(fault, PageFaultError) and dte is not None and self.remapper.quiet(dte, sid, data)
            if not hidden:
                self.log(fault.record)
            raise

    # Device TLBs and page requests

    def connect(self, sid: int, endpoint: Endpoint) -> None:
        """This function hears of invalidations and responses."""
        self._endpoints[sid] = endpoint

    def ats_translate(
        self, sid: int, iova: int, want: int, pasid: int | None = None, privileged: bool = False
    ) -> Translation:
        """Answer a translation request. A page fault is an answer without rights, and no event (2.1.3.2)."""
        request = Request(sid, iova, want & RIGHTS | LENIENT, pasid, privileged)
        try:
            route = self._ats_route(request)
            if pasid is None and iova in INTERRUPTS:
                return Translation(iova, 12, 0)
            found = self._translate(route, request)
        except PageFaultError:
            return Translation(iova, 12, 0)
        except EventError as fault:
            low = int(fault.record.low) | DeviceEvent.TR.mask
            self.log(Record(low, fault.record.high))
            raise
        hidden = _untracked(route, request, route.guest_pasid(pasid))
        return found._replace(allowed=found.allowed & ~hidden)

    def _ats_route(self, request: Request) -> Route:
        if not (self.enabled and self.capability.HEADER.IotlbSup):
            raise bad_request(request, BadTranslationRequest.NOT_ALLOWED)
        route = self._route(self._entry(request), request)
        if not (route.valid and route.translates and route.dte.q1.I):
            raise bad_request(request, BadTranslationRequest.NOT_ALLOWED)
        if request.pasid is not None and route.guest is None:
            raise bad_request(request, BadTranslationRequest.BAD_PASID)
        return route

    def admit_translated(self, sid: int, pa: int, want: int, pasid: int | None = None) -> Translation:
        """Where a request with a translated address goes. TranslationFaultError: DTE.I does not allow such."""
        if not self.enabled:
            return Translation(pa, 64, ALL)
        request = Request(sid, pa, want, pasid)
        try:
            route = self._route(self._entry(request), request)
            if not (route.valid and route.dte.q1.I and self.capability.HEADER.IotlbSup):
                raise bad_request(request, BadRequest.PRETRANSLATED)
        except EventError as fault:
            self.log(fault.record)
            raise
        return Translation(pa, 64, ALL)

    def page_request(self, request: PageRequest) -> None:
        """Put a page request in the PPR log. One that may not be made fails; one for which there is no room is lost, or
        answered with success, so that the device asks again. Stop markers are logged (BlkStopMrkSup = 0), and never
        answered."""
        control = self.registers.CONTROL
        code = None
        if not self._may_request_pages(request):
            code = ResponseCode.FAILURE
            self.log(page_request(request, Code.INVALID_PPR_REQUEST))
        elif (not self._page_requests.append(page_request(request, 1)) or control.PprAutoRspAon) and (
            control.PprAutoRspEn
        ):
            code = ResponseCode.SUCCESS
        if code is not None and request.last and not request.is_stop_marker:
            self.respond(request.sid, request.pasid, request.group, code)

    def _may_request_pages(self, request: PageRequest) -> bool:
        control = self.registers.CONTROL
        if not (self.enabled and control.PPREn):
            return False
        asks = Request(request.sid, request.iova, request.want, request.pasid, request.privileged)
        try:
            route = self._route(self._entry(asks), asks)
        except EventError as fault:
            self.log(fault.record)
            return False
        return bool(route.valid and route.dte.q0.PPR)

    # What commands do

    def respond(self, sid: int, pasid: int | None, group: int, code: ResponseCode) -> None:
        """Send a page group response to a device."""
        endpoint = self._endpoints.get(sid)
        if endpoint is not None:
            endpoint.page_response(pasid, group, code)

    def invalidate_device(self, sid: int, pasid: int | None, window: tuple[int, int]) -> bool:
        """Ask a device to forget; False: it does not answer."""
        endpoint = self._endpoints.get(sid)
        return endpoint is not None and endpoint.invalidate(pasid, *window)

    def forget_device(self, sid: int) -> None:
        """Drop a device's cached table entry."""
        self.devices.drop(lambda key, entry: key == sid)

    def forget_interrupts(self, sid: int) -> None:
        """Drop a device's cached remapping entries."""
        self.remapper.cache.drop(lambda key, target: key[0] == sid)

    def forget_pages(self, domain: int, pasid: int | None, window: tuple[int, int], upper: bool) -> None:
        """Drop cached translations of a domain, or of one of its PASIDs; with `upper` links to tables and GCR3
        entries, too.

        What two stages made is not cached by its guest-physical address: any change of the host's tables drops it.
        """
        whole = window == _EVERYWHERE

        def chosen(page: Page, entry: object) -> bool:
            owner, guest, how = page.tags
            if owner != domain:
                return False
            if pasid is None and guest >= 0:
                return whole or bool(how & NESTED)
            return guest == (NO_GUEST if pasid is None else pasid) and Iotlb.meets(page, *window)

        some = None if whole else window
        self.iotlb.cache.drop_range(some, chosen, _is_nested)
        if upper:
            self.links.drop_range(some, chosen, _is_nested)
            self.guests.drop(lambda key, root: key == (domain, pasid) or (pasid is None and key[0] == domain and whole))

    def forget_all(self) -> None:
        """Drop everything."""
        self.iotlb.drop(lambda page, entry: True)
        self.devices.drop(lambda key, entry: True)
        self.guests.drop(lambda key, root: True)
        self.links.drop(lambda page, link: True)
        self.remapper.cache.drop(lambda key, target: True)

    def prefetch(self, sid: int, pasid: int | None, iova: int) -> None:
        """Fill the caches for a read that may come. A hint: what would block the read is not told."""
        if not self.enabled:
            return
        request = Request(sid, iova, READ | LENIENT, pasid)
        try:
            self._translate(self._route(self._entry(request), request), request)
        except TranslationFaultError:
            return

    # Events

    def log(self, record: Record) -> None:
        """Put a record in the event log; a hardware error that finds no room there goes to the hardware event
        registers."""
        registers = self.registers
        code = DeviceEvent(record.low).CODE
        if self._events.append(record) or code not in _HARDWARE_ERRORS or not self.efr.HESup:
            return
        if registers.HWEV_STATUS.HEV:
            registers.HWEV_STATUS = registers.HWEV_STATUS.replace(HEO=1)
            return
        registers.HWEV_LOW, registers.HWEV_HIGH = record.low, record.high
        registers.HWEV_STATUS = registers.HWEV_STATUS.replace(HEV=1)


def _untracked(route: Route, request: Request, guest: int | None) -> int:
    """WRITE where a first write has still to set the dirty flag, so that a cached translation may not allow it."""
    return WRITE if (guest is not None or route.tracks) and not request.want & WRITE else 0


def _is_quiet(entry: CachedEntry | None, fault: EventError) -> bool:
    """Whether a page fault is kept from the log: DTE.SA all of a device, SE all but the first."""
    if entry is None or not isinstance(fault, PageFaultError):
        return False
    first, entry.told = not entry.told, True
    return bool(entry.dte.q1.SA or (entry.dte.q1.SE and not first))


_: type[AtsIommu] = AmdIommu
