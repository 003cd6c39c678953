"""A virtio-iommu's registers: those of any device, its configuration, and the domains that a reset ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from softiommu.hardware.virtio.domains import Domains
from softiommu.hardware.virtio.registers import QUEUES, Bypass, Features, Registers
from softiommu.hardware.virtio.transport import Transport

if TYPE_CHECKING:
    from softiommu.events import EventBus
    from softiommu.hardware.virtio.common import Status
    from softiommu.hardware.virtio.presets import Offer
    from softiommu.memory.physical import PhysicalMemory


class Face(Transport):
    """Registers with their hooks, the queues that they set up, and the domains that a reset ends."""

    registers: Registers

    def __init__(
        self,
        memory: PhysicalMemory,
        offer: Offer,
        interrupt: Callable[[int], None] | None,
        line: Callable[[bool], None] | None,
        events: EventBus | None,
    ) -> None:
        super().__init__(memory, offer.features, (QUEUES, offer.queue_size), interrupt, line)
        self._offer = offer
        self.domains = Domains(offer)
        self.registers = Registers(self, events)
        self._reset(offer.bypass)

    def _reset(self, bypass: bool) -> None:
        #: What was negotiated.
        self.features = Features(0)
        self.domains.reset()
        self._reset_transport()
        registers, offer = self.registers, self._offer
        registers.PAGE_SIZE_MASK = offer.page_size_mask
        if offer.features.INPUT_RANGE:
            registers.INPUT_START, registers.INPUT_END = offer.input_range
        if offer.features.DOMAIN_RANGE:
            registers.DOMAIN_START, registers.DOMAIN_END = offer.domain_range
        if offer.features.PROBE:
            registers.PROBE_SIZE = offer.probe_size
        registers.BYPASS = Bypass.of(ON=int(bypass))

    def on_write_DEVICE_STATUS(self, old: Status, new: Status) -> None:
        """Reset, or one step further."""
        super().on_write_DEVICE_STATUS(old, new)
        self.features = Features(self.negotiated)

    def _reset_device(self) -> None:
        """Whether endpoints without a domain bypass outlasts a reset (5.13.4)."""
        self._reset(bool(self.registers.BYPASS.ON))

    def read(self, offset: int, width: int) -> int:
        """Software reads a register."""
        return self.registers.read(offset, width)

    def write(self, offset: int, width: int, value: int) -> None:
        """Software writes a register."""
        self.registers.write(offset, width, value)

    def on_write_BYPASS(self, old: Bypass, new: Bypass) -> None:
        """Only a driver that negotiated BYPASS_CONFIG may write it."""
        if not self.features.BYPASS_CONFIG:
            self.registers.BYPASS = old
