"""Physical addresses of the program's pages."""

from __future__ import annotations

from hypothesis import given, strategies as st

from iommufd.fakes import Ram
from softiommu.memory.client import PAGE_SIZE
from softiommu.memory.frames import CHUNK, Frames, Window
from strategies import calm

OFFSETS = st.integers(0, 4 * CHUNK)


def memory(together: bool) -> Ram:
    """A backing; only its key and its answer about neighbours matter."""
    return Ram(0, together=together)


@calm
@given(offset=OFFSETS, length=st.integers(1, 6 * PAGE_SIZE), together=st.booleans())
def test_an_address_leads_back_to_its_byte(offset: int, length: int, together: bool) -> None:
    frames, ram = Frames(), memory(together)
    frames.pa(memory(True), 0)
    at = offset
    for run in frames.runs(ram, offset, length):
        for within in {0, run.length // 2, run.length - 1}:
            assert frames.find(run.pa + within) == (ram, at + within)
        at += run.length
    assert at == offset + length


@calm
@given(offset=OFFSETS, length=st.integers(1, 40 * PAGE_SIZE))
def test_pages_that_lie_apart_are_never_joined(offset: int, length: int) -> None:
    runs = list(Frames().runs(memory(False), offset, length))
    pages = (offset + length - 1) // PAGE_SIZE - offset // PAGE_SIZE + 1
    assert len(runs) == pages


def test_pages_that_lie_together_are_one_run_within_and_across_chunks() -> None:
    frames, ram = Frames(), memory(True)
    assert [run.length for run in frames.runs(ram, 100, 3 * CHUNK)] == [3 * CHUNK]


def test_chunks_first_used_apart_are_not_neighbours() -> None:
    frames, ram = Frames(), memory(True)
    frames.pa(ram, CHUNK)
    frames.pa(ram, 0)
    assert [run.length for run in frames.runs(ram, 0, 2 * CHUNK)] == [CHUNK, CHUNK]


def test_a_page_keeps_its_address_while_it_is_pinned_and_a_while_after() -> None:
    frames = Frames()
    first, *others = (memory(True) for _ in range(40))
    pa = frames.pa(first, 0)
    frames.idle(first.key)
    frames.busy(first.key)
    for other in others[:20]:
        frames.pa(other, 0)
        frames.idle(other.key)
    assert frames.pa(first, 0) == pa
    frames.idle(first.key)
    for other in others[20:30]:
        frames.pa(other, 0)
        frames.idle(other.key)
    assert frames.pa(first, 0) == pa
    for other in others[30:]:
        frames.pa(other, 0)
        frames.idle(other.key)
    assert frames.find(pa) is None
    assert frames.pa(first, 0) != pa


def test_a_window_is_told_when_it_comes_and_when_it_goes() -> None:
    told: list[tuple[Window, bool]] = []
    frames = Frames(on_window=lambda window, comes: told.append((window, comes)))
    backings = [memory(True) for _ in range(17)]
    for backing in backings:
        frames.pa(backing, CHUNK + 5)
        frames.idle(backing.key)
    assert [comes for _, comes in told] == [True] * 17 + [False]
    window = told[-1][0]
    assert (window.backing, window.offset) == (backings[0], CHUNK)


def test_what_is_idle_can_be_forgotten_at_once() -> None:
    told: list[Window] = []
    frames = Frames(on_window=lambda window, comes: None if comes else told.append(window))
    busy, idle = memory(True), [memory(True) for _ in range(3)]
    pa = frames.pa(busy, 0)
    frames.busy(busy.key)
    for backing in idle:
        frames.pa(backing, 0)
        frames.idle(backing.key)
    frames.forget_idle()
    assert [window.backing for window in told] == idle
    assert frames.find(told[0].pa) is None
    assert frames.find(pa) == (busy, 0)
    assert frames.pa(busy, 0) == pa


def test_programs_that_come_one_after_the_other_need_the_space_of_one() -> None:
    frames = Frames(base=CHUNK)
    for _ in range(40):
        backing = memory(True)
        assert frames.pa(backing, 3 * CHUNK) == CHUNK
        assert frames.pa(backing, 0) == 2 * CHUNK
        frames.busy(backing.key)
        frames.forget_idle()
        assert frames.find(CHUNK) == (backing, 3 * CHUNK)
        frames.idle(backing.key)
        frames.forget_idle()
        assert frames.find(CHUNK) is None


def test_addresses_that_were_never_given_belong_to_nobody() -> None:
    frames = Frames(base=CHUNK)
    assert frames.find(0) is None
    assert frames.find(CHUNK) is None
    assert frames.pa(memory(True), 3) == CHUNK + 3
    assert frames.find(2 * CHUNK) is None
