"""Sets of ranges and the search for a free one, against brute force."""

from __future__ import annotations

from collections import namedtuple
from errno import EINVAL, ENOSPC, EOVERFLOW

import pytest
from hypothesis import given, settings, strategies as st
from sortedcontainers import SortedDict

from iommufd.soft import refused
from softiommu.drivers.driver import Range
from softiommu.iommufd.iova import MAX, RangeSet, find_free, hole_before, next_used
from strategies import calm

SPAN = 60
RANGES = st.lists(st.tuples(st.integers(0, SPAN), st.integers(0, 12), st.integers(0, 3)), max_size=8)
Taken = namedtuple("Taken", "iova last")


def filled(ranges: list[tuple[int, int, int]]) -> tuple[RangeSet, list[set[int]]]:
    """A set with ranges (first, length - 1, owner), and the numbers of each owner."""
    made, owners = RangeSet(), [set[int]() for _ in range(4)]
    for first, more, owner in ranges:
        made.add(first, first + more, OWNERS[owner])
        owners[owner] |= set(range(first, first + more + 1))
    return made, owners


OWNERS = [object() for _ in range(4)]


@calm
@given(ranges=RANGES, at=st.integers(0, SPAN), size=st.integers(1, 20), gone=st.integers(0, 3))
def test_a_range_set_is_the_union_of_its_owners_ranges(
    ranges: list[tuple[int, int, int]], at: int, size: int, gone: int
) -> None:
    made, owners = filled(ranges)
    made.remove(OWNERS[gone])
    owners[gone] = set()
    numbers = set().union(*owners)
    found = made.overlapping(at, at + size - 1)
    assert (found is not None) == bool(numbers & set(range(at, at + size)))
    if found:
        assert set(range(found[0], found[1] + 1)) <= numbers
        assert found[0] - 1 not in numbers
        assert found[1] + 1 not in numbers
        assert not numbers & set(range(at, max(at, found[0])))
    after = made.next_from(at)
    assert (after is None) == (not any(n >= at for n in numbers))
    holes = [n for first, last in made.holes(at, at + size - 1) for n in range(first, last + 1)]
    assert holes == [n for n in range(at, at + size) if n not in numbers]


def test_ranges_may_end_at_the_last_address() -> None:
    made = RangeSet()
    made.add(MAX - 9, MAX, None)
    assert list(made.holes(0, MAX)) == [(0, MAX - 10)]
    assert made.overlapping(MAX, MAX) == (MAX - 9, MAX)
    made.add(0, MAX - 10, None)
    assert list(made.holes(0, MAX)) == []


PAGE = 4096
Places = st.lists(st.tuples(st.integers(1, 24), st.integers(1, 4)), max_size=6)


@settings(calm, max_examples=300)
@given(areas=Places, reserved=Places, allowed=Places, address=st.integers(0, 64), length=st.integers(1, 24))
def test_a_free_place_is_the_first_of_all_candidates(
    areas: list[tuple[int, int]],
    reserved: list[tuple[int, int]],
    allowed: list[tuple[int, int]],
    address: int,
    length: int,
) -> None:
    """In units of 1 KiB, so that parts of pages are in it too."""
    unit = 1024
    kept = RangeSet()
    used: set[int] = set()
    for page, size in reserved:
        kept.add(page * PAGE, (page + size) * PAGE - 1, None)
        used |= set(range(page * 4, (page + size) * 4))
    mapped: SortedDict[int, Taken] = SortedDict()
    for page, size in areas:
        cells = set(range(page * 4, page * 4 + size))
        if not cells & used:
            mapped[page * PAGE] = Taken(page * PAGE, page * PAGE + size * unit - 1)
            used |= cells
    ranges, cover = [], set[int]()
    for page, size in sorted(allowed):
        cells = set(range(page * 4, (page + size) * 4))
        if not cells & cover:
            ranges.append(Range(page * PAGE, (page + size) * PAGE - 1))
            cover |= cells
    expected = candidate(used, cover if ranges else None, address * unit, length * unit)
    if expected is None:
        with refused(ENOSPC):
            find_free((kept, mapped), ranges, address * unit, length * unit, 1, 0)
    else:
        assert find_free((kept, mapped), ranges, address * unit, length * unit, 1, 0) == expected


def candidate(used: set[int], allowed: set[int] | None, address: int, length: int) -> int | None:
    """Scan from the bottom: where a free stretch begins, the next aligned place with the address's low bits.

    An allowed stretch begins at its first such place, if it could hold the length at all.
    """
    unit, step = 1024, 1
    while step < length and address % (step * 2) == 0:
        step *= 2

    def place(cell: int) -> int:
        return -(-cell * unit // step) * step | address % PAGE

    cells = set(range(4, 400)) if allowed is None else {cell for cell in allowed if cell >= 4}
    for first in sorted(cell for cell in cells if cell - 1 not in cells):
        end = next(cell for cell in range(first, 500) if cell not in cells)
        low = place(first) // unit
        for start in range(low, end):
            if start in used or (start > low and start - 1 not in used):
                continue
            after = -(-(place(start) + length) // unit)
            if after <= end and not used & set(range(start, after)):
                return place(start)
    return None


@pytest.mark.parametrize("length", [0, 2**63 - 1, 2**63, MAX - 1])
def test_a_length_of_half_the_space_finds_no_place(length: int) -> None:
    nothing: SortedDict[int, Taken] = SortedDict()
    with refused(EOVERFLOW):
        find_free((RangeSet(), nothing), [], 0, length, 1, 0)


def test_a_source_less_aligned_than_the_areas_must_be_is_refused() -> None:
    nothing: SortedDict[int, Taken] = SortedDict()
    with refused(EINVAL):
        find_free((RangeSet(), nothing), [], 0x800, 8192, 4096, 0)


def test_a_place_is_never_aligned_to_more_than_2_mib() -> None:
    areas = SortedDict({PAGE: Taken(PAGE, 2 * PAGE - 1)})
    assert find_free((RangeSet(), areas), [], 0, 16 << 20, 1, 0) == 2 << 20


def test_the_first_and_the_last_page_are_never_given() -> None:
    nothing: SortedDict[int, Taken] = SortedDict()
    assert find_free((RangeSet(), nothing), [], PAGE, 1, 1, 0) == PAGE
    kept = RangeSet()
    kept.add(0, MAX - PAGE, None)
    with refused(ENOSPC):
        find_free((kept, nothing), [], PAGE, 1024, 1, 0)


def test_the_next_used_range_is_the_lowest_of_areas_and_reserved_ones() -> None:
    kept = RangeSet()
    kept.add(100, 199, None)
    areas = SortedDict({50: Taken(50, 59), 300: Taken(300, 309)})
    used = (kept, areas)
    assert [next_used(used, at) for at in (0, 59, 60, 200, 310)] == [(50, 59), (50, 59), (100, 199), (300, 309), None]
    assert [hole_before(used, at) for at in (0, 50, 300, 1000)] == [0, 0, 60, 310]
