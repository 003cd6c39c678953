"""The driver of one Intel VT-d unit: it sets the hardware up, and keeps the ids and routes of its domains.

It does what a kernel's driver does: it writes tables in physical memory, puts descriptors in the queue, rings the
doorbell and waits for the status word. It knows the hardware by its registers alone (`Bus`).
"""

from __future__ import annotations

from dataclasses import dataclass

from softiommu.drivers.driver import PageResponse
from softiommu.drivers.function import Bus, Function
from softiommu.drivers.ids import Ids
from softiommu.drivers.vtd.device import VtdDevice
from softiommu.drivers.vtd.domain import Route, VtdDomain
from softiommu.drivers.vtd.nested import VtdNestedDomain
from softiommu.drivers.vtd.pages import PageRequestQueue
from softiommu.drivers.vtd.queue import ALL_PASIDS, GLOBAL, InvalidationQueue, command
from softiommu.drivers.vtd.routes import LegacyRoutes, Routes, ScalableRoutes
from softiommu.errors import ModelError
from softiommu.hardware.vtd.commands import Context, Iotlb0, PasidCache0, Type
from softiommu.hardware.vtd.registers import Cap, Ecap, Fsts, Gcmd, Registers, Rtaddr, Ttm
from softiommu.memory.physical import PhysicalMemory


@dataclass(frozen=True)
class Quirks:
    """How a kernel's driver behaves where versions differ."""

    #: Every leaf of a second stage can be read, also that of a write-only mapping.
    write_only_is_readable: bool = False
    #: A program's domain is of the first stage where the hardware has one; else it is of the second, also on hardware
    #: that has none: then it cannot be attached.
    first_stage_for_programs: bool = True


LINUX_6_12 = Quirks(write_only_is_readable=True, first_stage_for_programs=False)
LINUX_7_2 = Quirks()


class VtdDriver:
    """One unit, set up and running; in scalable mode where the hardware has it and `scalable` asks for it."""

    def __init__(self, memory: PhysicalMemory, bus: Bus, quirks: Quirks = LINUX_7_2, scalable: bool = True) -> None:
        self.memory, self.quirks, self._bus = memory, quirks, bus
        self.cap = Cap(bus.read(Registers.CAP.offset, 8))
        self.ecap = Ecap(bus.read(Registers.ECAP.offset, 8))
        if not self.ecap.QI:
            raise ModelError("this driver needs queued invalidation")
        self._stop()
        self.scalable = scalable and bool(self.ecap.SMTS)
        #: A program's domains are of the first stage.
        self.prefers_first_stage = self.scalable and quirks.first_stage_for_programs and bool(self.ecap.FSTS)
        self.queue = InvalidationQueue(memory, bus, wide=bool(self.ecap.SMTS))
        kind = ScalableRoutes if self.scalable else LegacyRoutes
        self.routes: Routes = kind(memory, self.queue, self.cap, self.ecap)
        self._dids = Ids((1 << 4 + 2 * self.cap.ND) - 1, "domain id")
        self._attached: dict[Route, VtdDomain | VtdNestedDomain] = {}
        self._devices: dict[int, VtdDevice] = {}
        has_pages = self.scalable and self.ecap.PRS
        self.pages = PageRequestQueue(memory, bus, self.queue) if has_pages else None
        self._start()

    def _stop(self) -> None:
        """Whoever ran the unit before may have left it on: translation, the queue, and errors."""
        self._bus.write(Registers.GCMD.offset, 4, 0)
        self._bus.write(Registers.FSTS.offset, 4, Fsts.of(PFO=1, IQE=1, ICE=1, ITE=1))

    def _start(self) -> None:
        """Root table, queue, global invalidation, translation on (VT-d 3.14, 6.6)."""
        mode = Ttm.SCALABLE if self.scalable else Ttm.LEGACY
        self._bus.write(Registers.RTADDR.offset, 8, Rtaddr.of(TTM=mode, RTA=self.routes.root >> 12))
        command(self._bus, 0, Gcmd.of(SRTP=1))
        command(self._bus, 0, Gcmd.of(QIE=1))
        self.queue.submit((Context.of(TYPE=Type.CONTEXT, G=GLOBAL), 0))
        if self.scalable:
            self.queue.submit((PasidCache0.of(TYPE=Type.PASID_CACHE, G=ALL_PASIDS), 0))
        self.queue.submit((Iotlb0.of(TYPE=Type.IOTLB, G=GLOBAL), 0))
        command(self._bus, Gcmd.QIE.mask, Gcmd.of(TE=1))

    def attach(self, route: Route, domain: VtdDomain | VtdNestedDomain | None) -> None:
        """Route a stream through a domain in place of the one it had, or block it."""
        old = self._attached.get(route)
        if old is domain:
            return
        # Until the hardware has forgotten the old one, its invalidations are for this route, too.
        self.routes.route(*route, domain)
        if old is not None:
            old.routes.remove(route)
            del self._attached[route]
        if domain is not None:
            domain.routes.append(route)
            self._attached[route] = domain

    def take_did(self) -> int:
        """A free domain id. ENOMEM: all are used."""
        return self._dids.take()

    def give_did(self, did: int) -> None:
        """A domain is gone, and forgotten."""
        self._dids.give(did)

    def device(self, function: Function) -> VtdDevice:
        """A function behind this unit. ENOMEM."""
        self.routes.prepare(function)
        device = VtdDevice(self, function)
        self._devices[function.sids[0]] = device
        return device

    def service(self) -> None:
        """The hardware's message came: hand page requests to their devices. Those that nobody hears are invalid."""
        for sid, fault in self.pages.take() if self.pages is not None else ():
            device = self._devices.get(sid)
            if device is not None and device.on_fault is not None:
                device.on_fault(fault)
            elif fault.last and self.pages is not None:
                self.pages.respond(sid, fault, PageResponse.INVALID)
