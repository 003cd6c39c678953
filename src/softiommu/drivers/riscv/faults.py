"""The fault queue of a RISC-V IOMMU: what a kernel's driver does when its interrupt comes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from softiommu.drivers.faults import Blocked, words
from softiommu.hardware.riscv.events import FAULT_BYTES, Cause, Fault0, Iotval2, Ttyp
from softiommu.hardware.riscv.registers import (
    Capabilities,
    Fctl,
    Icvec,
    Igs,
    Ipsr,
    MsiAddress,
    QueueBase,
    RecordCsr,
    Registers,
)
from softiommu.memory.physical import PAGE

if TYPE_CHECKING:
    from softiommu.drivers.function import Bus
    from softiommu.memory.physical import PhysicalMemory

_ENTRIES = PAGE // FAULT_BYTES
_VECTOR = 1
#: Where the vectors' messages go: to the first hart's interrupt file, as these numbers.
_ADDRESS, _FIRST = 0x28000000, 0x20

_ACCESS = {
    Ttyp.UNTRANSLATED_EXECUTE: "execute",
    Ttyp.UNTRANSLATED_READ: "read",
    Ttyp.UNTRANSLATED_WRITE: "write",
    Ttyp.TRANSLATED_EXECUTE: "translated execute",
    Ttyp.TRANSLATED_READ: "translated read",
    Ttyp.TRANSLATED_WRITE: "translated write",
    Ttyp.ATS_TRANSLATION: "translation request",
    Ttyp.MESSAGE: "message",
}


class FaultLog:
    """One page of fault records. Its interrupt is a message, or wire 1 where there are only wires."""

    def __init__(self, memory: PhysicalMemory, bus: Bus, guest_hears: Callable[[Sequence[int]], bool]) -> None:
        self._memory, self._bus, self._guest_hears = memory, bus, guest_hears
        self._base = memory.alloc(PAGE)
        bus.write(Registers.FCTL.offset, 4, Fctl.of(WSI=int(_is_wired(bus))))
        bus.write(Registers.ICVEC.offset, 8, Icvec.of(FIV=_VECTOR))
        send_messages(bus, _VECTOR)
        base = QueueBase.of(PPN=self._base >> 12, LOG2SZ_1=_ENTRIES.bit_length() - 2)
        bus.write(Registers.FQCSR.offset, 4, RecordCsr(0))
        bus.write(Registers.FQB.offset, 8, base)
        bus.write(Registers.FQH.offset, 4, 0)
        bus.write(Registers.FQCSR.offset, 4, RecordCsr.of(EN=1, IE=1))

    def take(self) -> list[Blocked]:
        """Every fault that is recorded and no guest's, oldest first; the queue is empty again, and takes records."""
        # What is to be told again must be cleared before the interrupt is.
        self._bus.write(Registers.FQCSR.offset, 4, RecordCsr.of(EN=1, IE=1, OF=1, MF=1))
        self._bus.write(Registers.IPSR.offset, 4, Ipsr.of(FIP=1))
        head = self._bus.read(Registers.FQH.offset, 4)
        tail = self._bus.read(Registers.FQT.offset, 4)
        found: list[Blocked] = []
        while head != tail:
            record = [self._memory.read_u64(self._base + FAULT_BYTES * head + 8 * n) for n in range(4)]
            if not self._guest_hears(record):
                found.append(_blocked(record))
            head = (head + 1) % _ENTRIES
        self._bus.write(Registers.FQH.offset, 4, head)
        return found


def send_messages(bus: Bus, vector: int) -> None:
    """Where interrupts are messages, those of a vector go to a hart."""
    if _is_wired(bus):
        return
    bus.write(Registers.MSI_ADDR.at(vector), 8, MsiAddress.of(ADDR=_ADDRESS >> 2))
    bus.write(Registers.MSI_DATA.at(vector), 4, _FIRST + vector)
    bus.write(Registers.MSI_VEC_CTL.at(vector), 4, 0)


def _is_wired(bus: Bus) -> bool:
    return Capabilities(bus.read(Registers.CAPABILITIES.offset, 8)).IGS == Igs.WSI


def _blocked(record: list[int]) -> Blocked:
    what = Fault0(record[0])
    number = int(what.CAUSE)
    reason = f"{words(Cause(number).name)} ({number})" if number in list(Cause) else f"cause {number}"
    shown = " ".join(repr(word) for word in (what, Iotval2(record[3])))
    pasid = what.PID or None  # requests without a process id are those of process 0
    return Blocked(what.DID, pasid, record[2], _ACCESS.get(what.TTYP, "access"), reason, shown)
