"""The driver of one AMD IOMMU: it sets the hardware up, and keeps the ids and routes of its domains.

It does what a kernel's driver does: it writes tables in physical memory, puts commands in the buffer, rings the
doorbell and waits for the store. It knows the hardware by its registers (`Bus`) and its PCI capability's header alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from softiommu.drivers.amd.device import AmdDevice
from softiommu.drivers.amd.domain import AmdDomain
from softiommu.drivers.amd.events import EventLog
from softiommu.drivers.amd.nested import AmdNested
from softiommu.drivers.amd.pages import PageRequestLog
from softiommu.drivers.amd.process import AmdProcess
from softiommu.drivers.amd.queue import Command, CommandBuffer, all_of_it
from softiommu.drivers.amd.routes import Route, Routes
from softiommu.drivers.driver import PageResponse
from softiommu.drivers.function import Bus, Function
from softiommu.drivers.ids import Ids
from softiommu.errors import ModelError
from softiommu.hardware.amd.events import Code, DeviceEvent
from softiommu.hardware.amd.registers import CapabilityHeader, Control, Efr, Efr2, Registers
from softiommu.hardware.amd.tables import HOST_TABLES
from softiommu.memory.physical import PhysicalMemory

#: Domain ids that domains can have; 0 is nobody's.
_DIDS = 1 << 16
#: Control.InvTimeOut: a device TLB has a second to answer.
_ONE_SECOND = 4

#: A capability that says that the IOMMU serves device TLBs.
USUAL_CAPABILITY = CapabilityHeader.of(CapId=0xF, CapType=3, CapRev=1, IotlbSup=1, EFRSup=1)


@dataclass(frozen=True)
class Quirks:
    """How the driver of a kernel differs from the newest one's."""

    #: GET_HW_INFO tells of the hardware.
    tells_hardware: bool = True
    #: A host table may be a parent, and a guest's tables lie over it.
    knows_nesting: bool = True


LINUX_6_12 = Quirks(tells_hardware=False, knows_nesting=False)
LINUX_7_2 = Quirks()


class AmdDriver:
    """One IOMMU, set up and running. `capability` is the header of its PCI capability block."""

    def __init__(
        self,
        memory: PhysicalMemory,
        bus: Bus,
        capability: CapabilityHeader = USUAL_CAPABILITY,
        quirks: Quirks = LINUX_7_2,
    ) -> None:
        self.memory, self._bus, self.capability, self.quirks = memory, bus, capability, quirks
        self.efr = Efr(bus.read(Registers.EFR.offset, 8) if capability.EFRSup else 0)
        self.efr2 = Efr2(bus.read(Registers.EFR2.offset, 8) if capability.EFRSup else 0)
        if not self.efr.IASup:
            raise ModelError("this driver needs INVALIDATE_IOMMU_ALL")
        #: A virtual IOMMU's hypervisor shadows what is mapped: it must hear of new mappings, too.
        self.np_cache = bool(capability.NpCache)
        #: How far host tables can grow.
        self.most_levels = min(4 + self.efr.HATS, max(HOST_TABLES))
        #: Guest tables for devices' own requests and for PASIDs need both.
        self.has_guest_tables = bool(self.efr.GTSup and self.efr.GIoSup)
        #: A guest's GCR3 table lies in the guest's memory.
        self.nests = bool(quirks.knows_nesting and self.efr.GTSup and self.efr2.GCR3TRPModeSup)
        bus.write(Registers.CONTROL.offset, 8, 0)
        self.queue = CommandBuffer(memory, bus)
        self.events = EventLog(memory, bus, self._guest_hears)
        self.pages = PageRequestLog(memory, bus, self.queue) if self.efr.PPRSup else None
        self._dids = Ids(_DIDS - 1, "domain id")
        self._attached: dict[Route, AmdDomain | AmdNested | AmdProcess] = {}
        self._devices: dict[int, AmdDevice] = {}
        self.routes = Routes(memory, self.queue, self.efr)
        bus.write(Registers.DEVTAB_BASE.offset, 8, self.routes.table.register)
        self._start()

    def _start(self) -> None:
        """Command buffer, logs, guest tables, then translation; and everything is forgotten."""
        control = Control.of(Coherent=1, InvTimeOut=_ONE_SECOND, CmdBufEn=1, EventLogEn=1, EventIntEn=1)
        control = control.replace(GTEn=self.efr.GTSup, GCR3TRPMode=int(self.nests))
        if self.pages is not None:
            control = control.replace(PPREn=1, PprLogEn=1, PprIntEn=1, PprAutoRspEn=self.efr.PprAutoRspSup)
        self._bus.write(Registers.CONTROL.offset, 8, control)
        self._bus.write(Registers.CONTROL.offset, 8, control.replace(IommuEn=1))
        self.queue.submit(all_of_it())

    def _guest_hears(self, low: int, high: int) -> bool:
        """A guest is told of faults in its own tables, of a device that is attached to its entry."""
        event = DeviceEvent(low)
        sid = event.DeviceID
        domain = self._attached.get(Route(sid, None))
        if isinstance(domain, AmdNested):
            return domain.hears(sid, low, high)
        if event.CODE != Code.IO_PAGE_FAULT or not event.GN:
            return False
        process = self._attached.get(Route(sid, event.PASID19_16 << 16 | event.DOMAIN or None))
        return isinstance(process, AmdProcess) and process.hears(sid, event, high)

    def forget(self, *commands: Command) -> bool:
        """Carry commands out; False: a device's TLB did not answer."""
        before = self.events.time_outs
        self.queue.submit(*commands)
        return self.events.time_outs == before

    def attach(self, route: Route, domain: AmdDomain | AmdNested | AmdProcess | None) -> None:
        """Route a device through a domain in place of the one it had, or block it."""
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

    def device(self, function: Function) -> AmdDevice:
        """A function behind this IOMMU. It is blocked until a domain is attached."""
        device = AmdDevice(self, function)
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
