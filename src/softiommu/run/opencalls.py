"""open(2) and its kin on paths of the machine."""

from __future__ import annotations

import os
import stat
from errno import EACCES, EAGAIN, EEXIST, EISDIR, ELOOP, ENOTDIR, ENXIO
from typing import TYPE_CHECKING

from softiommu.errors import UapiError
from softiommu.machine.nodes import Link, Node, Text
from softiommu.memory.client import PAGE_SIZE
from softiommu.run.paths import ANONYMOUS, AT_FDCWD, Found, Host, Resolver
from softiommu.run.seccomp import TaskGoneError
from softiommu.run.session import ANSWERED, CONTINUE, Handler, Reply, Session
from softiommu.run.status import StatusPages
from softiommu.run.syscalls import Nr

if TYPE_CHECKING:
    from softiommu.run.tracee import Task

_PATH_MAX = 4096
_NODES = "/dev/"
_FIRST_READ = 256
_OPEN_HOW_SIZE = 24
_RESOLVE_BENEATH, _RESOLVE_IN_ROOT, _RESOLVE_CACHED = 8, 16, 32


def signed(argument: int) -> int:
    """A 32-bit argument with its sign: a descriptor, or AT_FDCWD."""
    return (argument & 0xFFFFFFFF) - ((argument & 0x80000000) << 1)


def read_path(task: Task, va: int) -> str | None:
    """The path at `va`; None where the kernel should answer: a bad pointer, an empty path, one that is too long."""
    raw = b""
    size = min(_FIRST_READ, PAGE_SIZE - va % PAGE_SIZE)
    while len(raw) < _PATH_MAX:
        try:
            part = task.read(va + len(raw), size)
        except UapiError:
            return None
        task.session.reached = True
        end = part.find(0)
        if end >= 0:
            return os.fsdecode(raw + part[:end]) or None
        raw += part
        size = PAGE_SIZE - (va + len(raw)) % PAGE_SIZE
    return None


