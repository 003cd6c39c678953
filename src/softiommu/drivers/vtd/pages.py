"""Page requests of devices, as a driver of VT-d serves them: out of their queue, and answers into the other."""

from __future__ import annotations

from collections.abc import Iterator

from softiommu.drivers.driver import PageFault, PageResponse
from softiommu.drivers.faults import is_stop_marker
from softiommu.drivers.function import Bus
from softiommu.drivers.vtd.queue import InvalidationQueue
from softiommu.hardware.vtd.commands import PageGroupResponse0, PageGroupResponse1, Type
from softiommu.hardware.vtd.events import PageRequest0, PageRequest1
from softiommu.hardware.vtd.registers import EventControl, PagePointer, Pqa, Prs, Registers
from softiommu.memory.physical import PAGE, PhysicalMemory

_QUEUE_LG2 = 4  # Linux has 64 KiB
_ENTRY_LG2 = 5
#: Where the event's message goes: to the first local APIC.
_ADDRESS, _VECTOR = 0xFEE00000, 0x22
#: Rights of a page fault, as iommufd tells them.
_READ, _WRITE, _EXECUTE, _PRIVILEGED = 1, 2, 4, 8
_CODES = {PageResponse.SUCCESS: 0, PageResponse.INVALID: 1, PageResponse.FAILURE: 0xF}


class PageRequestQueue:
    """The page request queue of one unit, in scalable mode."""

    def __init__(self, memory: PhysicalMemory, bus: Bus, queue: InvalidationQueue) -> None:
        self._memory, self._bus, self._queue = memory, bus, queue
        self._size = PAGE << _QUEUE_LG2
        self._base = memory.alloc(self._size)
        bus.write(Registers.PQH.offset, 8, 0)
        bus.write(Registers.PQT.offset, 8, 0)
        bus.write(Registers.PQA.offset, 8, Pqa.of(PQS=_QUEUE_LG2, PQA=self._base >> 12))
        bus.write(Registers.PEDATA.offset, 4, _VECTOR)
        bus.write(Registers.PEADDR.offset, 4, _ADDRESS)
        bus.write(Registers.PEUADDR.offset, 4, 0)
        bus.write(Registers.PECTL.offset, 4, EventControl(0))

    def take(self) -> Iterator[tuple[int, PageFault]]:
        """Each request that waits, with its stream. Its place in the queue is free already."""
        self._bus.write(Registers.PRS.offset, 4, Prs.of(PPR=1))
        while True:
            head, tail = (PagePointer(self._bus.read(r.offset, 8)).OFFSET for r in (Registers.PQH, Registers.PQT))
            if head == tail:
                break
            at = self._base + (head << _ENTRY_LG2)
            low, high = PageRequest0(self._memory.read_u64(at)), PageRequest1(self._memory.read_u64(at + 8))
            head = (head + 1) % (self._size >> _ENTRY_LG2)
            self._bus.write(Registers.PQH.offset, 8, PagePointer.of(OFFSET=head))
            sid, fault = _decoded(low, high)
            if not is_stop_marker(fault):
                yield sid, fault
        # There is room again: the hardware may queue what it answered by itself while there was none.
        self._bus.write(Registers.PRS.offset, 4, Prs.of(PRO=1))

    def respond(self, sid: int, fault: PageFault, code: PageResponse) -> None:
        """Answer the group of a request."""
        low = PageGroupResponse0.of(TYPE=Type.PAGE_GROUP_RESPONSE, RID=sid, CODE=_CODES[code])
        if fault.pasid is not None:
            low = low.replace(PP=1, PASID=fault.pasid)
        self._queue.submit((low, PageGroupResponse1.of(LPIG=1, PRGI=fault.group)))


def _decoded(low: PageRequest0, high: PageRequest1) -> tuple[int, PageFault]:
    perm = high.R * _READ | high.W * _WRITE | low.EXE * _EXECUTE | low.PM * _PRIVILEGED
    pasid = low.PASID if low.PP else None
    return low.RID, PageFault(pasid, high.PRGI, bool(high.LPIG), perm, high.ADDR << 12)
