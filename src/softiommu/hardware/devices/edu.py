"""QEMU's teaching device: it computes factorials, and copies between memory and a buffer of 4 KiB inside of it.

Registers and behaviour as QEMU documents them (docs/specs/edu.rst). A transfer that would leave the buffer is not
made. Of one that is, pages that cannot be reached read as zeros and take no data; the others are transferred. A
transfer is over when its command is written, unless a clock is given: then it takes `delay`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from math import factorial

from softiommu.clock import MS, Clock
from softiommu.hardware.bus import DmaError, Port
from softiommu.hardware.pci import Bar, Features, Function, Identity, Mapping
from softiommu.registers import Access, RegisterFile, reg, ro, rw, wo
from softiommu.words import Word, bit, bits

IDENTITY = Identity(0x1234, 0x11E8, 0x00FF00, 0x10, 0x1AF4, 0x1100)
BAR_SIZE = 1 << 20
#: Where transfers find the buffer. It is no part of the BAR.
BUFFER, BUFFER_SIZE = 0x40000, 4096
DEFAULT_DMA_MASK = (1 << 28) - 1
DELAY = 100 * MS

#: From here on registers have 8 bytes, and take accesses of 4 and of 8; below, of 4 only.
_WIDE = 0x80
_ONES = (1 << 64) - 1
_PAGE = 4096
#: 34! has 32 factors of two: from here on the low 32 bits of a factorial are 0.
_FACTORIAL_ENDS = 34


class Value32(Word, width=32):
    """A register without fields."""

    VALUE = bits(31, 0)


class Value64(Word):
    """A wide register without fields."""

    VALUE = bits(63, 0)


class Status(Word, width=32):
    """Status register."""

    COMPUTING = bit(0)
    IRQFACT = bit(7)


class Interrupts(Word, width=32):
    """Reasons for an interrupt; software may raise the others, too."""

    FACTORIAL = bit(0)
    DMA = bit(8)
    OTHER_LOW = bits(7, 1)
    OTHER_HIGH = bits(31, 9)


class DmaCommand(Word):
    """DMA command register."""

    RUN = bit(0)
    TO_MEMORY = bit(1)
    INTERRUPT = bit(2)


class Registers(RegisterFile):
    """What BAR 0 shows."""

    IDENTIFICATION = reg(0x00, Value32, ro, reset=0x010000ED)
    LIVENESS = reg(0x04, Value32, rw)
    FACTORIAL = reg(0x08, Value32, rw)
    STATUS = reg(0x20, Status, ro, IRQFACT=rw)
    INTERRUPTS = reg(0x24, Interrupts, ro)
    RAISE = reg(0x60, Interrupts, wo)
    ACKNOWLEDGE = reg(0x64, Interrupts, wo)
    DMA_SOURCE = reg(0x80, Value64, rw)
    DMA_DESTINATION = reg(0x88, Value64, rw)
    DMA_COUNT = reg(0x90, Value64, rw)
    DMA_COMMAND = reg(0x98, DmaCommand, rw)


_BY_START = {slot.offset: slot.register for slot in Registers.SLOTS}


class Edu:
    """The device. `dma_mask` cuts addresses of memory; `express` gives it PCI Express, and with that a reset."""

    def __init__(
        self,
        port: Port,
        clock: Clock | None = None,
        dma_mask: int = DEFAULT_DMA_MASK,
        express: bool = True,
        delay: int = DELAY,
    ) -> None:
        self._port, self._clock, self._dma_mask, self._delay = port, clock, dma_mask, delay
        self.registers = Registers(self)
        self.buffer = bytearray(BUFFER_SIZE)
        self._done_at = 0
        features = Features(msi=1, express=express, power=express)
        self.function = Function(
            port, IDENTITY, {0: Bar(BAR_SIZE, self, mapping=Mapping.TRAPPED)}, features, self.reset
        )

    def reset(self) -> None:
        """Registers and buffer as after power-on."""
        self.registers.reset()
        self.buffer[:] = bytes(BUFFER_SIZE)

    def read(self, offset: int, width: int) -> int:
        """Software reads BAR 0: all ones where no register starts, or where this width is not allowed."""
        self.poll()
        register = _BY_START.get(offset)
        if register is None or register.access is Access.WO or not _allowed(offset, width):
            return _ONES
        return self.registers.read(offset, register.size)

    def write(self, offset: int, width: int, value: int) -> None:
        """Software writes BAR 0. Four bytes written to a wide register clear its upper half."""
        self.poll()
        register = _BY_START.get(offset)
        if register is not None and _allowed(offset, width):
            self.registers.write(offset, register.size, value)

    def on_write_LIVENESS(self, old: int, new: int) -> None:
        """The register holds the inverse of what was written."""
        self.registers.LIVENESS = ~new & 0xFFFFFFFF

    def on_write_FACTORIAL(self, old: int, new: int) -> None:
        """Compute the factorial, of which 32 bits fit."""
        self.registers.FACTORIAL = factorial(min(new, _FACTORIAL_ENDS)) & 0xFFFFFFFF
        if self.registers.STATUS.IRQFACT:
            self._raise(Interrupts.of(FACTORIAL=1))

    # Interrupts

    def on_write_RAISE(self, old: int, new: int) -> None:
        """Software asks for an interrupt."""
        self._raise(new)

    def on_write_ACKNOWLEDGE(self, old: int, new: int) -> None:
        """Software has seen these reasons."""
        self.registers.INTERRUPTS = self.registers.INTERRUPTS & ~new
        if not self.registers.INTERRUPTS:
            self.function.set_intx(False)

    def _raise(self, reasons: int) -> None:
        self.registers.INTERRUPTS = self.registers.INTERRUPTS | reasons
        if not self.registers.INTERRUPTS:
            return
        if self.function.messages:
            self.function.signal(0)
        else:
            self.function.set_intx(True)

    # DMA

    def on_write_DMA_SOURCE(self, old: int, new: int) -> None:
        """Nothing of a transfer changes while it runs."""
        if self.registers.DMA_COMMAND.RUN:
            self.registers.DMA_SOURCE = old

    def on_write_DMA_DESTINATION(self, old: int, new: int) -> None:
        """Nothing of a transfer changes while it runs."""
        if self.registers.DMA_COMMAND.RUN:
            self.registers.DMA_DESTINATION = old

    def on_write_DMA_COUNT(self, old: int, new: int) -> None:
        """Nothing of a transfer changes while it runs."""
        if self.registers.DMA_COMMAND.RUN:
            self.registers.DMA_COUNT = old

    def on_write_DMA_COMMAND(self, old: DmaCommand, new: DmaCommand) -> None:
        """Start a transfer. A command without RUN is none."""
        if old.RUN or not new.RUN:
            self.registers.DMA_COMMAND = old
        elif self._clock is None:
            self._finish(new)
        else:
            self._done_at = self._clock.now() + self._delay

    def poll(self) -> None:
        """Finish the transfer if its time has come."""
        command = self.registers.DMA_COMMAND
        if command.RUN and self._clock is not None and self._clock.now() >= self._done_at:
            self._finish(command)

    def _finish(self, command: DmaCommand) -> None:
        source, destination = int(self.registers.DMA_SOURCE), int(self.registers.DMA_DESTINATION)
        count = int(self.registers.DMA_COUNT)
        inside = (source if command.TO_MEMORY else destination) - BUFFER
        if inside >= 0 and inside + count <= BUFFER_SIZE:
            if command.TO_MEMORY:
                self._store(destination & self._dma_mask, inside, count)
            else:
                self._load(source & self._dma_mask, inside, count)
        self.registers.DMA_COMMAND = command.replace(RUN=0)
        if command.INTERRUPT:
            self._raise(Interrupts.of(DMA=1))

    def _store(self, iova: int, inside: int, count: int) -> None:
        for at, done, size in _pages(iova, count):
            # Posted writes: nobody tells the device which of them were blocked.
            with suppress(DmaError):
                self._port.write(at, bytes(self.buffer[inside + done : inside + done + size]))

    def _load(self, iova: int, inside: int, count: int) -> None:
        for at, done, size in _pages(iova, count):
            try:
                data = self._port.read(at, size)
            except DmaError:
                data = bytes(size)
            self.buffer[inside + done : inside + done + size] = data


def _pages(iova: int, count: int) -> Iterator[tuple[int, int, int]]:
    """A transfer page by page, each of which goes through or fails by itself: address, bytes before it, its bytes."""
    done = 0
    while done < count:
        at = iova + done & _ONES
        size = min(count - done, _PAGE - at % _PAGE)
        yield at, done, size
        done += size


def _allowed(offset: int, width: int) -> bool:
    return width == 4 or (width == 8 and offset >= _WIDE)
