"""Descriptors, 64 bytes each: which operations there are, and how their fields lie. Linux's hw.h names them."""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple, Self

from softiommu.words import Word, bit, bits

DESCRIPTOR_SIZE = 64


class Operation(IntEnum):
    """What a descriptor asks for. XOR and P+Q are not claimed: DMACAPABILITY."""

    COPY = 0
    FILL = 1


class CopyControl(Word, width=32):
    """Control of a copy. FENCE: what follows waits for it, which it does here anyway."""

    INTERRUPT = bit(0)
    SOURCE_SNOOP_DISABLE = bit(1)
    DESTINATION_SNOOP_DISABLE = bit(2)
    COMPLETION_WRITE = bit(3)
    FENCE = bit(4)
    NULL = bit(5)
    SOURCE_BREAK = bit(6)
    DESTINATION_BREAK = bit(7)
    BUNDLE = bit(8)
    DESTINATION_DCA = bit(9)
    HINT = bit(10)
    OPERATION = bits(31, 24, Operation)


class FillControl(Word, width=32):
    """Control of a block fill."""

    INTERRUPT = bit(0)
    DESTINATION_SNOOP_DISABLE = bit(2)
    COMPLETION_WRITE = bit(3)
    FENCE = bit(4)
    DESTINATION_BREAK = bit(7)
    BUNDLE = bit(8)
    OPERATION = bits(31, 24, Operation)


_FIELDS = struct.Struct("<IIQQQ")
_CONTROLS: dict[int, type[CopyControl] | type[FillControl]] = {Operation.COPY: CopyControl, Operation.FILL: FillControl}


class Descriptor(NamedTuple):
    """One descriptor. `source` is an address, or the eight bytes that a fill repeats."""

    size: int
    control: CopyControl | FillControl
    source: int
    destination: int
    next: int

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """The descriptor in these bytes; the control of an operation that is not there is read as a copy's."""
        size, control, source, destination, following = _FIELDS.unpack_from(raw)
        return cls(size, _CONTROLS.get(control >> 24, CopyControl)(control), source, destination, following)

    @property
    def valid(self) -> bool:
        """Whether the operation exists, and none of its reserved bits is set."""
        return self.control.OPERATION in _CONTROLS and not self.control.reserved
