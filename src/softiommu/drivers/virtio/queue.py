"""A driver's side of a split virtqueue: buffers are made available, and found again when the device has used them."""

from __future__ import annotations

from typing import NamedTuple

from softiommu.drivers.function import Bus
from softiommu.errors import ModelError
from softiommu.hardware.virtio.registers import Registers
from softiommu.hardware.virtio.tables import (
    AVAILABLE_BYTES,
    DESCRIPTOR_BYTES,
    RING_ELEMENTS,
    RING_FLAGS,
    RING_INDEX,
    USED_BYTES,
    AvailableFlags,
    Descriptor,
    Used,
)
from softiommu.memory.physical import PAGE, PhysicalMemory


class Done(NamedTuple):
    """A chain that came back: its head, and how many bytes the device wrote."""

    head: int
    written: int


class DriverQueue:
    """One queue, set up and enabled. Whoever uses it knows which descriptors are free."""

    def __init__(self, memory: PhysicalMemory, bus: Bus, number: int, interrupts: bool = True) -> None:
        self._memory, self._bus = memory, bus
        bus.write(Registers.QUEUE_SELECT.offset, 2, number)
        # One page of descriptors is as many as a driver of ours ever has in flight.
        self.size = min(bus.read(Registers.QUEUE_SIZE.offset, 2), PAGE // DESCRIPTOR_BYTES)
        if not self.size:
            raise ModelError(f"the device has no queue {number}")
        self._descriptors, self._available, self._used = (memory.alloc(PAGE) for _ in range(3))
        flags = AvailableFlags.of(NO_INTERRUPT=int(not interrupts))
        memory.write(self._available + RING_FLAGS, int(flags).to_bytes(2, "little"))
        bus.write(Registers.QUEUE_SIZE.offset, 2, self.size)
        bus.write(Registers.QUEUE_DESC.offset, 8, self._descriptors)
        bus.write(Registers.QUEUE_DRIVER.offset, 8, self._available)
        bus.write(Registers.QUEUE_DEVICE.offset, 8, self._used)
        bus.write(Registers.QUEUE_ENABLE.offset, 2, 1)
        self._doorbell = Registers.NOTIFY.at(bus.read(Registers.QUEUE_NOTIFY_OFF.offset, 2))
        self._number = number
        self._offered = self._seen = 0

    def describe(self, index: int, descriptor: Descriptor) -> None:
        """Write a descriptor."""
        at = self._descriptors + DESCRIPTOR_BYTES * index
        self._memory.write(at, int(descriptor).to_bytes(DESCRIPTOR_BYTES, "little"))

    def offer(self, head: int) -> None:
        """Make a chain available."""
        at = self._available + RING_ELEMENTS + AVAILABLE_BYTES * (self._offered % self.size)
        self._memory.write(at, head.to_bytes(AVAILABLE_BYTES, "little"))
        self._offered = self._offered + 1 & 0xFFFF
        self._memory.write(self._available + RING_INDEX, self._offered.to_bytes(2, "little"))

    def notify(self) -> None:
        """Ring the doorbell."""
        self._bus.write(self._doorbell, 2, self._number)

    def done(self) -> Done | None:
        """The next chain that came back."""
        index = int.from_bytes(self._memory.read(self._used + RING_INDEX, 2), "little")
        if index == self._seen:
            return None
        at = self._used + RING_ELEMENTS + USED_BYTES * (self._seen % self.size)
        used = Used(int.from_bytes(self._memory.read(at, USED_BYTES), "little"))
        self._seen = self._seen + 1 & 0xFFFF
        return Done(used.ID, used.LEN)
