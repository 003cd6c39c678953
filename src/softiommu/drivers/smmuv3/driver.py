"""The driver of one SMMUv3: it sets the hardware up, and keeps the ids and routes of its domains.

It does what a kernel's driver does: it writes tables in physical memory, puts commands in the queue, rings the doorbell
and waits for the SYNC. It knows the hardware by its registers alone (`Bus`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from softiommu.abi.smmuv3_extension import HW_CAP_BTM
from softiommu.drivers.driver import PageResponse
from softiommu.drivers.function import Bus, Function
from softiommu.drivers.ids import Ids
from softiommu.drivers.smmuv3 import pages, platform
from softiommu.drivers.smmuv3.cmdqv import Cmdqv
from softiommu.drivers.smmuv3.device import SmmuDevice
from softiommu.drivers.smmuv3.domain import Route
from softiommu.drivers.smmuv3.faults import EventLog
from softiommu.drivers.smmuv3.platform import NO_EXTENSIONS, Extensions, Iort, as_registers_say
from softiommu.drivers.smmuv3.queue import CommandQueue
from softiommu.drivers.smmuv3.requests import PageRequestQueue
from softiommu.drivers.smmuv3.routes import Routes, Target
from softiommu.drivers.smmuv3.stalls import Stalls
from softiommu.drivers.smmuv3.viommu import Guest
from softiommu.errors import ModelError
from softiommu.hardware.smmuv3.commands import Bare, Op, Range1, Stream0
from softiommu.hardware.smmuv3.events import Event0
from softiommu.hardware.smmuv3.registers import Cr0, Cr1, Cr2, Idr0, Idr1, Idr3, Idr5, Registers
from softiommu.hardware.smmuv3.tables import Strw
from softiommu.memory.physical import PhysicalMemory

_WRITE_BACK, _INNER = 1, 3
#: CFGI_STE_RANGE of every stream.
_ALL_STREAMS = 31


@dataclass(frozen=True)
class Quirks:
    """How a kernel's driver behaves where versions differ."""

    #: GET_HW_INFO tells the ID registers.
    tells_hardware: bool = True
    #: A domain can be made for nesting (of stage 2), or for PASIDs.
    knows_nesting: bool = True
    #: A device that neither stalls nor has PRI can be attached to an HWPT with a fault queue (since 6.16).
    ignores_fault_queues: bool = True
    #: What no released kernel has.
    extensions: Extensions = NO_EXTENSIONS


LINUX_6_12 = Quirks(tells_hardware=False, knows_nesting=False, ignores_fault_queues=False)
LINUX_7_2 = Quirks()