class OpenCalls:
    """Handlers of calls that open a path."""

    def __init__(self, session: Session, resolver: Resolver) -> None:
        self._session, self._resolver = session, resolver
        self._status = StatusPages(session)
        self.handlers: dict[int, Handler] = {
            Nr.OPENAT: lambda task, args: self._open(task, signed(args[0]), args[1], args[2]),
            Nr.OPEN: lambda task, args: self._open(task, AT_FDCWD, args[0], args[1]),
            Nr.CREAT: lambda task, args: self._open(task, AT_FDCWD, args[0], os.O_CREAT | os.O_WRONLY | os.O_TRUNC),
            Nr.OPENAT2: self._openat2,
        }

    def _openat2(self, task: Task, args: tuple[int, ...]) -> int | Reply:
        if args[3] < _OPEN_HOW_SIZE:
            return CONTINUE
        try:
            how = task.read(args[2], _OPEN_HOW_SIZE)
        except UapiError:
            return CONTINUE
        flags, resolve = int.from_bytes(how[:8], "little"), int.from_bytes(how[16:], "little")
        if resolve & (_RESOLVE_BENEATH | _RESOLVE_IN_ROOT) or flags >> 32:
            return CONTINUE
        return self._open(task, signed(args[0]), args[1], flags, cached=bool(resolve & _RESOLVE_CACHED))

    def _open(self, task: Task, at: int, va: int, flags: int, cached: bool = False) -> int | Reply:
        text = read_path(task, va)
        if text is None:
            return CONTINUE
        status = self._status.content(task, text) if text.endswith("/status") else None
        if status is not None:
            return self._give_bytes(task, status, flags)
        exclusive = flags & os.O_CREAT and flags & os.O_EXCL
        try:
            found = self._resolver.resolve(task, at, text, follow=not (flags & os.O_NOFOLLOW or exclusive))
        except UapiError as error:
            self._tell_missing(task, text, flags, error)
            raise
        if found is None:
            return CONTINUE
        if cached:
            raise UapiError(EAGAIN, "nothing is cached of a virtual path")
        return self._open_found(self._session.fresh(task.tid), found, flags)

    def _tell_missing(self, task: Task, path: str, flags: int, error: UapiError) -> None:
        """A node that the machine does not have. Programs look for files of sysfs that need not be there."""
        log = self._session.log
        if log is not None and path.startswith(_NODES):
            log.call(task.name, "file", "open", {"path": path, "flags": hex(flags)}, error)

    def _open_found(self, task: Task, found: Found, flags: int) -> int | Reply:
        path, entry = found
        if path.startswith(ANONYMOUS):
            raise UapiError(ENXIO, f"{path} cannot be opened, as no anonymous inode can")
        if flags & os.O_CREAT and flags & os.O_EXCL:
            raise UapiError(EEXIST, f"{path} exists")
        if isinstance(entry, Host):
            return self._open_host(task, entry, flags)
        if entry is None:
            if flags & (os.O_ACCMODE | os.O_CREAT) and not flags & os.O_PATH:
                raise UapiError(EISDIR, f"{path} is a folder")
            return self._give_shadow(task, path, flags)
        if flags & os.O_DIRECTORY:
            raise UapiError(ENOTDIR, f"{path} is no folder")
        if isinstance(entry, Link):
            raise UapiError(ELOOP, f"{path} is a symbolic link")
        if flags & os.O_PATH:
            return self._give_shadow(task, path, flags)
        if isinstance(entry, Text):
            if flags & os.O_ACCMODE != os.O_RDONLY:
                raise UapiError(EACCES, f"{path} can only be read")
            return self._give_bytes(task, entry.content(), flags)
        return self._open_node(task, path, entry, flags)

    def _open_host(self, task: Task, entry: Host, flags: int) -> Reply:
        """A folder or a file of the host by a path that leads through the machine's. Others might keep us waiting."""
        kind = stat.S_IFMT(os.lstat(entry.where).st_mode)
        if kind not in (stat.S_IFDIR, stat.S_IFREG):
            return CONTINUE
        try:
            ours = os.open(entry.where, flags & ~(os.O_CREAT | os.O_PATH) | os.O_CLOEXEC)
        except OSError as error:
            raise UapiError(error.errno or EACCES, f"{entry.where} of the host: {error.strerror}") from error
        return self._give(task, ours, flags)

    def _open_node(self, task: Task, path: str, node: Node, flags: int) -> int | Reply:
        log = self._session.log
        if log is None:
            return self._install_node(task, path, node, flags)
        with log.noted(task.name, "file", "open", {"path": path, "flags": hex(flags)}) as note:
            answer = self._install_node(task, path, node, flags)
            note.result = self._session.last_installed
        return answer

    def _install_node(self, task: Task, path: str, node: Node, flags: int) -> Reply:
        file = node.open(task, flags)
        descriptors = self._session.descriptors
        record, ours = self._session.make(file, path, flags)
        try:
            self._session.last_installed = task.give(ours, record, bool(flags & os.O_CLOEXEC), answer=True)
        except (UapiError, TaskGoneError):
            descriptors.forget(record)
            raise
        finally:
            os.close(ours)
        return ANSWERED

    def _give_shadow(self, task: Task, path: str, flags: int) -> Reply:
        """A descriptor of the folder (or O_PATH object) that stands for a virtual one.

        The kernel does not install an O_PATH descriptor for us: a plain one stands for it.
        """
        ours = os.open(self._resolver.shadow.place(path), os.O_RDONLY | os.O_CLOEXEC)
        return self._give(task, ours, flags)

    def _give_bytes(self, task: Task, content: bytes, flags: int) -> Reply:
        """A read-only descriptor of a file with this content."""
        memory = os.memfd_create("softiommu-text", os.MFD_CLOEXEC)
        try:
            os.write(memory, content)
            os.fchmod(memory, 0o444)
            ours = os.open(f"/proc/self/fd/{memory}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(memory)
        return self._give(task, ours, flags)

    def _give(self, task: Task, ours: int, flags: int) -> Reply:
        try:
            self._session.listener.install(task.call, ours, None, bool(flags & os.O_CLOEXEC), answer=True)
        finally:
            os.close(ours)
        return ANSWERED
