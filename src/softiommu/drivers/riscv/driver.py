"""The driver of one RISC-V IOMMU: it sets the hardware up, and keeps the ids and routes of its domains.

It does what a kernel's driver does: it writes directories and tables in physical memory, puts commands in the queue,
rings the doorbell and waits for the fence's word. It knows the hardware by its registers alone (`Bus`).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import TypeVar

from softiommu.drivers.driver import PageResponse
from softiommu.drivers.function import Bus, Function
from softiommu.drivers.ids import Ids
from softiommu.drivers.riscv.device import RiscvDevice
from softiommu.drivers.riscv.faults import FaultLog
from softiommu.drivers.riscv.pages import PageRequestQueue
from softiommu.drivers.riscv.queue import CommandQueue
from softiommu.drivers.riscv.routes import Routes
from softiommu.errors import ModelError
from softiommu.hardware.riscv.commands import Command, Iodir0, Iotinval0
from softiommu.hardware.riscv.events import Fault0
from softiommu.hardware.riscv.registers import Capabilities, Ddtp, Registers
from softiommu.hardware.riscv.tables import DDT_LEVELS, FIRST_STAGE, SECOND_STAGE, FirstMode, SecondMode
from softiommu.memory.physical import PAGE, PhysicalMemory

_VERSION = 0x10

M = TypeVar("M", bound=IntEnum)


class RiscvDriver:
    """One IOMMU, set up and running. `msi_window`: addresses of interrupt messages that no mapping may use."""

    def __init__(self, memory: PhysicalMemory, bus: Bus, msi_window: tuple[int, int] | None = None) -> None:
        self.memory, self.msi_window, self._bus = memory, msi_window, bus
        self.capabilities = have = Capabilities(bus.read(Registers.CAPABILITIES.offset, 8))
        if have.VERSION != _VERSION:
            raise ModelError(f"this driver knows version 1.0, not {have.VERSION:#x}")
        #: The widest tables of each stage; BARE: there are none.
        self.first_mode = _widest(have, FIRST_STAGE, FirstMode.BARE)
        self.second_mode = _widest(have, SECOND_STAGE, SecondMode.BARE)
        self.pscids, self.gscids = Ids((1 << 20) - 1), Ids((1 << 16) - 1)
        self.queue = CommandQueue(memory, bus)
        self.faults = FaultLog(memory, bus, self._guest_hears)
        self.pages = PageRequestQueue(memory, bus, self.queue) if have.ATS else None
        self._devices: dict[int, RiscvDevice] = {}
        self.fctl = bus.read(Registers.FCTL.offset, 4)
        root = memory.alloc(PAGE)
        self.routes = Routes(memory, self.queue, have, root, self._start(root))

    def _start(self, root: int) -> int:
        """Turn translation on with a directory as deep as the hardware takes; -> its levels."""
        for mode in sorted(DDT_LEVELS, reverse=True):
            self._bus.write(Registers.DDTP.offset, 8, Ddtp.of(MODE=mode, PPN=root >> 12))
            taken = Ddtp(self._bus.read(Registers.DDTP.offset, 8))
            if mode == taken.MODE and not taken.BUSY:
                break
        else:
            raise ModelError("the hardware takes no device directory")
        self.queue.submit(
            (Iodir0.of(COMMAND=Command.IODIR_INVAL_DDT), 0),
            (Iotinval0.of(COMMAND=Command.IOTINVAL_VMA), 0),
            (Iotinval0.of(COMMAND=Command.IOTINVAL_GVMA), 0),
        )
        return DDT_LEVELS[mode]

    def _guest_hears(self, record: Sequence[int]) -> bool:
        """A guest is told of its own faults, of a device that is attached to its context."""
        what = Fault0(record[0])
        nested = self.routes.guest_of(what.DID, what.PID if what.PV else 0)
        if nested is None:
            return False
        if what.PV and not what.PID and not nested.has_directory:
            # Process 0 is the driver's name for requests without one.
            record = (what.replace(PV=0, PRIV=0), *record[1:])
        return nested.hears(what.DID, record)

    def device(self, function: Function) -> RiscvDevice:
        """A function behind this IOMMU. ENODEV: the directory has no place for it; ENOMEM."""
        self.routes.prepare(function)
        device = RiscvDevice(self, function)
        self._devices[function.sids[0]] = device
        return device

    def service(self) -> None:
        """The hardware's interrupt came: hand page requests to their devices. Those that nobody hears are invalid."""
        for sid, fault in self.pages.take() if self.pages is not None else ():
            device = self._devices.get(sid)
            if device is not None and device.on_fault is not None:
                device.on_fault(fault)
            elif fault.last and self.pages is not None:
                self.pages.respond(sid, fault, PageResponse.INVALID)


def _widest(have: Capabilities, modes: dict[M, str], none: M) -> M:
    """The widest tables that are there. A capability is named like its format."""
    return max((mode for mode in modes if getattr(have, mode.name)), default=none)
