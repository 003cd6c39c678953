"""A PCI function: its identity, configuration space, BARs, interrupts and reset. What it does is a device's matter.

A device makes a `Function`, gives it what its BARs show, and does DMA through its port; the host reads and writes
configuration space and BARs, and hears interrupts through `on_interrupt`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping as Numbered
from dataclasses import replace
from typing import NamedTuple

from softiommu.errors import ModelError
from softiommu.hardware import pci_config
from softiommu.hardware.bus import Port
from softiommu.hardware.config_space import CONVENTIONAL_SIZE, EXPRESS_SIZE, FIRST_CAPABILITY, ConfigSpace, Part
from softiommu.hardware.msi import Interrupt, Kind, MessageCapability, TableCapability
from softiommu.hardware.pci_bars import Bar, Identity, LevelRegisters, Mapping, MsixPlace, Registers
from softiommu.hardware.pci_config import (
    AtsCapabilities,
    AtsControl,
    CapabilityId,
    DeviceCapabilities,
    DeviceControl,
    ExpressCapabilities,
    ExtendedId,
    Header,
    PasidCapabilities,
    PortType,
    PowerCapabilities,
    PowerControl,
    PriControl,
    Status,
)
from softiommu.registers import RegisterFile

__all__ = [
    "Bar", "Features", "Function", "Identity", "Interrupt", "Kind", "LevelRegisters", "Mapping", "MsixPlace",
    "Registers", "VendorCapability",
]  # fmt: skip

_BARS = 6
_D0 = 0


class VendorCapability(NamedTuple):
    """A capability whose registers are the vendor's matter; the byte behind its header is its length (7.9.4)."""

    #: Makes the registers for a function.
    registers: Callable[[Function], RegisterFile]
    length: int
    made: dict[str, int]


class Features(NamedTuple):
    """Which capabilities a function has. Extended ones need PCI Express."""

    #: Vectors: 0 for none, else a power of two up to 32.
    msi: int = 0
    msix: MsixPlace | None = None
    #: Whether it has an INTx pin.
    intx: bool = True
    power: bool = True
    express: bool = True
    vendor: tuple[VendorCapability, ...] = ()
    ats: bool = False
    #: Page requests that may be open at a time; 0: no PRI.
    pri: int = 0
    pasid_bits: int = 0
    #: Its requests may be held until software has looked at them: firmware says so, no capability does.
    stalls: bool = False


