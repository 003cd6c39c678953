"""The engine: what its BAR shows, its channels, and the way of their interrupts.

With MSI-X and MSIX_VECTOR_CONTROL each channel has the vector with its number. Else they share one interrupt (the
INTx line, or a message): ATTNSTATUS says whose it is until it is read, and reading INTRCTRL clears MASTER_INT_EN.
"""

from __future__ import annotations

from functools import partial

from softiommu.errors import ModelError
from softiommu.hardware.bus import Port
from softiommu.hardware.devices.ioat.channel import Channel
from softiommu.hardware.devices.ioat.registers import (
    BAR_SIZE,
    CHANNEL_SIZE,
    MAX_CHANNELS,
    MSIX_PENDING,
    MSIX_TABLE,
    Attention,
    InterruptControl,
    Registers,
    Value8,
)
from softiommu.hardware.iommu import AtsIommu
from softiommu.hardware.paging import PagingPort
from softiommu.hardware.pci import Bar, Features, Function, Identity, Mapping, MsixPlace

IDENTITY = Identity(0x8086, 0x2021, 0x088000, 4, 0x8086, 0x2021)

#: Page requests that may be open at a time, where it makes any.
_PAGE_REQUESTS = 1


class Ioat:
    """The device, with `channels` of them and a vector for each. `ats`: the IOMMU in front of it, if it is to ask
    that for translations and pages."""

    def __init__(self, port: Port, channels: int = 1, ats: AtsIommu | None = None) -> None:
        if not 1 <= channels <= MAX_CHANNELS:
            raise ModelError(f"{channels} channels: 1..{MAX_CHANNELS} can be told apart")
        self.registers = Registers(self)
        self._told = False
        features = Features(
            msi=1,
            msix=MsixPlace(channels, 0, MSIX_TABLE, MSIX_PENDING),
            ats=ats is not None,
            pri=_PAGE_REQUESTS if ats is not None else 0,
        )
        bar = Bar(BAR_SIZE, self, is_64=True, mapping=Mapping.TRAPPED)
        self.function = Function(port, IDENTITY, {0: bar}, features, self.reset)
        self._paging = None if ats is None else PagingPort(self.function, ats, self._go_on)
        memory, carry_on = self._paging or port, self.function.carry_on
        self.channels = [
            Channel(memory, partial(self._attend, number), partial(self._refuse, number), carry_on)
            for number in range(channels)
        ]
        self._make()

    def _make(self) -> None:
        self.registers.reset()
        self.registers.CHANCNT = Value8(len(self.channels))

    def reset(self) -> None:
        """As after power-on."""
        self._make()
        self._told = False
        for channel in self.channels:
            channel.reset()
        if self._paging is not None:
            self._paging.reset()

    def _go_on(self) -> None:
        """A page that was asked for is there, or will not be."""
        for channel in self.channels:
            channel.work()

    # BAR 0

    def read(self, offset: int, width: int) -> int:
        """Software reads a register."""
        number, at = divmod(offset, CHANNEL_SIZE)
        if not 1 <= number <= len(self.channels):
            return self.registers.read(offset, width)
        channel = self.channels[number - 1]
        channel.work()
        return channel.registers.read(at, width)

    def write(self, offset: int, width: int, value: int) -> None:
        """Software writes a register."""
        number, at = divmod(offset, CHANNEL_SIZE)
        if not 1 <= number <= len(self.channels):
            self.registers.write(offset, width, value)
            return
        channel = self.channels[number - 1]
        channel.work()
        channel.registers.write(at, width, value)

    def _refuse(self, number: int, why: str) -> None:
        self.function.on_refusal(f"channel {number} {why}")

    # Interrupts

    def _attend(self, number: int) -> None:
        """A channel has an interrupt."""
        msix = self.function.msix
        if msix is not None and msix.enabled and self.registers.INTRCTRL.MSIX_VECTOR_CONTROL:
            self.function.signal(number)
            return
        self.registers.ATTNSTATUS = Attention(self.registers.ATTNSTATUS | 1 << number)
        self._refresh()

    def on_read_ATTNSTATUS(self) -> int:
        """Whose interrupt it is: that is told once."""
        found = self.registers.ATTNSTATUS
        self.registers.ATTNSTATUS = Attention(0)
        self._refresh()
        return found

    def on_read_INTRCTRL(self) -> int:
        """Who reads it has the interrupt; there is none until MASTER_INT_EN is set again."""
        found = self.registers.INTRCTRL
        self.registers.INTRCTRL = found.replace(MASTER_INT_EN=0)
        self._refresh()
        return found

    def on_write_INTRCTRL(self, old: InterruptControl, new: InterruptControl) -> None:
        """Let interrupts come, or not."""
        self._refresh()

    def _refresh(self) -> None:
        """The line follows INT; a message is sent when INT is set."""
        control, attention = self.registers.INTRCTRL, bool(self.registers.ATTNSTATUS)
        told = attention and bool(control.MASTER_INT_EN)
        self.registers.INTRCTRL = control.replace(INT_STATUS=int(attention), INT=int(told))
        if told and not self._told:
            self.function.signal(0)
        self._told = told
        self.function.set_intx(told)
