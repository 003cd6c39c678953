"""The host's side of a function's interrupts: what is enabled and masked in the device, as the kernel's PCI core does.

Messages have an address and data of the host; a program never sees them. VFIO tells vectors apart by their number.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from softiommu.abi.vfio import PciIrq
from softiommu.consumers.pci_rights import MSIX_ENTRY
from softiommu.hardware.msi import Interrupt, Kind
from softiommu.hardware.pci_config import (
    CapabilityId,
    Command,
    Header,
    InBar,
    Msi,
    MsiControl,
    Msix,
    MsixControl,
    MsixEntry,
    Status,
    VectorControl,
)

if TYPE_CHECKING:
    from softiommu.consumers.vfio.config import ConfigSpace
    from softiommu.hardware.pci import Function

_KINDS = {Kind.INTX: PciIrq.INTX, Kind.MSI: PciIrq.MSI, Kind.MSIX: PciIrq.MSIX}
#: Where messages of a PC go, and the first vector of a program's interrupts there.
_ADDRESS, _VECTOR = 0xFEE00000, 0x40


class Lines:
    """The interrupts of one function."""

    def __init__(self, function: Function, config: ConfigSpace) -> None:
        self.function, self._config = function, config
        self._msi, self._msix = config.find(CapabilityId.MSI), config.find(CapabilityId.MSIX)
        self._express = config.find(CapabilityId.EXPRESS)

    @staticmethod
    def kind(interrupt: Interrupt) -> PciIrq:
        """VFIO's name for a kind."""
        return _KINDS[interrupt.kind]

    def count(self, kind: PciIrq) -> int:
        """How many interrupts of a kind there are."""
        read = self.function.read_config
        if kind is PciIrq.INTX:
            return int(self._config.kept(Header.INTERRUPT_PIN.offset, 1) != 0)
        if kind is PciIrq.MSI:
            return 0 if self._msi is None else 1 << MsiControl(read(self._msi + Msi.CONTROL.offset, 2)).CAPABLE
        if kind is PciIrq.MSIX:
            return 0 if self._msix is None else MsixControl(read(self._msix + Msix.CONTROL.offset, 2)).LAST + 1
        # Errors are reported by PCI Express devices.
        return int(kind is PciIrq.REQ or self._express is not None)

    @property
    def msix_table(self) -> tuple[int, range]:
        """In which BAR, and where in it, the MSI-X table lies."""
        if self._msix is None:
            return 0, range(0)
        place = InBar(self.function.read_config(self._msix + Msix.TABLE.offset, 4))
        at = place.OFFSET << InBar.OFFSET.low
        return place.BAR, range(at, at + MSIX_ENTRY * self.count(PciIrq.MSIX))

    def enable(self, kind: PciIrq, vectors: int, used: Collection[int]) -> None:
        """Let the device raise this kind: so many vectors, of which some are used."""
        if kind is PciIrq.MSI and self._msi is not None:
            write = self.function.write_config
            write(self._msi + Msi.ADDRESS.offset, 4, _ADDRESS)
            write(self._msi + Msi.ADDRESS.offset + 4, 4, _ADDRESS >> 32)
            write(self._msi + Msi.DATA.offset, 2, _VECTOR)
            self._set_msi(ENABLE=1, ENABLED=(vectors - 1).bit_length())
        elif kind is PciIrq.MSIX:
            for vector in used:
                self.set_vector(kind, vector, True)
            self._set_msix(ENABLE=1)

    def disable(self, kind: PciIrq) -> None:
        """The device raises nothing of this kind."""
        if kind is PciIrq.INTX:
            self.mask(False)
        elif kind is PciIrq.MSI:
            self._set_msi(ENABLE=0, ENABLED=0)
        elif kind is PciIrq.MSIX:
            self._set_msix(ENABLE=0)
            for vector in range(self.count(kind)):
                self.set_vector(kind, vector, False)

    def _set_msi(self, **fields: int) -> None:
        # The device's register alone: in its own a program reads what it wrote, as the low byte is virtual in vfio-pci.
        assert self._msi is not None, "only a function with MSI is asked for it"
        at = self._msi + Msi.CONTROL.offset
        control = MsiControl(self.function.read_config(at, 2)).replace(**fields)
        self.function.write_config(at, 2, control)

    def _set_msix(self, **fields: int) -> None:
        assert self._msix is not None, "only a function with MSI-X is asked for it"
        at = self._msix + Msix.CONTROL.offset
        self.function.write_config(at, 2, MsixControl(self.function.read_config(at, 2)).replace(**fields))

    def set_vector(self, kind: PciIrq, vector: int, used: bool) -> None:
        """Unmask a vector of MSI-X, or mask it. The device's memory is on while the table is written."""
        if kind is not PciIrq.MSIX:
            return
        bar, table = self.msix_table
        entry = table.start + MSIX_ENTRY * vector
        command = self._change_command(MEMORY=1)
        if used:
            self.function.write_bar(bar, entry + MsixEntry.ADDRESS.offset, 8, _ADDRESS)
            self.function.write_bar(bar, entry + MsixEntry.DATA.offset, 4, _VECTOR + vector)
        self.function.write_bar(bar, entry + MsixEntry.CONTROL.offset, 4, VectorControl.of(MASK=int(not used)))
        self.function.write_config(Header.COMMAND.offset, 2, command)

    def mask(self, masked: bool) -> None:
        """Mask the INTx line in the device."""
        self._change_command(INTX_DISABLE=int(masked))

    def _change_command(self, **fields: int) -> Command:
        """Change bits of the device's Command register: what it was."""
        command = Command(self.function.read_config(Header.COMMAND.offset, 2))
        self.function.write_config(Header.COMMAND.offset, 2, command.replace(**fields))
        return command

    @property
    def intx_pending(self) -> bool:
        """Whether the device has a reason for INTx."""
        return bool(Status(self.function.read_config(Header.STATUS.offset, 2)).INTERRUPT)
