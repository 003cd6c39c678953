"""Supervised tasks: who makes a call, and what its descriptors are.

Everything kept of a task is bound to the task itself (an open folder of /proc), never to its number: when the number is
given to another task, the old folder says so and everything is looked up anew.
"""

from __future__ import annotations

import ctypes
import os
import resource
from contextlib import suppress
from errno import EBADF, EMFILE
from typing import TYPE_CHECKING

from softiommu.errors import UapiError
from softiommu.memory.local import effective_capabilities, host_file
from softiommu.memory.process import duplicate
from softiommu.run.copier import TaskCopier
from softiommu.run.descriptors import OpenFile, identity
from softiommu.run.seccomp import TaskGoneError

if TYPE_CHECKING:
    from softiommu.memory.client import Mm
    from softiommu.memory.files import File
    from softiommu.run.session import Session

#: As much of /proc/TID/fdinfo/FD as its first four lines (position, flags, mount, inode) can take.
_FDINFO = 160
_MOST_KNOWN = 64


class Task:
    """A task of a supervised process: the `Caller` of the calls it makes."""

    def __init__(self, session: Session, tid: int) -> None:
        self.session = session
        self.tid = tid
        self.folder = os.open(f"/proc/{tid}", os.O_PATH | os.O_CLOEXEC)
        self.tgid = self._read_tgid()
        #: The notification that the task waits for.
        self.call = 0
        self.memory = TaskCopier(session.copier, tid, self.folder)
        #: copy_from_user and copy_to_user.
        self.read, self.write = self.memory.read, self.memory.write
        #: By descriptor: its open fdinfo, the text of that, and the key of our file. A file that is closed is not held.
        self._known: dict[int, tuple[int, bytes, bytes]] = {}
        self._pidfd = -1

    def _read_tgid(self) -> int:
        for line in self.read_proc("status").splitlines():
            if line.startswith(b"Tgid:"):
                return int(line[5:])
        raise TaskGoneError

    def read_proc(self, name: str) -> bytes:
        """A file of /proc/TID. TaskGoneError."""
        try:
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.folder)
        except OSError as error:
            raise TaskGoneError from error
        with open(fd, "rb") as file:
            return file.read()

    def lives(self) -> bool:
        """Whether it is still there, at least as one that nobody waited for."""
        with suppress(OSError):
            os.stat("comm", dir_fd=self.folder)
            return True
        return False

    def close(self) -> None:
        """Give the descriptors of our own back."""
        self.memory.forget()
        os.close(self.folder)
        if self._pidfd >= 0:
            os.close(self._pidfd)
        self._forget_descriptors()

    def _forget_descriptors(self) -> None:
        for fd, _, _ in self._known.values():
            os.close(fd)
        self._known.clear()

    # What a handler asks of its caller.

    @property
    def name(self) -> str:
        """Command name and number."""
        try:
            comm = self.read_proc("comm").decode(errors="replace").strip()
        except (TaskGoneError, OSError):
            comm = "?"
        return f"{comm}[{self.tid}]"

    @property
    def uid(self) -> int:
        """The real user of the task."""
        return self._users()[0]

    @property
    def euid(self) -> int:
        """The effective user of the task."""
        return self._users()[1]

    def _users(self) -> list[int]:
        for line in self.read_proc("status").splitlines():
            if line.startswith(b"Uid:"):
                return [int(word) for word in line.split()[1:]]
        raise TaskGoneError

    @property
    def mm(self) -> Mm:
        """The task's address space."""
        return self.session.spaces.of(self)

    def capable(self, capability: int) -> bool:
        """Whether the task has the capability now."""
        mask = effective_capabilities(self.tid)
        if not mask >> capability & 1 and self.session.withheld >> capability & 1:
            return self.euid == 0 and self.tgid not in self.session.dropped
        return bool(mask >> capability & 1)

    def file(self, fd: int) -> File:
        """The file behind a descriptor: ours, or a duplicate of the host's. EBADF."""
        record = self.record(fd)
        if record is not None:
            return record.file
        return host_file(self.duplicate(fd))

    def install(self, file: File) -> int:
        """A new close-on-exec descriptor of the task. EMFILE."""
        descriptors = self.session.descriptors
        record, ours = self.session.make(file, f"anon_inode:[{file.kind}]", os.O_RDWR)
        try:
            return self.give(ours, record, cloexec=True, answer=False)
        except (UapiError, TaskGoneError) as error:
            descriptors.forget(record, release=False)
            if isinstance(error, UapiError):
                raise
            raise UapiError(EMFILE, "the task died while its descriptor was made") from error
        finally:
            os.close(ours)

    # What the supervisor asks.

    def record(self, fd: int) -> OpenFile | None:
        """Our open file behind a descriptor; None when it is the host's, or not open."""
        known = self._known.get(fd)
        if known is not None:
            try:
                info, text, key = known
                if os.pread(info, _FDINFO, 0) == text:
                    record = self.session.descriptors.by_key.get(key)
                    if record is not None:
                        return record
            except OSError:
                pass  # closed since: look again
            os.close(self._known.pop(fd)[0])
        return self._look_up(fd)

    def _look_up(self, fd: int) -> OpenFile | None:
        try:
            info = os.open(f"fdinfo/{fd}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.folder)
        except OSError:
            return None
        with suppress(OSError):
            text = os.pread(info, _FDINFO, 0)
            key = identity(text)
            record = self.session.descriptors.by_key.get(key)
            if record is not None:
                if len(self._known) >= _MOST_KNOWN:
                    self._forget_descriptors()
                self._known[fd] = (info, text, key)
                return record
        os.close(info)
        return None

    def duplicate(self, fd: int) -> int:
        """Our own duplicate of the task's descriptor. EBADF."""
        try:
            if self._pidfd < 0:
                self._pidfd = os.pidfd_open(self.tgid)
            return duplicate(self._pidfd, fd)
        except OSError as error:
            raise UapiError(EBADF, f"descriptor {fd} is not open") from error

    def give(self, ours: int, record: OpenFile, cloexec: bool, answer: bool) -> int:
        """Install a descriptor of one of our files where it belongs. EMFILE; TaskGoneError."""
        number = self.free_high_number() if record.trapped else None
        if number is None and record.trapped:
            self.session.warn_once(
                f"{self.name} has no descriptor from {self.session.threshold} up free, so reads and writes of its "
                f"{record.file.kind} cannot be served\nhint: raise the limit of open files (ulimit -n)"
            )
        return self.session.listener.install(self.call, ours, number, cloexec, answer)

    def free_high_number(self, at_least: int = 0) -> int | None:
        """The lowest free number where the filter tells of reads and writes; None when the limit leaves none."""
        try:
            limit = resource.prlimit(self.tgid, resource.RLIMIT_NOFILE)[0]
        except ProcessLookupError as error:
            raise TaskGoneError from error
        for number in range(max(self.session.threshold, at_least), min(limit, 1 << 20)):
            try:
                os.stat(f"fd/{number}", dir_fd=self.folder, follow_symlinks=False)
            except OSError:
                return number
        return None


_libc = ctypes.CDLL(None, use_errno=True)
_KCMP, _KCMP_VM = 312, 1


def same_memory(tid: int, other: int) -> bool:
    """Whether two tasks have one address space (kcmp)."""
    return int(_libc.syscall(_KCMP, tid, other, _KCMP_VM, 0, 0)) == 0
