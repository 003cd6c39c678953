"""Accesses to mappings without pages, one by one: a bus error that the program does not see.

A program that touches such a mapping gets SIGBUS. Its threads are traced (ptrace) from the moment on that they map one,
so the signal stops the thread and comes here first: the access is made (`accesses`), registers and instruction pointer
set, and the signal forgotten. Every other signal goes to the program as it is. Tracing ends by
exec, which drops mappings, and when no trapped file is left.

All of this is the main thread's work, for only the thread that seized a task can ask for it. While tasks are traced it
therefore waits for them and for calls at once (`supervisor`).
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

from softiommu.errors import UapiError
from softiommu.run.tracee import same_memory
from softiommu.run.trap import ptrace
from softiommu.run.trap.accesses import Accesses, Memory

if TYPE_CHECKING:
    from collections.abc import Callable

    from softiommu.memory.client import Caller
    from softiommu.run.descriptors import OpenFile
    from softiommu.run.session import Session
    from softiommu.run.tracee import Task

_JOB_CONTROL = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)


class Tracer:
    """The traced tasks. `ended` hears of children and tasks that are gone: number and status; `report` of our bugs."""

    def __init__(self, session: Session, ended: Callable[[int, int], None], report: Callable[[str], None]) -> None:
        self._session, self._ended, self._report = session, ended, report
        self._tracees: dict[int, Memory] = {}
        self._files: set[OpenFile] = set()
        self._accesses = Accesses(session)
        self._refusal: str | None = None

    def __bool__(self) -> bool:
        """Whether any task is traced."""
        return bool(self._tracees)

    def obstacle(self, caller: Caller) -> str:
        """Why accesses of a caller cannot be carried out one by one; nothing when they can."""
        if self._refusal is None:
            self._refusal = _missing() or ptrace.refusal()
        tid = getattr(caller, "tid", 0)
        if self._refusal or tid in self._tracees:
            return self._refusal
        with suppress(OSError, ValueError):
            with open(f"/proc/{tid}/status") as status:
                tracer = next(int(line.split()[1]) for line in status if line.startswith("TracerPid:"))
            if tracer:
                return f"process {tracer} traces {caller.name} already (a debugger, or strace)"
        return ""

    # Which tasks

    def begin(self, task: Task, record: OpenFile) -> None:
        """A task is about to map a file without pages: trace all who share its memory. UapiError: EPERM."""
        self._files.add(record)
        for pid in [task.tgid, *self._session.processes()]:
            if pid == task.tgid or same_memory(pid, task.tid):
                self._seize_threads(pid)
        if task.tid not in self._tracees:
            raise UapiError(1, f"{task.name} cannot be traced, so its accesses cannot be carried out")

    def _seize_threads(self, pid: int) -> None:
        """All threads of a process: until none is new, for those that are not traced yet make more."""
        found = True
        while found:
            found = False
            with suppress(OSError):
                for name in os.listdir(f"/proc/{pid}/task"):
                    found |= self._seize(int(name))

    def _seize(self, tid: int) -> bool:
        if tid in self._tracees:
            return False
        try:
            ptrace.seize(tid)
        except OSError:
            return False  # gone, or another's: the caller finds out whether it is the one that matters
        self._tracees[tid] = Memory(tid)
        return True

    def forget(self, record: OpenFile) -> None:
        """Nobody has a file any more. With the last one the tracing ends: at each task's next stop, which is now."""
        self._files.discard(record)
        if not self._files:
            for tid in self._tracees:
                with suppress(OSError):
                    ptrace.interrupt(tid)

    def _drop(self, tid: int) -> None:
        tracee = self._tracees.pop(tid, None)
        if tracee is not None:
            tracee.close()

    # Stops

    def collect(self, wait: bool = False) -> None:
        """Take what children and traced tasks have to say. `wait`: until there are none."""
        with suppress(ChildProcessError):
            while True:
                tid, status = os.waitpid(-1, ptrace.WALL | (0 if wait else os.WNOHANG))
                if tid == 0:
                    return
                if not os.WIFSTOPPED(status):
                    self._drop(tid)
                    self._ended(tid, status)
                    continue
                with suppress(ProcessLookupError):
                    self._stopped(tid, os.WSTOPSIG(status), status >> 16)

    def _stopped(self, tid: int, number: int, event: int) -> None:
        """A task stopped: for a signal, or an event. ProcessLookupError: it was killed."""
        if tid not in self._tracees:
            self._tracees[tid] = Memory(tid)
        if event == ptrace.EVENT_EXEC:
            self._drop(ptrace.event_message(tid))
            self._drop(tid)
            ptrace.detach(tid, 0)
        elif event == ptrace.EVENT_STOP and number in _JOB_CONTROL and self._files:
            ptrace.listen(tid)
        elif event:
            self._go_on(tid, 0)
        elif number == signal.SIGBUS:
            self._go_on(tid, 0 if self._try(tid) else number)
        else:
            self._go_on(tid, number)

    def _go_on(self, tid: int, number: int) -> None:
        if self._files:
            ptrace.resume(tid, number)
        else:
            self._drop(tid)
            ptrace.detach(tid, number)

    # Accesses

    def _try(self, tid: int) -> bool:
        """Make the access that raised a bus error. False: the program gets it, for it is its own, or we failed."""
        try:
            return self._accesses.carry_out(tid, self._tracees[tid])
        except ProcessLookupError:
            raise
        except Exception:
            self._report(f"carrying out an access of task {tid}")
            return False

    def close(self) -> None:
        """Give the descriptors of our own back."""
        for tid in list(self._tracees):
            self._drop(tid)


def _missing() -> str:
    try:
        import iced_x86  # noqa: F401
    except ImportError as error:
        return f"iced-x86 cannot be loaded ({error}): pip install iced-x86"
    return ""
