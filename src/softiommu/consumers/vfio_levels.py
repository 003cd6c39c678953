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


class _Stretch:
    """Registers that lie close: the bytes of them that were seen last."""

    def __init__(self, levels: list[Level]) -> None:
        self.start = levels[0].offset
        self.seen = bytes(levels[-1].offset + levels[-1].width - self.start)
        #: Which of the bits are those of registers.
        self.mask = sum(self.bits(level) for level in levels)
        #: Whether there are registers that start nothing.
        self.plain = not all(level.starts for level in levels)

    def bits(self, level: Level) -> int:
        """Where a register lies in the bytes, taken as one number."""
        return ((1 << 8 * level.width) - 1) << 8 * (level.offset - self.start)

    def value(self, data: bytes, level: Level) -> int:
        """A register's value in the bytes."""
        at = level.offset - self.start
        return int.from_bytes(data[at : at + level.width], "little")

    def set(self, level: Level, value: int) -> None:
        """The register's memory holds a value now, as far as we know."""
        at = level.offset - self.start
        self.seen = self.seen[:at] + value.to_bytes(level.width, "little") + self.seen[at + level.width :]


class LevelPages:
    """The memory of one BAR, in a file that may hold that of others."""

    def __init__(self, function: Function, place: Place, fd: int) -> None:
        self._function, self._index, self._base, self._fd = function, place.number, place.start, fd
        self._registers = cast("LevelRegisters", place.bar.registers)
        self._levels = list(self._registers.levels())
        self._order = {level: number for number, level in enumerate(self._levels)}
        self._by_byte = {level.offset + n: level for level in self._levels for n in range(level.width)}
        groups: list[list[Level]] = []
        for level in sorted(self._levels):
            if not groups or level.offset - groups[-1][-1].offset > _GAP:
                groups.append([])
            groups[-1].append(level)
        self._stretches = [_Stretch(group) for group in groups]
        self._plain = [stretch for stretch in self._stretches if stretch.plain]
        self._of = {level: stretch for group, stretch in zip(groups, self._stretches, strict=True) for level in group}

    def clear(self) -> None:
        """The pages are new, and hold zeros."""
        for stretch in self._stretches:
            stretch.seen = bytes(len(stretch.seen))

    def look(self) -> bool:
        """Hand what the program stored to the device. Whether there was anything."""
        values: dict[Level, int] = {}
        for stretch in self._stretches:
            values |= self._stored(stretch)
        if not values:
            return False
        if any(level.starts for level in values):
            # What was stored before a register that starts something is there to see by now, if not above.
            for stretch in self._plain:
                values |= {level: value for level, value in self._stored(stretch).items() if not level.starts}
        taken = sorted(values, key=self._order.__getitem__)
        for level in taken:
            self._of[level].set(level, values[level])
            self._function.write_bar(self._index, level.offset, level.width, values[level])
        for level in taken:
            self._show(level)
        return True

    def _stored(self, stretch: _Stretch) -> dict[Level, int]:
        """Registers whose memory is not as it was seen last, and what it holds. Other bytes are the program's own."""
        data = os.pread(self._fd, len(stretch.seen), self._base + stretch.start)
        found: dict[Level, int] = {}
        if data == stretch.seen or len(data) != len(stretch.seen):
            return found
        differ = (int.from_bytes(data, "little") ^ int.from_bytes(stretch.seen, "little")) & stretch.mask
        while differ:
            level = self._by_byte[stretch.start + ((differ & -differ).bit_length() - 1 >> 3)]
            found[level] = stretch.value(data, level)
            differ &= ~stretch.bits(level)
        return found

    def show(self) -> None:
        """Let the memory hold what the device has to say."""
        for level in self._levels:
            self._show(level)

    def _show(self, level: Level) -> None:
        stretch, value = self._of[level], self._registers.shown(level.offset, level.width)
        seen = stretch.value(stretch.seen, level)
        # What the program stored meanwhile stays: the next look takes it.
        if value != seen and self._load(level) == seen:
            os.pwrite(self._fd, value.to_bytes(level.width, "little"), self._base + level.offset)
            stretch.set(level, value)

    def _load(self, level: Level) -> int:
        return int.from_bytes(os.pread(self._fd, level.width, self._base + level.offset), "little")


def pages(length: int) -> int:
    """A length in whole pages, in bytes."""
    return -(-length // PAGE_SIZE) * PAGE_SIZE
