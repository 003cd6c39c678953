"""What the parts of one supervision share: the listener, the open files, the tasks and their address spaces."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from enum import Enum
from typing import TYPE_CHECKING

from softiommu.errors import UapiError
from softiommu.memory.files import EVENTFD_LINK
from softiommu.memory.local import withheld_capabilities
from softiommu.memory.process import ProcessCopier
from softiommu.run.descendants import descendants
from softiommu.run.descriptors import Descriptors, OpenFile
from softiommu.run.seccomp import TaskGoneError
from softiommu.run.spaces import AddressSpaces
from softiommu.run.tracee import Task

if TYPE_CHECKING:
    from softiommu.machine.nodes import World
    from softiommu.memory.files import File
    from softiommu.run.log import CallLog
    from softiommu.run.seccomp import Listener


class Reply(Enum):
    """Answers of a handler that are no number."""

    #: The kernel carries the call out.
    CONTINUE = "continue"
    #: The answer went out with the new descriptor.
    ANSWERED = "answered"


CONTINUE, ANSWERED = Reply.CONTINUE, Reply.ANSWERED

#: Answers a call of a task with these six arguments: its result, UapiError, or a Reply.
Handler = Callable[[Task, tuple[int, ...]], "int | Reply"]

#: Of our own descriptors, a task that is remembered takes one in so many.
_TASK_SHARE = 8
#: So many tasks may have come, or half of those that are remembered, before the dead are looked for.
_NEW_TASKS = 16


def high_threshold() -> int:
    """The first descriptor number of the high range, for the limit that the program will start with.

    Below FD_SETSIZE (1024), so that select(2) works on such descriptors where the limit allows.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 896 if limit >= 1024 or limit < 0 else max(limit * 7 // 8, 3)


class Session:
    """One supervised program and its machine."""

    def __init__(self, world: World, listener: Listener, threshold: int, log: CallLog | None) -> None:
        self.world = world
        self.listener = listener
        self.threshold = threshold
        self.log = log
        self.copier = ProcessCopier()
        self.spaces = AddressSpaces()
        self.descriptors = Descriptors(self._duplicates)
        #: Capabilities that nobody here can have, which a root program has all the same, and the processes that
        #: gave them up.
        self.withheld = withheld_capabilities()
        self.dropped: set[int] = set()
        #: Set once a process changed its root or mount namespace: paths must then be looked up from its own root.
        self.roots_differ = False
        self._warned: set[str] = set()
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._most_tasks = min(1024, max(16, limit // _TASK_SHARE))
        #: Whether the memory of a task could be read yet.
        self.reached = False
        if log is not None:
            self.descriptors.on_close.append(lambda record: log.call("-", record.file.kind, "close", {}, 0))
        #: Called before a task maps a file without pages, whose accesses are carried out one by one. UapiError.
        self.before_trap: Callable[[Task, OpenFile], None] = lambda task, record: None
        #: The descriptor that a read or write is for, while it is carried out.
        self.current: tuple[Task, int, OpenFile] | None = None
        #: The number that the last opened file got.
        self.last_installed = -1
        #: Tasks by number, as last seen: a number may since have been given to another (see `fresh`).
        self.tasks: dict[int, Task] = {}
        #: How many of them came since the dead were forgotten.
        self._new = 0
        self.descriptors.on_close.append(self._closed)

    def _closed(self, record: OpenFile) -> None:
        """A file is released: often because a process has ended."""
        if self.current is not None and self.current[2] is record:
            self.current = None
        if self._new:
            self._forget_dead()

    def fresh(self, tid: int) -> Task:
        """The task that has this number now. TaskGoneError."""
        task = self.tasks.get(tid)
        if task is not None:
            if task.lives():
                return task
            self.tasks.pop(tid).close()
        return self.new_task(tid)

    def forget_permissions(self) -> None:
        """Pages may allow less than they did."""
        for task in self.tasks.values():
            task.memory.forget()

    def new_task(self, tid: int) -> Task:
        """A task that was not seen before. TaskGoneError."""
        if self._new >= max(_NEW_TASKS, len(self.tasks) // 2):
            self._forget_dead()
        if len(self.tasks) >= self._most_tasks:
            self._close_tasks()
        try:
            task = Task(self, tid)
        except OSError as error:
            raise TaskGoneError from error
        self.spaces.check(task.tgid)
        self.tasks[tid] = task
        self._new += 1
        return task

    def _forget_dead(self) -> None:
        """Give back what is kept of tasks and processes that are gone."""
        for tid in [tid for tid, task in self.tasks.items() if not task.lives()]:
            self.tasks.pop(tid).close()
        self.spaces.forget_dead()
        self._new = 0

    def processes(self) -> Iterator[int]:
        """Every process below the supervisor, with or without a call of its own so far."""
        return descendants(os.getpid())

    def _duplicates(self, record: OpenFile) -> Iterator[int]:
        """Duplicates of the descriptors that supervised processes have of a file."""
        if self.current is not None and self.current[2] is record:
            with suppress(UapiError):
                yield self.current[0].duplicate(self.current[1])
        for pid in self.processes():
            with suppress(OSError, TaskGoneError, UapiError):
                for fd in os.listdir(f"/proc/{pid}/fd"):
                    task = self.fresh(pid)
                    if task.record(int(fd)) is record:
                        yield task.duplicate(int(fd))

    def make(self, file: File, path: str, flags: int) -> tuple[OpenFile, int]:
        """A descriptor of ours to hand out (the caller closes it), and its record. `flags` are those of open(2)."""
        record, ours = self.descriptors.make(file, path, flags)
        file.is_mapped = lambda offset, length: self.is_mapped(record, offset, length)
        file.is_held = self.is_held
        return record, ours

    def is_mapped(self, record: OpenFile, offset: int, length: int) -> bool:
        """Whether a supervised process maps any byte of (offset, length) of a file of ours."""
        device, inode = record.inode
        name = f"{os.major(device):02x}:{os.minor(device):02x} {inode} "
        for pid in self.processes():
            with suppress(OSError), open(f"/proc/{pid}/maps") as maps:
                for line in maps:
                    if name in line and _overlaps(line, offset, length):
                        return True
        return False

    def is_held(self, fd: int) -> bool:
        """Whether a supervised process has a descriptor of the eventfd that `fd` is our duplicate of."""
        wanted = _eventfd_id(f"/proc/self/fdinfo/{fd}")
        return any(wanted in _eventfds(pid) for pid in self.processes())

    def mapped_at(self, task: Task, va: int, length: int) -> OpenFile | None:
        """A file of ours that a task maps in (va, length)."""
        if not self.descriptors.by_inode:
            return None
        for line in task.read_proc("maps").splitlines():
            span, _, _, device, inode = line.split(maxsplit=5)[:5]
            first, end = (int(part, 16) for part in span.split(b"-"))
            major, minor = (int(part, 16) for part in device.split(b":"))
            record = self.descriptors.by_inode.get((os.makedev(major, minor), int(inode)))
            if record is not None and first < va + length and va < end:
                return record
        return None

    def _close_tasks(self) -> None:
        for task in self.tasks.values():
            task.close()
        self.tasks.clear()

    def warn_once(self, message: str) -> None:
        """Tell something on standard error, unless it was told before."""
        if message not in self._warned:
            self._warned.add(message)
            print(f"softiommu: {message}", file=sys.stderr)

    def close(self) -> None:
        """Give everything back."""
        self._close_tasks()
        self.spaces.close()
        self.descriptors.close()
        os.close(self.listener.fd)


def _eventfds(pid: int) -> Iterator[str]:
    """Which eventfds a process has."""
    with suppress(OSError):
        for number in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):  # closed meanwhile
                if os.readlink(f"/proc/{pid}/fd/{number}") == EVENTFD_LINK:
                    yield _eventfd_id(f"/proc/{pid}/fdinfo/{number}")


def _eventfd_id(path: str) -> str:
    """The line of an eventfd's fdinfo that says which one it is."""
    with open(path) as lines:
        return next((line for line in lines if line.startswith("eventfd-id:")), "")


def _overlaps(line: str, offset: int, length: int) -> bool:
    span, _, start = line.split()[:3]
    first, end = (int(part, 16) for part in span.split("-"))
    begin = int(start, 16)
    return begin < offset + length and offset < begin + end - first
