"""Pages kept when their address space goes away while they are pinned.

The kernel's pin keeps a page until it is unpinned, also when the process that owned it has exited. Here the pages are
copied when the process is about to leave them.
"""

from __future__ import annotations

from bisect import bisect_right
from errno import EFAULT

from softiommu.errors import UapiError
from softiommu.memory.client import PAGE_SIZE


class GivenRanges:
    """Ranges of addresses that were handed out since the last time that nothing was pinned; ascending, disjoint."""

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int]] = []

    def add(self, start: int, end: int) -> None:
        """One more range, rounded out to pages; ranges that touch become one."""
        start, end = start // PAGE_SIZE * PAGE_SIZE, -(-end // PAGE_SIZE) * PAGE_SIZE
        at = bisect_right(self.ranges, (start, start))
        if at and self.ranges[at - 1][1] >= start:
            at -= 1
            start = self.ranges[at][0]
        stop = at
        while stop < len(self.ranges) and self.ranges[stop][0] <= end:
            end = max(end, self.ranges[stop][1])
            stop += 1
        self.ranges[at:stop] = [(start, end)]

    def clear(self) -> None:
        """Nothing is pinned any more."""
        self.ranges.clear()


class Snapshot:
    """Bytes by address. Ranges are disjoint."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._data: list[bytearray] = []

    def add(self, start: int, data: bytes) -> None:
        """One more range; ranges come in ascending order."""
        self._starts.append(start)
        self._data.append(bytearray(data))

    def read(self, offset: int, length: int) -> bytes:
        """The bytes at `offset`. EFAULT where none were kept."""
        data, at = self._find(offset, length)
        return bytes(data[at : at + length])

    def write(self, offset: int, new: bytes) -> None:
        """Store at `offset`. EFAULT where none were kept."""
        data, at = self._find(offset, len(new))
        data[at : at + len(new)] = new

    def _find(self, offset: int, length: int) -> tuple[bytearray, int]:
        index = bisect_right(self._starts, offset) - 1
        if index >= 0 and offset + length <= self._starts[index] + len(self._data[index]):
            return self._data[index], offset - self._starts[index]
        raise UapiError(EFAULT, "the program's memory is gone")
