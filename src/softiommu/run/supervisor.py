"""The supervisor: starts the program, answers its calls, and ends as the program ended.

One process, one thread. The program runs in the supervisor's process group with its terminal, streams and environment.
When the supervisor is killed outright, the kernel answers the calls it no longer hears with ENOSYS: nothing hangs.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from softiommu.errors import ConfigError, UapiError
from softiommu.run import child, seccomp
from softiommu.run.fileops import FileCalls
from softiommu.run.folders import FolderCalls
from softiommu.run.lifecalls import LifeCalls
from softiommu.run.opencalls import OpenCalls
from softiommu.run.paths import Resolver
from softiommu.run.seccomp import Listener, Notification, TaskGoneError
from softiommu.run.session import CONTINUE, Handler, Reply, Session, high_threshold
from softiommu.run.signals import Signals, Watcher
from softiommu.run.statcalls import StatCalls
from softiommu.run.syscalls import Nr

if TYPE_CHECKING:
    from softiommu.machine.nodes import World
    from softiommu.run.log import CallLog

EXIT_BUG = 70
_EIO = 5


class RunOptions(NamedTuple):
    """How to run a program."""

    #: Where calls on our files are written.
    log: CallLog | None = None
    #: Die by the signal that killed the program, as a shell expects of a wrapper. Else `run` returns 128 + signal.
    die_alike: bool = True


def run(world: World, argv: Sequence[str], options: RunOptions | None = None) -> int:
    """Run a program on a machine; its exit code. Takes this process over: standard input and output are the program's.

    127: not found, 126: cannot be executed, 70: a bug of ours (unless the program failed itself).
    ConfigError: supervision does not work here.
    """
    options = options or RunOptions()
    seccomp.check_support()
    threshold = high_threshold()
    signals = Signals()
    program = child.start(argv, seccomp.filter_program(threshold), signals)
    session = Session(world, Listener(program.listener), threshold, options.log)
    supervisor = Supervisor(session, program, signals)
    try:
        supervisor.serve()
    finally:
        signals.restore()
        supervisor.close()
    return supervisor.exit_code(options.die_alike)


class Supervisor:
    """Answers calls until the last supervised process is gone."""

    def __init__(self, session: Session, program: child.Program, signals: Signals) -> None:
        self._session, self._program, self._signals = session, program, signals
        self._listener = session.listener
        self._tasks = session.tasks
        self._closers = session.descriptors.closers
        resolver = Resolver(session)
        self._resolver = resolver
        self._handlers: dict[int, Handler] = {
            **FileCalls(session).handlers,
            **OpenCalls(session, resolver).handlers,
            **StatCalls(session, resolver).handlers,
            **FolderCalls(resolver).handlers,
            **LifeCalls(session).handlers,
        }
        self._status: int | None = None
        self.bugs = 0
        #: Why supervision cannot work here, found at the first call.
        self.obstacle: ConfigError | None = None

    def serve(self) -> None:
        """Answer every call; returns when nobody is left who could make one, and all files are released."""
        closers, listener = self._closers, self._listener
        receive, closed, answer = listener.receive, closers.poll, self._answer
        signals = self._signals
        pollers = self._session.world.pollers
        watcher = Watcher(signals, listener.fd, closers.fileno(), lambda: signals.take(self._targets, self._reap))
        try:
            while True:
                watcher.asleep = True
                call = receive()
                watcher.asleep = False
                # What was closed before the call is released before the call is answered.
                if closed(0):
                    self._guarded(self._session.descriptors.drain, "closing files")
                if call is not None:
                    answer(call)
                    watcher.glance(bool(pollers))
                elif listener.hung_up():
                    break
                else:
                    for poll in list(pollers.values()):
                        self._guarded(poll, "looking at what waits")
                    watcher.glance(bool(pollers))
        finally:
            watcher.stop()
        self._reap(wait=True)
        self._guarded(self._session.descriptors.drain, "closing files")

    def _targets(self) -> list[int]:
        """Who gets a signal that was sent to us: the program; once it has ended, all it left behind."""
        self._reap()
        return [self._program.pid] if self._status is None else list(self._session.processes())

    def _answer(self, call: Notification) -> None:
        try:
            task = self._tasks.get(call[1]) or self._session.new_task(call[1])
            task.call = call[0]
            answer = self._handlers[call[3]](task, call[6:])
            if not isinstance(answer, Reply):
                self._listener.answer(call[0], answer)
            elif answer is CONTINUE:
                self._listener.let_through(call[0])
        except UapiError as error:
            self._listener.answer(call[0], 0, error.errno)
        except (TaskGoneError, ProcessLookupError):
            # Its descriptors close with it; the answer, should it still be wanted, is the kernel's.
            self._listener.let_through(call[0])
        except ConfigError as error:
            self._cannot_reach(error)
            self._listener.let_through(call[0])
        except Exception:
            self._report(_describe(call))
            self._listener.answer(call[0], 0, _EIO)

    def _cannot_reach(self, error: ConfigError) -> None:
        """A task's memory is closed to us: the end at the first exec, else that task sees the host as it is."""
        if not self._session.reached:
            self.obstacle = error
            os.kill(self._program.pid, signal.SIGKILL)
        else:
            self._session.warn_once(str(error))

    def _guarded(self, action: object, what: str) -> None:
        assert callable(action)
        try:
            action()
        except Exception:
            self._report(what)

    def _report(self, what: str) -> None:
        """Tell of a bug of ours; the supervision goes on."""
        self.bugs += 1
        print(f"softiommu: this is a bug of softiommu, please report it: while {what}", file=sys.stderr)
        traceback.print_exc(file=sys.stderr)

    def _reap(self, wait: bool = False) -> None:
        """Collect ended children: the program, and orphans of its own that came to us."""
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, 0 if wait else os.WNOHANG)
                if pid == 0:
                    return
                if pid == self._program.pid:
                    self._status = status

    def close(self) -> None:
        """Give everything back."""
        self._resolver.shadow.close()
        self._session.close()

    def exit_code(self, die_alike: bool) -> int:
        """The program's exit code; dies by the same signal where asked. ConfigError: it could not be supervised."""
        if self.obstacle is not None:
            raise self.obstacle
        failure = self._program.failure()
        if failure is not None:
            message, code = failure
            print(f"softiommu: {message}", file=sys.stderr)
            return code
        status = self._status or 0
        if os.WIFSIGNALED(status):
            if die_alike:
                child.die_by(os.WTERMSIG(status))
            return 128 + os.WTERMSIG(status)
        code = os.WEXITSTATUS(status)
        return EXIT_BUG if self.bugs and not code else code


def _describe(call: Notification) -> str:
    try:
        name = Nr(call[3]).name.lower()
    except ValueError:
        name = f"call {call[3]}"
    arguments = ", ".join(hex(argument) for argument in call[6:])
    return f"answering {name}({arguments}) of task {call[1]}"
