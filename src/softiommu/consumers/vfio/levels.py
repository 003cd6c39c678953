"""Registers of BARs as plain memory: what a program that maps them stores reaches the device, and what it shows there.

The pages are a file without a name. The program's stores are found by comparing: a store of the value that is there
already is none. Nothing here may trust the file: the program can cut it short, so it is read and written, not mapped.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple, cast

from softiommu.memory.client import PAGE_SIZE

if TYPE_CHECKING:
    from softiommu.hardware.pci import Bar, Function, LevelRegisters
    from softiommu.registers import Level

#: Registers so close to each other are looked at together.
_GAP = 64


class Place(NamedTuple):
    """A BAR that can be mapped as memory: its number, and where in the file it begins."""

    number: int
    start: int
    bar: Bar


class _Cell:
    """A register: where it lies in its stretch, its place in the order of stores, and the value seen last."""

    def __init__(self, level: Level, order: int) -> None:
        self.offset, self.width, self.starts, self.order = level.offset, level.width, level.starts, order
        self.at = self.bits = self.seen = 0


class _Stretch:
    """Registers that lie close: the bytes of them that were seen last."""

    def __init__(self, cells: list[_Cell]) -> None:
        self.start, self.cells = cells[0].offset, cells
        self.length = cells[-1].offset + cells[-1].width - self.start
        self.seen = bytes(self.length)
        #: Whether there are registers that start nothing.
        self.plain = not all(cell.starts for cell in cells)
        #: Whose a byte is.
        self.by_byte: dict[int, _Cell] = {}
        for cell in cells:
            cell.at = cell.offset - self.start
            cell.bits = ((1 << 8 * cell.width) - 1) << 8 * cell.at
            self.by_byte.update(dict.fromkeys(range(cell.at, cell.at + cell.width), cell))
        #: Which of the bits are those of registers.
        self.mask = sum(cell.bits for cell in cells)

    def set(self, cell: _Cell, value: int) -> None:
        """The register's memory holds a value now, as far as we know."""
        cell.seen = value
        data = value.to_bytes(cell.width, "little")
        self.seen = self.seen[: cell.at] + data + self.seen[cell.at + cell.width :]

    def clear(self) -> None:
        """The pages are new, and hold zeros."""
        self.seen = bytes(self.length)
        for cell in self.cells:
            cell.seen = 0


class LevelPages:
    """The memory of one BAR, in a file that may hold that of others."""

    def __init__(self, function: Function, place: Place, fd: int) -> None:
        self._function, self._index, self._base, self._fd = function, place.number, place.start, fd
        self._registers = cast("LevelRegisters", place.bar.registers)
        self._cells = [_Cell(level, order) for order, level in enumerate(self._registers.levels())]
        groups: list[list[_Cell]] = []
        for cell in sorted(self._cells, key=lambda cell: cell.offset):
            if not groups or cell.offset - groups[-1][-1].offset > _GAP:
                groups.append([])
            groups[-1].append(cell)
        self._stretches = [_Stretch(group) for group in groups]
        self._plain = [stretch for stretch in self._stretches if stretch.plain]
        self._of = {cell: stretch for stretch in self._stretches for cell in stretch.cells}

    def clear(self) -> None:
        """The pages are new, and hold zeros."""
        for stretch in self._stretches:
            stretch.clear()

    def look(self) -> bool:
        """Hand what the program stored to the device. Whether there was anything."""
        values: dict[_Cell, int] = {}
        for stretch in self._stretches:
            data = os.pread(self._fd, stretch.length, self._base + stretch.start)
            if data != stretch.seen:
                values |= self._stored(stretch, data)
        if not values:
            return False
        if any(cell.starts for cell in values):
            # What was stored before a register that starts something is there to see by now, if not above.
            for stretch in self._plain:
                data = os.pread(self._fd, stretch.length, self._base + stretch.start)
                values |= {cell: value for cell, value in self._stored(stretch, data).items() if not cell.starts}
        taken = sorted(values, key=lambda cell: cell.order)
        for cell in taken:
            self._of[cell].set(cell, values[cell])
            self._function.write_bar(self._index, cell.offset, cell.width, values[cell])
        for cell in taken:
            self._show(cell)
        return True

    @staticmethod
    def _stored(stretch: _Stretch, data: bytes) -> dict[_Cell, int]:
        """Registers whose memory is not as it was seen last, and what it holds. Other bytes are the program's own."""
        found: dict[_Cell, int] = {}
        if len(data) != stretch.length:
            return found
        now = int.from_bytes(data, "little")
        differ = (now ^ int.from_bytes(stretch.seen, "little")) & stretch.mask
        while differ:
            cell = stretch.by_byte[(differ & -differ).bit_length() - 1 >> 3]
            found[cell] = (now & cell.bits) >> 8 * cell.at
            differ &= ~cell.bits
        return found

    def show(self) -> None:
        """Let the memory hold what the device has to say."""
        for cell in self._cells:
            self._show(cell)

    def _show(self, cell: _Cell) -> None:
        value = self._registers.shown(cell.offset, cell.width)
        # What the program stored meanwhile stays: the next look takes it.
        if value != cell.seen and self._load(cell) == cell.seen:
            os.pwrite(self._fd, value.to_bytes(cell.width, "little"), self._base + cell.offset)
            self._of[cell].set(cell, value)

    def _load(self, cell: _Cell) -> int:
        return int.from_bytes(os.pread(self._fd, cell.width, self._base + cell.offset), "little")


def pages(length: int) -> int:
    """A length in whole pages, in bytes."""
    return -(-length // PAGE_SIZE) * PAGE_SIZE
