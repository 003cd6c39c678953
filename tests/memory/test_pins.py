"""Page sets: a page is pinned while any hold covers it, is counted once, and stays what it was when it was pinned."""

from __future__ import annotations

from errno import EFAULT, EINVAL, ENODEV, ENOMEM

import pytest
from hypothesis import given, settings, strategies as st

from iommufd.fakes import BASE, FakeMm, Ram, memory_file
from iommufd.soft import refused
from softiommu.memory.accounts import Accounts, Mode, Payer
from softiommu.memory.client import PAGE_SIZE, Extent
from softiommu.memory.files import DmabufFile
from softiommu.memory.frames import Frames
from softiommu.memory.pins import DmabufSource, FileSource, Hold, PageSet, Physical, VaSource
from strategies import calm

PAGES = 24


class Patchwork:
    """A source whose pages come from two memories in turn, `run` pages of each."""

    start = 0

    def __init__(self, run: int) -> None:
        self.run = run
        self.memories = [Ram(PAGES), Ram(PAGES)]

    def page(self, number: int) -> tuple[Ram, int]:
        """Where a page lies."""
        return self.memories[number // self.run % 2], number * PAGE_SIZE

    def pages(self, offset: int, length: int, write: bool) -> list[Extent]:
        """One piece for each page, or for as many as lie together."""
        extents: list[Extent] = []
        for number in range(offset // PAGE_SIZE, (offset + length) // PAGE_SIZE):
            ram, at = self.page(number)
            last = extents[-1] if extents else None
            if last and last.backing is ram and last.offset + last.length == at:
                extents[-1] = last._replace(length=last.length + PAGE_SIZE)
            else:
                extents.append(Extent(ram, at, PAGE_SIZE))
        return extents


def page_set(physical: Physical, source: VaSource | FileSource | DmabufSource | Patchwork, mm: FakeMm) -> PageSet:
    """A page set of the whole source."""
    return PageSet(physical, source, PAGES * PAGE_SIZE, True, Payer(mm, 1), Mode.USER)


STEPS = st.lists(st.tuples(st.booleans(), st.integers(0, PAGES - 1), st.integers(0, PAGES - 1)), max_size=24)


@settings(calm, max_examples=150)
@given(steps=STEPS, run=st.integers(1, 5), limit=st.integers(4, 30))
def test_pins_are_the_union_of_the_holds(steps: list[tuple[bool, int, int]], run: int, limit: int) -> None:
    physical, mm, source = Physical(Frames(), Accounts()), FakeMm(1), Patchwork(run)
    mm.limit = limit * PAGE_SIZE
    pages = page_set(physical, source, mm)
    holds: list[Hold] = []
    for release, one, other in steps:
        if release and holds:
            pages.release(holds.pop(one % len(holds)))
        else:
            first, last = sorted((one, other))
            wanted = union(holds) | set(range(first, last + 1))
            if len(wanted) > limit:
                with refused(ENOMEM):
                    pages.hold(first, last)
            else:
                holds.append(pages.hold(first, last))
        pinned = union(holds)
        assert physical.accounts.total == mm.pinned == pages.pinned_pages == len(pinned)
        for number in range(PAGES):
            assert physical.pin_count(*source.page(number)) == (number in pinned)
        assert (pages in physical.pinned) == bool(pinned)
    for hold in holds:
        pages.release(hold)
    assert (physical.accounts.total, pages.segments, physical.pinned) == (0, [], set())


def union(holds: list[Hold]) -> set[int]:
    """The pages that some hold covers."""
    return {page for hold in holds for page in range(hold.first, hold.last + 1)}


@calm
@given(first=st.integers(0, PAGES * PAGE_SIZE - 1), length=st.integers(1, 9 * PAGE_SIZE), run=st.integers(1, 4))
def test_runs_are_the_frames_of_the_pinned_bytes_in_order(first: int, length: int, run: int) -> None:
    physical, source = Physical(Frames(), Accounts()), Patchwork(run)
    pages = page_set(physical, source, FakeMm(1))
    length = min(length, PAGES * PAGE_SIZE - first)
    pages.hold(0, PAGES - 1)
    at = first
    for piece in pages.runs(first, length):
        ram, offset = source.page(at // PAGE_SIZE)
        assert piece.pa == physical.frames.pa(ram, offset + at % PAGE_SIZE)
        at += piece.length
    assert at == first + length


def test_bytes_are_read_through_pinned_and_unpinned_pages_alike() -> None:
    physical, mm = Physical(Frames(), Accounts()), FakeMm(PAGES)
    pages = page_set(physical, VaSource(mm, BASE + 100), mm)
    assert pages.skew == 100
    pages.hold(2, 3)
    pages.hold(6, 6)
    extents = list(pages.extents(PAGE_SIZE + 50, 6 * PAGE_SIZE, write=False))
    assert [(e.offset, e.length) for e in extents] == [
        (BASE + PAGE_SIZE + 50, PAGE_SIZE - 50),
        (BASE + 2 * PAGE_SIZE, 2 * PAGE_SIZE),
        (BASE + 4 * PAGE_SIZE, 2 * PAGE_SIZE),
        (BASE + 6 * PAGE_SIZE, PAGE_SIZE),
        (BASE + 7 * PAGE_SIZE, 50),
    ]


def test_a_pinned_page_stays_when_the_program_unmaps_it() -> None:
    physical, mm = Physical(Frames(), Accounts()), FakeMm(PAGES)
    pages = page_set(physical, VaSource(mm, BASE), mm)
    hold = pages.hold(0, 1)
    mm.holes = {0, 1, 2}
    assert sum(run.length for run in pages.runs(0, 2 * PAGE_SIZE)) == 2 * PAGE_SIZE
    pages.hold(0, 1)
    with refused(EFAULT):
        pages.hold(1, 2)
    pages.release(hold)
    assert physical.accounts.total == 2


def test_a_failed_pin_charges_nothing() -> None:
    physical, mm = Physical(Frames(), Accounts()), FakeMm(PAGES)
    mm.read_only = {3}
    pages = page_set(physical, VaSource(mm, BASE), mm)
    with refused(EFAULT):
        pages.hold(0, 3)
    assert (physical.accounts.total, physical.pinned) == (0, set())


def test_a_file_is_pinned_up_to_the_page_of_its_last_byte() -> None:
    physical, mm = Physical(Frames(), Accounts()), FakeMm(1)
    pages = page_set(physical, FileSource(memory_file(4, lambda: 2 * PAGE_SIZE + 1), 0), mm)
    pages.hold(0, 2)
    with refused(EINVAL):
        pages.hold(3, 3)
    with refused(EINVAL):
        page_set(physical, FileSource(None, 0), mm).hold(0, 0)


def test_a_revoked_dma_buf_cannot_be_pinned() -> None:
    physical, mm = Physical(Frames(), Accounts()), FakeMm(1)
    file = DmabufFile(Ram(4), 4 * PAGE_SIZE)
    pages = page_set(physical, DmabufSource(file, PAGE_SIZE), mm)
    pages.hold(0, 1)
    file.set_revoked(True)
    with refused(ENODEV):
        pages.hold(2, 2)


@pytest.mark.parametrize("mode", [Mode.USER, Mode.PROCESS])
def test_a_new_payer_is_charged_before_the_old_one_is_let_off(mode: Mode) -> None:
    physical, old, new = Physical(Frames(), Accounts()), FakeMm(PAGES), FakeMm(1)
    pages = PageSet(physical, VaSource(old, BASE), PAGES * PAGE_SIZE, True, Payer(old, 1), mode)
    pages.hold(0, 4)
    new.limit = 4 * PAGE_SIZE
    with refused(ENOMEM):
        pages.change_payer(Payer(new, 2))
    assert (old.pinned, new.pinned) == (5, 0)
    new.limit = 5 * PAGE_SIZE
    pages.change_payer(Payer(new, 2))
    assert (old.pinned, new.pinned, old.locked) == (0, 5, 0)
    assert new.locked == (5 if mode is Mode.PROCESS else 0)


def test_pins_of_a_page_are_counted_for_each_page_set_in_stretches() -> None:
    physical, mm = Physical(Frames(), Accounts()), FakeMm(PAGES)
    for first, last in ((0, 5), (2, 3), (8, 9)):
        page_set(physical, VaSource(mm, BASE), mm).hold(first, last)
    whole = Extent(mm.ram, BASE + PAGE_SIZE, 9 * PAGE_SIZE)
    assert list(physical.pin_counts(whole)) == [(1, 1), (2, 2), (1, 2), (0, 2), (1, 2)]
