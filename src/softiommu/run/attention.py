"""Waiting for calls, signals, closes and the next look at mapped pages at once, while anything is mapped or traced.

How long: pages that programs store into are looked at again after a quarter of the time in which nothing happened, but
after 4 ms at most; after seconds of nothing that grows to 20 ms. Right after a store or a call it is at once, for a
program that waits for its answer is about to ask again; one that takes its time waits a quarter longer.
"""

from __future__ import annotations

import ctypes
import time
from errno import EINTR
from typing import NamedTuple

_libc = ctypes.CDLL(None, use_errno=True)
_POLLIN, _POLLHUP = 1, 16
#: Nanoseconds: how long it is "right after"; the longest pause, and the longest after seconds of nothing.
_HOT, _MOST, _IDLE = 20_000, 4_000_000, 20_000_000
_QUARTER_LG2, _SECONDS_LG2 = 2, 8
_SECOND = 1_000_000_000
#: Sleeps end within a microsecond of their time, not 50 later.
_PR_SET_TIMERSLACK, _SLACK = 29, 1_000


class _Descriptor(ctypes.Structure):
    _fields_ = (("fd", ctypes.c_int), ("events", ctypes.c_short), ("revents", ctypes.c_short))


class _Time(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class Heard(NamedTuple):
    """What there is to do."""

    call: bool
    hung_up: bool
    signals: bool
    closed: bool


class Attention:
    """Waits on the listener, on signals and on closes."""

    def __init__(self, listener: int, signals: int, closers: int) -> None:
        self._fds = (_Descriptor * 3)(*(_Descriptor(fd, _POLLIN) for fd in (listener, signals, closers)))
        self._last = 0
        _libc.prctl(_PR_SET_TIMERSLACK, _SLACK, 0, 0, 0)

    def wait(self, looks: bool) -> Heard:
        """Sleep until there is something; `looks`: at most until the next look is due."""
        until = None
        if looks:
            pause = self._pause()
            until = ctypes.byref(_Time(pause // _SECOND, pause % _SECOND))
        if _libc.ppoll(self._fds, len(self._fds), until, None) < 0:
            number = ctypes.get_errno()
            if number != EINTR:
                raise OSError(number, "ppoll")
            return Heard(False, False, False, False)
        listener, signals, closers = (descriptor.revents for descriptor in self._fds)
        return Heard(bool(listener & _POLLIN), bool(listener & _POLLHUP), bool(signals), bool(closers))

    def happened(self) -> None:
        """A program did something: it will do more soon."""
        self._last = time.monotonic_ns()

    def _pause(self) -> int:
        """Nanoseconds until the next look."""
        quiet = time.monotonic_ns() - self._last
        if quiet < _HOT:
            return 0
        return min(quiet >> _QUARTER_LG2, max(_MOST, quiet >> _SECONDS_LG2), _IDLE)
