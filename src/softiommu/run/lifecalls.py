"""Calls that are let through, and tell us that a process changes: exec, exit, a new root or namespace."""

from __future__ import annotations

from typing import TYPE_CHECKING

from softiommu.errors import UapiError
from softiommu.memory.local import effective_capabilities
from softiommu.run.session import CONTINUE, Handler, Reply, Session
from softiommu.run.syscalls import Nr

if TYPE_CHECKING:
    from softiommu.run.tracee import Task

_MOST_KEPT = 256 << 20


class LifeCalls:
    """Handlers of calls that change what a process is."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.handlers: dict[int, Handler] = {
            Nr.EXECVE: self.execute,
            Nr.EXECVEAT: self.execute,
            Nr.EXIT_GROUP: self.leave,
            Nr.MPROTECT: self.protect,
            Nr.PKEY_MPROTECT: self.protect,
            Nr.CAPSET: self.set_capabilities,
            **dict.fromkeys((Nr.CHROOT, Nr.PIVOT_ROOT, Nr.UNSHARE, Nr.SETNS), self.change_root),
        }

    def execute(self, task: Task, args: tuple[int, ...]) -> Reply:
        """A new address space may come."""
        self._keep_pinned(task)
        self._session.spaces.executes(task.tgid)
        return self.protect(task, args)

    def protect(self, task: Task, args: tuple[int, ...]) -> Reply:
        """Pages may allow less than they did."""
        self._session.forget_permissions()
        return CONTINUE

    def leave(self, task: Task, args: tuple[int, ...]) -> Reply:
        """The process ends."""
        self._keep_pinned(task)
        return CONTINUE

    def _keep_pinned(self, task: Task) -> None:
        """Pinned private pages stay, as the kernel's do, where another process could still use their mappings.

        Not for one killed by a signal, and not beyond a limit.
        """
        mm = self._session.spaces.leaves(task.tgid)
        if mm is None or all(pid == task.tgid for pid in self._session.processes()):
            return
        if not mm.private.keep(_MOST_KEPT):
            self._session.warn_once(
                f"{task.name} leaves more than {_MOST_KEPT >> 20} MiB of pinned private memory: "
                "devices can no longer read it\nhint: use shared memory (memfd) for what outlives its process"
            )

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
