"""Numbers that name the address spaces of one IOMMU."""

from __future__ import annotations

import heapq
from errno import ENOMEM

from softiommu.errors import UapiError


class Ids:
    """Numbers from 1 up to `last`, the lowest free one first. 0 is nobody's."""

    def __init__(self, last: int) -> None:
        self._last, self._next = last, 1
        self._given_back: list[int] = []

    def take(self) -> int:
        """A free number. ENOMEM: all are used."""
        if self._given_back:
            return heapq.heappop(self._given_back)
        if self._next > self._last:
            raise UapiError(ENOMEM, "every id of an address space is used")
        self._next += 1
        return self._next - 1

    def give(self, number: int) -> None:
        """A number is free again."""
        heapq.heappush(self._given_back, number)
