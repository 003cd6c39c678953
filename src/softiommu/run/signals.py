"""Signals of the supervisor, and a thread that waits for what the main loop does not.

The main loop sleeps in the listener alone, which is a third faster than a poll before each call. The watcher passes on
signals, and nudges the main loop out of its sleep when files were closed, or when the last process is gone. It rests
while the main loop waits for all of that itself (`attention`).

A signal from the terminal reaches the program by itself, since it is in the same process group; only one that a process
sent to the supervisor is passed on.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress

_libc = ctypes.CDLL(None, use_errno=True)
_FORWARDED = {
    signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2,
}  # fmt: skip
_NUDGE = signal.SIGIO
_SFD_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC
#: Bytes of one signal; there is one of each kind at a time, so a read of this many takes all.
_INFO_SIZE, _MOST_AT_ONCE = 128, 16
_PATIENCE_S = 0.01


class Signals:
    """Our signals as a descriptor, and the mask we had before."""

    def __init__(self) -> None:
        taken = {*_FORWARDED, signal.SIGCHLD}
        self.original = signal.pthread_sigmask(signal.SIG_BLOCK, taken)
        mask = (ctypes.c_uint64 * 16)(sum(1 << (number - 1) for number in taken))
        self.fd = int(_libc.signalfd(-1, mask, _SFD_FLAGS))
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "signalfd: " + os.strerror(ctypes.get_errno()))

    def take(self, targets: Callable[[], Iterable[int]], reap: Callable[[], None]) -> None:
        """Take what came: children that ended are reaped, signals sent by a process go to the targets."""
        with suppress(BlockingIOError):
            for at in range(0, len(infos := os.read(self.fd, _MOST_AT_ONCE * _INFO_SIZE)), _INFO_SIZE):
                number = int.from_bytes(infos[at : at + 4], "little")
                code = int.from_bytes(infos[at + 8 : at + 12], "little", signed=True)
                if number == signal.SIGCHLD:
                    reap()
                elif code <= 0:  # SI_USER and its like; the terminal's and the kernel's are positive
                    for pid in targets():
                        with suppress(ProcessLookupError, PermissionError):
                            os.kill(pid, number)

    def restore(self) -> None:
        """The mask as it was."""
        os.close(self.fd)
        signal.pthread_sigmask(signal.SIG_SETMASK, self.original)


class Watcher:
    """The thread."""

    def __init__(self, signals: Signals, listener: int, closers: int, on_signals: Callable[[], None]) -> None:
        self._signals, self._on_signals = signals, on_signals
        self._main = threading.get_ident()
        self._stop, self._wake = (os.eventfd(0, os.EFD_CLOEXEC) for _ in range(2))
        #: Set by the main loop around its sleep, so that it is not disturbed at work.
        self.asleep = False
        self._resting, self._rests = False, threading.Event()
        self._poller = select.poll()
        self._poller.register(signals.fd, select.POLLIN)
        self._poller.register(self._stop, select.POLLIN)
        self._poller.register(self._wake, select.POLLIN)
        self._roused = select.poll()
        self._roused.register(self._stop, select.POLLIN)
        self._roused.register(self._wake, select.POLLIN)
        self._urgent = select.poll()
        self._urgent.register(closers, select.POLLIN)
        self._urgent.register(listener, 0)  # hang-up only
        for fd, events in ((closers, select.POLLIN), (listener, 0)):
            self._poller.register(fd, events)
        self._old = signal.signal(_NUDGE, lambda number, frame: None)
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            if self._resting:
                self._rests.set()
            ready = {fd for fd, _ in (self._roused if self._resting else self._poller).poll()}
            if self._wake in ready:
                os.eventfd_read(self._wake)
            if self._stop in ready:
                return
            if self._resting:
                continue
            if self._signals.fd in ready:
                self._on_signals()
            if self._urgent.poll(0):
                # A main loop that is awake sees it by itself. The nudge is repeated: the first may come too early.
                threading.Event().wait(_PATIENCE_S)
                if self._urgent.poll(0):
                    signal.pthread_kill(self._main, _NUDGE)

    def rest(self, resting: bool) -> None:
        """Do nothing, or go on. When this returns the thread takes no signals, and reaps nobody, any more."""
        if resting != self._resting:
            self._rests.clear()
            self._resting = resting
            os.eventfd_write(self._wake, 1)
            if resting:
                self._rests.wait()

    def stop(self) -> None:
        """End the thread."""
        os.eventfd_write(self._stop, 1)
        self._thread.join()
        os.close(self._stop)
        os.close(self._wake)
        signal.signal(_NUDGE, self._old)
