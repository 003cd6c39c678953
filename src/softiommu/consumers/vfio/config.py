"""The configuration space that a program sees of a device: partly the device's, partly kept for it (virtual).

What no capability covers goes to the device as it is.
"""

from __future__ import annotations

from errno import EFAULT
from typing import TYPE_CHECKING

from softiommu.consumers import pci_rights
from softiommu.errors import UapiError
from softiommu.hardware.pci_config import (
    CapabilityId,
    Command,
    DeviceControl,
    Express,
    ExtendedId,
    Header,
    Msi,
    MsiControl,
    Power,
    PowerControl,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from softiommu.consumers.pci_rights import Capability
    from softiommu.hardware.pci import Function

#: The bytes of the BARs and of the ROM's.
_ADDRESSES = frozenset(range(Header.BAR.at(0), Header.CARDBUS.offset)) | frozenset(
    range(Header.ROM.offset, Header.ROM.offset + Header.ROM.size)
)
_ENABLES = Command.IO.mask | Command.MEMORY.mask


class ConfigSpace:
    """What one open device shows. The hooks are called when the program has changed something of that kind."""

    def __init__(self, function: Function) -> None:
        self._function, self.size = function, function.config_size
        self.on_command: Callable[[], None] = lambda: None
        self.on_function_reset: Callable[[], None] = lambda: None
        #: log2 of the MSI vectors that SET_IRQS enabled; None: MSI is off.
        self.msi_enabled: int | None = None
        self.capabilities = pci_rights.walk(function.read_config, self.size)
        #: The capability that each byte belongs to.
        self._owners: list[Capability | None] = [None] * self.size
        self._kept = bytearray(self.size)
        for cap in self.capabilities:
            for at in range(cap.start, cap.start + cap.length):
                self._owners[at] = cap
                self._kept[at] = function.read_config(at, 1)
        self._link()

    def _link(self) -> None:
        """The chains of capabilities, without those that a program may not see."""
        standard = [cap.start for cap in self.capabilities if not cap.extended][1:]
        pointers = [Header.CAPABILITIES.offset, *(start + 1 for start in standard)]
        for at, following in zip(pointers, [*standard, 0], strict=True):
            self.keep(at, 1, following)
        extended = [cap for cap in self.capabilities if cap.extended]
        for cap, following in zip(extended, [*(other.start for other in extended[1:]), 0], strict=False):
            header = self._function.read_config(cap.start, 4)
            self.keep(cap.start, 4, pci_rights.extended_header(cap, header, following))

    def find(self, id: CapabilityId | ExtendedId) -> int | None:
        """Where a capability lies, if the program sees it."""
        return next((cap.start for cap in self.capabilities if cap.id is id), None)

    def kept(self, at: int, width: int) -> int:
        """What is kept for the program."""
        return int.from_bytes(self._kept[at : at + width], "little")

    def keep(self, at: int, width: int, value: int) -> None:
        """Keep something for the program."""
        self._kept[at : at + width] = value.to_bytes(width, "little")

    @property
    def command(self) -> Command:
        """The Command register as the program wrote it."""
        return Command(self.kept(Header.COMMAND.offset, 2))

    @property
    def asleep(self) -> bool:
        """Whether the device is in a power state without memory."""
        power = self.find(CapabilityId.POWER)
        return power is not None and bool(PowerControl(self._function.read_config(power + Power.PMCSR.offset, 2)).STATE)

    # Access

    def read(self, at: int, count: int) -> bytes:
        """The bytes that a program reads. EFAULT: past the end."""
        self.check(at, count)
        data = b""
        while len(data) < count:
            place = at + len(data)
            width = self._width(place, count - len(data))
            data += self._read(place, width).to_bytes(width, "little")
        return data

    def write(self, at: int, data: bytes) -> int:
        """A program writes: how many bytes. EFAULT: past the end."""
        self.check(at, len(data))
        done = 0
        while done < len(data):
            width = self._width(at + done, len(data) - done)
            self._write(at + done, width, int.from_bytes(data[done : done + width], "little"))
            done += width
        return done

    def check(self, at: int, count: int) -> None:
        """EFAULT: an access past the end."""
        if at + count > self.size:
            raise UapiError(EFAULT, f"{at:#x}..{at + count - 1:#x} passes the end of configuration space")

    def _width(self, at: int, count: int) -> int:
        """How much one access moves: aligned, at most 4 bytes, of one capability."""
        owner, most = self._owners[at], 1
        while most < count and (at + most) % 4 and self._owners[at + most] is owner:
            most += 1
        return 4 if most == 4 else 2 if most >= 2 and not at % 2 else 1

    def _read(self, at: int, width: int) -> int:
        cap, whole = self._owners[at], (1 << 8 * width) - 1
        if cap is None:
            return self._function.read_config(at, width)
        if cap.start == 0 and at in _ADDRESSES:
            self._align_bars()
        virtual = cap.rights.virtual >> 8 * (at - cap.start) & whole
        value = self.kept(at, width) & virtual
        if virtual != whole:
            value |= self._function.read_config(at, width) & ~virtual
        return value

    def _write(self, at: int, width: int, value: int) -> None:
        cap, whole = self._owners[at], (1 << 8 * width) - 1
        if cap is None:
            self._function.write_config(at, width, value)
            return
        shift = 8 * (at - cap.start)
        virtual, writable = cap.rights.virtual >> shift & whole, cap.rights.writable >> shift & whole
        kept, direct = writable & virtual, writable & ~virtual
        if kept:
            self.keep(at, width, self.kept(at, width) & ~kept | value & kept)
        if direct:
            self._function.write_config(at, width, self._function.read_config(at, width) & ~direct | value & direct)
        self._act(cap, range(at, at + width), value)

    def _act(self, cap: Capability, written: range, value: int) -> None:
        """What a write to these bytes brings about."""
        if cap.start == 0:
            if Header.COMMAND.offset in written:
                self._enable(value)
            if Header.COMMAND.offset in written or Header.COMMAND.offset + 1 in written:
                self.on_command()
        elif cap.id is CapabilityId.MSI and cap.start + Msi.CONTROL.offset in written:
            self._limit_msi(cap.start + Msi.CONTROL.offset)
        elif cap.id is CapabilityId.EXPRESS and cap.start + Express.DEVICE_CONTROL.offset + 1 in written:
            at = cap.start + Express.DEVICE_CONTROL.offset
            control = DeviceControl(self.kept(at, 2))
            if control.FLR:
                self.keep(at, 2, control.replace(FLR=0))
                self.on_function_reset()

    def _enable(self, value: int) -> None:
        """Memory and I/O enable are kept, too: whether BARs may be touched is what the program asked for."""
        at = Header.COMMAND.offset
        self.keep(at, 1, self.kept(at, 1) & ~_ENABLES | value & _ENABLES)

    def _limit_msi(self, at: int) -> None:
        """MSI is enabled by SET_IRQS alone, and the program cannot have more vectors than were enabled."""
        control, most = MsiControl(self.kept(at, 2)), self.msi_enabled
        control = control.replace(
            ENABLE=control.ENABLE if most is not None else 0, ENABLED=min(control.ENABLED, most or 0)
        )
        self.keep(at, 2, control)
        self._function.write_config(at, 2, control)

    def _align_bars(self) -> None:
        """A BAR reads as an aligned address of its size, and its type; what is no BAR reads as 0, as does the ROM's."""
        bars = self._function.bars
        for index, bar in enumerate(bars):
            at, below = Header.BAR.at(index), bars[index - 1] if index else None
            if bar is not None:
                width = 8 if bar.is_64 else 4
                self.keep(at, width, self.kept(at, width) & ~(bar.size - 1) | bar.kind)
            elif below is None or not below.is_64:
                self.keep(at, 4, 0)
        self.keep(Header.ROM.offset, 4, 0)
