"""Eventfds of the program: how it hears of interrupts, and how it says that it served one."""

from __future__ import annotations

import os
import select
from contextlib import suppress
from errno import EINVAL
from typing import TYPE_CHECKING

from softiommu.errors import UapiError
from softiommu.memory.files import EVENTFD_LINK, HostFile

if TYPE_CHECKING:
    from softiommu.memory.client import Caller

_ONE = (1).to_bytes(8, "little")


class Eventfd:
    """An eventfd of the program, by a duplicate of our own: it works on when the program closes its number."""

    def __init__(self, file: HostFile) -> None:
        self._file = file

    @property
    def fd(self) -> int:
        """Our descriptor."""
        return self._file.fd

    def take(self) -> None:
        """Set the counter to 0, or leave it so: the program may have been first."""
        with suppress(BlockingIOError):
            os.preadv(self.fd, [bytearray(len(_ONE))], -1, os.RWF_NOWAIT)

    def signal(self) -> None:
        """Add 1; a counter that is full stays so."""
        room = select.poll()
        room.register(self.fd, select.POLLOUT)
        # Without room a write would wait for the program to read.
        if room.poll(0):
            os.write(self.fd, _ONE)


def find(caller: Caller, fd: int) -> Eventfd:
    """The eventfd of a descriptor. EBADF: not open; EINVAL: another kind of file."""
    file = caller.file(fd & 0xFFFFFFFF)
    if not isinstance(file, HostFile) or os.readlink(f"/proc/self/fd/{file.fd}") != EVENTFD_LINK:
        raise UapiError(EINVAL, f"descriptor {fd} is no eventfd")
    return Eventfd(file)
