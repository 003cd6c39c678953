"""Which host physical address each page of the program's memory has.

Pages of one backing lie together: each 2 MiB of it, at a 2 MiB boundary, is one chunk of physical space, given at the
first use. A page that was unmapped keeps its address, as on a machine whose owner has not reused the page: a stale
translation still reaches it. Only backings that long have had no pinned page are forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import NamedTuple

from softiommu.memory.client import PAGE_SIZE, Backing

CHUNK = 2 << 20
_MOST_IDLE = 16


class Run(NamedTuple):
    """Physically contiguous bytes."""

    pa: int
    length: int


class Window(NamedTuple):
    """A chunk of physical space that shows `backing` from `offset`; `scattered` when its pages do not lie in order."""

    pa: int
    backing: Backing
    offset: int
    scattered: bool

    def place(self, within: int) -> int:
        """The physical address of a byte of the chunk (and, the other way round, the byte of an address)."""
        if not self.scattered:
            return self.pa + within
        # Small anonymous pages lie apart: here in descending order, so that no two neighbours can be joined.
        page, rest = divmod(within, PAGE_SIZE)
        return self.pa + CHUNK - (page + 1) * PAGE_SIZE + rest


class Frames:
    """The physical space from `base` up, given out in chunks. `on_window` hears of each that comes (True) or goes."""

    def __init__(self, base: int = 1 << 40, on_window: Callable[[Window, bool], None] | None = None) -> None:
        self._next = base
        self._base = base
        #: The chunks of each backing, by their number in it.
        self._chunks: dict[Hashable, dict[int, Window]] = {}
        self._windows: list[Window | None] = []
        self._idle: dict[Hashable, None] = {}
        self._on_window = on_window

    def runs(self, backing: Backing, offset: int, length: int) -> Iterator[Run]:
        """The physical addresses of bytes `offset`..`offset+length` of `backing`, joined where they touch."""
        end = offset + length
        chunks = self._chunks.get(backing.key)
        if chunks is None:
            chunks = self._chunks[backing.key] = {}
        pa = size = 0
        while offset < end:
            index, within = divmod(offset, CHUNK)
            window = chunks.get(index) or self._add(chunks, index, backing)
            limit = PAGE_SIZE - within % PAGE_SIZE if window.scattered else CHUNK - within
            part = min(limit, end - offset)
            place = window.place(within)
            if size and place != pa + size:
                yield Run(pa, size)
                size = 0
            if not size:
                pa = place
            size += part
            offset += part
        if size:
            yield Run(pa, size)

    def pa(self, backing: Backing, offset: int) -> int:
        """The physical address of one byte."""
        return next(self.runs(backing, offset, 1)).pa

    def find(self, pa: int) -> tuple[Backing, int] | None:
        """Which byte of which backing a physical address is."""
        if not self._base <= pa < self._next:
            return None
        window = self._windows[(pa - self._base) // CHUNK]
        if window is None:
            return None
        return window.backing, window.offset + window.place(pa - window.pa) - window.pa

    def busy(self, key: Hashable) -> None:
        """A page of a backing is pinned."""
        self._idle.pop(key, None)

    def idle(self, key: Hashable) -> None:
        """No page of a backing is pinned any more. Of such backings the most recent few keep their addresses."""
        self._idle[key] = None
        if len(self._idle) > _MOST_IDLE:
            self._drop(next(iter(self._idle)))

    def forget_idle(self) -> None:
        """Take the addresses of all idle backings: what they show is not held any more, so its memory can be freed.
        When nobody has an address left, all are given out anew: many programs, one after the other, need no more space
        than one."""
        for key in list(self._idle):
            self._drop(key)
        if not self._chunks:
            self._next = self._base
            self._windows.clear()

    def _drop(self, key: Hashable) -> None:
        del self._idle[key]
        for window in self._chunks.pop(key, {}).values():
            self._windows[(window.pa - self._base) // CHUNK] = None
            if self._on_window is not None:
                self._on_window(window, False)

    def _add(self, chunks: dict[int, Window], index: int, backing: Backing) -> Window:
        start = index * CHUNK
        window = Window(self._next, backing, start, not backing.contiguous(start, CHUNK))
        self._next += CHUNK
        chunks[index] = window
        self._windows.append(window)
        if self._on_window is not None:
            self._on_window(window, True)
        return window
