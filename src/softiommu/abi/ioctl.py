"""ioctl numbers: how <asm-generic/ioctl.h> packs direction, size, type and number into 32 bits.

Number in bits 7:0, type in 15:8, size in 29:16, direction in 31:30. iommufd and VFIO use _IO only.
"""

from __future__ import annotations

from enum import IntFlag

#: The type byte of iommufd and VFIO.
TYPE = ord(";")
_SIZE_BITS = 14


class Direction(IntFlag):
    """Who moves the data, as the program sees it: _IOC_NONE, _IOC_WRITE, _IOC_READ."""

    NONE = 0
    WRITE = 1
    READ = 2


def io(type: int, nr: int) -> int:
    """_IO: no data in the number."""
    return _encode(Direction.NONE, type, nr, 0)


def ior(type: int, nr: int, size: int) -> int:
    """_IOR: the kernel writes `size` bytes."""
    return _encode(Direction.READ, type, nr, size)


def iow(type: int, nr: int, size: int) -> int:
    """_IOW: the kernel reads `size` bytes."""
    return _encode(Direction.WRITE, type, nr, size)


def iowr(type: int, nr: int, size: int) -> int:
    """_IOWR: the kernel reads and writes `size` bytes."""
    return _encode(Direction.READ | Direction.WRITE, type, nr, size)


def number(cmd: int) -> int:
    """The number within the type."""
    return cmd & 0xFF


def type_of(cmd: int) -> int:
    """The type byte."""
    return cmd >> 8 & 0xFF


def size_of(cmd: int) -> int:
    """The size of the data in bytes."""
    return cmd >> 16 & (1 << _SIZE_BITS) - 1


def direction(cmd: int) -> Direction:
    """Who moves the data."""
    return Direction(cmd >> 30 & 3)


def _encode(way: int, type: int, nr: int, size: int) -> int:
    """ValueError: a part is too wide for its field."""
    if not (0 <= type <= 0xFF and 0 <= nr <= 0xFF and 0 <= size < 1 << _SIZE_BITS):
        raise ValueError(f"an ioctl number has no room for type {type:#x}, number {nr:#x} and size {size}")
    return int(way) << 30 | size << 16 | type << 8 | nr
