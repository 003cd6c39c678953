"""The device's side of a split virtqueue: chains of buffers are taken, and given back as used. Virtio 1.2, 2.7."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from softiommu.hardware.virtio.common import NO_VECTOR
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


class Memory(Protocol):
    """What a queue lies in: physical memory, or a function's port to it. Where there is none, each has its error."""

    def read(self, address: int, length: int, /) -> bytes:
        """The bytes at an address."""
        ...

    def write(self, address: int, data: bytes, /) -> None:
        """Store bytes at an address."""
        ...


class BrokenQueueError(Exception):
    """What lies in the queue is no chain of descriptors: the device needs a reset."""


class Buffer(NamedTuple):
    """Contiguous memory of a chain."""

    pa: int
    length: int


class Chain:
    """Buffers that the driver made available: what the device may read, and what it may write."""

    def __init__(self, memory: Memory, head: int, readable: list[Buffer], writable: list[Buffer]) -> None:
        self._memory, self.head = memory, head
        self._readable, self._writable = readable, writable
        self.readable = sum(buffer.length for buffer in readable)
        self.writable = sum(buffer.length for buffer in writable)

    def read(self, length: int, offset: int = 0) -> bytes:
        """Bytes of the readable part, as many as there are up to `length`. The memory's error."""
        if len(self._readable) == 1 and not offset:
            pa, size = self._readable[0]
            return self._memory.read(pa, min(size, length))
        return b"".join(self._memory.read(pa, size) for pa, size in _span(self._readable, offset, length))

    def write(self, offset: int, data: bytes) -> None:
        """Store at an offset of the writable part; what does not fit is left out. The memory's error."""
        done = 0
        for pa, size in _span(self._writable, offset, len(data)):
            self._memory.write(pa, data[done : done + size])
            done += size


def _span(buffers: list[Buffer], offset: int, length: int) -> list[Buffer]:
    """The memory of `length` bytes at an offset of buffers that follow one another."""
    found = []
    for pa, size in buffers:
        take = min(size - offset, length)
        if take > 0:
            found.append(Buffer(pa + offset, take))
            length -= take
        offset = max(offset - size, 0)
    return found


class Virtqueue:
    """One queue of a device. The registers of the selected queue are its attributes."""

    def __init__(self, memory: Memory, most: int) -> None:
        self._memory, self._most = memory, most
        self.reset()

    def reset(self) -> None:
        """As before anyone touched it."""
        self.size = self._most
        self.enabled = False
        self.vector = NO_VECTOR
        self.desc = self.driver = self.device = 0
        self.indirect = False
        self._taken = self._given = 0

    def resize(self, size: int) -> None:
        """Have so many entries; a size that no split queue has, or larger than the device's, is ignored."""
        if not self.enabled and 0 < size <= self._most and not size & size - 1:
            self.size = size

    def take(self) -> Chain | None:
        """The next available chain. BrokenQueueError; the memory's error."""
        available = self._half(self.driver + RING_INDEX)
        waiting = (available - self._taken) & 0xFFFF
        if not waiting:
            return None
        if waiting > self.size:
            raise BrokenQueueError(f"{waiting} chains are available in a queue of {self.size}")
        head = self._half(self.driver + RING_ELEMENTS + AVAILABLE_BYTES * (self._taken % self.size))
        chain = self._follow(head)
        self._taken = self._taken + 1 & 0xFFFF
        return chain

    def give(self, chain: Chain, written: int) -> bool:
        """Give a chain back with so many bytes written; whether the driver wants an interrupt. The memory's error."""
        at = self.device + RING_ELEMENTS + USED_BYTES * (self._given % self.size)
        self._memory.write(at, (chain.head | written << Used.LEN.low).to_bytes(USED_BYTES, "little"))
        self._given = self._given + 1 & 0xFFFF
        self._memory.write(self.device + RING_INDEX, self._given.to_bytes(2, "little"))
        return not AvailableFlags(self._half(self.driver + RING_FLAGS)).NO_INTERRUPT

    def _half(self, pa: int) -> int:
        return int.from_bytes(self._memory.read(pa, 2), "little")

    def _follow(self, head: int) -> Chain:
        """The chain from a descriptor of the queue's table, or from the table that this one names."""
        table, count, index = self.desc, self.size, head
        readable: list[Buffer] = []
        writable: list[Buffer] = []
        is_nested = False
        for _ in range(self.size + 1):
            if index >= count:
                raise BrokenQueueError(f"descriptor {index} is not in a table of {count}")
            found = self._memory.read(table + DESCRIPTOR_BYTES * index, DESCRIPTOR_BYTES)
            entry = Descriptor(int.from_bytes(found, "little"))
            if entry.INDIRECT:
                if not self.indirect or is_nested or entry.NEXT or entry.LEN % DESCRIPTOR_BYTES:
                    raise BrokenQueueError(f"{entry!r} is no table that can be here")
                table, count, index, is_nested = entry.ADDR, entry.LEN // DESCRIPTOR_BYTES, 0, True
                continue
            if writable and not entry.WRITE:
                raise BrokenQueueError("a readable buffer follows a writable one")
            (writable if entry.WRITE else readable).append(Buffer(entry.ADDR, entry.LEN))
            if not entry.NEXT:
                return Chain(self._memory, head, readable, writable)
            index = entry.NEXT_INDEX
        raise BrokenQueueError(f"a chain has more descriptors than the queue, {self.size}")
