"""Starting the program: fork, filter, exec; and what happened when the exec failed."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress
from errno import EACCES, ENOENT
from typing import NamedTuple

from softiommu.run import seccomp
from softiommu.run.signals import Signals

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_DUMPABLE, _PR_SET_CHILD_SUBREAPER = 4, 36
_NOT_FOUND, _NOT_EXECUTABLE = 127, 126


class Program(NamedTuple):
    """The first supervised process."""

    pid: int
    listener: int
    argv: Sequence[str]
    #: The child's end closes by exec; a failed exec writes its error number first.
    channel: socket.socket

    def failure(self) -> tuple[str, int] | None:
        """Why the program could not be started, as a shell says it, and the exit code for it."""
        data = self.channel.recv(4, socket.MSG_DONTWAIT)
        if not data:
            return None
        number, name = int.from_bytes(data, "little"), self.argv[0]
        if number != ENOENT:
            what = "Is a directory" if number == EACCES and os.path.isdir(name) else os.strerror(number)
            return f"{name}: {what}", _NOT_EXECUTABLE
        return f"{name}: {'No such file or directory' if '/' in name else 'command not found'}", _NOT_FOUND


def start(argv: Sequence[str], program: bytes, signals: Signals) -> Program:
    """Fork the program, with the filter on it. ConfigError where the filter is refused."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            _become(argv, program, signals, theirs)
        finally:
            os._exit(_NOT_FOUND)
    theirs.close()
    data, descriptors, _, _ = socket.recv_fds(ours, 4, 1)
    if not descriptors:
        os.waitpid(pid, 0)
        raise seccomp.refusal(int.from_bytes(data, "little"))
    os.set_inheritable(descriptors[0], False)
    _detach()
    return Program(pid, descriptors[0], argv, ours)


def _become(argv: Sequence[str], program: bytes, signals: Signals, channel: socket.socket) -> None:
    """In the child: filter, then exec. What goes wrong is told through the channel."""
    try:
        listener = seccomp.install(program)
    except OSError as error:
        channel.send((error.errno or 0).to_bytes(4, "little"))
        return
    socket.send_fds(channel, [b"\0"], [listener])
    os.close(listener)
    # Python ignores these at its start; the program is to have them as they were.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, signals.original)
    try:
        os.execvp(argv[0], list(argv))
    except OSError as error:
        channel.send((error.errno or 0).to_bytes(4, "little"))


def _detach() -> None:
    """Keep nothing of the program's: a reader of its output must see the end when it ends."""
    _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    with suppress(OSError, ValueError):
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in (0, 1):
        os.dup2(null, fd)
    os.close(null)
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if int(name) > 2 and os.get_inheritable(int(name)):
                os.close(int(name))


def die_by(number: int) -> None:
    """End by this signal, without a core dump of ours. Returns only if the signal cannot kill."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError, ValueError):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
    os.kill(os.getpid(), number)
