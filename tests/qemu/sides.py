"""One program for two machines: QEMU, and our model with its memory. What software does, it does to both."""

from __future__ import annotations

import fcntl
import os
from typing import Any, Protocol

import numpy as np

from qemu.e1000 import AREA
from qemu.qtest import Qtest
from softiommu.memory.physical import PAGE, PhysicalMemory

#: RAM, from its base: the card's area; queues, which hardware writes; data, which tells where it lies; tables and
#: structures. Below are a PC's ROMs.
CARD, QUEUES, DATA, TABLES, RAM = 2 << 20, 4 << 20, 16 << 20, 32 << 20, 64 << 20
assert CARD + AREA <= QUEUES, "the card's area must not reach into the queues"


class Side(Protocol):
    """A machine with an IOMMU, as software sees it."""

    def read(self, offset: int, width: int) -> int:
        """Read a register of the IOMMU."""
        ...

    def write(self, offset: int, width: int, value: int) -> None:
        """Write a register of the IOMMU."""
        ...

    def load(self, pa: int, length: int) -> bytes:
        """Bytes of RAM."""
        ...

    def store(self, pa: int, data: bytes) -> None:
        """Store to RAM."""
        ...


class Emulator:
    """QEMU; the IOMMU's registers are at `base`."""

    def __init__(self, qtest: Qtest, base: int) -> None:
        self.qtest, self.base = qtest, base

    def read(self, offset: int, width: int) -> int:
        """Read a register of the IOMMU."""
        return self.qtest.read(self.base + offset, width)

    def write(self, offset: int, width: int, value: int) -> None:
        """Write a register of the IOMMU."""
        self.qtest.write(self.base + offset, width, int(value))

    def load(self, pa: int, length: int) -> bytes:
        """Bytes of RAM."""
        at = pa - self.qtest.ram_base
        return self.qtest.ram[at : at + length]

    def store(self, pa: int, data: bytes) -> None:
        """Store to RAM."""
        at = pa - self.qtest.ram_base
        self.qtest.ram[at : at + len(data)] = data


class _Ram:
    """RAM that cannot shrink, so that kernels may index it."""

    def __init__(self, size: int) -> None:
        self.fd = os.memfd_create("ram", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
        os.ftruncate(self.fd, size)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)

    def read(self, offset: int, length: int, /) -> bytes:
        """The bytes at `offset`."""
        return os.pread(self.fd, length, offset)

    def write(self, offset: int, data: bytes, /) -> None:
        """Store at `offset`."""
        os.pwrite(self.fd, data, offset)


class ModelMemory(PhysicalMemory):
    """Memory for a model, at the addresses that a machine of QEMU has it; what it gives lies among the tables."""

    def __init__(self, ram_base: int) -> None:
        super().__init__(CARD if ram_base == 0 else PAGE)
        start = max(ram_base, CARD)
        self.map_window(start, _Ram(ram_base + RAM - start), 0, ram_base + RAM - start)
        #: Where tables lie: from here to past the last page that was ever given.
        self.first = self.end = ram_base + TABLES
        self._last = ram_base + RAM
        self._returned: dict[tuple[int, int], list[int]] = {}
        self._sizes: dict[int, tuple[int, int]] = {}

    def alloc(self, size: int, align: int = PAGE) -> int:
        """The address of zeroed pages. MemoryError: they are used up."""
        kind = -(-size // PAGE) * PAGE, align
        again = self._returned.setdefault(kind, [])
        pa = again.pop() if again else -(-self.end // align) * align
        if pa + kind[0] > self._last:
            raise MemoryError(f"{size:#x} bytes are not free")
        self.end = max(self.end, pa + kind[0])
        self.write(pa, bytes(kind[0]))
        self._sizes[pa] = kind
        return pa

    def free(self, pa: int) -> None:
        """Take pages back; what was in them is gone."""
        kind = self._sizes.pop(pa)
        self.write(pa, bytes(kind[0]))
        self._returned[kind].append(pa)


class Model:
    """Our model of the IOMMU."""

    def __init__(self, memory: ModelMemory, unit: Any) -> None:
        self.memory, self.unit = memory, unit

    def read(self, offset: int, width: int) -> int:
        """Read a register of the IOMMU."""
        return int(self.unit.read(offset, width))

    def write(self, offset: int, width: int, value: int) -> None:
        """Write a register of the IOMMU."""
        self.unit.write(offset, width, int(value))

    def load(self, pa: int, length: int) -> bytes:
        """Bytes of RAM."""
        return self.memory.read(pa, length)

    def store(self, pa: int, data: bytes) -> None:
        """Store to RAM."""
        self.memory.write(pa, data)


class Both:
    """The two sides, and the RAM that they have alike."""

    def __init__(self, emulator: Emulator, model: Model) -> None:
        self.emulator, self.model = emulator, model
        self.sides: tuple[Side, Side] = (emulator, model)
        self.ram_base = emulator.qtest.ram_base
        model.store(self.data, tags(self.data).tobytes())
        emulator.store(self.data, tags(self.data).tobytes())

    @property
    def data(self) -> int:
        """Where data starts."""
        return self.ram_base + DATA

    def write(self, register: Any, value: int) -> None:
        """Write a register (of a model's register file) of both IOMMUs."""
        for side in self.sides:
            side.write(register.offset, register.size, value)

    def store(self, pa: int, *words: int) -> None:
        """Store 64-bit words to both memories."""
        data = np.array(words, np.uint64).tobytes()
        for side in self.sides:
            side.store(pa, data)

    def tables(self, side: Side) -> Any:
        """The words of the tables and structures of a side."""
        first, end = self.model.memory.first, self.model.memory.end
        return np.frombuffer(side.load(first, end - first), np.uint64)

    def copy_tables(self) -> None:
        """Give QEMU the tables and structures that lie in the model's memory."""
        first, end = self.model.memory.first, self.model.memory.end
        self.emulator.store(first, self.model.load(first, end - first))


def tags(first: int) -> Any:
    """What data holds: each word is found at one address only, and looks like anything as part of a table."""
    numbers = np.arange(first >> 2, (first + TABLES - DATA) >> 2, dtype=np.uint32)
    return numbers * np.uint32(0x9E3779B1) + np.uint32(0x85EBCA6B)