class SmmuDriver:
    """One SMMU, set up and running."""

    def __init__(
        self,
        memory: PhysicalMemory,
        bus: Bus,
        quirks: Quirks = LINUX_7_2,
        extension: Bus | None = None,
        iort: Iort | None = None,
    ) -> None:
        """`extension`: the registers of Tegra241's CMDQV, where there is one. `iort`: what the firmware says."""
        self.memory, self.quirks, self._bus = memory, quirks, bus
        raw = Idr0(self.read32(Registers.IDR0.offset))
        iort = as_registers_say(raw) if iort is None else iort
        #: As the firmware has it.
        self.idr0 = raw.replace(COHACC=iort.COHACC, HTTU=iort.HTTU)
        #: A guest's stage 1 can lie over a stage 2 of ours, and needs no maintenance of caches for it.
        self.nests = bool(quirks.knows_nesting and self.idr0.S1P and self.idr0.S2P and self.idr0.COHACC)
        #: Of extensions: bits of out_capabilities.
        self.capabilities = platform.capabilities(raw, iort, quirks.extensions) if self.nests else 0
        idr1 = Idr1(self.read32(Registers.IDR1.offset))
        self.limits = pages.limits(Idr5(self.read32(Registers.IDR5.offset)))
        #: TLBI commands take ranges.
        self.has_ranges = bool(Idr3(self.read32(Registers.IDR3.offset)).RIL)
        #: Stage 1 is of EL2, with the two halves and the ASIDs of a host (E2H).
        self.is_host = bool(self.idr0.HYP)
        self.asids = Ids((1 << (16 if self.idr0.ASID16 else 8)) - 1)
        # Hypervisors give VMs the low ones, which a stage 2 may then be asked to take.
        self.vmids = Ids((1 << (16 if self.idr0.VMID16 else 8)) - 1, descending=self.listens)
        self.cmdqv = Cmdqv(extension, idr1.CMDQS) if extension is not None and self.nests else None
        self._enable(Cr0(0))
        self.queue = CommandQueue(memory, bus, idr1.CMDQS)
        self._devices: dict[int, SmmuDevice] = {}
        self.stalls = Stalls(self.queue, self._devices)
        self.faults = EventLog(memory, bus, self.stalls, idr1.EVENTQS, self._guest_hears)
        self.requests = PageRequestQueue(memory, bus, self.queue, idr1.PRIQS) if self.idr0.PRI else None
        strw = Strw.EL2 if self.is_host else Strw.NS_EL1
        self.routes = Routes(memory, self.queue, self.idr0, idr1, strw)
        self._attached: dict[Route, Target] = {}
        #: Who in a guest hears of the events of a stream.
        self.guests: dict[int, Guest] = {}
        self._start()

    def read32(self, offset: int) -> int:
        """A register of 32 bits."""
        return self._bus.read(offset, 4)

    @property
    def listens(self) -> bool:
        """Whether the SMMU takes part in the TLB maintenance of CPUs, and stage 2 can have a VM's own VMID."""
        return bool(self.capabilities & HW_CAP_BTM)

    def _enable(self, enables: Cr0) -> None:
        """Turn parts on. ModelError: the hardware does not acknowledge."""
        self._bus.write(Registers.CR0.offset, 4, enables)
        if self.read32(Registers.CR0ACK.offset) != enables:
            raise ModelError(f"the hardware does not take {enables!r}")

    def _start(self) -> None:
        """Attributes, stream table, queues, nothing cached, then translation (6.3, 3.21)."""
        attributes = {"IC": _WRITE_BACK, "OC": _WRITE_BACK, "SH": _INNER}
        cr1 = Cr1.of(**{f"{what}_{name}": value for what in ("TABLE", "QUEUE") for name, value in attributes.items()})
        self._bus.write(Registers.CR1.offset, 4, cr1)
        self._bus.write(Registers.CR2.offset, 4, Cr2.of(PTM=int(not self.listens), RECINVSID=1, E2H=int(self.is_host)))
        self._bus.write(Registers.STRTAB_BASE.offset, 8, self.routes.base)
        self._bus.write(Registers.STRTAB_BASE_CFG.offset, 4, self.routes.shape)
        enables = Cr0.of(CMDQEN=1)
        self._enable(enables)
        self.queue.submit((Stream0.of(OPCODE=Op.CFGI_STE_RANGE), Range1.of(RANGE=_ALL_STREAMS)))
        if self.idr0.HYP:
            self.queue.submit((Bare.of(OPCODE=Op.TLBI_EL2_ALL), 0))
        self.queue.submit((Bare.of(OPCODE=Op.TLBI_NSNH_ALL), 0))
        enables = enables.replace(EVENTQEN=1, ATSCHK=self.idr0.ATS)
        self._enable(enables)
        self.faults.enable()
        self._enable(enables.replace(SMMUEN=1, PRIQEN=self.idr0.PRI))

    def attach(self, route: Route, domain: Target | None) -> None:
        """Route a stream or a substream through a domain in place of the one it had, or block it."""
        old = self._attached.get(route)
        if old is domain:
            return
        # Until the hardware has forgotten the old one, its invalidations are for this route, too.
        self.routes.route(*route, domain)
        if old is not None:
            old.leave(route)
            del self._attached[route]
        if domain is not None:
            domain.join(route)
            self._attached[route] = domain

    def _guest_hears(self, record: Sequence[int]) -> bool:
        """A guest is told of an event of a device that is attached to the guest's STE."""
        guest = self.guests.get(Event0(record[0]).SID)
        return guest is not None and guest.hears(record)

    def device(self, function: Function) -> SmmuDevice:
        """A function behind this SMMU. ENODEV: the stream table has no place for it; ENOMEM."""
        self.routes.prepare(function)
        device = SmmuDevice(self, function)
        self._devices[function.sids[0]] = device
        return device

    def service(self) -> None:
        """The hardware's interrupt came: hand page requests to their devices. Those that nobody hears are invalid."""
        for sid, fault in self.requests.take() if self.requests is not None else ():
            device = self._devices.get(sid)
            if device is not None and device.on_fault is not None:
                device.on_fault(fault)
            elif fault.last and self.requests is not None:
                self.requests.respond(sid, fault, PageResponse.INVALID)
