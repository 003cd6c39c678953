"""Requests: what a driver asks, how the device answers, and the properties that PROBE tells. Virtio 1.2, 5.13.6.

A request's structures are words as wide as they are: little-endian, first byte lowest. What the device reads and what
it writes lie in different buffers.
"""

from __future__ import annotations

from enum import IntEnum

from softiommu.words import Word, bit, bits


class Type(IntEnum):
    """Request types."""

    ATTACH = 1
    DETACH = 2
    MAP = 3
    UNMAP = 4
    PROBE = 5


class Code(IntEnum):
    """Status of a request."""

    OK = 0
    IOERR = 1
    UNSUPP = 2
    DEVERR = 3
    INVAL = 4
    RANGE = 5
    NOENT = 6
    FAULT = 7
    NOMEM = 8


class Head(Word, width=32):
    """The head of every request. The device ignores its reserved bytes."""

    TYPE = bits(7, 0, Type)


class Tail(Word, width=32):
    """The tail, which the device writes."""

    STATUS = bits(7, 0, Code)


class Attach(Word, width=160):
    """ATTACH (5.13.6.1). The last four bytes must be 0."""

    TYPE = bits(7, 0, Type)
    DOMAIN = bits(63, 32)
    ENDPOINT = bits(95, 64)
    BYPASS = bit(96)
    UNKNOWN_FLAGS = bits(127, 97)
    MUST_BE_ZERO = bits(159, 128)


class Detach(Word, width=160):
    """DETACH (5.13.6.2)."""

    TYPE = bits(7, 0, Type)
    DOMAIN = bits(63, 32)
    ENDPOINT = bits(95, 64)


class Map(Word, width=288):
    """MAP (5.13.6.3)."""

    TYPE = bits(7, 0, Type)
    DOMAIN = bits(63, 32)
    VIRT_START = bits(127, 64)
    VIRT_END = bits(191, 128)
    PHYS_START = bits(255, 192)
    READ = bit(256)
    WRITE = bit(257)
    MMIO = bit(258)
    UNKNOWN_FLAGS = bits(287, 259)


class Unmap(Word, width=224):
    """UNMAP (5.13.6.4). The last four bytes must be 0."""

    TYPE = bits(7, 0, Type)
    DOMAIN = bits(63, 32)
    VIRT_START = bits(127, 64)
    VIRT_END = bits(191, 128)
    MUST_BE_ZERO = bits(223, 192)


class Probe(Word, width=576):
    """PROBE, what the device reads (5.13.6.5): 64 bytes are left for later."""

    TYPE = bits(7, 0, Type)
    ENDPOINT = bits(63, 32)


Request = Attach | Detach | Map | Unmap | Probe

REQUESTS: dict[Type, type[Request]] = {
    Type.ATTACH: Attach,
    Type.DETACH: Detach,
    Type.MAP: Map,
    Type.UNMAP: Unmap,
    Type.PROBE: Probe,
}


class PropertyType(IntEnum):
    """Types of properties (5.13.6.6)."""

    NONE = 0
    RESV_MEM = 1


class Subtype(IntEnum):
    """Why memory is reserved."""

    RESERVED = 0
    MSI = 1


class Property(Word, width=32):
    """The head of a property: LENGTH bytes follow."""

    TYPE = bits(11, 0, PropertyType)
    MUST_BE_ZERO = bits(15, 12)
    LENGTH = bits(31, 16)


class ResvMem(Word, width=192):
    """RESV_MEM, whole: an inclusive range that cannot be mapped."""

    TYPE = bits(11, 0, PropertyType)
    LENGTH = bits(31, 16)
    SUBTYPE = bits(39, 32, Subtype)
    START = bits(127, 64)
    END = bits(191, 128)


def size_of(word: type[Word]) -> int:
    """Bytes of a structure."""
    return word.WIDTH // 8


def to_bytes(word: Word) -> bytes:
    """A structure as it lies in memory."""
    return int(word).to_bytes(word.WIDTH // 8, "little")
