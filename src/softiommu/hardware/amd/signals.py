"""Status, and the interrupts that its bits make: one message when a bit is set, and a level for as long as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from softiommu.hardware.amd.registers import Status

if TYPE_CHECKING:
    from softiommu.hardware.amd.registers import Registers

#: The bits of Status that interrupt, and the field of Control that lets them.
_ENABLED_BY = {
    "EventOverflow": "EventIntEn",
    "EventLogInt": "EventIntEn",
    "ComWaitInt": "ComWaitIntEn",
    "PprOverflow": "PprIntEn",
    "PprInt": "PprIntEn",
}


class Message(NamedTuple):
    """What the MSI capability in the IOMMU's PCI configuration space holds."""

    enabled: bool
    address: int
    data: int


class Signals:
    """The interrupts of one IOMMU: `message(address, data)` sends an MSI, `wire(level)` drives its pin."""

    def __init__(
        self,
        registers: Registers,
        message: Callable[[int, int], None] | None,
        wire: Callable[[bool], None] | None,
    ) -> None:
        self.registers, self._message, self._wire = registers, message, wire
        self._level = False

    @property
    def msi(self) -> Message:
        """How the MSI capability is programmed."""
        registers = self.registers
        address = int(registers.MSI_ADDR_HIGH) << 32 | int(registers.MSI_ADDR_LOW)
        return Message(bool(registers.MSI_HEADER.MsiEn), address, int(registers.MSI_DATA))

    @msi.setter
    def msi(self, message: Message) -> None:
        registers = self.registers
        registers.MSI_HEADER = registers.MSI_HEADER.replace(MsiEn=int(message.enabled))
        registers.MSI_ADDR_LOW = message.address & 0xFFFFFFFF
        registers.MSI_ADDR_HIGH = message.address >> 32
        registers.MSI_DATA = message.data

    def set(self, **bits: int) -> None:
        """Change bits of Status. A bit that was not set before, and may interrupt, does."""
        old = self.registers.STATUS
        self.registers.STATUS = old.replace(**bits)
        risen = Status(int(self.registers.STATUS) & ~int(old))
        if self._pending(risen) and self._message is not None:
            msi = self.msi
            if msi.enabled:
                self._message(msi.address, msi.data)
        self.drive()

    def drive(self) -> None:
        """Bring the pin to the level that Status and Control say."""
        level = self._pending(self.registers.STATUS) and not self.msi.enabled
        if level != self._level:
            self._level = level
            if self._wire is not None:
                self._wire(level)

    def _pending(self, status: Status) -> bool:
        control = self.registers.CONTROL
        return any(getattr(status, bit) and getattr(control, enable) for bit, enable in _ENABLED_BY.items())
