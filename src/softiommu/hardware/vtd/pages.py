"""Page requests of devices: the queue to software, and the answers back. VT-d 7.4 to 7.6."""

from __future__ import annotations

from typing import TYPE_CHECKING

from softiommu.hardware.iommu import Endpoint, PageRequest, ResponseCode
from softiommu.hardware.vtd.events import PageRequest0, PageRequest1
from softiommu.memory.physical import BadAddressError
from softiommu.pagetable.kinds import EXECUTE, READ, WRITE

if TYPE_CHECKING:
    from softiommu.hardware.vtd.faults import Event
    from softiommu.hardware.vtd.registers import Registers
    from softiommu.memory.physical import PhysicalMemory

_ENTRY = 32
_PAGE_REQUEST = 1


class PageRequests:
    """The page request queue of one unit, and the functions that hear of answers."""

    def __init__(self, registers: Registers, memory: PhysicalMemory, event: Event) -> None:
        self._registers, self._memory, self._event = registers, memory, event
        self.endpoints: dict[int, Endpoint] = {}

    def add(self, request: PageRequest) -> None:
        """Queue a request. One that finds the queue full is dropped; the last of a group is told to try again."""
        registers = self._registers
        size = 4096 << registers.PQA.PQS
        tail = (registers.PQT.OFFSET << 5) % size
        if registers.PRS.PRO or (tail + _ENTRY) % size == registers.PQH.OFFSET << 5:
            return self._overflow(request)
        at = (registers.PQA.PQA << 12) + tail
        try:
            for number, word in enumerate(_words(request)):
                self._memory.write_u64(at + 8 * number, word)
        except BadAddressError:
            return self._overflow(request)
        registers.PQT = (tail + _ENTRY) % size
        return self._report(PPR=1)

    def _overflow(self, request: PageRequest) -> None:
        self._report(PRO=1)
        self.answer(request, ResponseCode.SUCCESS)

    def _report(self, **fields: int) -> None:
        before = int(self._registers.PRS)
        self._registers.PRS = self._registers.PRS.replace(**fields)
        if not before:
            self._event.happen()

    def answer(self, request: PageRequest, code: ResponseCode) -> None:
        """Answer a request without software: its group has an answer when the last of it has come. A stop marker has
        none."""
        if request.last and not request.is_stop_marker:
            self.respond(request.sid, request.pasid, request.group, code)

    def respond(self, sid: int, pasid: int | None, group: int, code: ResponseCode) -> None:
        """Send an answer to a function, if there is one."""
        endpoint = self.endpoints.get(sid)
        if endpoint is not None:
            endpoint.page_response(pasid, group, code)


def _words(request: PageRequest) -> tuple[int, int, int, int]:
    low = PageRequest0.of(TYPE=_PAGE_REQUEST, RID=request.sid, EXE=int(bool(request.want & EXECUTE)))
    if request.pasid is not None:
        low = low.replace(PP=1, PASID=request.pasid & 0xFFFFF, PM=int(request.privileged))
    high = PageRequest1.of(
        R=int(bool(request.want & READ)),
        W=int(bool(request.want & WRITE)),
        LPIG=int(request.last),
        PRGI=request.group & 0x1FF,
        ADDR=request.iova >> 12,
    )
    return low, high, 0, 0
