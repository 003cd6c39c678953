"""The IOMMU's registers as software works them: which exist, which run a ring, and what a write does at once."""

from __future__ import annotations

from collections.abc import Callable

from softiommu.hardware.amd.logs import COMMANDS, EVENTS, PAGE_REQUESTS, Ring, ring_size
from softiommu.hardware.amd.presets import Preset
from softiommu.hardware.amd.registers import (
    REQUIRED_FEATURE,
    REQUIRED_FOR_CONTROL,
    CapabilityBlock,
    Control,
    ExclusionBase,
    Registers,
    RingBase,
    RingPointer,
    Status,
)
from softiommu.hardware.amd.signals import Signals

#: Each ring with the field of Control that starts it, and its overflow bit, until whose end it does not start.
_RINGS = (
    (COMMANDS, "CmdBufEn", ""),
    (EVENTS, "EventLogEn", "EventOverflow"),
    (PAGE_REQUESTS, "PprLogEn", "PprOverflow"),
)


class Face:
    """Registers with their hooks. The IOMMU itself says what a doorbell does."""

    def __init__(
        self,
        preset: Preset,
        interrupt: Callable[[int, int], None] | None,
        wire: Callable[[bool], None] | None,
    ) -> None:
        self.efr, self.efr2 = efr, efr2 = preset.efr, preset.efr2
        self.registers = Registers(self)
        self.registers.EFR, self.registers.EFR2 = efr, efr2
        self.capability = CapabilityBlock(self)
        self.capability.HEADER = preset.header
        #: Whether requests are looked at, and whether some are excluded.
        self.enabled = self.excluding = False
        self.signals = Signals(self.registers, interrupt, wire)
        self._absent = {
            byte
            for slot in Registers.SLOTS
            if slot.register.name in REQUIRED_FEATURE and not getattr(efr, REQUIRED_FEATURE[slot.register.name])
            for byte in range(slot.offset, slot.offset + slot.register.size)
        }
        self._reserved_control = 0 if efr2.GCR3TRPModeSup else Control.GCR3TRPMode.mask
        for name, feature in REQUIRED_FOR_CONTROL.items():
            if not getattr(efr, feature):
                self._reserved_control |= Control.FIELDS[name].mask

    def ring_doorbell(self) -> None:
        """Software wrote a register that may let the command buffer go on."""
        raise NotImplementedError

    def read(self, offset: int, width: int) -> int:
        """Software reads a register (4 or 8 bytes)."""
        return 0 if offset in self._absent else self.registers.read(offset, width)

    def write(self, offset: int, width: int, value: int) -> None:
        """Software writes a register (4 or 8 bytes)."""
        if offset not in self._absent:
            self.registers.write(offset, width, value)

    def on_write_CONTROL(self, old: Control, new: Control) -> None:
        """Bits of absent features stay 0; rings start and stop (3.4.2)."""
        new = Control(int(new) & ~self._reserved_control)
        self.registers.CONTROL = new
        self.enabled = bool(new.IommuEn)
        status = self.registers.STATUS
        for ring, enable, overflow in _RINGS:
            was, runs = (bool(control.IommuEn and getattr(control, enable)) for control in (old, new))
            if runs and not was and not (overflow and getattr(status, overflow)):
                status = status.replace(**{ring.run: 1})
            elif not runs:
                status = status.replace(**{ring.run: 0})
        self.registers.STATUS = status
        self.signals.drive()
        self.ring_doorbell()

    def on_write_EXCL_BASE(self, old: ExclusionBase, new: ExclusionBase) -> None:
        """Requests in the range may pass, or no longer."""
        self.excluding = bool(new.ExEn)

    def on_write_STATUS(self, old: Status, new: Status) -> None:
        """Acknowledged bits no longer interrupt."""
        self.signals.drive()

    def on_write_MSI_HEADER(self, old: int, new: int) -> None:
        """A message or a pin."""
        self.signals.drive()

    def on_write_CMD_BASE(self, old: RingBase, new: RingBase) -> None:
        """Another buffer starts at its beginning."""
        self._rewind(COMMANDS)

    def on_write_EVENT_BASE(self, old: RingBase, new: RingBase) -> None:
        """Another log starts at its beginning."""
        self._rewind(EVENTS)

    def on_write_PPR_BASE(self, old: RingBase, new: RingBase) -> None:
        """Another log starts at its beginning."""
        self._rewind(PAGE_REQUESTS)

    def _rewind(self, ring: Ring) -> None:
        self.registers.values[ring.head] = RingPointer(0)
        self.registers.values[ring.tail] = RingPointer(0)

    def on_write_CMD_HEAD(self, old: RingPointer, new: RingPointer) -> None:
        """The hardware's pointer: software moves it while the buffer does not run."""
        self._moved(COMMANDS, COMMANDS.head, old, hardware=True)

    def on_write_CMD_TAIL(self, old: RingPointer, new: RingPointer) -> None:
        """The doorbell."""
        self._moved(COMMANDS, COMMANDS.tail, old, hardware=False)
        self.ring_doorbell()

    def on_write_EVENT_HEAD(self, old: RingPointer, new: RingPointer) -> None:
        """Software has read events."""
        self._moved(EVENTS, EVENTS.head, old, hardware=False)

    def on_write_EVENT_TAIL(self, old: RingPointer, new: RingPointer) -> None:
        """The hardware's pointer: software moves it while the log does not run."""
        self._moved(EVENTS, EVENTS.tail, old, hardware=True)

    def on_write_PPR_HEAD(self, old: RingPointer, new: RingPointer) -> None:
        """Software has read page requests."""
        self._moved(PAGE_REQUESTS, PAGE_REQUESTS.head, old, hardware=False)

    def on_write_PPR_TAIL(self, old: RingPointer, new: RingPointer) -> None:
        """The hardware's pointer: software moves it while the log does not run."""
        self._moved(PAGE_REQUESTS, PAGE_REQUESTS.tail, old, hardware=True)

    def _moved(self, ring: Ring, offset: int, old: RingPointer, hardware: bool) -> None:
        """A pointer beyond its ring, or one that is the hardware's now, stays where it was."""
        new: RingPointer = self.registers.values[offset]
        beyond = new.OFFSET << 4 not in range(ring_size(self.registers, ring))
        if beyond or (hardware and getattr(self.registers.STATUS, ring.run)):
            self.registers.values[offset] = old
