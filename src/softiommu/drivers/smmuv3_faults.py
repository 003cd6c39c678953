"""The event queue of an SMMUv3: what a kernel's driver does when its interrupt comes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from softiommu.drivers.faults import Blocked, words
from softiommu.hardware.smmuv3.commands import Op, Resume0, Resume1
from softiommu.hardware.smmuv3.events import EVENT_BYTES, RECORDS, Event, Event0, Event1, Event3
from softiommu.hardware.smmuv3.registers import Cons, Gerror, IrqCtrl, Prod, QueueBase, Registers, Ring
from softiommu.memory.physical import PAGE

if TYPE_CHECKING:
    from softiommu.drivers.function import Bus
    from softiommu.drivers.smmuv3_queue import Command, CommandQueue
    from softiommu.memory.physical import PhysicalMemory

#: One page of records, where the hardware has so many.
_LG2 = 7

#: Tells a guest of an event that is its own; whether it did.
GuestHears = Callable[[Sequence[int]], bool]


class EventLog:
    """One page of event records; its interrupt is wired. `enable` follows when the queue itself is enabled."""

    def __init__(
        self, memory: PhysicalMemory, bus: Bus, queue: CommandQueue, most_lg2: int, guest_hears: GuestHears
    ) -> None:
        self._memory, self._bus, self._queue, self._guest_hears = memory, bus, queue, guest_hears
        self._ring = Ring(min(_LG2, most_lg2))
        self._base = memory.alloc(PAGE)
        base = QueueBase.of(LOG2SIZE=self._ring.lg2, ADDR=self._base >> 5, HINT=1)
        bus.write(Registers.EVENTQ_BASE.offset, 8, base)
        bus.write(Registers.EVENTQ_PROD.offset, 4, 0)
        bus.write(Registers.EVENTQ_CONS.offset, 4, 0)

    def enable(self) -> None:
        """Let interrupts of events, of page requests and of global errors out."""
        for register in (Registers.GERROR_IRQ_CFG0, Registers.EVENTQ_IRQ_CFG0):
            self._bus.write(register.offset, 8, 0)
        self._bus.write(Registers.IRQ_CTRL.offset, 4, IrqCtrl.of(GERROR=1, EVENTQ=1, PRIQ=1))

    def take(self) -> list[Blocked]:
        """Every event that is recorded and no guest's, oldest first; there is room for more then. Nobody serves
        transactions that stalled: they are aborted."""
        prod = Prod(self._bus.read(Registers.EVENTQ_PROD.offset, 4))
        cons = Cons(self._bus.read(Registers.EVENTQ_CONS.offset, 4)).RD
        found: list[Blocked] = []
        stalled: list[Command] = []
        while not self._ring.empty(prod.WR, cons):
            at = self._base + EVENT_BYTES * self._ring.slot(cons)
            record = [self._memory.read_u64(at + 8 * number) for number in range(4)]
            if not self._guest_hears(record):
                found.append(_blocked(record))
            how = Event1(record[1])
            if how.STALL:
                low = Resume0.of(OPCODE=Op.RESUME, AB=1, SID=Event0(record[0]).SID)
                stalled.append((low, Resume1.of(STAG=how.STAG)))
            cons = self._ring.next(cons)
        self._bus.write(Registers.EVENTQ_CONS.offset, 4, Cons.of(RD=cons, OVACKFLG=prod.OVFLG))
        self._acknowledge_errors()
        for command in stalled:
            self._queue.post(command)
        return found

    def _acknowledge_errors(self) -> None:
        """Global errors, but for that of the command queue: who waits for its commands sees to it."""
        errors, seen = (self._bus.read(register.offset, 4) for register in (Registers.GERROR, Registers.GERRORN))
        queue = Gerror.CMDQ_ERR.mask
        self._bus.write(Registers.GERRORN.offset, 4, errors & ~queue | seen & queue)


def _blocked(record: list[int]) -> Blocked:
    first, how = Event0(record[0]), Event1(record[1])
    number = int(first.TYPE)
    known = RECORDS.get(Event(number)) if number in list(Event) else None
    reason = f"{words(Event(number).name)} ({number:#x})" if known else f"event {number:#x}"
    access = "access"
    if known and known.direction:
        access = "execute" if how.IND else "read" if how.RNW else "write"
    shown = " ".join(repr(word) for word in (first, how, Event3(record[3] & Event3.ADDR.mask)))
    return Blocked(first.SID, first.SSID if first.SSV else None, record[2], access, reason, shown)
