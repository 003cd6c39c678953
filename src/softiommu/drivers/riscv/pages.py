"""Page requests of devices, as a driver of a RISC-V IOMMU serves them: out of their queue, and answers as commands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from softiommu.drivers.driver import PageFault, PageResponse
from softiommu.drivers.faults import is_stop_marker
from softiommu.drivers.riscv.faults import send_messages
from softiommu.hardware.riscv.commands import Ats0, Command, Prgr
from softiommu.hardware.riscv.events import PAGE_REQUEST_BYTES, PageRequest0, PageRequest1
from softiommu.hardware.riscv.registers import Icvec, Ipsr, QueueBase, RecordCsr, Registers
from softiommu.memory.physical import PAGE

if TYPE_CHECKING:
    from softiommu.drivers.function import Bus
    from softiommu.drivers.riscv.queue import CommandQueue
    from softiommu.memory.physical import PhysicalMemory

_ENTRIES = PAGE // PAGE_REQUEST_BYTES
_VECTOR = 2
#: Rights of a page fault, as iommufd tells them.
_READ, _WRITE, _EXECUTE, _PRIVILEGED = 1, 2, 4, 8
_CODES = {PageResponse.SUCCESS: 0, PageResponse.INVALID: 1, PageResponse.FAILURE: 0xF}


class PageRequestQueue:
    """One page of page requests. Its interrupt is a message, or wire 2 where there are only wires."""

    def __init__(self, memory: PhysicalMemory, bus: Bus, queue: CommandQueue) -> None:
        self._memory, self._bus, self._queue = memory, bus, queue
        self._base = memory.alloc(PAGE)
        vectors = Icvec(bus.read(Registers.ICVEC.offset, 8))
        bus.write(Registers.ICVEC.offset, 8, vectors.replace(PIV=_VECTOR))
        send_messages(bus, _VECTOR)
        base = QueueBase.of(PPN=self._base >> 12, LOG2SZ_1=_ENTRIES.bit_length() - 2)
        bus.write(Registers.PQCSR.offset, 4, RecordCsr(0))
        bus.write(Registers.PQB.offset, 8, base)
        bus.write(Registers.PQH.offset, 4, 0)
        bus.write(Registers.PQCSR.offset, 4, RecordCsr.of(EN=1, IE=1))

    def take(self) -> Iterator[tuple[int, PageFault]]:
        """Each request that waits, with its device. Its place in the queue is free already."""
        # What is to be told again must be cleared before the interrupt is. The hardware answered what it had no room
        # for: those devices ask again.
        self._bus.write(Registers.PQCSR.offset, 4, RecordCsr.of(EN=1, IE=1, OF=1, MF=1))
        self._bus.write(Registers.IPSR.offset, 4, Ipsr.of(PIP=1))
        while True:
            head, tail = (self._bus.read(r.offset, 4) for r in (Registers.PQH, Registers.PQT))
            if head == tail:
                return
            at = self._base + PAGE_REQUEST_BYTES * head
            low, high = PageRequest0(self._memory.read_u64(at)), PageRequest1(self._memory.read_u64(at + 8))
            self._bus.write(Registers.PQH.offset, 4, (head + 1) % _ENTRIES)
            fault = _decoded(low, high)
            if not is_stop_marker(fault):
                yield low.DID, fault

    def respond(self, sid: int, fault: PageFault, code: PageResponse) -> None:
        """Answer the group of a request."""
        low = Ats0.of(COMMAND=Command.ATS_PRGR, RID=sid & 0xFFFF, DSEG=sid >> 16, DSV=int(sid >> 16 != 0))
        if fault.pasid is not None:
            low = low.replace(PV=1, PID=fault.pasid)
        self._queue.submit((low, Prgr.of(PRGI=fault.group, RESPONSE=_CODES[code])))


def _decoded(low: PageRequest0, high: PageRequest1) -> PageFault:
    perm = high.R * _READ | high.W * _WRITE | low.EXEC * _EXECUTE | low.PRIV * _PRIVILEGED
    return PageFault(low.PID if low.PV else None, high.PRGI, bool(high.L), perm, high.PAGE << 12)
