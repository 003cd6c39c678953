"""Who depends on which addresses of a parent: found in time proportional to how many there are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from sortedcontainers import SortedDict

T = TypeVar("T")


def blocks(first: int, last: int) -> Iterator[tuple[int, int]]:
    """A range cut into aligned blocks of a power of two: its logarithm, and the number of the block of that size."""
    while first <= last:
        room = last - first + 1
        lg2 = room.bit_length() - 1
        if first:
            lg2 = min(lg2, (first & -first).bit_length() - 1)
        yield lg2, first >> lg2
        first += 1 << lg2


class ReverseIndex(Generic[T]):
    """For each size of block, the blocks in order, and who depends on each. Who does is told apart by identity."""

    def __init__(self) -> None:
        self._sizes: dict[int, SortedDict[int, dict[T, None]]] = {}

    def add(self, first: int, last: int, who: T) -> None:
        """`who` depends on `first`..`last`."""
        for lg2, number in blocks(first, last):
            numbers = self._sizes.get(lg2)
            if numbers is None:
                numbers = self._sizes[lg2] = SortedDict()
            found = numbers.get(number)
            if found is None:
                numbers[number] = {who: None}
            else:
                found[who] = None

    def remove(self, first: int, last: int, who: T) -> None:
        """It does no longer. The range is that which was added."""
        for lg2, number in blocks(first, last):
            numbers = self._sizes[lg2]
            found = numbers[number]
            del found[who]
            if not found:
                del numbers[number]
                if not numbers:
                    del self._sizes[lg2]

    def meeting(self, first: int, last: int) -> list[T]:
        """Everybody who depends on an address of `first`..`last`, each once."""
        met: dict[T, None] = {}
        for lg2, numbers in self._sizes.items():
            low, high = first >> lg2, last >> lg2
            if low == high:
                met.update(numbers.get(low, {}))
                continue
            for number in numbers.irange(low, high):
                met.update(numbers[number])
        return list(met)

    def __bool__(self) -> bool:
        return bool(self._sizes)
