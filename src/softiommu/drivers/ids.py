"""Numbers that name the address spaces of one IOMMU."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from errno import ENOMEM

from softiommu.errors import UapiError


class Ids:
    """Numbers from 1 up to `last`, the lowest free one first. 0 is nobody's."""

    def __init__(self, last: int, what: str = "id of an address space") -> None:
        self._last, self._next, self._what = last, 1, what
        self._given_back: list[int] = []

    def take(self) -> int:
        """A free number. ENOMEM: all are used."""
        if self._given_back:
            return heapq.heappop(self._given_back)
        if self._next > self._last:
            raise UapiError(ENOMEM, f"every {self._what} is used")
        self._next += 1
        return self._next - 1

    def give(self, number: int) -> None:
        """A number is free again."""
        heapq.heappush(self._given_back, number)

    def __len__(self) -> int:
        return len(self._given_back) + self._last + 1 - self._next

    def __iter__(self) -> Iterator[int]:
        """The free numbers."""
        yield from self._given_back
        yield from range(self._next, self._last + 1)
