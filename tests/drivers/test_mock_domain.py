"""The mock's page table: which entries a map makes, and which pages are reported as written."""

from __future__ import annotations

from errno import EINVAL

import pytest
from hypothesis import given, settings, strategies as st

from softiommu.drivers.driver import DomainFlags, Prot, Range
from softiommu.drivers.mock.domain import MockDomain
from softiommu.errors import UapiError

K, M = 1 << 10, 1 << 20
BASE = 16 * M
PA = 1 << 40
RW = Prot.READ | Prot.WRITE


class Marks:
    """A report as a list."""

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int]] = []

    def record(self, iova: int, length: int) -> None:
        """Remember."""
        self.ranges.append((iova, length))


def domain(huge: bool = False, per_item: bool = True) -> MockDomain:
    """One that tracks."""
    made = MockDomain(object(), DomainFlags.DIRTY_TRACKING, huge, per_item)
    made.set_dirty_tracking(True)
    return made


def dirty(table: MockDomain, first: int, last: int, clear: bool = True) -> list[tuple[int, int]]:
    """What a read of the range reports."""
    marks = Marks()
    table.read_dirty(Range(first, last), marks, clear)
    return marks.ranges


def sizes(table: MockDomain, first: int, last: int) -> list[int]:
    """The sizes of the entries in a range, in order."""
    found, at = [], first
    while at <= last:
        entry = table.find(at)
        assert entry is not None
        found.append(entry.length)
        at = entry.iova + entry.length
    return found


@pytest.mark.parametrize(
    ("iova", "pa", "length", "expected"),
    [
        (BASE, PA, 2 * K, [2 * K]),
        (BASE, PA, 64 * K, [64 * K]),
        (BASE, PA, 14 * K, [8 * K, 4 * K, 2 * K]),
        (BASE + 2 * K, PA + 2 * K, 14 * K, [2 * K, 4 * K, 8 * K]),
        (BASE, PA + 4 * K, 16 * K, [4 * K] * 4),
        (BASE + 2 * K, PA, 8 * K, [2 * K] * 4),
        (BASE, PA, 3 * M, [2 * M, M]),
    ],
)
def test_an_entry_is_the_largest_power_of_two_that_length_and_both_addresses_allow(
    iova: int, pa: int, length: int, expected: list[int]
) -> None:
    table = domain()
    table.map(iova, pa, length, RW)
    assert sizes(table, iova, iova + length - 1) == expected


def test_a_huge_table_has_pages_of_4_kib_and_1_mib_only() -> None:
    table = domain(huge=True)
    assert table.page_sizes == M | 4 * K
    table.map(BASE, PA, 3 * M + 8 * K, RW)
    assert sizes(table, BASE, BASE + 3 * M + 8 * K - 1) == [M, M, M, 4 * K, 4 * K]
    assert table.aperture == (0, (1 << 54) - 1)


def test_the_table_of_6_12_has_entries_of_its_granule() -> None:
    table = domain(per_item=False)
    table.map(BASE, PA, 8 * K, RW)
    assert sizes(table, BASE, BASE + 8 * K - 1) == [2 * K] * 4
    assert table.aperture == (BASE, (1 << 31) - 1)


@given(st.lists(st.tuples(st.integers(0, 63), st.integers(0, 63), st.integers(1, 16)), max_size=12))
@settings(max_examples=60, deadline=None)
def test_every_granule_translates_as_it_was_mapped_and_nothing_else_does(maps: list[tuple[int, int, int]]) -> None:
    table, oracle = domain(), dict[int, int]()
    for at, page, count in maps:
        iovas = range(at, at + count)
        if not oracle.keys().isdisjoint(iovas):
            continue
        table.map(BASE + at * 2 * K, PA + page * 2 * K, count * 2 * K, RW)
        oracle |= {n: page + n - at for n in iovas}
    for n in range(90):
        expected = PA + oracle[n] * 2 * K + 5 if n in oracle else None
        assert table.iova_to_pa(BASE + n * 2 * K + 5) == expected
    assert table.unmap(BASE, 90 * 2 * K) == len(oracle) * 2 * K
    assert table.find(BASE) is None


@pytest.mark.parametrize(
    ("length", "reported"),
    [(2 * K, 2 * K), (4 * K, 2 * K), (16 * K, 14 * K), (64 * K, 62 * K), (M, M), (2 * M, M), (8 * M, 7 * M)],
)
@pytest.mark.parametrize("marked", [0, -2 * K])
def test_an_entry_of_n_items_reports_n_minus_1_whichever_granule_was_written(
    length: int, reported: int, marked: int
) -> None:
    table = domain()
    table.map(BASE, PA, length, RW)
    assert table.mark(BASE + marked % length)
    assert dirty(table, BASE, BASE + length - 1) == [(BASE, reported)]
    assert dirty(table, BASE, BASE + length - 1) == []


def test_a_read_from_the_last_item_of_a_written_entry_reports_that_item() -> None:
    table = domain()
    table.map(BASE, PA, 16 * K, RW)
    table.mark(BASE)
    assert dirty(table, BASE + 14 * K, BASE + 16 * K - 1) == [(BASE + 14 * K, 2 * K)]


def test_a_granule_of_6_12_reports_only_itself_and_only_inside_the_window() -> None:
    table = domain(per_item=False)
    table.map(BASE, PA, 16 * K, RW)
    table.mark(BASE + 2 * K)
    table.mark(BASE + 12 * K + 1)
    assert dirty(table, BASE, BASE + 8 * K - 1) == [(BASE + 2 * K, 2 * K)]
    assert dirty(table, BASE, BASE + 16 * K - 1) == [(BASE + 12 * K, 2 * K)]


def test_a_huge_entry_of_6_12_is_written_as_a_whole() -> None:
    table = domain(huge=True, per_item=False)
    table.map(BASE, PA, M, RW)
    table.mark(BASE + 100 * K)
    assert dirty(table, BASE, BASE + 2 * K - 1) == [(BASE, M)]


def test_marks_stay_when_they_are_only_looked_at() -> None:
    table = domain()
    table.map(BASE, PA, 2 * K, RW)
    table.mark(BASE)
    for _ in range(2):
        assert dirty(table, BASE, BASE, clear=False) == [(BASE, 2 * K)]
    table.read_dirty(Range(0, (1 << 64) - 1), None, clear=True)
    assert dirty(table, BASE, BASE) == []


def test_marks_leave_with_their_entries() -> None:
    table = domain()
    table.map(BASE, PA, 2 * K, RW)
    table.mark(BASE)
    table.unmap(BASE, 2 * K)
    table.map(BASE, PA, 2 * K, RW)
    assert dirty(table, BASE, BASE) == []


@pytest.mark.parametrize("per_item", [True, False])
def test_an_unmapped_address_counts_as_marked_on_new_kernels_only(per_item: bool) -> None:
    assert domain(per_item=per_item).mark(BASE) is per_item


def test_a_write_is_refused_while_tracking_is_off() -> None:
    table = domain()
    table.set_dirty_tracking(False)
    with pytest.raises(UapiError) as caught:
        table.mark(BASE)
    assert caught.value.errno == EINVAL
