"""Where a function's capabilities lie in its configuration space, and what an access meets there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from softiommu.errors import ModelError
from softiommu.hardware.pci_config import CapabilityHeader, CapabilityId, ExtendedHeader, ExtendedId
from softiommu.registers import RegisterFile
from softiommu.words import Word

CONVENTIONAL_SIZE, EXPRESS_SIZE = 256, 4096
#: Where the first capability lies, and the first extended one.
FIRST_CAPABILITY, FIRST_EXTENDED = 0x40, 0x100


class Part(NamedTuple):
    """Registers in configuration space, and the values that the hardware was made with."""

    start: int
    length: int
    file: RegisterFile
    made: dict[str, int]

    def reset(self) -> None:
        """Every register as it was made."""
        self.file.reset()
        for name, value in self.made.items():
            setattr(self.file, name, value)


class ConfigSpace:
    """A function's configuration space. What belongs to no part reads as 0; past its end there is nobody."""

    def __init__(self, size: int, header: Part) -> None:
        self.size = size
        self._parts = [header]
        self._by_dword: list[Part | None] = [None] * (size // 4)
        self._links = [(header, "CAPABILITIES")]
        self._extended: Part | None = None
        self._next = {False: FIRST_CAPABILITY, True: FIRST_EXTENDED}
        self._place(header)
        header.reset()

    def _place(self, part: Part) -> None:
        for number in range(part.start // 4, (part.start + part.length) // 4):
            if self._by_dword[number] is not None:
                raise ModelError(f"two parts of configuration space at {number * 4:#x}")
            self._by_dword[number] = part

    def add(self, id: CapabilityId, length: int, file: RegisterFile, made: dict[str, int]) -> None:
        """Put a capability behind those that are there."""
        self._append(False, CapabilityHeader.of(ID=id), length, file, made)

    def add_extended(self, id: ExtendedId, length: int, file: RegisterFile, made: dict[str, int]) -> None:
        """Put an extended capability behind those that are there."""
        self._append(True, ExtendedHeader.of(ID=id, VERSION=1), length, file, made)

    def _append(self, extended: bool, header: Word, length: int, file: RegisterFile, made: dict[str, int]) -> None:
        start = self._next[extended]
        self._next[extended] = start + -(-length // 16) * 16
        part = Part(start, length, file, {"HEADER": header, **made})
        self._link(extended, start)
        self._parts.append(part)
        self._place(part)
        part.reset()

    def _link(self, extended: bool, start: int) -> None:
        """Let the capability before this one lead to it."""
        before = [part for part in self._parts[1:] if (part.start >= FIRST_EXTENDED) == extended]
        if before:
            last = before[-1]
            header = last.made["HEADER"]
            assert isinstance(header, Word), "the header is a word"
            last.made["HEADER"] = header.replace(NEXT=start)
            last.reset()
        elif not extended:
            self._parts[0].made["CAPABILITIES"] = start
            self._parts[0].reset()

    def find(self, id: CapabilityId | ExtendedId) -> int | None:
        """Where a capability starts."""
        extended = isinstance(id, ExtendedId)
        for part in self._parts[1:]:
            if (part.start >= FIRST_EXTENDED) == extended and part.made["HEADER"] & 0xFF == id:
                return part.start
        return None

    def reset(self) -> None:
        """Every register as it was made."""
        for part in self._parts:
            part.reset()

    def read(self, offset: int, width: int) -> int:
        """Software reads `width` bytes; all ones where there is nobody."""
        value = 0
        for at, count, done in _dwords(offset, width):
            part = self._part(at)
            if at >= self.size or at < 0:
                piece = (1 << 8 * count) - 1
            else:
                piece = part.file.read(at - part.start, count) if part is not None else 0
            value |= piece << 8 * done
        return value

    def write(self, offset: int, width: int, value: int) -> None:
        """Software writes `width` bytes, in ascending order, double word by double word."""
        for at, count, done in _dwords(offset, width):
            part = self._part(at)
            if part is not None:
                part.file.write(at - part.start, count, value >> 8 * done & (1 << 8 * count) - 1)

    def _part(self, offset: int) -> Part | None:
        return self._by_dword[offset >> 2] if 0 <= offset < self.size else None


def _dwords(offset: int, width: int) -> Iterator[tuple[int, int, int]]:
    """An access cut at double words: offset, bytes, and bytes done before."""
    done = 0
    while done < width:
        count = min(4 - (offset + done & 3), width - done)
        yield offset + done, count, done
        done += count
