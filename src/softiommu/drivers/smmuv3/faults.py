"""The event queue of an SMMUv3: what a kernel's driver does when its interrupt comes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from softiommu.drivers.faults import Blocked, words
from softiommu.hardware.smmuv3.events import EVENT_BYTES, RECORDS, Event, Event0, Event1, Event3
from softiommu.hardware.smmuv3.registers import Cons, Gerror, IrqCtrl, Prod, QueueBase, Registers, Ring
from softiommu.memory.physical import PAGE

if TYPE_CHECKING:
    from softiommu.drivers.function import Bus
    from softiommu.drivers.smmuv3.stalls import Stalls
    from softiommu.memory.physical import PhysicalMemory

#: One page of records, where the hardware has so many.
_LG2 = 7

#: Tells a guest of an event that is its own; whether it did.
GuestHears = Callable[[Sequence[int]], bool]


class EventLog:
    """One page of event records; its interrupt is wired. `enable` follows when the queue itself is enabled."""

    def __init__(
        self, memory: PhysicalMemory, bus: Bus, stalls: Stalls, most_lg2: int, guest_hears: GuestHears
    ) -> None:
        self._memory, self._bus, self._stalls, self._guest_hears = memory, bus, stalls, guest_hears
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
        """Every event that is recorded, oldest first, but for those of transactions that wait for an answer, and those
        that a guest hears of."""
        found: list[Blocked] = []
        while True:
            prod = Prod(self._bus.read(Registers.EVENTQ_PROD.offset, 4))
            cons = Cons(self._bus.read(Registers.EVENTQ_CONS.offset, 4))
            if self._ring.empty(prod.WR, cons.RD):
                break
            at = self._base + EVENT_BYTES * self._ring.slot(cons.RD)
            record = [self._memory.read_u64(at + 8 * number) for number in range(4)]
            # What is told of it may lead to the next event.
            free = Cons.of(RD=self._ring.next(cons.RD), OVACKFLG=prod.OVFLG)
            self._bus.write(Registers.EVENTQ_CONS.offset, 4, free)
            waits = bool(Event1(record[1]).STALL) and self._stalls.offer(record)
            if not waits and not self._guest_hears(record):
                found.append(_blocked(record))
        self._acknowledge_errors()
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
