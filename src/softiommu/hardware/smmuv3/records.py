"""Queues that the SMMU fills: event records and page requests. Arm IHI 0070, 3.5, 7.2, 7.4 and 8.1."""

from __future__ import annotations

from typing import TYPE_CHECKING

from softiommu.hardware.smmuv3.registers import Cons, Prod, QueueBase, Ring
from softiommu.memory.physical import BadAddressError

if TYPE_CHECKING:
    from softiommu.hardware.smmuv3.registers import Registers
    from softiommu.hardware.smmuv3.signals import Signals, Wire
    from softiommu.memory.physical import PhysicalMemory


class RecordQueue:
    """The queue of one kind of records; its registers have the name of its interrupt."""

    def __init__(
        self, memory: PhysicalMemory, registers: Registers, signals: Signals, wire: Wire, size: int, most_lg2: int
    ) -> None:
        self._memory, self._registers, self._signals, self.wire = memory, registers, signals, wire
        self._size, self._most_lg2 = size, most_lg2
        self._enable = f"{wire.value}EN"

    @property
    def _base(self) -> QueueBase:
        base: QueueBase = getattr(self._registers, f"{self.wire.value}_BASE")
        return base

    @property
    def _prod(self) -> Prod:
        prod: Prod = getattr(self._registers, f"{self.wire.value}_PROD")
        return prod

    @property
    def _cons(self) -> Cons:
        cons: Cons = getattr(self._registers, f"{self.wire.value}_CONS")
        return cons

    @property
    def _ring(self) -> Ring:
        return Ring(min(self._base.LOG2SIZE, self._most_lg2))

    @property
    def enabled(self) -> bool:
        """Whether records are taken: enabled, and no abort of a write that software has not seen yet."""
        enabled = getattr(self._registers.CR0ACK, self._enable)
        return bool(enabled) and not self._signals.active(f"{self.wire.value}_ABT")

    @property
    def full(self) -> bool:
        """Whether there is no room."""
        return self._ring.full(self._prod.WR, self._cons.RD)

    @property
    def overflowed(self) -> bool:
        """Whether an overflow is not acknowledged yet."""
        return self._prod.OVFLG != self._cons.OVACKFLG

    def overflow(self) -> None:
        """A record is lost."""
        if not self.overflowed:
            self._set_prod(self._prod.replace(OVFLG=self._prod.OVFLG ^ 1))

    def push(self, *words: int, interrupts: bool | None = None) -> bool:
        """Write a record, for which there is room; whether it could be written. It interrupts if it is the first in
        the queue, or as `interrupts` says."""
        ring, prod = self._ring, self._prod
        base = (self._base.ADDR << 5) & ~(max(32, self._size << ring.lg2) - 1)
        at = base + self._size * ring.slot(prod.WR)
        try:
            for number, word in enumerate(words):
                self._memory.write_u64(at + 8 * number, word)
        except BadAddressError:
            self._signals.error(f"{self.wire.value}_ABT")
            return False
        was_empty = ring.empty(prod.WR, self._cons.RD)
        self._set_prod(prod.replace(WR=ring.next(prod.WR)))
        if was_empty if interrupts is None else interrupts:
            self._signals.raise_interrupt(self.wire)
        return True

    def _set_prod(self, prod: Prod) -> None:
        setattr(self._registers, f"{self.wire.value}_PROD", prod)
