"""The event queue of a virtio-iommu: its driver keeps it filled with buffers, and reads the faults in them."""

from __future__ import annotations

from softiommu.drivers.faults import Blocked, words
from softiommu.drivers.function import Bus
from softiommu.drivers.virtio.queue import DriverQueue
from softiommu.hardware.virtio.commands import size_of
from softiommu.hardware.virtio.events import Fault, Reason
from softiommu.hardware.virtio.registers import EVENTS, Registers
from softiommu.hardware.virtio.tables import Descriptor
from softiommu.memory.physical import PhysicalMemory

_BYTES = size_of(Fault)


class FaultLog:
    """Faults that the device reported. Buffer n is descriptor n."""

    def __init__(self, memory: PhysicalMemory, bus: Bus) -> None:
        self._memory, self._bus = memory, bus
        self._queue = DriverQueue(memory, bus, EVENTS)
        self._buffers = memory.alloc(_BYTES * self._queue.size)

    def fill(self) -> None:
        """Hand all buffers to the device, which runs now."""
        for number in range(self._queue.size):
            self._queue.describe(number, Descriptor.of(ADDR=self._at(number), LEN=_BYTES, WRITE=1))
            self._queue.offer(number)
        self._queue.notify()

    def _at(self, number: int) -> int:
        return self._buffers + _BYTES * number

    def take(self) -> list[Blocked]:
        """Every fault that came, oldest first; their buffers are the device's again."""
        self._bus.read(Registers.ISR.offset, 1)
        found: list[Blocked] = []
        while (done := self._queue.done()) is not None:
            fault = Fault(int.from_bytes(self._memory.read(self._at(done.head), _BYTES), "little"))
            if done.written == _BYTES and not fault.MUST_BE_ZERO:
                found.append(_blocked(fault))
            self._queue.offer(done.head)
            self._queue.notify()
        return found


def _blocked(fault: Fault) -> Blocked:
    reason = Reason(fault.REASON) if fault.REASON in list(Reason) else Reason.UNKNOWN
    access = "write" if fault.WRITE else "read"
    iova = int(fault.ADDRESS) if fault.ADDRESS_VALID else 0
    return Blocked(fault.ENDPOINT, None, iova, access, f"{words(reason.name)} ({int(reason):#x})", repr(fault))
