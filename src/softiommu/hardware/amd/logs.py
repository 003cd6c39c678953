"""The event log and the PPR log: records go in at the tail; a full log stops and says so. AMD IOMMU 48882, 2.5, 2.6."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from softiommu.hardware.amd.events import RECORD_SIZE, Record
from softiommu.hardware.amd.registers import Registers, RingBase, RingPointer
from softiommu.memory.physical import BadAddressError

if TYPE_CHECKING:
    from softiommu.hardware.amd.signals import Signals
    from softiommu.memory.physical import PhysicalMemory

#: RingBase.LEN from here on has a meaning.
_LEAST_LEN = 8


class Ring(NamedTuple):
    """The offsets of the registers of a ring of 16-byte entries, and its bit in Status that says that it runs."""

    base: int
    head: int
    tail: int
    run: str


COMMANDS = Ring(Registers.CMD_BASE.offset, Registers.CMD_HEAD.offset, Registers.CMD_TAIL.offset, "CmdBufRun")
EVENTS = Ring(Registers.EVENT_BASE.offset, Registers.EVENT_HEAD.offset, Registers.EVENT_TAIL.offset, "EventLogRun")
PAGE_REQUESTS = Ring(Registers.PPR_BASE.offset, Registers.PPR_HEAD.offset, Registers.PPR_TAIL.offset, "PprLogRun")


def ring_size(registers: Registers, ring: Ring) -> int:
    """The bytes of a ring."""
    base: RingBase = registers.values[ring.base]
    return RECORD_SIZE << max(base.LEN, _LEAST_LEN)


def ring_places(registers: Registers, ring: Ring) -> tuple[int, int, int]:
    """The bytes of a ring, and its head and tail as offsets in it."""
    size = ring_size(registers, ring)
    head: RingPointer = registers.values[ring.head]
    tail: RingPointer = registers.values[ring.tail]
    return size, (head.OFFSET << 4) % size, (tail.OFFSET << 4) % size


class Log:
    """One of the logs. `overflow` and `arrived` are its bits in Status."""

    def __init__(self, signals: Signals, memory: PhysicalMemory, ring: Ring, overflow: str, arrived: str) -> None:
        self._signals, self._memory, self._ring = signals, memory, ring
        self._overflow, self._arrived = overflow, arrived

    def append(self, record: Record) -> bool:
        """Put a record in the log; False: the log does not run, is full, or has no memory."""
        registers, ring = self._signals.registers, self._ring
        if not getattr(registers.STATUS, ring.run):
            return False
        size, head, tail = ring_places(registers, ring)
        after = (tail + RECORD_SIZE) % size
        if after == head:
            self._signals.set(**{self._overflow: 1, ring.run: 0})
            return False
        base: RingBase = registers.values[ring.base]
        raw = int(record.low).to_bytes(8, "little") + int(record.high).to_bytes(8, "little")
        try:
            self._memory.write((base.BASE << 12) + tail, raw)
        except BadAddressError:
            return False
        registers.values[ring.tail] = RingPointer(after)
        self._signals.set(**{self._arrived: 1})
        return True
