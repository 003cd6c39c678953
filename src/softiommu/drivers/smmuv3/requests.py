"""Page requests of devices, as a driver of an SMMUv3 serves them: out of the PRI queue, and answers as commands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from softiommu.drivers.driver import PageFault, PageResponse
from softiommu.drivers.faults import is_stop_marker
from softiommu.hardware.smmuv3.commands import Op, Prefetch0, PriResp1, Resp
from softiommu.hardware.smmuv3.events import REQUEST_BYTES, Request0, Request1
from softiommu.hardware.smmuv3.registers import Cons, Prod, QueueBase, Registers, Ring
from softiommu.memory.physical import PAGE

if TYPE_CHECKING:
    from softiommu.drivers.function import Bus
    from softiommu.drivers.smmuv3.queue import CommandQueue
    from softiommu.memory.physical import PhysicalMemory

#: One page of requests, where the hardware has so many.
_LG2 = 8
#: Rights of a page fault, as iommufd tells them.
READ, WRITE, EXECUTE, PRIVILEGED = 1, 2, 4, 8
_CODES = {
    PageResponse.SUCCESS: Resp.SUCCESS,
    PageResponse.INVALID: Resp.FAIL,
    PageResponse.FAILURE: Resp.DENY,
}


class PageRequestQueue:
    """The PRI queue of one SMMU; `most_lg2` is the largest that the hardware takes. Who enables it lets its interrupt
    out, which is wired."""

    def __init__(self, memory: PhysicalMemory, bus: Bus, queue: CommandQueue, most_lg2: int) -> None:
        self._memory, self._bus, self._queue = memory, bus, queue
        self._ring = Ring(min(_LG2, most_lg2))
        self._base = memory.alloc(PAGE)
        base = QueueBase.of(LOG2SIZE=self._ring.lg2, ADDR=self._base >> 5, HINT=1)
        bus.write(Registers.PRIQ_BASE.offset, 8, base)
        bus.write(Registers.PRIQ_PROD.offset, 4, 0)
        bus.write(Registers.PRIQ_CONS.offset, 4, 0)
        bus.write(Registers.PRIQ_IRQ_CFG0.offset, 8, 0)

    def take(self) -> Iterator[tuple[int, PageFault]]:
        """Each request that waits, with its stream. Its place in the queue is free already, and an overflow, which
        the hardware has answered, is acknowledged."""
        while True:
            prod = Prod(self._bus.read(Registers.PRIQ_PROD.offset, 4))
            cons = Cons(self._bus.read(Registers.PRIQ_CONS.offset, 4))
            if self._ring.empty(prod.WR, cons.RD):
                return
            at = self._base + REQUEST_BYTES * self._ring.slot(cons.RD)
            low, high = Request0(self._memory.read_u64(at)), Request1(self._memory.read_u64(at + 8))
            free = Cons.of(RD=self._ring.next(cons.RD), OVACKFLG=prod.OVFLG)
            self._bus.write(Registers.PRIQ_CONS.offset, 4, free)
            fault = _decoded(low, high)
            if not is_stop_marker(fault):
                yield low.SID, fault

    def respond(self, sid: int, fault: PageFault, code: PageResponse) -> None:
        """Answer the group of a request."""
        low = Prefetch0.of(OPCODE=Op.PRI_RESP, SID=sid)
        if fault.pasid is not None:
            low = low.replace(SSV=1, SSID=fault.pasid)
        self._queue.submit((low, PriResp1.of(PRGINDEX=fault.group, RESP=_CODES[code])))


def _decoded(low: Request0, high: Request1) -> PageFault:
    perm = low.R * READ | low.W * WRITE | low.X * EXECUTE | low.PRIV * PRIVILEGED
    return PageFault(low.SSID if low.SSV else None, high.PRGINDEX, bool(low.LAST), perm, high.ADDR << 12)
