"""getdents64 of a folder that the host has and the machine adds to: the host's entries, then ours.

How many of ours were read is kept in the open file itself, as a position just below the largest that its file system
allows, so that rewinddir and a shared descriptor work as usual.
"""

from __future__ import annotations

import ctypes
import os
import struct
from contextlib import suppress
from errno import EBADF, EINVAL
from typing import TYPE_CHECKING

from softiommu.errors import UapiError
from softiommu.machine.nodes import Entry, Link, Node, Text
from softiommu.run.paths import Resolver, children
from softiommu.run.session import CONTINUE, Handler, Reply
from softiommu.run.syscalls import Nr

if TYPE_CHECKING:
    from softiommu.run.tracee import Task

_libc = ctypes.CDLL(None, use_errno=True)
_HEAD = struct.Struct("<QqHB")
#: The most entries that we add to one folder.
_ROOM = 255
#: The largest position of most file systems, and of sysfs; both mean the end of the folder where they are used.
_LAST_POSITIONS = (2**63 - 1, 2**31 - 1)
_MOST = 1 << 16
_TYPES = {Node: 2, Text: 8, Link: 10, type(None): 4}


class FolderCalls:
    """The handler of getdents64."""

    def __init__(self, resolver: Resolver) -> None:
        self._tree = resolver.tree
        self.handlers: dict[int, Handler] = {Nr.GETDENTS64: self.read}

    def read(self, task: Task, args: tuple[int, ...]) -> int | Reply:
        """The next entries of a folder."""
        fd, va, size = args[0] & 0xFFFFFFFF, args[1], min(args[2] & 0xFFFFFFFF, _MOST)
        try:
            status = os.stat(f"fd/{fd}", dir_fd=task.folder)
        except OSError:
            return CONTINUE
        folder = self._tree.mixed.get((status.st_dev, status.st_ino))
        if folder is None:
            return CONTINUE
        try:
            ours = task.duplicate(fd)
        except UapiError:
            return CONTINUE
        try:
            return self._read(task, ours, folder, va, size)
        finally:
            os.close(ours)

    def _read(self, task: Task, fd: int, folder: str, va: int, size: int) -> int:
        position = os.lseek(fd, 0, os.SEEK_CUR)
        last = _last_position(fd, position)
        first = last - _ROOM
        if not first < position < last:
            entries = _host_entries(fd, size)
            if entries:
                task.write(va, entries)
                return len(entries)
            position = first
        records = self._records(folder, first)[position - first :]
        if not records:
            return 0
        data, count = b"", 0
        while count < len(records) and len(data) + len(records[count]) <= size:
            data += records[count]
            count += 1
        if not count:
            raise UapiError(EINVAL, f"a buffer of {size} bytes is too short for an entry")
        task.write(va, data)
        os.lseek(fd, position + count, os.SEEK_SET)
        return len(data)

    def _records(self, folder: str, first: int) -> list[bytes]:
        """Our entries that the host's folder does not have as well; each says the position after it."""
        added = [item for item in children(self._tree, folder) if not os.path.lexists(f"{folder}/{item[0]}")]
        return [
            _record(self._tree.numbers[f"{folder}/{name}"], first + index, name, entry)
            for index, (name, entry) in enumerate(added[: _ROOM - 1], 1)
        ]


def _last_position(fd: int, position: int) -> int:
    """The largest position that this folder can have."""
    for last in _LAST_POSITIONS:
        with suppress(OSError):
            os.lseek(fd, last, os.SEEK_SET)
            os.lseek(fd, position, os.SEEK_SET)
            return last
    raise UapiError(EINVAL, "the host's folder cannot be positioned")


def _host_entries(fd: int, size: int) -> bytes:
    buffer = ctypes.create_string_buffer(size)
    count = _libc.syscall(Nr.GETDENTS64, fd, buffer, size)
    if count < 0:
        raise UapiError(ctypes.get_errno() or EBADF, "the host's folder cannot be read")
    return buffer.raw[:count]


def _record(number: int, position: int, name: str, entry: Entry | None) -> bytes:
    raw = os.fsencode(name) + b"\0"
    length = -(-(_HEAD.size + len(raw)) // 8) * 8
    return _HEAD.pack(number, position, length, _TYPES[type(entry)]) + raw.ljust(length - _HEAD.size, b"\0")
