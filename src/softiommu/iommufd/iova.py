"""Sets of I/O address ranges, and the search for a free one."""

from __future__ import annotations

from bisect import bisect_right
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
    for first, last in _merged(allowed) if allowed else [(0, MAX)]:
        # The lowest and the highest page are never given.
        span_first, span_last = max(first, PAGE_SIZE), min(last, MAX - PAGE_SIZE)
        start = _fit(span_first, span_last, length, step, skew)
        if start is None:
            continue
        for low, high in _holes(used, max(start, hint), span_last):
            iova = _fit(low, high, length, step, skew)
            if iova is not None:
                return iova
    raise UapiError(ENOSPC, f"no {length:#x} free bytes with alignment {step:#x}")


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


def _holes(used: tuple[RangeSet, SortedDict[int, Any]], first: int, last: int) -> Iterator[tuple[int, int]]:
    """What of `first`..`last` neither a reserved range nor an area covers, ascending and joined."""
    reserved, areas = used
    for low, high in reserved.holes(first, last):
        at = low
        index = max(0, areas.bisect_right(low) - 1)
        while index < len(areas):
            area = areas.peekitem(index)[1]
            if area.iova > high:
                break
            if area.iova > at:
                yield at, area.iova - 1
            at = max(at, area.last + 1)
            index += 1
        if at <= high:
            yield at, high
