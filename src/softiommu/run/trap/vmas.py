"""What is mapped at an address of a process: asked of the kernel at each question, since mappings come and go unseen.

Linux 6.11 answers by ioctl on /proc/PID/maps in 1.5 us; before that the text is read, which takes 50 us and more.
"""

from __future__ import annotations

import fcntl
import os
import struct
from errno import ENOENT, ENOTTY
from typing import NamedTuple

#: struct procmap_query of linux/fs.h: size, flags, address; then the answer: start, end, flags, page size, offset,
#: inode, device (major, minor); what follows is about names, which nobody asks for.
_QUERY = struct.Struct("=QQQQQQQQQIIIIQQ")
_PROCMAP_QUERY = 0xC0686611


class Mapped(NamedTuple):
    """A byte of a mapped file: device and inode number, and where in the file."""

    inode: tuple[int, int]
    offset: int


class Vmas:
    """The mappings of one process. OSError when it is gone."""

    def __init__(self, pid: int) -> None:
        self._fd = os.open(f"/proc/{pid}/maps", os.O_RDONLY | os.O_CLOEXEC)
        self._by_ioctl = True

    def find(self, address: int) -> Mapped | None:
        """Which file is mapped at an address; None where none is."""
        if self._by_ioctl:
            query = bytearray(_QUERY.pack(_QUERY.size, 0, address, *(0,) * 12))
            try:
                fcntl.ioctl(self._fd, _PROCMAP_QUERY, query, True)
            except OSError as error:
                if error.errno == ENOENT:
                    return None
                if error.errno != ENOTTY:
                    raise
                self._by_ioctl = False
            else:
                _, _, _, start, _, _, _, offset, inode, major, minor, *_ = _QUERY.unpack(query)
                return Mapped((os.makedev(major, minor), inode), address - start + offset)
        return self._read(address)

    def _read(self, address: int) -> Mapped | None:
        """The same from the text."""
        with open(os.dup(self._fd)) as maps:
            maps.seek(0)
            for line in maps:
                span, _, offset, device, inode = line.split(maxsplit=5)[:5]
                first, end = (int(part, 16) for part in span.split("-"))
                if first <= address < end:
                    numbers = os.makedev(*(int(part, 16) for part in device.split(":")))
                    return Mapped((numbers, int(inode)), address - first + int(offset, 16))
        return None

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self._fd)
