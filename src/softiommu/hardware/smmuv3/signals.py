"""Interrupts and global errors. Arm IHI 0070, 3.18 and 7.5."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING

from softiommu.hardware.smmuv3.registers import Gerror
from softiommu.memory.physical import BadAddressError

if TYPE_CHECKING:
    from softiommu.hardware.smmuv3.registers import IrqCfg0, IrqCfg1, Registers
    from softiommu.memory.physical import PhysicalMemory


class Wire(Enum):
    """The interrupt outputs, and the event that wakes processors. The first three have registers of these names."""

    EVENTQ = "EVENTQ"
    PRIQ = "PRIQ"
    GERROR = "GERROR"
    CMD_SYNC = "CMDQ"
    SEV = "SEV"


class Signals:
    """What one SMMU tells of itself without being asked. A message is a write: to memory, or where there is none,
    to `interrupt`; without that, it is aborted."""

    def __init__(
        self,
        memory: PhysicalMemory,
        registers: Registers,
        interrupt: Callable[[int, int], None] | None,
        wired: Callable[[Wire], None] | None,
    ) -> None:
        self._memory, self._registers, self._interrupt, self._wired = memory, registers, interrupt, wired

    def raise_interrupt(self, wire: Wire) -> None:
        """An event of a queue or a global error, where IRQ_CTRL lets it out."""
        if not getattr(self._registers.IRQ_CTRL, wire.value):
            return
        where: IrqCfg0 = getattr(self._registers, f"{wire.value}_IRQ_CFG0")
        data: IrqCfg1 = getattr(self._registers, f"{wire.value}_IRQ_CFG1")
        self.send(wire, where.ADDR << 2, int(data))

    def send(self, wire: Wire, address: int, data: int) -> None:
        """Assert an output; and write a message, where there is one (address 0: none)."""
        if self._wired is not None:
            self._wired(wire)
        if not address or not self._registers.IDR0.MSI:
            return
        try:
            self._memory.write_u32(address, data)
        except BadAddressError:
            if self._interrupt is None:
                self.error(f"MSI_{wire.value}_ABT")
            else:
                self._interrupt(address, data)

    def wake(self) -> None:
        """The event of a SYNC with SEV."""
        if self._wired is not None and self._registers.IDR0.SEV:
            self._wired(Wire.SEV)

    def active(self, name: str) -> bool:
        """Whether a global error is active: its bits differ."""
        return bool((self._registers.GERROR ^ self._registers.GERRORN) & Gerror.FIELDS[name].mask)

    def error(self, name: str) -> None:
        """A global error becomes active; one that is stays so."""
        if not self.active(name):
            self._registers.GERROR = Gerror(self._registers.GERROR ^ Gerror.FIELDS[name].mask)
            self.raise_interrupt(Wire.GERROR)
