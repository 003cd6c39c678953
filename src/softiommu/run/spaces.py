"""Address spaces of supervised processes: which one a process has now.

exec gives a process a new address space, vfork shares one between two. Neither may be mistaken: mappings belong to the
address space they were made from.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from softiommu.memory.process import ProcessMm
from softiommu.run.tracee import same_memory

if TYPE_CHECKING:
    from softiommu.run.tracee import Task

_MOST_SPACES = 64


class _Space:
    """The address space of a process, and what tells it from the one after an exec."""

    def __init__(self, mm: ProcessMm, folder: int, auxv: bytes) -> None:
        self.mm = mm
        self.folder = folder
        self.auxv = auxv
        self.maybe_replaced = False


class AddressSpaces:
    """Process number -> its address space, where a call has needed it."""

    def __init__(self) -> None:
        self._spaces: dict[int, _Space] = {}

    def of(self, task: Task) -> ProcessMm:
        """The address space of a task that waits for its answer."""
        space = self._spaces.get(task.tgid)
        if space is not None and (not space.maybe_replaced or self._same(space, task)):
            space.maybe_replaced = False
            return space.mm
        if space is not None:
            self._drop(task.tgid)
        if len(self._spaces) >= _MOST_SPACES:
            self.forget_dead()
        mm = next((s.mm for pid, s in self._spaces.items() if same_memory(task.tgid, pid)), None)
        folder = os.open(f"/proc/{task.tgid}", os.O_PATH | os.O_CLOEXEC)
        space = _Space(mm or ProcessMm(task.tgid), folder, task.read_proc("auxv"))
        self._spaces[task.tgid] = space
        return space.mm

    def known(self, pid: int) -> ProcessMm | None:
        """The address space of process `pid`, if it made calls that needed it and is the same process still."""
        space = self._spaces.get(pid)
        return space.mm if space is not None and self._lives(space) else None

    def any_pinned(self) -> bool:
        """Whether /proc/PID/status of some process is to be edited."""
        return any(space.mm.pinned or space.mm.locked for space in self._spaces.values())

    def check(self, pid: int) -> None:
        """A new task says it belongs to process `pid`: forget a dead process of that number."""
        space = self._spaces.get(pid)
        if space is not None and not self._lives(space):
            self._drop(pid)

    def executes(self, pid: int) -> None:
        """Process `pid` is about to exec, which may fail."""
        space = self._spaces.get(pid)
        if space is not None:
            space.maybe_replaced = True

    def leaves(self, pid: int) -> ProcessMm | None:
        """The address space that process `pid` is about to leave by exec or exit, where it has pinned pages."""
        space = self._spaces.get(pid)
        return space.mm if space is not None and space.mm.pinned else None

    def close(self) -> None:
        """Give the descriptors of our own back."""
        for pid in list(self._spaces):
            self._drop(pid)

    def forget_dead(self) -> None:
        """Forget processes that are gone. A mapping that still needs the address space of one holds it by itself."""
        for pid in [pid for pid, space in self._spaces.items() if not self._lives(space)]:
            self._drop(pid)

    def _drop(self, pid: int) -> None:
        os.close(self._spaces.pop(pid).folder)

    @staticmethod
    def _lives(space: _Space) -> bool:
        with suppress(OSError):
            os.stat("comm", dir_fd=space.folder)
            return True
        return False

    @staticmethod
    def _same(space: _Space, task: Task) -> bool:
        """Whether the exec failed: the old address space lives on, with the same random bytes given at its exec."""
        return space.mm.private.alive and task.read_proc("auxv") == space.auxv
