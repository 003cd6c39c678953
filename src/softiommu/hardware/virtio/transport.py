"""A virtio device's registers as its driver works them: negotiation, queues, interrupts. Virtio 1.2, 3.1 and 4.1."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from softiommu.hardware.virtio.common import (
    NO_VECTOR,
    Address,
    CommonRegisters,
    Half,
    Isr,
    Number,
    Select,
    Status,
    Switch,
)
from softiommu.hardware.virtio.queue import Virtqueue

if TYPE_CHECKING:
    from softiommu.hardware.virtio.queue import Memory

#: Feature bits of any device (6): tables of descriptors, and this version of the specification.
INDIRECT_DESC, VERSION_1 = 1 << 28, 1 << 32


class Transport:
    """Hooks of the common registers. A device gives its registers and resets its own part in `_reset_device`."""

    registers: CommonRegisters

    def __init__(
        self,
        memory: Memory,
        offered: int,
        queues: tuple[int, int],
        interrupt: Callable[[int], None] | None,
        line: Callable[[bool], None] | None,
    ) -> None:
        """`offered`: feature bits; `queues`: how many there are, and the most entries of each."""
        count, most = queues
        self._offered, self._interrupt, self._line = offered, interrupt, line
        self.queues = [Virtqueue(memory, most) for _ in range(count)]
        #: What was negotiated, and what the driver has accepted so far.
        self.negotiated = self._accepted = 0

    def _reset_transport(self) -> None:
        """As before a driver touched it."""
        self.negotiated = self._accepted = 0
        for queue in self.queues:
            queue.reset()
        registers = self.registers
        registers.reset()
        registers.NUM_QUEUES = len(self.queues)
        registers.DEVICE_FEATURE = _half(self._offered, registers.DEVICE_FEATURE_SELECT)
        self._show_queue()

    def _reset_device(self) -> None:
        """The driver resets the device."""
        self._reset_transport()

    def _feature_is(self, bit: int) -> bool:
        return bool(self.negotiated & bit)

    def on_write_DEVICE_FEATURE_SELECT(self, old: Select, new: Select) -> None:
        """Show a half of what is offered."""
        self.registers.DEVICE_FEATURE = _half(self._offered, new)

    def on_write_DRIVER_FEATURE_SELECT(self, old: Select, new: Select) -> None:
        """Show a half of what the driver accepts."""
        self.registers.DRIVER_FEATURE = _half(self._accepted, new)

    def on_write_DRIVER_FEATURE(self, old: Half, new: Half) -> None:
        """The driver accepts features, until it has said that it is done."""
        half = self.registers.DRIVER_FEATURE_SELECT
        if half < 2 and not self.registers.DEVICE_STATUS.FEATURES_OK:
            self._accepted = self._accepted & ~(Half.BITS.mask << 32 * half) | new << 32 * half
        self.registers.DRIVER_FEATURE = _half(self._accepted, half)

    def on_write_DEVICE_STATUS(self, old: Status, new: Status) -> None:
        """Reset, or one step further. Features that are not offered, or without VERSION_1, are not OK."""
        if not new & ~Status.DEVICE_NEEDS_RESET.mask:
            self._reset_device()
            self._set_line(False)
        elif new.FEATURES_OK and not old.FEATURES_OK:
            if self._accepted & ~self._offered or not self._accepted & VERSION_1:
                self.registers.DEVICE_STATUS = new.replace(FEATURES_OK=0)
                return
            self.negotiated = self._accepted
            for queue in self.queues:
                queue.indirect = self._feature_is(INDIRECT_DESC)

    @property
    def _selected(self) -> Virtqueue | None:
        number = self.registers.QUEUE_SELECT.VALUE
        return self.queues[number] if number < len(self.queues) else None

    def _show_queue(self) -> None:
        """The registers of a queue are those of the selected one; a queue that is not there has size 0."""
        registers, queue = self.registers, self._selected
        registers.QUEUE_SIZE = queue.size if queue else 0
        registers.QUEUE_MSIX_VECTOR = queue.vector if queue else NO_VECTOR
        registers.QUEUE_ENABLE = int(queue is not None and queue.enabled)
        registers.QUEUE_NOTIFY_OFF = registers.QUEUE_SELECT.VALUE if queue else 0
        registers.QUEUE_DESC = queue.desc if queue else 0
        registers.QUEUE_DRIVER = queue.driver if queue else 0
        registers.QUEUE_DEVICE = queue.device if queue else 0

    def on_write_QUEUE_SELECT(self, old: Number, new: Number) -> None:
        """Another queue is set up."""
        self._show_queue()

    def on_write_QUEUE_SIZE(self, old: Number, new: Number) -> None:
        """The driver wants a smaller queue."""
        if self._selected:
            self._selected.resize(new.VALUE)
        self._show_queue()

    def on_write_QUEUE_MSIX_VECTOR(self, old: Number, new: Number) -> None:
        """Assign a vector to a queue."""
        if self._selected:
            self._selected.vector = new.VALUE
        self._show_queue()

    def on_write_QUEUE_ENABLE(self, old: Switch, new: Switch) -> None:
        """A queue is enabled for good: only a reset disables it."""
        if self._selected and new.ON:
            self._selected.enabled = True
        self._show_queue()

    def on_write_QUEUE_DESC(self, old: Address, new: Address) -> None:
        """Where a queue's descriptors are."""
        self._move(desc=new)

    def on_write_QUEUE_DRIVER(self, old: Address, new: Address) -> None:
        """Where a queue's available ring is."""
        self._move(driver=new)

    def on_write_QUEUE_DEVICE(self, old: Address, new: Address) -> None:
        """Where a queue's used ring is."""
        self._move(device=new)

    def _move(self, **where: int) -> None:
        """Move a part of a queue, which must not run yet."""
        if self._selected and not self._selected.enabled:
            vars(self._selected).update(where)
        self._show_queue()

    def on_read_ISR(self) -> Isr:
        """Why there was an interrupt; the pin goes down."""
        isr = self.registers.ISR
        self.registers.ISR = Isr(0)
        self._set_line(False)
        return isr

    def _runs(self, queue: Virtqueue) -> bool:
        status = self.registers.DEVICE_STATUS
        return bool(queue.enabled and status.DRIVER_OK and status.FEATURES_OK and not status.DEVICE_NEEDS_RESET)

    def _break(self) -> None:
        """The device cannot go on with what the driver put in memory."""
        self.registers.DEVICE_STATUS = self.registers.DEVICE_STATUS.replace(DEVICE_NEEDS_RESET=1)
        self._tell(self.registers.CONFIG_MSIX_VECTOR.VALUE, Isr.of(CONFIG=1))

    def _set_line(self, level: bool) -> None:
        if self._line is not None:
            self._line(level)

    def _tell(self, vector: int, why: Isr) -> None:
        """An interrupt: a message where a vector is assigned, the pin elsewhere."""
        if vector == NO_VECTOR:
            self.registers.ISR = self.registers.ISR | why
            self._set_line(True)
        elif self._interrupt is not None:
            self._interrupt(vector)


def _half(features: int, select: int) -> Half:
    """A half of feature bits; there are two."""
    return Half(features >> 32 * select & Half.BITS.mask if select < 2 else 0)
