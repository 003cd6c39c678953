"""Fault records, the status register, and the events that tell software of them. VT-d 7.1 to 7.3."""

from __future__ import annotations

from collections.abc import Callable

from softiommu.hardware.iommu import Request, TranslationFaultError
from softiommu.hardware.vtd.events import AddressType, FaultHigh, FaultLow
from softiommu.hardware.vtd.registers import EventControl, FaultRegisters, Fsts, QueueErrorInfo, Registers
from softiommu.pagetable.kinds import EXECUTE, RIGHTS, WRITE

Interrupt = Callable[[int, int], None]

_STATUS = sum(getattr(Fsts, name).mask for name in ("PFO", "PPF", "AFO", "APF", "IQE", "ICE", "ITE"))


class Event:
    """An interrupt message that can be masked, and is then pending. Its registers' names begin with `kind`."""

    def __init__(self, registers: Registers, kind: str, interrupt: Interrupt | None) -> None:
        self._registers, self._kind, self._interrupt = registers, kind, interrupt

    @property
    def _control(self) -> EventControl:
        control: EventControl = getattr(self._registers, f"{self._kind}CTL")
        return control

    @_control.setter
    def _control(self, word: EventControl) -> None:
        setattr(self._registers, f"{self._kind}CTL", word)

    def happen(self) -> None:
        """Send the message, or remember that it is to be sent."""
        if self._control.IM:
            self._control = self._control.replace(IP=1)
        elif self._interrupt is not None:
            upper, lower, data = (
                int(getattr(self._registers, self._kind + name)) for name in ("UADDR", "ADDR", "DATA")
            )
            self._interrupt(upper << 32 | lower, data)

    def unmask(self) -> None:
        """The control register was written: what was pending goes out when it is not masked any more."""
        if self._control.IP and not self._control.IM:
            self.serviced()
            self.happen()

    def serviced(self) -> None:
        """Software has seen all that happened: nothing is pending any more."""
        self._control = self._control.replace(IP=0)


class FaultLog:
    """Fault records of one unit, and its fault status."""

    def __init__(self, registers: Registers, event: Event) -> None:
        self._registers, self._event = registers, event
        self.records = FaultRegisters(self)
        self._count = int(registers.CAP.NFR) + 1
        self._next = 0

    def record(self, fault: TranslationFaultError, kind: AddressType, is_page_request: bool = False) -> None:
        """Record a fault of a request (7.2.1)."""
        request = fault.request
        is_read = not is_page_request and not request.want & WRITE
        high = FaultHigh.of(SID=request.sid, FR=int(fault.reason), AT=kind, T=int(is_read), T2=int(is_page_request))
        if request.pasid is not None:
            high = high.replace(PP=1, PV=request.pasid & 0xFFFFF, PRIV=int(request.privileged), EXE=_executes(request))
        self._record(FaultLow.of(FI=request.iova >> 12), high)

    def record_interrupt(self, sid: int, reason: int, index: int) -> None:
        """Record a fault of an interrupt: its index is in bits 63:48."""
        self._record(FaultLow(index << 48), FaultHigh.of(SID=sid, FR=reason))

    def _record(self, low: FaultLow, high: FaultHigh) -> None:
        if self._registers.FSTS.PFO:
            return
        if self.records.HIGH[self._next].F:
            self.report(PFO=1)
            return
        self.records.LOW[self._next] = low
        self.records.HIGH[self._next] = high.replace(F=1)
        first, self._next = self._next, (self._next + 1) % self._count
        if not self._registers.FSTS.PPF:
            self.report(PPF=1, FRI=first)

    def report(self, **fields: int) -> None:
        """Set bits of the status. It is an event when none was set: one that software has not seen says all."""
        before = int(self._registers.FSTS) & _STATUS
        self._registers.FSTS = self._registers.FSTS.replace(**fields)
        if not before:
            self._event.happen()

    def report_queue(self, info: QueueErrorInfo) -> None:
        """The invalidation queue stopped at a descriptor (6.5.2.10)."""
        self._registers.IQER = self._registers.IQER.replace(IQEI=info)
        self.report(IQE=1)

    def report_timeout(self, sid: int) -> None:
        """A device TLB did not answer (6.5.2.11)."""
        self._registers.IQER = self._registers.IQER.replace(ITESID=sid)
        self.report(ITE=1)

    def cleared(self) -> None:
        """Software cleared a bit of the status."""
        if not int(self._registers.FSTS) & _STATUS:
            self._event.serviced()

    def on_write_HIGH(self, index: int, old: FaultHigh, new: FaultHigh) -> None:
        """A record that software has read is free again; the oldest that is left is the first."""
        pending = [n % self._count for n in range(self._next, self._next + self._count)]
        pending = [n for n in pending if self.records.HIGH[n].F]
        self._registers.FSTS = self._registers.FSTS.replace(PPF=int(bool(pending)), FRI=pending[0] if pending else 0)
        self.cleared()


def _executes(request: Request) -> int:
    return int(bool(request.want & RIGHTS & EXECUTE))
