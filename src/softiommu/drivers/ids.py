"""Numbers that name the address spaces of one IOMMU."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from errno import ENOMEM

from softiommu.errors import UapiError


class Ids:
    """Numbers from 1 up to `last`, the lowest free one first, or the highest (`descending`). 0 is nobody's."""

    def __init__(self, last: int, what: str = "id of an address space", descending: bool = False) -> None:
        self.last, self._what, self._descending = last, what, descending
        #: By turns, from 1: the next one that was never taken, those that were given back, and those out of turn.
        self._next = 1
        self._given_back: list[int] = []
        self._claimed: set[int] = set()

    def _turn(self, number: int) -> int:
        """The turn of a number, and the number of a turn."""
        return self.last + 1 - number if self._descending else number

    def take(self) -> int:
        """A free number. ENOMEM: all are used."""
        if self._given_back:
            return self._turn(heapq.heappop(self._given_back))
        while self._next in self._claimed:
            self._next += 1
        if self._next > self.last:
            raise UapiError(ENOMEM, f"every {self._what} is used")
        self._next += 1
        return self._turn(self._next - 1)

    def claim(self, number: int) -> bool:
        """Take this very number; False: it is used, or none of these."""
        turn = self._turn(number)
        if turn in self._given_back:
            self._given_back.remove(turn)
            heapq.heapify(self._given_back)
        elif self._next <= turn <= self.last and turn not in self._claimed:
            self._claimed.add(turn)
        else:
            return False
        return True

    def give(self, number: int) -> None:
        """A number is free again."""
        turn = self._turn(number)
        self._claimed.discard(turn)
        if turn < self._next:
            heapq.heappush(self._given_back, turn)

    def __len__(self) -> int:
        ahead = sum(turn >= self._next for turn in self._claimed)
        return len(self._given_back) + self.last + 1 - self._next - ahead

    def __iter__(self) -> Iterator[int]:
        """The free numbers."""
        never = (turn for turn in range(self._next, self.last + 1) if turn not in self._claimed)
        yield from (self._turn(turn) for turn in (*self._given_back, *never))
