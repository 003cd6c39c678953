"""Page requests of devices, as a driver of the AMD IOMMU serves them: out of the PPR log, and answers as commands."""

from __future__ import annotations

from collections.abc import Iterator

from softiommu.drivers.amd.queue import CommandBuffer
from softiommu.drivers.driver import PageFault, PageResponse
from softiommu.drivers.faults import is_stop_marker
from softiommu.drivers.function import Bus
from softiommu.hardware.amd.commands import Opcode, PprResponse0, PprResponse1
from softiommu.hardware.amd.events import RECORD_SIZE, PprRecord
from softiommu.hardware.amd.registers import Control, Registers, RingBase, Status
from softiommu.memory.physical import PhysicalMemory

_LEN = 9  # 512 records, as in Linux
_SIZE = RECORD_SIZE << _LEN
#: Rights of a page fault, as iommufd tells them.
_READ, _WRITE, _EXECUTE, _PRIVILEGED = 1, 2, 4, 8
_CODES = {PageResponse.SUCCESS: 0, PageResponse.INVALID: 1, PageResponse.FAILURE: 0xF}


class PageRequestLog:
    """The PPR log of one IOMMU."""

    def __init__(self, memory: PhysicalMemory, bus: Bus, queue: CommandBuffer) -> None:
        self._memory, self._bus, self._queue = memory, bus, queue
        self._base = memory.alloc(_SIZE)
        bus.write(Registers.PPR_BASE.offset, 8, RingBase.of(LEN=_LEN, BASE=self._base >> 12))
        bus.write(Registers.PPR_HEAD.offset, 8, 0)
        bus.write(Registers.PPR_TAIL.offset, 8, 0)

    def take(self) -> Iterator[tuple[int, PageFault]]:
        """Each request that waits, with its device. Its place in the log is free already."""
        status = Status(self._bus.read(Registers.STATUS.offset, 8))
        self._bus.write(Registers.STATUS.offset, 8, Status.of(PprInt=1, PprOverflow=status.PprOverflow))
        while True:
            head, tail = (self._bus.read(r.offset, 8) for r in (Registers.PPR_HEAD, Registers.PPR_TAIL))
            if head == tail:
                break
            at = self._base + head
            low, address = PprRecord(self._memory.read_u64(at)), self._memory.read_u64(at + 8)
            self._bus.write(Registers.PPR_HEAD.offset, 8, (head + RECORD_SIZE) % _SIZE)
            sid, fault = _decoded(low, address)
            if not is_stop_marker(fault):
                yield sid, fault
        if status.PprOverflow:
            control = Control(self._bus.read(Registers.CONTROL.offset, 8))
            self._bus.write(Registers.CONTROL.offset, 8, control.replace(PprLogEn=0))
            self._bus.write(Registers.CONTROL.offset, 8, control)

    def respond(self, sid: int, fault: PageFault, code: PageResponse) -> None:
        """Answer the group of a request."""
        low = PprResponse0.of(OPCODE=Opcode.COMPLETE_PPR_REQUEST, DeviceID=sid, PASID=fault.pasid or 0)
        high = PprResponse1.of(GN=int(fault.pasid is not None), Tag=fault.group, Status=_CODES[code])
        self._queue.submit((low, high))


def _decoded(low: PprRecord, address: int) -> tuple[int, PageFault]:
    perm = low.READ * _READ | low.WRITE * _WRITE | low.EXEC * _EXECUTE | (0 if low.USER else _PRIVILEGED)
    pasid = low.PASID19_16 << 16 | low.PASID15_0 if low.GN else None
    return low.DeviceID, PageFault(pasid, low.TAG, bool(low.LAST), perm, address & ~0xFFF)
