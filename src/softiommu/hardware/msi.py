"""Message signaled interrupts: which vector is masked, which is pending, and what is written where.

PCI Express Base Specification 5.0, 6.1.4, 7.7.1 and 7.7.2.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

from softiommu.errors import ModelError
from softiommu.hardware import pci_config
from softiommu.hardware.pci_config import InBar, MsiControl, MsixControl, MsixEntry, Value32, VectorControl

_ENTRY = 16


class Kind(Enum):
    """How a function tells the host of an event."""

    INTX = "INTx"
    MSI = "MSI"
    MSIX = "MSI-X"


class Interrupt(NamedTuple):
    """An interrupt as it leaves a function: a change of its INTx line, or the write of a message."""

    kind: Kind
    vector: int
    #: Of INTx: whether the line is asserted from now on.
    asserted: bool = True
    #: Of a message: where it is written, and what.
    address: int = 0
    data: int = 0


Send = Callable[[Interrupt], None]


class MessageCapability:
    """The MSI capability: up to 32 vectors, one address."""

    LENGTH = 0x18

    def __init__(self, vectors: int, send: Send) -> None:
        if not 1 <= vectors <= 32 or vectors & vectors - 1:
            raise ModelError(f"MSI has 1, 2, 4, 8, 16 or 32 vectors, not {vectors}")
        self.vectors, self._send = vectors, send
        self.registers = pci_config.Msi(self)
        self.made: dict[str, int] = {"CONTROL": MsiControl.of(CAPABLE=vectors.bit_length() - 1, WIDE=1, MASKABLE=1)}

    @property
    def enabled(self) -> bool:
        """Whether software lets the function send messages."""
        return bool(self.registers.CONTROL.ENABLE)

    def signal(self, vector: int) -> None:
        """Send the message of a vector. Those that software did not enable share the ones that it did."""
        registers = self.registers
        vector &= (1 << min(registers.CONTROL.ENABLED, registers.CONTROL.CAPABLE)) - 1
        if registers.MASK >> vector & 1:
            registers.PENDING = registers.PENDING | 1 << vector
            return
        self._send(Interrupt(Kind.MSI, vector, True, int(registers.ADDRESS), int(registers.DATA) | vector))

    def on_write_MASK(self, old: int, new: int) -> None:
        """Unmasked vectors that are pending send their messages."""
        self.registers.MASK = Value32(new & (1 << self.vectors) - 1)
        self._flush()

    def on_write_CONTROL(self, old: MsiControl, new: MsiControl) -> None:
        """The same when messages are enabled."""
        self._flush()

    def _flush(self) -> None:
        registers = self.registers
        ready = registers.PENDING & ~registers.MASK if registers.CONTROL.ENABLE else 0
        registers.PENDING = registers.PENDING & ~ready
        for vector in range(self.vectors):
            if ready >> vector & 1:
                self.signal(vector)


class Vector:
    """One entry of the MSI-X table, and its pending bit."""

    def __init__(self, number: int, owner: TableCapability) -> None:
        self.number, self._owner = number, owner
        self.pending = False
        self.entry = MsixEntry(self)

    def on_write_CONTROL(self, old: VectorControl, new: VectorControl) -> None:
        """An unmasked vector that is pending sends its message."""
        self._owner.flush(self)


class TableCapability:
    """The MSI-X capability with its table and its pending bits, which lie in a BAR."""

    LENGTH = 0x0C

    def __init__(self, vectors: int, bar: int, table: int, pending: int, send: Send) -> None:
        if not 1 <= vectors <= 2048 or (table | pending) & 7:
            raise ModelError(f"MSI-X has 1..2048 vectors at multiples of 8, not {vectors} at {table:#x}, {pending:#x}")
        self.bar, self._send = bar, send
        self.table = range(table, table + vectors * _ENTRY)
        self.pending = range(pending, pending + -(-vectors // 64) * 8)
        self.vectors = [Vector(number, self) for number in range(vectors)]
        self.registers = pci_config.Msix(self)
        self.made: dict[str, int] = {
            "CONTROL": MsixControl.of(LAST=vectors - 1),
            "TABLE": InBar.of(BAR=bar, OFFSET=table >> 3),
            "PENDING": InBar.of(BAR=bar, OFFSET=pending >> 3),
        }

    @property
    def enabled(self) -> bool:
        """Whether software lets the function send messages."""
        return bool(self.registers.CONTROL.ENABLE)

    def signal(self, number: int) -> None:
        """Send the message of a vector, or keep it while it is masked. A vector that is not there sends nothing."""
        if 0 <= number < len(self.vectors):
            self.vectors[number].pending = True
            self.flush(self.vectors[number])

    def flush(self, vector: Vector) -> None:
        """Send what is pending, if nothing masks it."""
        control = self.registers.CONTROL
        if not vector.pending or not control.ENABLE or control.MASK or vector.entry.CONTROL.MASK:
            return
        vector.pending = False
        entry = vector.entry
        self._send(Interrupt(Kind.MSIX, vector.number, True, int(entry.ADDRESS), int(entry.DATA)))

    def on_write_CONTROL(self, old: MsixControl, new: MsixControl) -> None:
        """What is pending is sent when the function is enabled or unmasked."""
        for vector in self.vectors:
            self.flush(vector)

    def reset(self) -> None:
        """Every vector masked, and none pending."""
        for vector in self.vectors:
            vector.entry.reset()
            vector.pending = False

    def covers(self, offset: int) -> bool:
        """Whether the table or the pending bits have this offset of the BAR."""
        return offset in self.table or offset in self.pending

    def read(self, offset: int, width: int) -> int:
        """Software reads the table or the pending bits."""
        if offset in self.table:
            number, at = divmod(offset - self.table.start, _ENTRY)
            return self.vectors[number].entry.read(at, width)
        bits = sum(vector.pending << vector.number for vector in self.vectors)
        return bits >> 8 * (offset - self.pending.start) & (1 << 8 * width) - 1

    def write(self, offset: int, width: int, value: int) -> None:
        """Software writes the table. The pending bits are the function's."""
        if offset in self.table:
            number, at = divmod(offset - self.table.start, _ENTRY)
            self.vectors[number].entry.write(at, width, value)
