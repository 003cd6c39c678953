"""The fault log of a VT-d unit: what a kernel's driver does when the fault event comes. VT-d 7.3."""

from __future__ import annotations

from typing import TYPE_CHECKING

from softiommu.drivers.faults import Blocked, words
from softiommu.hardware.vtd.events import FaultHigh, FaultLow, Reason
from softiommu.hardware.vtd.registers import Cap, EventControl, Fsts, Registers

if TYPE_CHECKING:
    from softiommu.drivers.function import Bus

_RECORD = 16
#: Where the event's message goes: to the first local APIC.
_ADDRESS, _VECTOR = 0xFEE00000, 0x21


class FaultLog:
    """Reads and clears the fault recording registers."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        cap = Cap(bus.read(Registers.CAP.offset, 8))
        self._first, self._count = cap.FRO * _RECORD, cap.NFR + 1
        bus.write(Registers.FEDATA.offset, 4, _VECTOR)
        bus.write(Registers.FEADDR.offset, 4, _ADDRESS)
        bus.write(Registers.FEUADDR.offset, 4, 0)
        bus.write(Registers.FECTL.offset, 4, EventControl(0))

    def take(self) -> list[Blocked]:
        """Every fault that is recorded, oldest first; the registers are free again."""
        found: list[Blocked] = []
        start = Fsts(self._bus.read(Registers.FSTS.offset, 4)).FRI
        for number in range(self._count):
            at = self._first + _RECORD * ((start + number) % self._count)
            high = FaultHigh(self._bus.read(at + 8, 8))
            if high.F:
                found.append(_blocked(FaultLow(self._bus.read(at, 8)), high))
                self._bus.write(at + 12, 4, FaultHigh.F.mask >> 32)
        self._bus.write(Registers.FSTS.offset, 4, Fsts.of(PFO=1))
        return found


def _blocked(low: FaultLow, high: FaultHigh) -> Blocked:
    number = int(high.FR)
    reason = f"{words(Reason(number).name)} ({number:#x})" if number in list(Reason) else f"reason {number:#x}"
    access = "execute" if high.EXE else "read" if high.T else "write"
    pasid = int(high.PV) if high.PP else None
    return Blocked(high.SID, pasid, low.FI << 12, access, reason, f"{low!r} {high!r}")