class Function:
    """A PCI function. `on_reset` is the device's part of a reset."""

    def __init__(
        self,
        port: Port,
        identity: Identity,
        bars: Numbered[int, Bar],
        features: Features | None = None,
        on_reset: Callable[[], None] = lambda: None,
    ) -> None:
        self.port, self.identity, self.features = port, identity, features or Features()
        #: By number; the second half of a 64-bit BAR is None, as is one that is not there.
        self.bars: tuple[Bar | None, ...] = tuple(bars.get(number) for number in range(_BARS))
        #: Hears every change of the INTx line and every message. None: nobody does.
        self.on_interrupt: Callable[[Interrupt], None] | None = None
        #: Hears when registers that software has as plain memory changed by themselves.
        self.on_change: Callable[[], None] = lambda: None
        #: Takes over work that is too long for one access, and calls it while there is more to do; False: nobody does.
        self.background: Callable[[Callable[[], bool]], bool] = lambda step: False
        #: Hears in a sentence what the device refuses: its driver has a status code at most.
        self.on_refusal: Callable[[str], None] = lambda why: None
        #: Hears when software lets the function ask for translations, and when not.
        self.on_ats: Callable[[bool], None] = lambda enabled: None
        self._on_reset = on_reset
        self._level = self._asserted = False
        self.header = Header(self)
        size = EXPRESS_SIZE if self.features.express else CONVENTIONAL_SIZE
        self._config = ConfigSpace(size, Part(0, FIRST_CAPABILITY, self.header, self._made()))
        self.power = pci_config.Power(self)
        self.express = pci_config.Express(self)
        self.ats, self.pri, self.pasid = pci_config.Ats(self), pci_config.Pri(self), pci_config.Pasid(self)
        self.msi = MessageCapability(self.features.msi, self._send) if self.features.msi else None
        self.msix = TableCapability(*self.features.msix, self._send) if self.features.msix else None
        self._check_bars()
        self._add_capabilities()
        self._add_extended()
        self._refresh()

    def _made(self) -> dict[str, int]:
        made = {
            "VENDOR": self.identity.vendor,
            "DEVICE": self.identity.device,
            "CLASS": self.identity.class_code,
            "REVISION": self.identity.revision,
            "SUBSYSTEM_VENDOR": self.identity.subsystem_vendor,
            "SUBSYSTEM_DEVICE": self.identity.subsystem_device,
            "INTERRUPT_PIN": int(self.features.intx),
        }
        if self.features.power or self.features.express or self.features.msi or self.features.msix:
            made["STATUS"] = Status.of(CAPABILITIES=1)
        return made

    def _check_bars(self) -> None:
        for number, bar in enumerate(self.bars):
            if bar is not None and bar.is_64 and (number == _BARS - 1 or self.bars[number + 1] is not None):
                raise ModelError(f"BAR {number} has 64 bits, but the next number is not free")
            for_msix = self.msix is not None and self.msix.bar == number
            if for_msix and self.msix and (bar is None or max(self.msix.table.stop, self.msix.pending.stop) > bar.size):
                raise ModelError(f"the MSI-X table does not lie in BAR {number}")
        if (self.features.ats or self.features.pri or self.features.pasid_bits) and not self.features.express:
            raise ModelError("ATS, PRI and PASID are capabilities of PCI Express functions")

    def _add_capabilities(self) -> None:
        add = self._config.add
        if self.features.power:
            made: dict[str, int] = {
                "PMC": PowerCapabilities.of(VERSION=3),
                "PMCSR": PowerControl.of(NO_SOFT_RESET=1),
            }
            add(CapabilityId.POWER, 8, self.power, made)
        if self.msi:
            add(CapabilityId.MSI, MessageCapability.LENGTH, self.msi.registers, self.msi.made)
        if self.msix:
            add(CapabilityId.MSIX, TableCapability.LENGTH, self.msix.registers, self.msix.made)
        if self.features.express:
            made = {
                "CAPABILITIES": ExpressCapabilities.of(VERSION=2, TYPE=PortType.ROOT_COMPLEX_ENDPOINT),
                "DEVICE_CAPABILITIES": DeviceCapabilities.of(EXTENDED_TAG=1, ROLE_BASED_ERRORS=1, FLR=1),
            }
            add(CapabilityId.EXPRESS, 0x3C, self.express, made)
        for kind, length, values in self.features.vendor:
            add(CapabilityId.VENDOR, length, kind(self), dict(values))

    def _add_extended(self) -> None:
        add, features = self._config.add_extended, self.features
        if features.ats:
            add(ExtendedId.ATS, 8, self.ats, {"CAPABILITIES": AtsCapabilities.of(PAGE_ALIGNED=1)})
        if features.pri:
            add(ExtendedId.PRI, 16, self.pri, {"CAPACITY": features.pri})
        if features.pasid_bits:
            able = PasidCapabilities.of(EXECUTE=1, PRIVILEGED=1, BITS=features.pasid_bits)
            add(ExtendedId.PASID, 8, self.pasid, {"CAPABILITIES": able})

    # Configuration space

    @property
    def config_size(self) -> int:
        """Bytes of configuration space: 4096 with PCI Express, else 256."""
        return self._config.size

    def find_capability(self, id: CapabilityId | ExtendedId) -> int | None:
        """Where in configuration space a capability starts."""
        return self._config.find(id)

    def read_config(self, offset: int, width: int) -> int:
        """Software reads `width` bytes of configuration space; all ones past its end."""
        return self._config.read(offset, width)

    def write_config(self, offset: int, width: int, value: int) -> None:
        """Software writes `width` bytes of configuration space."""
        self._config.write(offset, width, value)
        self._refresh()

    def on_write_BAR(self, index: int, old: int, new: int) -> None:
        """Only the bits above a BAR's size can be set: that is how software learns the size (7.5.1.2.1)."""
        bar, below = self.bars[index], self.bars[index - 1] if index else None
        if bar is not None:
            self.header.BAR[index] = new & -bar.size & 0xFFFFFFFF | bar.kind
        elif below is not None and below.is_64:
            self.header.BAR[index] = new & -below.size >> 32 & 0xFFFFFFFF
        else:
            self.header.BAR[index] = 0

    def on_read_BAR(self, index: int) -> int:
        """The kind of a BAR shows also before it is first written."""
        bar = self.bars[index]
        return int(self.header.BAR[index]) | (bar.kind if bar is not None else 0)

    def on_write_DEVICE_CONTROL(self, old: DeviceControl, new: DeviceControl) -> None:
        """Function level reset (6.6.2)."""
        if new.FLR:
            self.reset()

    def on_write_PMCSR(self, old: PowerControl, new: PowerControl) -> None:
        """D1 and D2 are not there: a write that asks for them changes nothing (7.5.2.2)."""
        if new.STATE in (1, 2):
            self.power.PMCSR = new.replace(STATE=old.STATE)

    def on_write_ATS_CONTROL(self, old: AtsControl, new: AtsControl) -> None:
        """Software turns address translation of the function on and off (10.5.1.3)."""
        if new.ENABLE != old.ENABLE:
            self.on_ats(bool(new.ENABLE))

    def let_translate(self, enable: bool) -> None:
        """Turn ATS on or off, as far as the function has it."""
        if self.features.ats:
            old = self.ats.ATS_CONTROL
            self.ats.ATS_CONTROL = old.replace(ENABLE=int(enable))
            self.on_write_ATS_CONTROL(old, self.ats.ATS_CONTROL)

    def on_write_PRI_CONTROL(self, old: PriControl, new: PriControl) -> None:
        """Page requests stop when software says so; RESET is done at once (10.5.2.2)."""
        self.pri.PRI_CONTROL = new.replace(RESET=0)
        self.pri.STATUS = self.pri.STATUS.replace(STOPPED=int(not new.ENABLE))

    def _refresh(self) -> None:
        """Let what software set take effect."""
        self.port.bus_master = bool(self.header.COMMAND.MASTER) and self.power.PMCSR.STATE == _D0
        asserted = self._level and not self.header.COMMAND.INTX_DISABLE and not self.messages
        if asserted != self._asserted:
            self._asserted = asserted
            self._deliver(Interrupt(Kind.INTX, 0, asserted))

    # BARs

    def read_bar(self, bar: int, offset: int, width: int) -> int:
        """Software reads 1, 2, 4 or 8 bytes of a BAR; all ones when nobody answers."""
        registers = self._responder(bar, offset, width)
        ones = (1 << 8 * width) - 1
        return ones if registers is None else registers.read(offset, width) & ones

    def write_bar(self, bar: int, offset: int, width: int, value: int) -> None:
        """Software writes 1, 2, 4 or 8 bytes of a BAR; lost when nobody answers."""
        registers = self._responder(bar, offset, width)
        if registers is not None:
            registers.write(offset, width, value & (1 << 8 * width) - 1)

    def _responder(self, index: int, offset: int, width: int) -> Registers | None:
        """Who answers an access: nobody when it is misaligned, outside, or not decoded."""
        bar = self.bars[index] if 0 <= index < _BARS else None
        if bar is None or width not in (1, 2, 4, 8) or offset % width or not 0 <= offset <= bar.size - width:
            return None
        command = self.header.COMMAND
        if not (command.IO if bar.io else command.MEMORY) or self.power.PMCSR.STATE != _D0:
            return None
        if self.msix is not None and self.msix.bar == index and self.msix.covers(offset):
            return self.msix
        return bar.registers

    def forbid_mapping(self) -> None:
        """No BAR can be mapped, whatever the device allows."""
        self.bars = tuple(bar and replace(bar, mapping=Mapping.NONE) for bar in self.bars)

    def carry_on(self, step: Callable[[], bool]) -> None:
        """Call `step` while it says that there is more to do: at least once now, and then in the background if there is
        one."""
        if step() and not self.background(step):
            while step():
                pass

    def changed(self) -> None:
        """The device changed registers that software may have as plain memory, other than by software's access."""
        self.on_change()

    # Interrupts

    @property
    def messages(self) -> bool:
        """Whether software chose MSI or MSI-X over INTx."""
        return bool((self.msi and self.msi.enabled) or (self.msix and self.msix.enabled))

    @property
    def intx(self) -> bool:
        """Whether the INTx line is asserted."""
        return self._asserted

    def signal(self, vector: int) -> None:
        """The device sends the message of a vector. Without MSI or MSI-X enabled nothing happens."""
        if self.msix is not None and self.msix.enabled:
            self.msix.signal(vector)
        elif self.msi is not None and self.msi.enabled:
            self.msi.signal(vector)

    def set_intx(self, level: bool) -> None:
        """The device has, or no longer has, a reason for INTx. The line follows unless software disabled it."""
        level = level and self.features.intx
        if level == self._level:
            return
        self._level = level
        self.header.STATUS = self.header.STATUS.replace(INTERRUPT=int(self._level))
        self._refresh()

    def _send(self, message: Interrupt) -> None:
        """A message is a memory write, and needs the right to make one."""
        if self.port.bus_master:
            self._deliver(message)

    def _deliver(self, interrupt: Interrupt) -> None:
        if self.on_interrupt is not None:
            self.on_interrupt(interrupt)

    # Reset

    @property
    def can_reset(self) -> bool:
        """Whether software can reset the function alone (FLR)."""
        return self.features.express

    def reset(self) -> None:
        """Everything as it was made: configuration space, interrupts, and the device behind (6.6.2)."""
        self._config.reset()
        if self.msix is not None:
            self.msix.reset()
        self.set_intx(False)
        self.on_ats(False)
        self._on_reset()
        self._refresh()
        self.changed()
