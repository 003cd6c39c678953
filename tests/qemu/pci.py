"""PCI configuration space of a QEMU machine, by ports (q35) or memory-mapped (virt); bus 0."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from qemu.qtest import Qtest, load, store

_ADDRESS_PORT, _DATA_PORT = 0xCF8, 0xCFC
_COMMAND, _BAR0 = 0x04, 0x10
_MEMORY, _MASTER = 1 << 1, 1 << 2


class Config(Protocol):
    """How a machine's configuration space is reached."""

    def read(self, devfn: int, offset: int) -> int:
        """A 32-bit register of a function."""
        ...

    def write(self, devfn: int, offset: int, value: int) -> None:
        """Write a 32-bit register of a function."""
        ...


class PortConfig(NamedTuple):
    """Configuration through the address and data ports of a PC."""

    qtest: Qtest

    def read(self, devfn: int, offset: int) -> int:
        """A 32-bit register of a function."""
        return self.qtest.ask([self._select(devfn, offset), f"inl {_DATA_PORT:#x}"])[1]

    def write(self, devfn: int, offset: int, value: int) -> None:
        """Write a 32-bit register of a function."""
        self.qtest.ask([self._select(devfn, offset), f"outl {_DATA_PORT:#x} {value:#x}"])

    @staticmethod
    def _select(devfn: int, offset: int) -> str:
        return f"outl {_ADDRESS_PORT:#x} {1 << 31 | devfn << 8 | offset:#x}"


class MemoryConfig(NamedTuple):
    """Configuration in a window of memory (ECAM)."""

    qtest: Qtest
    base: int

    def read(self, devfn: int, offset: int) -> int:
        """A 32-bit register of a function."""
        return self.qtest.ask([load(self.base + (devfn << 12) + offset, 4)])[0]

    def write(self, devfn: int, offset: int, value: int) -> None:
        """Write a 32-bit register of a function."""
        self.qtest.ask([store(self.base + (devfn << 12) + offset, 4, value)])


def enable(config: Config, devfn: int, bar: int) -> int:
    """Put a function's first BAR at an address and let it answer and master the bus; -> the address."""
    is_64_bit = config.read(devfn, _BAR0) >> 1 & 3 == 2
    config.write(devfn, _BAR0, bar & 0xFFFFFFFF)
    if is_64_bit:
        config.write(devfn, _BAR0 + 4, bar >> 32)
    config.write(devfn, _COMMAND, _MEMORY | _MASTER)
    return bar
