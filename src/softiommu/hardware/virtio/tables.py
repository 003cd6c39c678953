"""The split virtqueue in memory: descriptors, and the rings of what is available and what was used. Virtio 1.2, 2.7."""

from __future__ import annotations

from softiommu.words import Word, bit, bits

DESCRIPTOR_BYTES = 16
#: Both rings: flags and index before the elements.
RING_FLAGS, RING_INDEX, RING_ELEMENTS = 0, 2, 4
AVAILABLE_BYTES, USED_BYTES = 2, 8
#: A split virtqueue has so many entries at most.
LARGEST = 1 << 15


class Descriptor(Word, width=128):
    """A buffer, or a table of descriptors (2.7.5)."""

    ADDR = bits(63, 0)
    LEN = bits(95, 64)
    NEXT = bit(96)
    WRITE = bit(97)
    INDIRECT = bit(98)
    NEXT_INDEX = bits(127, 112)


class AvailableFlags(Word, width=16):
    """Flags of the available ring: the driver wants no interrupts (2.7.6)."""

    NO_INTERRUPT = bit(0)


class Used(Word):
    """An element of the used ring: the head of a chain, and how many bytes the device wrote (2.7.8)."""

    ID = bits(31, 0)
    LEN = bits(63, 32)
