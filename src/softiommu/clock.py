"""Time, as a model sees it: nanoseconds that it is handed, so that a trace replays to the same counters.

A model takes a `Clock` and never calls `time`. Tests and replays hand it a `ManualClock`.
"""

from __future__ import annotations

import time
from typing import Protocol

US, MS, SECOND = 1_000, 1_000_000, 1_000_000_000


class Clock(Protocol):
    """A clock that never goes back. Its zero means nothing: only differences do."""

    def now(self) -> int:
        """Nanoseconds since some moment."""
        ...

    def sleep(self, duration: int) -> None:
        """Return when `duration` nanoseconds have passed."""
        ...


class RealClock:
    """The machine's monotonic clock."""

    def now(self) -> int:
        """Nanoseconds since some moment."""
        return time.monotonic_ns()

    def sleep(self, duration: int) -> None:
        """Return when `duration` nanoseconds have passed."""
        time.sleep(duration / SECOND)


class ManualClock:
    """A clock that moves when it is told to: a time-out of ten seconds takes no time."""

    def __init__(self, now: int = 0) -> None:
        self._now = now

    def now(self) -> int:
        """Nanoseconds since some moment."""
        return self._now

    def sleep(self, duration: int) -> None:
        """Move by `duration` nanoseconds. ValueError: back in time."""
        if duration < 0:
            raise ValueError(f"a clock does not go back by {-duration} ns")
        self._now += duration

    advance = sleep
