"""Accesses to mappings without pages, one by one: a bus error that the program does not see.

A program that touches such a mapping gets SIGBUS. Its threads are traced (ptrace) from the moment on that they map one,
so the signal stops the thread and comes here first: the instruction is decoded, its access made on the file, registers
and instruction pointer set, and the signal forgotten. Every other signal goes to the program as it is. Tracing ends by
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
from softiommu.run import ptrace, x86
from softiommu.run.seccomp import TaskGoneError
from softiommu.run.tracee import same_memory
from softiommu.run.vmas import Vmas

if TYPE_CHECKING:
    from collections.abc import Callable

    from softiommu.memory.client import Caller
    from softiommu.run.descriptors import OpenFile
    from softiommu.run.session import Session
    from softiommu.run.tracee import Task

_JOB_CONTROL = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
_MOST_DECODED, _MOST_TOLD = 4096, 100


class _Tracee:
    """A traced task: its memory and what is mapped there, opened when it first faults."""

    def __init__(self, tid: int) -> None:
        self._tid = tid
        self._memory = -1
        self._vmas: Vmas | None = None

    def code(self, at: int) -> bytes:
        """The bytes of the instruction at an address, and some behind it. OSError."""
        if self._memory < 0:
            self._memory = os.open(f"/proc/{self._tid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        return os.pread(self._memory, x86.LONGEST, at)

    @property
    def vmas(self) -> Vmas:
        """What is mapped where. OSError."""
        if self._vmas is None:
            self._vmas = Vmas(self._tid)
        return self._vmas

    def close(self) -> None:
        """Give the descriptors of our own back."""
        if self._memory >= 0:
            os.close(self._memory)
        if self._vmas is not None:
            self._vmas.close()


class Tracer:
    """The traced tasks. `ended` hears of children and tasks that are gone: number and status; `report` of our bugs."""

    def __init__(self, session: Session, ended: Callable[[int, int], None], report: Callable[[str], None]) -> None:
        self._session, self._ended, self._report = session, ended, report
        self._tracees: dict[int, _Tracee] = {}
        self._files: set[OpenFile] = set()
        self._decoded: dict[bytes, x86.Operation] = {}
        self._refusal: str | None = None
        self._told = 0

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
        self._tracees[tid] = _Tracee(tid)
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
            self._tracees[tid] = _Tracee(tid)
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
            return self._carry_out(tid)
        except ProcessLookupError:
            raise
        except Exception:
            self._report(f"carrying out an access of task {tid}")
            return False

    def _carry_out(self, tid: int) -> bool:
        """Make the access that raised a bus error. False: it is the program's own."""
        fault = ptrace.fault(tid)
        if fault.code != ptrace.BUS_ADRERR:
            return False
        tracee = self._tracees[tid]
        try:
            place = tracee.vmas.find(fault.address)
        except OSError:
            return False
        record = self._session.descriptors.by_inode.get(place.inode) if place else None
        if place is None or record is None or not record.file.is_trapped(place.offset):
            return False
        registers = ptrace.registers(tid)
        try:
            operation = self._operation(tracee.code(registers[x86.RIP]))
            if operation.address.of(registers) != fault.address:
                raise x86.NotCarriedOutError("the instruction does not begin at the BAR")
            operation.effect(registers, self._bus(tid, record, place.offset, operation.width))
        except (x86.NotCarriedOutError, UapiError, OSError) as error:
            self._tell(tid, record, place.offset, error)
            return False
        registers[x86.RIP] += operation.length
        ptrace.set_registers(tid, registers)
        return True

    def _operation(self, code: bytes) -> x86.Operation:
        known = self._decoded.get(code)
        if known is None:
            if len(self._decoded) >= _MOST_DECODED:
                self._decoded.clear()
            known = self._decoded[code] = x86.decode(code)
        return known

    def _bus(self, tid: int, record: OpenFile, offset: int, width: int) -> x86.Bus:
        """The memory of an instruction: a file's, and each access a line of the log where there is one."""
        file, log = record.file, self._session.log
        if log is None:
            return x86.Bus(lambda: file.load(offset, width), lambda value: file.store(offset, width, value))
        name, fields = self._name(tid), {"width": width, "offset": hex(offset)}

        def load() -> int:
            with log.noted(name, file.kind, "load", fields) as note:
                note.result = file.load(offset, width)
            return note.result

        def store(value: int) -> None:
            with log.noted(name, file.kind, "store", fields | {"value": hex(value)}):
                file.store(offset, width, value)

        return x86.Bus(load, store)

    def _name(self, tid: int) -> str:
        try:
            return self._session.fresh(tid).name
        except TaskGoneError:
            return f"?[{tid}]"

    def _tell(self, tid: int, record: OpenFile, offset: int, error: Exception) -> None:
        """Why the program gets its bus error."""
        self._told += 1
        if self._told > _MOST_TOLD:
            self._session.warn_once(f"more than {_MOST_TOLD} bus errors: no more of them are told")
            return
        why = error.why if isinstance(error, UapiError) else str(error)
        self._session.warn_once(f"bus error of {self._name(tid)} at offset {offset:#x} of a {record.file.kind}: {why}")

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
