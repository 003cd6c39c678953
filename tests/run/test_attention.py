"""Who waits for calls, signals, closes and stores at once hears each, and looks often only while something happens."""

import os
import select
import time
from contextlib import suppress

import pytest

from softiommu.run.attention import Attention, Heard

MS = 1_000_000


@pytest.fixture
def ends():
    """What is waited for (a listener, signals, closes), and what makes them readable."""
    pipes = [os.pipe2(os.O_NONBLOCK) for _ in range(3)]
    yield [ours for ours, _ in pipes], [theirs for _, theirs in pipes]
    for ours, theirs in pipes:
        os.close(ours)
        with suppress(OSError):  # the test closed it
            os.close(theirs)


@pytest.mark.parametrize("which", range(3))
def test_each_is_heard(ends, which):
    attention = Attention(*ends[0])
    os.write(ends[1][which], b"!")
    heard = attention.wait(looks=False)
    assert (heard.call, heard.signals, heard.closed) == tuple(n == which for n in range(3))
    assert not heard.hung_up


def test_the_end_of_all_who_call_is_heard(ends):
    attention = Attention(*ends[0])
    os.close(ends[1][0])
    assert attention.wait(looks=False) == Heard(False, True, False, False)


def test_right_after_something_happened_there_is_no_pause(ends):
    attention = Attention(*ends[0])
    attention.happened()
    before = time.monotonic_ns()
    attention.wait(looks=True)
    assert time.monotonic_ns() - before < 4 * MS


@pytest.mark.parametrize(
    ("quiet", "pause"),
    [
        (0, 0),
        (19_000, 0),
        (100_000, 25_000),
        (8 * MS, 2 * MS),
        (1000 * MS, 4 * MS),
        (2560 * MS, 10 * MS),
        (10**11, 20 * MS),
    ],
)
def test_the_longer_nothing_happens_the_rarer_are_the_looks(ends, monkeypatch, quiet, pause):
    now = [10**15]
    monkeypatch.setattr(time, "monotonic_ns", lambda: now[0])
    attention = Attention(*ends[0])
    attention.happened()
    now[0] += quiet
    assert attention._pause() == pause


def test_a_look_is_due_also_when_nobody_calls(ends):
    attention = Attention(*ends[0])
    before = time.monotonic()
    assert attention.wait(looks=True) == Heard(False, False, False, False)
    assert time.monotonic() - before < 5
    assert not select.select([ends[0][0]], [], [], 0)[0]
