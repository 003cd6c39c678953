"""Clocks: they go forward, and the manual one only when told."""

import pytest

from softiommu.clock import MS, SECOND, Clock, ManualClock, RealClock


def wait_for(clock: Clock, duration: int) -> int:
    start = clock.now()
    clock.sleep(duration)
    return clock.now() - start


def test_a_manual_clock_sleeps_exactly_and_at_once():
    clock = ManualClock(5)
    assert wait_for(clock, 10 * SECOND) == 10 * SECOND
    clock.advance(1)
    assert clock.now() == 5 + 10 * SECOND + 1


def test_a_manual_clock_does_not_go_back():
    with pytest.raises(ValueError, match="does not go back by 1 ns"):
        ManualClock().advance(-1)


def test_the_real_clock_sleeps_at_least_as_long_as_told():
    assert wait_for(RealClock(), 2 * MS) >= 2 * MS
