"""The supervisor: starts the program, answers its calls, and ends as the program ended.

One process, one thread. The program runs in the supervisor's process group with its terminal, streams and environment.
When the supervisor is killed outright, the kernel answers the calls it no longer hears with ENOSYS: nothing hangs.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from softiommu.errors import ConfigError, UapiError
from softiommu.run import child, seccomp
from softiommu.run.attention import Attention
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
from softiommu.run.trap.tracer import Tracer

if TYPE_CHECKING:
    from softiommu.machine.nodes import World
    from softiommu.run.descriptors import OpenFile
    from softiommu.run.log import CallLog
    from softiommu.run.tracee import Task

EXIT_BUG = 70
_EIO = 5


class RunOptions(NamedTuple):
    """How to run a program."""

    #: Where calls on our files are written.
    log: CallLog | None = None
    #: Die by the signal that killed the program, as a shell expects of a wrapper. Else `run` returns 128 + signal.
    die_alike: bool = True
    #: Called when all have ended, whatever the program died of.
    on_end: Callable[[], None] = lambda: None


def run(world: World, argv: Sequence[str], options: RunOptions | None = None) -> int:
    """Run a program on a machine; its exit code. Takes this process over: standard input and output are the program's.

    127: not found, 126: cannot be executed, 70: a bug of ours (unless the program failed itself).
    ConfigError: supervision does not work here.
    """
    options = options or RunOptions()
    return supervise(world, argv, options, Signals()).exit_code(options.die_alike)


def supervise(world: World, argv: Sequence[str], options: RunOptions, signals: Signals) -> Supervisor:
    """Run a program on a machine to its end, as `run`; who supervised it, for whoever asks more than its exit code."""
    seccomp.check_support()
    threshold = high_threshold()
    program = child.start(argv, seccomp.filter_program(threshold), signals)
    session = Session(world, Listener(program.listener), threshold, options.log)
    supervisor = Supervisor(session, program, signals)
    try:
        supervisor.serve()
    finally:
        signals.restore()
        supervisor.close()
        options.on_end()
    return supervisor


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
        self._tracer = Tracer(session, self._ended, self._report)
        self._pollers = session.world.pollers
        session.world.share_time()
        self._watcher: Watcher | None = None
        session.before_trap = self._before_trap
        session.descriptors.trap_obstacle = self._tracer.obstacle
        session.descriptors.on_close.append(self._tracer.forget)
        self.bugs = 0
        #: Why supervision cannot work here, found at the first call.
        self.obstacle: ConfigError | None = None

    def serve(self) -> None:
        """Answer every call; returns when nobody is left who could make one, and all files are released."""
        closers, listener = self._closers, self._listener
        receive, closed, answer = listener.receive, closers.poll, self._answer
        tracer, pollers = self._tracer, self._pollers
        watcher = self._watcher = Watcher(self._signals, listener.fd, closers.fileno(), self._take_signals)
        try:
            while True:
                if pollers or tracer:
                    if not self._attend(watcher):
                        break
                    continue
                watcher.asleep = True
                call = receive()
                watcher.asleep = False
                # What was closed before the call is released before the call is answered.
                if closed(0):
                    self._guarded(self._session.descriptors.drain, "closing files")
                if call is not None:
                    answer(call)
                elif listener.hung_up():
                    break
        finally:
            watcher.stop()
        tracer.collect(wait=True)
        self._guarded(self._session.descriptors.drain, "closing files")

    def _attend(self, watcher: Watcher) -> bool:
        """Serve while something is mapped or traced: False when nobody is left who could make a call."""
        attention = Attention(self._listener.fd, self._signals.fd, self._closers.fileno())
        watcher.rest(True)
        while self._pollers or self._tracer:
            heard = attention.wait(bool(self._pollers))
            if heard.signals:
                self._take_signals()
            if heard.closed:
                self._guarded(self._session.descriptors.drain, "closing files")
            self._look(attention)
            if heard.call:
                call = self._listener.receive()
                if call is not None:
                    self._answer(call)
                    attention.happened()
            elif heard.hung_up:
                return False
        watcher.rest(False)
        return True

    def _look(self, attention: Attention) -> None:
        """Look at the pages that programs store into."""
        for poll in list(self._pollers.values()):
            try:
                if poll():
                    attention.happened()
            except Exception:
                self._report("looking at a mapped page")

    def _take_signals(self) -> None:
        self._signals.take(self._targets, self._tracer.collect)

    def _before_trap(self, task: Task, record: OpenFile) -> None:
        """From here on this thread alone waits for children, for they stop as traced tasks, too."""
        assert self._watcher is not None, "calls are answered while there is a watcher"
        self._watcher.rest(True)
        self._tracer.begin(task, record)

    def _targets(self) -> list[int]:
        """Who gets a signal that was sent to us: the program; once it has ended, all it left behind."""
        self._tracer.collect()
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

    def _ended(self, pid: int, status: int) -> None:
        """A child ended: the program, an orphan of its own that came to us, or a traced thread."""
        if pid == self._program.pid:
            self._status = status

    def close(self) -> None:
        """Give everything back."""
        self._tracer.close()
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
