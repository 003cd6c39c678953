"""Sets of I/O address ranges, and the search for a free one."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from errno import EINVAL, ENOSPC, EOVERFLOW
from typing import TYPE_CHECKING, Any

from softiommu.errors import UapiError
from softiommu.memory.client import PAGE_SIZE

if TYPE_CHECKING:
    from sortedcontainers import SortedDict

    from softiommu.drivers.driver import Range

MAX = 2**64 - 1
_HUGE_PAGE = 2 << 20


class RangeSet:
    """Inclusive ranges with owners; they may overlap one another."""

    def __init__(self) -> None:
        self._owned: list[tuple[int, int, object]] = []
        self._starts: list[int] = []
        self._lasts: list[int] = []

    def add(self, first: int, last: int, owner: object) -> None:
        """One more range of `owner`."""
        self._owned.append((first, last, owner))
        self._merge()

    def remove(self, owner: object) -> None:
        """Forget every range of `owner`."""
        self._owned = [entry for entry in self._owned if entry[2] is not owner]
        self._merge()

    def overlapping(self, first: int, last: int) -> tuple[int, int] | None:
        """The lowest merged range that meets `first`..`last`."""
        index = bisect_right(self._starts, last) - 1
        if index < 0 or self._lasts[index] < first:
            return None
        while index and self._lasts[index - 1] >= first:
            index -= 1
        return self._starts[index], self._lasts[index]

    def next_from(self, at: int) -> tuple[int, int] | None:
        """The lowest merged range that ends at or after `at`."""
        index = bisect_left(self._lasts, at)
        return (self._starts[index], self._lasts[index]) if index < len(self._lasts) else None

    def holes(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """What of `first`..`last` no range covers, ascending."""
        at = first
        for start, end in zip(self._starts, self._lasts, strict=True):
            if start > at:
                yield at, min(start - 1, last)
            at = max(at, end + 1)
            if at > last:
                return
        if at <= last:
            yield at, last

    def _merge(self) -> None:
        self._starts, self._lasts = [], []
        for first, last, _ in sorted(self._owned, key=lambda entry: entry[:2]):
            if self._lasts and first <= self._lasts[-1] + 1:
                self._lasts[-1] = max(self._lasts[-1], last)
            else:
                self._starts.append(first)
                self._lasts.append(last)


def find_free(
    used: tuple[RangeSet, SortedDict[int, Any]],
    allowed: list[Range],
    address: int,
    length: int,
    alignment: int,
    hint: int,
) -> int:
    """The lowest free place for `length` bytes that keeps the low bits of the source `address` (iopt_alloc_iova).

    `hint`: no lower place fits, by an earlier search. EOVERFLOW, EINVAL, ENOSPC as the kernel.
    """
    if not length or length >= MAX // 2:
        raise UapiError(EOVERFLOW, f"length {length:#x} is too large for an I/O address to be chosen")
    step = 1 << (length - 1).bit_length()
    if address:
        step = min(step, address & -address)
    step = min(step, _HUGE_PAGE)
    if step < alignment:
        raise UapiError(EINVAL, f"source {address:#x} allows {step:#x}-aligned places, {alignment:#x} is needed")
    skew = address % PAGE_SIZE
    for first, last in _merged(allowed) if allowed else _EVERYTHING:
        # The lowest and the highest page are never given.
        span_last = min(last, MAX - PAGE_SIZE)
        start = _fit(max(first, PAGE_SIZE), span_last, length, step, skew)
        if start is None:
            continue
        iova = _search(used, max(start, hint), span_last, (length, step, skew))
        if iova is not None:
            return iova
    raise UapiError(ENOSPC, f"no {length:#x} free bytes with alignment {step:#x}")


_EVERYTHING = ((0, MAX),)


def _search(
    used: tuple[RangeSet, SortedDict[int, Any]], at: int, last: int, wanted: tuple[int, int, int]
) -> int | None:
    """The lowest place in the holes from `at` to `last`. Ranges that touch leave no hole between them."""
    while at <= last:
        taken = next_used(used, at)
        if taken is None or taken[0] > last:
            return _fit(at, last, *wanted)
        if taken[0] > at:
            iova = _fit(at, taken[0] - 1, *wanted)
            if iova is not None:
                return iova
        at = taken[1] + 1
    return None


def next_used(used: tuple[RangeSet, SortedDict[int, Any]], at: int) -> tuple[int, int] | None:
    """The lowest area or reserved range that ends at or after `at`: where it starts and ends."""
    reserved, areas = used
    taken = reserved.next_from(at)
    if not areas:
        return taken
    starts = areas.keys()
    index = areas.bisect_right(at)
    if index and (area := areas[starts[index - 1]]).last >= at:
        pass
    elif index < len(areas):
        area = areas[starts[index]]
    else:
        return taken
    return (area.iova, area.last) if taken is None or area.iova < taken[0] else taken


def hole_before(used: tuple[RangeSet, SortedDict[int, Any]], at: int) -> int:
    """A bound for the start of the hole that ends just below `at`: the end of the last area below it."""
    areas = used[1]
    index = areas.bisect_left(at)
    return areas[areas.keys()[index - 1]].last + 1 if index else 0


def _fit(first: int, last: int, length: int, step: int, skew: int) -> int | None:
    start = -(-first // step) * step | skew
    if start >= last or last - start < length - 1:
        return None
    return start


def _merged(ranges: list[Range]) -> Iterator[tuple[int, int]]:
    first = last = -2
    for low, high in ranges:
        if low != last + 1:
            if first >= 0:
                yield first, last
            first = low
        last = high
    yield first, last
