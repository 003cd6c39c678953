"""Events, and the transactions that wait for software to look at theirs. Arm IHI 0070, 3.12.2 and 7.2."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING

from softiommu.hardware.iommu import Request
from softiommu.hardware.smmuv3.events import Event
from softiommu.hardware.smmuv3.faults import Response, SmmuFaultError

if TYPE_CHECKING:
    from softiommu.hardware.smmuv3.records import RecordQueue


class Outcome(Enum):
    """What software decided of a stalled transaction."""

    RETRY = "retry"
    ABORT = "abort"
    RAZ_WI = "read as zero, write ignored"


#: Told of a stalled transaction that goes on: its STAG, the transaction, and how.
Resumed = Callable[[int, Request, Outcome], None]


class Stalls:
    """The event queue's source: records go there at once, and those of stalled transactions are never lost."""

    def __init__(self, queue: RecordQueue, most: int, resumed: Resumed | None) -> None:
        self._queue, self._most, self._resumed = queue, most, resumed
        #: Stalled transactions by STAG.
        self.waiting: dict[int, Request] = {}
        #: Who hears how the transactions of a stream go on.
        self.listeners: dict[int, Callable[[bool], None]] = {}
        #: Records of stalled transactions for which there was no room yet, by STAG.
        self._unwritten: dict[int, tuple[int, ...]] = {}

    def report(self, fault: SmmuFaultError) -> None:
        """A transaction is blocked: record it, and hold it where it stalls."""
        if fault.response is Response.STALL:
            self._stall(fault)
        elif fault.recorded and fault.event != Event.SILENT and self._queue.enabled:
            if self._queue.full:
                self._queue.overflow()
            else:
                self._queue.push(*fault.record())

    def _stall(self, fault: SmmuFaultError) -> None:
        """Without a free STAG a transaction waits behind the others, and is not recorded yet: it has none."""
        free = (stag for stag in range(self._most) if stag not in self.waiting)
        fault.stag = next(free, None)
        if fault.stag is not None:
            self.waiting[fault.stag] = fault.request
            self._unwritten[fault.stag] = fault.record()
            self.write()

    def write(self) -> None:
        """Write the records that wait for room."""
        while self._unwritten and self._queue.enabled and not self._queue.full:
            stag = next(iter(self._unwritten))
            if not self._queue.push(*self._unwritten.pop(stag)):
                return

    def resume(self, sid: int, stag: int, outcome: Outcome) -> None:
        """RESUME: no effect on what does not wait, or is of another stream."""
        request = self.waiting.get(stag)
        if request is None or request.sid != sid:
            return
        del self.waiting[stag]
        self._unwritten.pop(stag, None)
        if self._resumed is not None:
            self._resumed(stag, request, outcome)
        if sid in self.listeners:
            self.listeners[sid](outcome is Outcome.RETRY)

    def terminate(self, sid: int | None) -> None:
        """STALL_TERM, or all when translation is turned off (None)."""
        for stag, request in list(self.waiting.items()):
            if sid is None or request.sid == sid:
                self.resume(request.sid, stag, Outcome.ABORT)
