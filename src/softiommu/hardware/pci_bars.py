"""What a PCI function is made of: what a driver is matched by, and windows to its registers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol

from softiommu.errors import ModelError
from softiommu.hardware import pci_config
from softiommu.registers import Level


class Registers(Protocol):
    """What a BAR shows. Accesses are aligned and inside of it."""

    def read(self, offset: int, width: int, /) -> int:
        """Software reads 1, 2, 4 or 8 bytes."""
        ...

    def write(self, offset: int, width: int, value: int, /) -> None:
        """Software writes 1, 2, 4 or 8 bytes."""
        ...


class Mapping(Enum):
    """How software that maps a BAR meets its registers."""

    #: It cannot be mapped: software reads and writes it access by access.
    NONE = "none"
    #: As plain memory, which the device looks at a little later, and where it shows what it has to say: right for
    #: registers whose last value is all that counts, and whose answer software waits for. They are `LevelRegisters`.
    LEVEL = "level"
    #: Each load and store is an access of its own, done when it is made: right for any registers, and slower.
    TRAPPED = "trapped"


class LevelRegisters(Registers, Protocol):
    """Registers that software may also have as plain memory. What changes by itself is told by `Function.changed`."""

    def levels(self) -> Sequence[Level]:
        """All of them, in the order in which stores that are seen together count."""
        ...

    def shown(self, offset: int, width: int, /) -> int:
        """What the memory of one of them holds until software stores another value."""
        ...


class Identity(NamedTuple):
    """What a driver is matched by. `class_code` is base class, subclass and programming interface."""

    vendor: int
    device: int
    class_code: int
    revision: int = 0
    subsystem_vendor: int = 0
    subsystem_device: int = 0


@dataclass(frozen=True)
class Bar:
    """A window of a function: `size` bytes (a power of two) of memory or I/O ports that show `registers`."""

    size: int
    registers: Registers
    #: A 64-bit BAR, which takes the next number, too.
    is_64: bool = False
    prefetchable: bool = False
    io: bool = False
    mapping: Mapping = Mapping.NONE
    #: Which bytes of it can be mapped, in whole pages; all when left out.
    mapped: range | None = None

    def __post_init__(self) -> None:
        if self.size & self.size - 1 or self.size < (4 if self.io else 16):
            raise ModelError(f"a BAR of {self.size:#x} bytes")
        if self.io and (self.is_64 or self.prefetchable or self.size > 256):
            raise ModelError("an I/O BAR has 32 bits, at most 256 bytes, and is not prefetchable")
        if self.io and self.mapping is not Mapping.NONE:
            raise ModelError("an I/O BAR cannot be mapped")

    @property
    def kind(self) -> int:
        """The read-only low bits of its register."""
        return pci_config.Bar.of(IO=int(self.io), WIDE=int(self.is_64), PREFETCHABLE=int(self.prefetchable))


class MsixPlace(NamedTuple):
    """How many MSI-X vectors, and where in which BAR their table and pending bits lie."""

    vectors: int
    bar: int
    table: int
    pending: int
