"""One remapping hardware unit: registers, caches, the invalidation queue, faults and event interrupts.

It knows memory, its registers and its queue. Nothing that it caches is forgotten but by a command (or a register that
the architecture says forgets): a translation that software did not invalidate stays, as in a machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from softiommu.hardware.cache import Cache, Entry, Iotlb, Page, Shape
from softiommu.hardware.iommu import Request, Translation, TranslationFaultError
from softiommu.hardware.vtd.events import FaultHigh, FaultLow
from softiommu.hardware.vtd.queue import Queue, Selection
from softiommu.hardware.vtd.registers import Cap, Ecap, EventControl, Fsts, Gcmd, Registers
from softiommu.hardware.vtd.walker import INTERRUPTS, QuietFaultError, Route, Walker
from softiommu.memory.physical import PhysicalMemory
from softiommu.pagetable.kinds import EXECUTE, READ, WRITE

#: What a unit with second-stage tables of 39 and 48 bits, queued invalidation and pass-through tells of itself.
LEGACY_CAP = Cap.of(ND=6, SAGAW=0b0110, MGAW=47, FRO=0x22, SSLPS=3, PSI=1, NFR=3, MAMV=18, DWD=1, DRD=1)
LEGACY_ECAP = Ecap.of(C=1, QI=1, PT=1, SC=1, IRO=0xF)
SCALABLE_CAP = LEGACY_CAP.replace(FS1GP=1)
SCALABLE_ECAP = LEGACY_ECAP.replace(SMTS=1, SSTS=1, FSTS=1, NEST=1, PASID=1, PSS=19, SRS=1, ERS=1, RPS=1, SMPWCS=1)

_LEVELS = Gcmd.TE.mask | Gcmd.QIE.mask | Gcmd.IRE.mask | Gcmd.CFI.mask


class Shapes(NamedTuple):
    """How large the caches are."""

    iotlb: Shape = Shape(16, 8)
    context: Shape = Shape(8, 8)


class Unit:
    """A remapping hardware unit. `interrupt(address, data)` is an event's MSI write."""

    def __init__(
        self,
        memory: PhysicalMemory,
        cap: Cap = LEGACY_CAP,
        ecap: Ecap = LEGACY_ECAP,
        shapes: Shapes | None = None,
        interrupt: Callable[[int, int], None] | None = None,
    ) -> None:
        shapes = shapes or Shapes()
        self._memory, self._interrupt = memory, interrupt
        self.registers = Registers(self)
        self.registers.CAP, self.registers.ECAP = cap, ecap
        self.iotlb = Iotlb(shapes.iotlb)
        #: Routes by (stream, PASID, or -1 without).
        self.contexts: Cache[tuple[int, int], Route] = Cache(shapes.context)
        self._walker = Walker(memory, cap, ecap)
        self._rtaddr = self.registers.RTADDR
        self._faults = [(FaultLow(0), FaultHigh(0)) for _ in range(cap.NFR + 1)]
        self._next_fault = 0
        self._queue = Queue(self, memory)

    # Translation

    def translate(self, sid: int, iova: int, want: int, pasid: int | None = None) -> Translation:
        """Where a request of a device goes. TranslationFaultError: blocked (and recorded, unless FPD forbids it)."""
        request = Request(sid, iova, want, pasid)
        if not self.registers.GSTS.TE:
            return Translation(iova, 64, READ | WRITE | EXECUTE)
        if pasid is None and want & WRITE and iova in INTERRUPTS:
            return Translation(iova, 12, WRITE)  # an interrupt request: never translated
        try:
            return self._translate(request)
        except QuietFaultError:
            raise
        except TranslationFaultError as fault:
            self._record(fault)
            raise

    def _translate(self, request: Request) -> Translation:
        key = (request.sid, -1 if request.pasid is None else request.pasid)
        route = self.contexts.get(key)
        if route is None:
            route = self._walker.route(self._rtaddr, request)
            self.contexts.put(key, route)
        self._walker.admit(route, request)
        tags = self._tags(route, request)
        cached = self.iotlb.find(tags, request.iova)
        if cached is not None and not request.want & ~cached[1].allowed:
            lg2, entry = cached
            return Translation(entry.oa | request.iova & (1 << lg2) - 1, lg2, entry.allowed)
        found = self._walker.translate(route, request)
        page = found.pa & ~((1 << found.lg2) - 1)
        self.iotlb.fill(tags, request.iova, found.lg2, Entry(page, found.allowed))
        return found

    @staticmethod
    def _tags(route: Route, request: Request) -> tuple[int, ...]:
        """Second-stage translations are the domain's; those of a first stage are the PASID's too (6.2.6)."""
        if route.first is None:
            return (route.did, -1)
        return (route.did, request.pasid or 0)

    # Registers

    def read(self, offset: int, width: int) -> int:
        """Software reads a register (4 or 8 bytes)."""
        fault = offset - self.registers.CAP.FRO * 16
        if 0 <= fault < 16 * len(self._faults):
            low, high = self._faults[fault >> 4]
            return (int(high) << 64 | int(low)) >> 8 * (fault & 15) & (1 << 8 * width) - 1
        return self.registers.read(offset, width)

    def write(self, offset: int, width: int, value: int) -> None:
        """Software writes a register (4 or 8 bytes)."""
        fault = offset - self.registers.CAP.FRO * 16
        if 0 <= fault < 16 * len(self._faults):
            self._clear_fault(fault, width, value)
        else:
            self.registers.write(offset, width, value)

    def on_write_GCMD(self, old: Gcmd, new: Gcmd) -> None:  # the register's name
        """Levels follow the command; one-shot bits act once (11.4.4)."""
        status = int(self.registers.GSTS)
        if new.SRTP:
            self._rtaddr = self.registers.RTADDR
            self.forget_all()
            status |= Gcmd.SRTP.mask
        if new.QIE and not status & Gcmd.QIE.mask:
            self.registers.IQH = 0
        status = status & ~_LEVELS | int(new) & _LEVELS
        self.registers.GSTS = status
        self._queue.run()

    def on_write_IQT(self, old: int, new: int) -> None:  # the register's name
        """The doorbell of the invalidation queue."""
        self._queue.run()

    def on_write_FSTS(self, old: Fsts, new: Fsts) -> None:  # the register's name
        """A cleared IQE lets the queue go on."""
        if old.IQE and not new.IQE:
            self._queue.run()

    # What commands do

    def forget_all(self) -> None:
        """Drop every cached route and translation."""
        self.contexts.drop(lambda key, route: True)
        self.iotlb.drop(lambda page, entry: True)

    def forget_contexts(self, selection: Selection) -> None:
        """Drop cached routes: a context or PASID cache command."""
        self.contexts.drop(lambda key, route: selection.covers_route(key, route))

    def forget_translations(self, selection: Selection) -> None:
        """Drop cached translations: an IOTLB or PASID IOTLB command."""

        def chosen(page: Page, entry: Entry) -> bool:
            return selection.covers_tags(page.tags) and (
                selection.window is None or Iotlb.meets(page, *selection.window)
            )

        self.iotlb.drop(chosen)

    # Events

    def queue_error(self) -> None:
        """The descriptor at the head is wrong: IQE, and the queue stops (6.5.2.10)."""
        self.registers.FSTS = self.registers.FSTS.replace(IQE=1)
        self._fault_event()

    def complete_wait(self, interrupt: bool) -> None:
        """A wait descriptor is done."""
        if interrupt and not self.registers.ICS.IWC:
            self.registers.ICS = self.registers.ICS.replace(IWC=1)
            self._queue_event()

    def _fault_event(self) -> None:
        registers = self.registers
        if registers.FECTL.IM:
            registers.FECTL = registers.FECTL.replace(IP=1)
        else:
            self._send(registers.FEUADDR, registers.FEADDR, registers.FEDATA)

    def _queue_event(self) -> None:
        registers = self.registers
        if registers.IECTL.IM:
            registers.IECTL = registers.IECTL.replace(IP=1)
        else:
            self._send(registers.IEUADDR, registers.IEADDR, registers.IEDATA)

    def _send(self, upper: int, lower: int, data: int) -> None:
        if self._interrupt is not None:
            self._interrupt(int(upper) << 32 | int(lower), int(data))

    def on_write_FECTL(self, old: EventControl, new: EventControl) -> None:
        """An event that was pending goes out when it is unmasked (11.4.10)."""
        if new.IP and not new.IM:
            self.registers.FECTL = new.replace(IP=0)
            self._fault_event()

    def on_write_IECTL(self, old: EventControl, new: EventControl) -> None:
        """An event that was pending goes out when it is unmasked (11.4.22)."""
        if new.IP and not new.IM:
            self.registers.IECTL = new.replace(IP=0)
            self._queue_event()

    def _record(self, fault: TranslationFaultError) -> None:
        request = fault.request
        number = self._next_fault
        if self._faults[number][1].F:
            self.registers.FSTS = self.registers.FSTS.replace(PFO=1)
            return
        high = FaultHigh.of(SID=request.sid, FR=int(fault.reason), T=int(not request.want & WRITE), F=1)
        if request.pasid is not None:
            high = high.replace(PP=1, PV=request.pasid, EXE=int(bool(request.want & EXECUTE)))
        self._faults[number] = (FaultLow.of(FI=request.iova >> 12), high)
        self._next_fault = (number + 1) % len(self._faults)
        first = self.registers.FSTS
        if not first.PPF:
            self.registers.FSTS = first.replace(PPF=1, FRI=number)
            self._fault_event()

    def _clear_fault(self, offset: int, width: int, value: int) -> None:
        number, at = offset >> 4, offset & 15
        whole = value << 8 * at
        if whole >> 127 & 1 and at + width == 16:
            low, high = self._faults[number]
            self._faults[number] = (low, high.replace(F=0))
        pending = [n for n, (_, high) in enumerate(self._faults) if high.F]
        self.registers.FSTS = self.registers.FSTS.replace(PPF=int(bool(pending)), FRI=pending[0] if pending else 0)
