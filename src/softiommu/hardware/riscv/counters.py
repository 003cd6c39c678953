"""The performance monitor: counters of events, filtered by who caused them. RISC-V IOMMU 1.0, iohpmevt."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from softiommu.hardware.riscv.contexts import NO_ID
from softiommu.hardware.riscv.registers import COUNTERS, Cycles, EventId, HpmEvent, Ipsr, Registers

if TYPE_CHECKING:
    from softiommu.clock import Clock
    from softiommu.hardware.riscv.interrupts import Interrupts

_TOP = 1 << 64

#: Events that can be filtered by GSCID and PSCID. Others are not counted by such a filter.
_OF_ADDRESS_SPACES = (EventId.TLB_MISS, EventId.FIRST_STAGE_WALK, EventId.SECOND_STAGE_WALK)


class Who(NamedTuple):
    """Who caused an event; NO_ID where there is none."""

    device: int
    process: int = NO_ID
    gscid: int = NO_ID
    pscid: int = NO_ID


class Counters:
    """Counters 1 to 31, and the cycle counter, which counts the clock's nanoseconds."""

    def __init__(self, registers: Registers, interrupts: Interrupts, clock: Clock | None) -> None:
        self._registers, self._interrupts, self._clock = registers, interrupts, clock
        #: Which counters count each event.
        self._of: dict[int, list[int]] = {}
        #: Whether anything is counted at all.
        self.counted = False
        self._since = clock.now() if clock is not None else 0

    def event_written(self, index: int) -> None:
        """What a counter counts changed. Events that this IOMMU does not have are not counted."""
        registers = self._registers
        if not registers.CAPABILITIES.HPM:
            registers.IOHPMEVT[index] = 0
        elif not isinstance(registers.IOHPMEVT[index].EVENT_ID, EventId):
            registers.IOHPMEVT[index] = registers.IOHPMEVT[index].replace(EVENT_ID=EventId.NONE)
        self._of = {}
        for number in range(COUNTERS):
            event = registers.IOHPMEVT[number].EVENT_ID
            if event:
                self._of.setdefault(event, []).append(number)
        self.counted = bool(self._of)
        self._overflows()

    def count(self, event: EventId, who: Who) -> None:
        """An event happened."""
        for number in self._of.get(event, ()):
            inhibited = self._registers.IOCOUNTINH.HPM >> number & 1
            how = self._registers.IOHPMEVT[number]
            if not inhibited and not (how.IDT and event not in _OF_ADDRESS_SPACES) and _matches(how, who):
                self._add(number)

    def _add(self, number: int) -> None:
        registers = self._registers
        value = registers.IOHPMCTR[number].VALUE + 1
        registers.IOHPMCTR[number] = value % _TOP
        if value == _TOP and not registers.IOHPMEVT[number].OF:
            registers.IOHPMEVT[number] = registers.IOHPMEVT[number].replace(OF=1)
            self._overflows()
            self._interrupts.pend(Ipsr.PMIP.mask)

    def _overflows(self) -> None:
        """iocountovf shows the OF bits."""
        registers = self._registers
        counters = sum(registers.IOHPMEVT[number].OF << number for number in range(COUNTERS))
        registers.IOCOUNTOVF = registers.IOCOUNTOVF.replace(HPM=counters, CY=registers.IOHPMCYCLES.OF)

    # Cycles

    def cycles(self) -> Cycles:
        """The cycle counter, brought up to now."""
        registers = self._registers
        if self._clock is None or not registers.CAPABILITIES.HPM:
            return registers.IOHPMCYCLES
        now = self._clock.now()
        passed, self._since = now - self._since, now
        old = registers.IOHPMCYCLES
        if registers.IOCOUNTINH.CY:
            return old
        value = old.COUNTER + passed
        new = old.replace(COUNTER=value & (1 << 63) - 1)
        registers.IOHPMCYCLES = new
        if value >> 63 and not old.OF:
            registers.IOHPMCYCLES = new = new.replace(OF=1)
            self._overflows()
            self._interrupts.pend(Ipsr.PMIP.mask)
        return new

    def cycles_written(self) -> None:
        """From now on it counts from what was written."""
        if not self._registers.CAPABILITIES.HPM:
            self._registers.IOHPMCYCLES = 0
        if self._clock is not None:
            self._since = self._clock.now()
        self._overflows()


def _matches(event: HpmEvent, who: Who) -> bool:
    """Whether a counter's filter takes an event: by device and process id, or (IDT) by GSCID and PSCID."""
    outer, inner = (who.gscid, who.pscid) if event.IDT else (who.device, who.process)
    if event.PV_PSCV and inner != event.PID_PSCID:
        return False
    if not event.DV_GSCV:
        return True
    if outer == NO_ID:
        return False
    # DMASK: the bits up to the lowest zero do not count.
    free = event.DID_GSCID ^ event.DID_GSCID + 1 if event.DMASK else 0
    return (outer ^ event.DID_GSCID) & ~free == 0
