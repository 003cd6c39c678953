"""A namespace: blocks on a backing, which is memory or a file that somebody opened."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from mmap import MADV_DONTNEED, MAP_ANONYMOUS, MAP_PRIVATE, PAGESIZE, mmap
from typing import Protocol

from softiommu.errors import ModelError
from softiommu.hardware.devices.nvme.commands import CommandError, Status

#: log2 of the block sizes, by the number of the LBA format, where a namespace has them all.
FORMATS = (9, 12)
_CHUNK = 1 << 20
#: Buffers of one preadv(2).
_IOV_MAX = 1024

#: fallocate(2), which the os module has not: 0, or -1 when the file system does not know how.
_fallocate = ctypes.CDLL(None).fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_KEEP_SIZE, _PUNCH_HOLE = 1, 2


class Backing(Protocol):
    """Where the bytes of a namespace are kept. OSError: the medium fails."""

    @property
    def size(self) -> int:
        """How many bytes there are."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """The bytes at `offset`."""
        ...

    def write(self, offset: int, data: bytes) -> None:
        """Store at `offset`."""
        ...

    def read_into(self, offset: int, views: Sequence[memoryview]) -> None:
        """Fill buffers with the bytes at `offset`, one after the other."""
        ...

    def write_from(self, offset: int, views: Sequence[memoryview]) -> None:
        """Store buffers at `offset`, one after the other."""
        ...

    def zero(self, offset: int, length: int) -> None:
        """Make bytes 0."""
        ...

    def flush(self) -> None:
        """What was written stays, whatever happens."""
        ...


class RamBacking:
    """Bytes that are gone with the process. They cost nothing until they are written."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._bytes = mmap(-1, size, flags=MAP_PRIVATE | MAP_ANONYMOUS)

    def read(self, offset: int, length: int) -> bytes:
        """The bytes at `offset`."""
        return self._bytes[offset : offset + length]

    def write(self, offset: int, data: bytes) -> None:
        """Store at `offset`."""
        self._bytes[offset : offset + len(data)] = data

    def read_into(self, offset: int, views: Sequence[memoryview]) -> None:
        """Fill buffers with the bytes at `offset`."""
        with memoryview(self._bytes) as held:
            for view in views:
                view[:] = held[offset : offset + len(view)]
                offset += len(view)

    def write_from(self, offset: int, views: Sequence[memoryview]) -> None:
        """Store buffers at `offset`."""
        for view in views:
            self._bytes[offset : offset + len(view)] = view
            offset += len(view)

    def zero(self, offset: int, length: int) -> None:
        """Make bytes 0: whole pages are given back."""
        first, end = -(-offset // PAGESIZE) * PAGESIZE, (offset + length) // PAGESIZE * PAGESIZE
        if first >= end:
            self.write(offset, bytes(length))
            return
        self.write(offset, bytes(first - offset))
        self._bytes.madvise(MADV_DONTNEED, first, end - first)
        self.write(end, bytes(offset + length - end))

    def flush(self) -> None:
        """Nothing that is in memory outlives the process."""


class FileBacking:
    """A file, by a descriptor that its owner opened for reading and writing, and closes."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.size = os.lseek(fd, 0, os.SEEK_END)

    def read(self, offset: int, length: int) -> bytes:
        """The bytes at `offset`. OSError: the file was cut short."""
        parts = []
        while length:
            data = os.pread(self._fd, length, offset)
            if not data:
                raise OSError(f"the file ends before byte {offset:#x}")
            parts.append(data)
            offset, length = offset + len(data), length - len(data)
        return b"".join(parts)

    def write(self, offset: int, data: bytes) -> None:
        """Store at `offset`."""
        view = memoryview(data)
        while view:
            done = os.pwrite(self._fd, view, offset)
            view, offset = view[done:], offset + done

    def read_into(self, offset: int, views: Sequence[memoryview]) -> None:
        """Fill buffers with the bytes at `offset`. OSError: the file was cut short."""
        while views:
            done = os.preadv(self._fd, views[:_IOV_MAX], offset)
            if not done:
                raise OSError(f"the file ends before byte {offset:#x}")
            offset, views = offset + done, _after(views, done)

    def write_from(self, offset: int, views: Sequence[memoryview]) -> None:
        """Store buffers at `offset`."""
        while views:
            done = os.pwritev(self._fd, views[:_IOV_MAX], offset)
            offset, views = offset + done, _after(views, done)

    def zero(self, offset: int, length: int) -> None:
        """Make bytes 0: a hole, where the file system has such."""
        if _fallocate(self._fd, _PUNCH_HOLE | _KEEP_SIZE, offset, length):
            for at, size in _chunks(offset, length):
                self.write(at, bytes(size))

    def flush(self) -> None:
        """What was written is on the disk."""
        os.fsync(self._fd)


class Namespace:
    """Blocks, numbered from 0. The rest of a backing that is no whole block is not used. `formats`: log2 of the block
    sizes that it can be formatted to."""

    def __init__(
        self, backing: Backing, format: int = 0, uuid: bytes | None = None, formats: Sequence[int] = FORMATS
    ) -> None:
        if not 0 <= format < len(formats) or backing.size < 1 << FORMATS[-1]:
            raise ModelError(f"a namespace of {backing.size} bytes in LBA format {format}")
        if uuid is not None and len(uuid) != 16:
            raise ModelError(f"a UUID has 16 bytes, not {len(uuid)}")
        self._backing, self.format, self.uuid, self.formats = backing, format, uuid, formats

    @property
    def lba_lg2(self) -> int:
        """log2 of the bytes of a block."""
        return self.formats[self.format]

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return self._backing.size >> self.lba_lg2

    def span(self, lba: int, count: int) -> tuple[int, int]:
        """Where blocks lie: first byte, and bytes. CommandError: some are past the end."""
        if lba + count > self.blocks:
            raise CommandError(Status.LBA_OUT_OF_RANGE, f"{count} blocks at {lba}, of {self.blocks}")
        return lba << self.lba_lg2, count << self.lba_lg2

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of a span. CommandError: the medium fails."""
        try:
            return self._backing.read(offset, length)
        except OSError as error:
            raise CommandError(Status.UNRECOVERED_READ_ERROR, str(error)) from error

    def write(self, offset: int, data: bytes) -> None:
        """Store in a span. CommandError: the medium fails."""
        try:
            self._backing.write(offset, data)
        except OSError as error:
            raise CommandError(Status.WRITE_FAULT, str(error)) from error

    def read_into(self, offset: int, views: Sequence[memoryview]) -> None:
        """Fill buffers with the bytes of a span. CommandError: the medium fails."""
        try:
            self._backing.read_into(offset, views)
        except OSError as error:
            raise CommandError(Status.UNRECOVERED_READ_ERROR, str(error)) from error

    def write_from(self, offset: int, views: Sequence[memoryview]) -> None:
        """Store buffers in a span. CommandError: the medium fails."""
        try:
            self._backing.write_from(offset, views)
        except OSError as error:
            raise CommandError(Status.WRITE_FAULT, str(error)) from error

    def zero(self, offset: int, length: int) -> None:
        """Make a span 0. CommandError: the medium fails."""
        try:
            self._backing.zero(offset, length)
        except OSError as error:
            raise CommandError(Status.WRITE_FAULT, str(error)) from error

    def flush(self) -> None:
        """Make what was written stay. CommandError: the medium fails."""
        try:
            self._backing.flush()
        except OSError as error:
            raise CommandError(Status.WRITE_FAULT, str(error)) from error

    def reformat(self, format: int) -> None:
        """Blocks of another size, all 0."""
        self.zero(0, self._backing.size)
        self.format = format


def _after(views: Sequence[memoryview], done: int) -> Sequence[memoryview]:
    """The buffers without their first `done` bytes."""
    if done == sum(map(len, views)):
        return []
    for number, view in enumerate(views):
        if done < len(view):
            return [view[done:], *views[number + 1 :]]
        done -= len(view)
    return []


def _chunks(offset: int, length: int) -> Iterator[tuple[int, int]]:
    """Pieces of a range that fit into memory."""
    end = offset + length
    for at in range(offset, end, _CHUNK):
        yield at, min(_CHUNK, end - at)
