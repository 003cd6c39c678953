"""Signals of the supervisor: those meant for the program go on to it.

A signal from the terminal reaches the program by itself, since it is in the same process group; only one that a process
sent to the supervisor is passed on.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable
from contextlib import suppress

_libc = ctypes.CDLL(None, use_errno=True)
_FORWARDED = {
    signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2,
}  # fmt: skip
_SFD_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC
_INFO_SIZE = 128


class Signals:
    """Our signals as a descriptor, and the mask we had before."""

    def __init__(self) -> None:
        taken = {*_FORWARDED, signal.SIGCHLD}
        self.original = signal.pthread_sigmask(signal.SIG_BLOCK, taken)
        mask = (ctypes.c_uint64 * 16)(sum(1 << (number - 1) for number in taken))
        self.fd = int(_libc.signalfd(-1, mask, _SFD_FLAGS))
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "signalfd: " + os.strerror(ctypes.get_errno()))

    def forward(self, pid: int, reap: Callable[[], None]) -> None:
        """Take what came: children that ended are reaped, signals sent by a process go to the program."""
        with suppress(BlockingIOError):
            while True:
                info = os.read(self.fd, _INFO_SIZE)
                number = int.from_bytes(info[:4], "little")
                code = int.from_bytes(info[8:12], "little", signed=True)
                if number == signal.SIGCHLD:
                    reap()
                elif code <= 0:  # SI_USER and its like; the terminal's and the kernel's are positive
                    with suppress(ProcessLookupError, PermissionError):
                        os.kill(pid, number)

    def restore(self) -> None:
        """The mask as it was."""
        os.close(self.fd)
        signal.pthread_sigmask(signal.SIG_SETMASK, self.original)
