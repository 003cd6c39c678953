"""The program's memory in the machine's physical space: each chunk of frames is a window of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from softiommu.memory.client import PAGE_SIZE
from softiommu.memory.frames import CHUNK

if TYPE_CHECKING:
    from softiommu.memory.frames import Window
    from softiommu.memory.physical import PhysicalMemory


class Scattered:
    """A chunk whose pages do not lie in order, by offset in the chunk."""

    def __init__(self, window: Window) -> None:
        self._window = window

    def read(self, offset: int, length: int) -> bytes:
        """The bytes at `offset`; EFAULT where the program's page is gone."""
        read = self._window.backing.read
        return b"".join(read(at, size) for at, size in self._pieces(offset, length))

    def write(self, offset: int, data: bytes) -> None:
        """Store `data` at `offset`; EFAULT where the program's page is gone."""
        done = 0
        for at, size in self._pieces(offset, len(data)):
            self._window.backing.write(at, data[done : done + size])
            done += size

    def _pieces(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Offsets in the backing, page by page."""
        window, end = self._window, offset + length
        while offset < end:
            size = min(PAGE_SIZE - offset % PAGE_SIZE, end - offset)
            yield window.offset + window.place(offset) - window.pa, size
            offset += size


class ClientWindows:
    """Keeps a physical memory in step with frames: their `on_window`."""

    def __init__(self, memory: PhysicalMemory) -> None:
        self._memory = memory

    def __call__(self, window: Window, comes: bool) -> None:
        """A chunk came, or went."""
        if not comes:
            self._memory.unmap_window(window.pa, CHUNK)
        elif window.scattered:
            self._memory.map_window(window.pa, Scattered(window), 0, CHUNK)
        else:
            self._memory.map_window(window.pa, window.backing, window.offset, CHUNK)
