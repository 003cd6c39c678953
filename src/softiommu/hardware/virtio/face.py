"""A virtio-iommu's registers as its driver works them: negotiation, queues that are set up, interrupts. Virtio 1.2, 3.1
and 4.1."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from softiommu.hardware.virtio.domains import Domains
from softiommu.hardware.virtio.queue import Virtqueue
from softiommu.hardware.virtio.registers import (
    NO_VECTOR,
    QUEUES,
    Address,
    Bypass,
    Features,
    Half,
    Isr,
    Number,
    Registers,
    Select,
    Status,
    Switch,
)

if TYPE_CHECKING:
    from softiommu.events import EventBus
    from softiommu.hardware.virtio.presets import Offer
    from softiommu.memory.physical import PhysicalMemory


class Face:
    """Registers with their hooks, the queues that they set up, and the domains that a reset ends."""

    def __init__(
        self,
        memory: PhysicalMemory,
        offer: Offer,
        interrupt: Callable[[int], None] | None,
        line: Callable[[bool], None] | None,
        events: EventBus | None,
    ) -> None:
        self._offer, self._interrupt, self._line = offer, interrupt, line
        self.domains = Domains(offer)
        self.queues = [Virtqueue(memory, offer.queue_size) for _ in range(QUEUES)]
        self.registers = Registers(self, events)
        self._reset(offer.bypass)

    def _reset(self, bypass: bool) -> None:
        self.features = self._accepted = Features(0)
        self.domains.reset()
        for queue in self.queues:
            queue.reset()
        registers, offer = self.registers, self._offer
        registers.reset()
        registers.PAGE_SIZE_MASK = offer.page_size_mask
        if offer.features.INPUT_RANGE:
            registers.INPUT_START, registers.INPUT_END = offer.input_range
        if offer.features.DOMAIN_RANGE:
            registers.DOMAIN_START, registers.DOMAIN_END = offer.domain_range
        if offer.features.PROBE:
            registers.PROBE_SIZE = offer.probe_size
        registers.BYPASS = Bypass.of(ON=int(bypass))
        registers.DEVICE_FEATURE = _half(offer.features, registers.DEVICE_FEATURE_SELECT)
        self._show_queue()

    def read(self, offset: int, width: int) -> int:
        """Software reads a register."""
        return self.registers.read(offset, width)

    def write(self, offset: int, width: int, value: int) -> None:
        """Software writes a register."""
        self.registers.write(offset, width, value)

    def on_write_DEVICE_FEATURE_SELECT(self, old: Select, new: Select) -> None:
        """Show a half of what is offered."""
        self.registers.DEVICE_FEATURE = _half(self._offer.features, new)

    def on_write_DRIVER_FEATURE_SELECT(self, old: Select, new: Select) -> None:
        """Show a half of what the driver accepts."""
        self.registers.DRIVER_FEATURE = _half(self._accepted, new)

    def on_write_DRIVER_FEATURE(self, old: Half, new: Half) -> None:
        """The driver accepts features, until it has said that it is done."""
        half = self.registers.DRIVER_FEATURE_SELECT
        if half < 2 and not self.registers.DEVICE_STATUS.FEATURES_OK:
            self._accepted = Features(self._accepted & ~(Half.BITS.mask << 32 * half) | new << 32 * half)
        self.registers.DRIVER_FEATURE = _half(self._accepted, half)

    def on_write_DEVICE_STATUS(self, old: Status, new: Status) -> None:
        """Reset, or one step further. Features that are not offered, or without VERSION_1, are not OK."""
        if not new & ~Status.DEVICE_NEEDS_RESET.mask:
            self._reset(bool(self.registers.BYPASS.ON))
            self._set_line(False)
        elif new.FEATURES_OK and not old.FEATURES_OK:
            if self._accepted & ~self._offer.features or not self._accepted.VERSION_1:
                self.registers.DEVICE_STATUS = new.replace(FEATURES_OK=0)
                return
            self.features = self._accepted
            for queue in self.queues:
                queue.indirect = bool(self.features.INDIRECT_DESC)

    @property
    def _selected(self) -> Virtqueue | None:
        number = self.registers.QUEUE_SELECT.VALUE
        return self.queues[number] if number < QUEUES else None

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

    def on_write_BYPASS(self, old: Bypass, new: Bypass) -> None:
        """Only a driver that negotiated BYPASS_CONFIG may write it."""
        if not self.features.BYPASS_CONFIG:
            self.registers.BYPASS = old

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
