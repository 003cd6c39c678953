"""Calls that are let through, and tell us that a process changes: exec, exit, a new root or namespace."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
            **dict.fromkeys((Nr.CHROOT, Nr.PIVOT_ROOT, Nr.UNSHARE, Nr.SETNS), self.change_root),
        }

    def execute(self, task: Task, args: tuple[int, ...]) -> Reply:
        """A new address space may come."""
        self._session.spaces.executes(task.tgid)
        return CONTINUE

    def leave(self, task: Task, args: tuple[int, ...]) -> Reply:
        """The process ends."""
        return CONTINUE

    def change_root(self, task: Task, args: tuple[int, ...]) -> Reply:
        """From now on paths are looked up from each task's own root."""
        self._session.roots_differ = True
        return CONTINUE
