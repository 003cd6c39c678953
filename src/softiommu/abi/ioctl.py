"""ioctl numbers: how <asm-generic/ioctl.h> packs direction, size, type and number into 32 bits."""

from __future__ import annotations

_WRITE, _READ = 1, 2


def io(type: int, nr: int) -> int:
    """_IO: no data in the number."""
    return type << 8 | nr


def ior(type: int, nr: int, size: int) -> int:
    """_IOR: the kernel writes `size` bytes."""
    return _READ << 30 | size << 16 | io(type, nr)


def iow(type: int, nr: int, size: int) -> int:
    """_IOW: the kernel reads `size` bytes."""
    return _WRITE << 30 | size << 16 | io(type, nr)


def iowr(type: int, nr: int, size: int) -> int:
    """_IOWR: the kernel reads and writes `size` bytes."""
    return (_READ | _WRITE) << 30 | size << 16 | io(type, nr)


def number(cmd: int) -> int:
    """The number within the type."""
    return cmd & 0xFF


def type_of(cmd: int) -> int:
    """The type byte."""
    return cmd >> 8 & 0xFF
