"""Transactions that stall until software looks at them, as a driver of an SMMUv3 serves them: out of their events, and
answers by RESUME."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from softiommu.drivers.driver import PageFault, PageResponse
from softiommu.drivers.smmuv3.requests import EXECUTE, PRIVILEGED, READ, WRITE
from softiommu.hardware.smmuv3.commands import Op, Resume0, Resume1
from softiommu.hardware.smmuv3.events import Event0, Event1

if TYPE_CHECKING:
    from softiommu.drivers.smmuv3.device import SmmuDevice
    from softiommu.drivers.smmuv3.queue import CommandQueue

_PAGE = 4096


class Stalls:
    """The stalled transactions of the devices behind one SMMU, by stream id."""

    def __init__(self, queue: CommandQueue, devices: Mapping[int, SmmuDevice]) -> None:
        self._queue, self._devices = queue, devices
        #: The transaction that is being handed over, until it is refused.
        self._offered: tuple[int, int] | None = None

    def offer(self, record: Sequence[int]) -> bool:
        """Hand the event of a stalled transaction to its device; False: it is aborted, since nobody serves it."""
        first, how = Event0(record[0]), Event1(record[1])
        fault = _decoded(first, how, record[2])
        device = self._devices.get(first.SID)
        # Faults of stage 2 are no page faults: what a guest's addresses lead to is there, or never will be.
        if device is None or device.on_fault is None or not device.stalls or how.S2:
            self.respond(first.SID, fault, PageResponse.INVALID)
            return False
        self._offered = first.SID, how.STAG
        device.on_fault(fault)
        was_refused, self._offered = self._offered is None, None
        return not was_refused

    def respond(self, sid: int, fault: PageFault, code: PageResponse) -> None:
        """Let a transaction be tried again, or abort it."""
        good = code is PageResponse.SUCCESS
        if not good and self._offered == (sid, fault.group):
            self._offered = None
        low = Resume0.of(OPCODE=Op.RESUME, AC=int(good), AB=int(not good), SID=sid)
        self._queue.submit((low, Resume1.of(STAG=fault.group)))


def _decoded(first: Event0, how: Event1, address: int) -> PageFault:
    perm = EXECUTE if how.IND else READ if how.RNW else WRITE
    perm |= how.PNU * PRIVILEGED
    return PageFault(first.SSID if first.SSV else None, how.STAG, True, perm, address // _PAGE * _PAGE)
