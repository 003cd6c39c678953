"""Dirty tracking: the program's bitmap, and which range may be asked for."""

from __future__ import annotations

from errno import EINVAL, EOPNOTSUPP, EOVERFLOW

import pytest
from hypothesis import given, strategies as st

from iommufd.fakes import BASE, FakeCaller, FakeMm
from iommufd.good import mapped
from iommufd.soft import APERTURE, Soft
from softiommu.abi import iommufd as abi, iommufd_test as test
from softiommu.drivers.driver import Range
from softiommu.iommufd.dirty import Bitmap
from strategies import calm

PAGE = 4096
DATA = BASE + 30 * PAGE


@calm
@given(
    marks=st.lists(st.tuples(st.integers(-40, 300), st.integers(1, 90)), max_size=6),
    pages=st.integers(1, 250),
    lg2=st.integers(11, 14),
    at=st.integers(0, 20),
)
def test_a_bitmap_has_the_pages_that_meet_a_mark_and_what_was_in_it(
    marks: list[tuple[int, int]], pages: int, lg2: int, at: int
) -> None:
    caller = FakeCaller(FakeMm(4))
    va = BASE + PAGE - 10 + at
    caller.write(va - 1, b"\x81" * 60)
    window = Range(1 << 20, (1 << 20) + (pages << lg2) - 1)
    bitmap = Bitmap(caller, va, window, lg2)
    expected = bytearray(b"\x81" * 60)
    for start, length in marks:
        first = window.first + start * 1024
        if first > window.last or first + length * 1024 <= window.first:
            continue
        bitmap.record(first, length * 1024)
        for page in range(pages):
            low = window.first + (page << lg2)
            if first < low + (1 << lg2) and low < first + length * 1024:
                expected[1 + page // 8] |= 1 << page % 8
    bitmap.flush()
    assert caller.read(va - 1, 60) == bytes(expected)


def test_bits_whose_memory_is_missing_are_lost_and_the_others_are_not() -> None:
    caller = FakeCaller(FakeMm(4))
    caller.mm.holes = {1}
    bitmap = Bitmap(caller, BASE, Range(0, (3 * PAGE * 8 << 12) - 1), 12)
    for byte in (0, PAGE, 2 * PAGE + 7):
        bitmap.record(byte * 8 << 12, PAGE)
    bitmap.flush()
    caller.mm.holes = set()
    assert [caller.read(BASE + byte, 1) for byte in (0, PAGE, 2 * PAGE + 7)] == [b"\1", b"\0", b"\1"]


def tracked(soft: Soft) -> int:
    """An HWPT with tracking on, over two single pages."""
    ioas = soft.ioas()
    for n in range(2):
        soft.map(ioas, BASE + 3 * n * PAGE, PAGE, APERTURE + n * PAGE)
    hwpt = soft.hwpt(soft.mock(ioas).out_idev_id, ioas, 2)
    soft.call(abi.HwptSetDirtyTracking(flags=1, hwpt_id=hwpt))
    return hwpt


def mark(soft: Soft, hwpt: int, bits: int) -> int:
    """The device writes pages of the aperture, by the bits of a number: how many counted."""
    uptr = soft.store(bits.to_bytes(2, "little"))
    arg = test.Dirty(iova=APERTURE, length=16 * PAGE, page_size=PAGE, uptr=uptr)
    return soft.op(test.TestOp.DIRTY, hwpt, arg).out_nr_dirty


def bitmap(soft: Soft, hwpt: int, flags: int = 0) -> int:
    """GET_DIRTY_BITMAP of two pages."""
    soft.caller.write(DATA, bytes(8))
    soft.call(abi.HwptGetDirtyBitmap(0x30, hwpt, flags, 0, APERTURE, 2 * PAGE, PAGE, DATA))
    return soft.caller.read(DATA, 1)[0]


def test_what_was_written_is_reported_until_it_is_read(soft: Soft) -> None:
    hwpt = tracked(soft)
    assert mark(soft, hwpt, 0b10) == 1
    assert bitmap(soft, hwpt, flags=1) == 0b10
    assert bitmap(soft, hwpt) == 0b10
    assert bitmap(soft, hwpt) == 0


def test_turning_tracking_on_forgets_and_off_refuses_new_marks(soft: Soft) -> None:
    hwpt = tracked(soft)
    mark(soft, hwpt, 0b11)
    soft.call(abi.HwptSetDirtyTracking(flags=1, hwpt_id=hwpt))
    assert bitmap(soft, hwpt) == 0
    soft.call(abi.HwptSetDirtyTracking(flags=0, hwpt_id=hwpt))
    arg = test.Dirty(iova=APERTURE, length=PAGE, page_size=PAGE, uptr=soft.store(b"\1"))
    assert soft.op_errno(test.TestOp.DIRTY, hwpt, arg) == EINVAL


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"flags": 2}, EOPNOTSUPP),
        ({"reserved": 1}, EOPNOTSUPP),
        ({"iova": 2**64 - PAGE, "length": 2 * PAGE}, EOVERFLOW),
        ({"iova": APERTURE + 1024}, EINVAL),
        ({"length": PAGE + 1024}, EINVAL),
        ({"page_size": 0}, EINVAL),
        ({"page_size": 1 << 26, "length": 2 * PAGE}, EINVAL),
        ({"iova": APERTURE + 64 * PAGE}, 0),
        ({"data": 0}, 0),
    ],
)
def test_a_range_is_checked_and_then_holes_and_bad_pointers_are_no_error(
    soft: Soft, fields: dict[str, int], expected: int
) -> None:
    hwpt = tracked(soft)
    good = {"iova": APERTURE, "length": 2 * PAGE, "page_size": PAGE, "data": DATA}
    assert soft.errno(abi.HwptGetDirtyBitmap(hwpt_id=hwpt, **(good | fields))) == expected


def test_a_page_table_without_tracking_refuses_it(soft: Soft) -> None:
    ioas = mapped(soft)
    hwpt = soft.hwpt(soft.mock(ioas).out_idev_id, ioas)
    assert soft.errno(abi.HwptSetDirtyTracking(flags=1, hwpt_id=hwpt)) == EOPNOTSUPP
    assert soft.errno(abi.HwptSetDirtyTracking(flags=2, hwpt_id=hwpt)) == EOPNOTSUPP
    asked = abi.HwptGetDirtyBitmap(hwpt_id=hwpt, iova=APERTURE, length=PAGE, page_size=PAGE, data=DATA)
    assert soft.errno(asked) == EOPNOTSUPP


def test_a_bitmap_too_large_for_memory_is_refused(soft: Soft) -> None:
    hwpt = tracked(soft)
    arg = test.Dirty(iova=0, length=2**63, page_size=1, uptr=BASE)
    assert soft.op_errno(test.TestOp.DIRTY, hwpt, arg) == 12
