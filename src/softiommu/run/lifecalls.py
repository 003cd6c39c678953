"""Calls that are let through, and tell us that a process changes: exec, exit, a new root or namespace."""

from __future__ import annotations

from typing import TYPE_CHECKING

from softiommu.errors import UapiError
from softiommu.memory.local import effective_capabilities
from softiommu.run.session import CONTINUE, Handler, Reply, Session
from softiommu.run.syscalls import Nr

if TYPE_CHECKING:
    from softiommu.run.tracee import Task


class LifeCalls:
    """Handlers of calls that change what a process is."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.handlers: dict[int, Handler] = {
            Nr.EXECVE: self.execute,
            Nr.EXECVEAT: self.execute,
            Nr.EXIT_GROUP: self.leave,
            Nr.CAPSET: self.set_capabilities,
            **dict.fromkeys((Nr.CHROOT, Nr.PIVOT_ROOT, Nr.UNSHARE, Nr.SETNS), self.change_root),
        }

    def execute(self, task: Task, args: tuple[int, ...]) -> Reply:
        """A new address space may come."""
        self._session.spaces.executes(task.tgid)
        return CONTINUE

    def leave(self, task: Task, args: tuple[int, ...]) -> Reply:
        """The process ends."""
        return CONTINUE

    def set_capabilities(self, task: Task, args: tuple[int, ...]) -> Reply:
        """A task that asks for the set it has already gives up what it only has towards the machine."""
        try:
            raw = task.read(args[1], 24)
        except UapiError:
            return CONTINUE
        wanted = int.from_bytes(raw[:4], "little") | int.from_bytes(raw[12:16], "little") << 32
        if wanted == effective_capabilities(task.tid):
            self._session.dropped.add(task.tgid)
        return CONTINUE

    def change_root(self, task: Task, args: tuple[int, ...]) -> Reply:
        """From now on paths are looked up from each task's own root."""
        self._session.roots_differ = True
        return CONTINUE
