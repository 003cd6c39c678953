"""stat, access, readlink and their kin on paths and descriptors of the machine. Layouts are x86-64's."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable
from contextlib import suppress
from errno import EACCES, EINVAL, EISDIR, ENODATA, ERANGE
from typing import TYPE_CHECKING, NamedTuple

from softiommu.errors import UapiError
from softiommu.machine.nodes import Link, Node, Text
from softiommu.memory.client import PAGE_SIZE
from softiommu.run.opencalls import read_path, signed
from softiommu.run.paths import ANONYMOUS, AT_FDCWD, Found, Host, Resolver
from softiommu.run.session import CONTINUE, Handler, Reply, Session
from softiommu.run.syscalls import Nr

if TYPE_CHECKING:
    from softiommu.run.tracee import Task

AT_SYMLINK_NOFOLLOW, AT_EMPTY_PATH = 0x100, 0x1000
#: struct stat: dev, ino, nlink, mode, uid, gid, rdev, size, blksize, blocks, three times, unused.
_STAT = struct.Struct("<3Q3I4xQqqq6Q24x")
#: struct statx: mask, blksize, attributes, nlink, uid, gid, mode, ino, size, blocks, attributes mask, four times (of
#: access, birth, change of the inode, change), rdev and dev as major and minor, unused.
_STATX = struct.Struct("<IIQIIIHxxQQQQ" + 4 * "qI4x" + "4I112x")
_STATX_BASIC = 0x7FF
_NS = 1_000_000_000


class Status(NamedTuple):
    """What stat(2) tells of an object of the machine."""

    mode: int
    ino: int
    uid: int
    rdev: int
    size: int
    links: int = 1
    #: What the machine's have none of: group, blocks, and times in ns (of access, change, and change of the inode).
    gid: int = 0
    blocks: int = 0
    times: tuple[int, int, int] = (0, 0, 0)


class StatCalls:
    """Handlers of calls that ask about a path."""

    def __init__(self, session: Session, resolver: Resolver) -> None:
        self._session, self._resolver = session, resolver
        ask = self._ask
        no_follow = AT_SYMLINK_NOFOLLOW
        self.handlers: dict[int, Handler] = {
            Nr.STAT: lambda t, a: ask(t, AT_FDCWD, a[0], 0, lambda f: self._put_stat(t, f, a[1])),
            Nr.LSTAT: lambda t, a: ask(t, AT_FDCWD, a[0], no_follow, lambda f: self._put_stat(t, f, a[1])),
            Nr.FSTAT: lambda t, a: ask(t, a[0], 0, AT_EMPTY_PATH, lambda f: self._put_stat(t, f, a[1])),
            Nr.NEWFSTATAT: lambda t, a: ask(t, a[0], a[1], a[3], lambda f: self._put_stat(t, f, a[2])),
            Nr.STATX: lambda t, a: ask(t, a[0], a[1], a[2], lambda f: self._put_statx(t, f, a[4])),
            Nr.ACCESS: lambda t, a: ask(t, AT_FDCWD, a[0], 0, lambda f: self._access(t, f, a[1])),
            Nr.FACCESSAT: lambda t, a: ask(t, a[0], a[1], 0, lambda f: self._access(t, f, a[2])),
            Nr.FACCESSAT2: lambda t, a: ask(t, a[0], a[1], a[3], lambda f: self._access(t, f, a[2])),
            Nr.READLINK: lambda t, a: self._readlink(t, AT_FDCWD, a[0], a[1:3]),
            Nr.READLINKAT: lambda t, a: self._readlink(t, signed(a[0]), a[1], a[2:4]),
            Nr.GETXATTR: lambda t, a: ask(t, AT_FDCWD, a[0], 0, _no_attribute),
            Nr.LGETXATTR: lambda t, a: ask(t, AT_FDCWD, a[0], no_follow, _no_attribute),
            Nr.LISTXATTR: lambda t, a: ask(t, AT_FDCWD, a[0], 0, lambda f: 0),
            Nr.LLISTXATTR: lambda t, a: ask(t, AT_FDCWD, a[0], no_follow, lambda f: 0),
            Nr.TRUNCATE: lambda t, a: ask(t, AT_FDCWD, a[0], 0, _no_length),
            Nr.GETCWD: self._getcwd,
        }

    def _ask(self, task: Task, at: int, va: int, flags: int, answer: Callable[[Found], int]) -> int | Reply:
        """Find the object and let `answer` tell of it."""
        text = read_path(task, va) if va else None
        if text is not None:
            found = self._resolver.resolve(task, signed(at), text, follow=not flags & AT_SYMLINK_NOFOLLOW)
        elif flags & AT_EMPTY_PATH and (va == 0 or _is_empty(task, va)):
            found = self._opened(task, at)
        else:
            return CONTINUE
        return CONTINUE if found is None else answer(found)

    def _opened(self, task: Task, fd: int) -> Found | None:
        """What a descriptor of ours was opened as."""
        if not self._session.descriptors.by_key or signed(fd) < 0:
            return None
        record = task.record(fd & 0xFFFFFFFF)
        if record is not None and record.path.startswith(ANONYMOUS):
            return Found(record.path, None)
        return None if record is None else self._resolver.tree.find(record.path)

    def _status(self, task: Task, found: Found) -> Status:
        path, entry = found
        if path.startswith(ANONYMOUS):
            # Linux has one inode for all of them, of no type: nobody takes it for a file with a length.
            return Status(stat.S_IRUSR | stat.S_IWUSR, 1, 0, 0, 0)
        if isinstance(entry, Host):
            host = os.lstat(entry.where)
            times = (host.st_atime_ns, host.st_mtime_ns, host.st_ctime_ns)
            owner = (host.st_uid, host.st_rdev, host.st_size, host.st_nlink, host.st_gid, host.st_blocks)
            return Status(host.st_mode, host.st_ino, *owner, times)
        tree = self._resolver.tree
        ino, uid = tree.numbers[path], task.uid
        if isinstance(entry, Node):
            return Status(stat.S_IFCHR | entry.mode, ino, uid, os.makedev(entry.major, entry.minor), 0)
        if isinstance(entry, Link):
            return Status(stat.S_IFLNK | 0o777, ino, uid, 0, len(os.fsencode(entry.target)))
        if entry is None:
            return Status(stat.S_IFDIR | 0o755, ino, uid, 0, 0, links=2)
        return Status(stat.S_IFREG | 0o444, ino, uid, 0, PAGE_SIZE)

    def _device(self, found: Found) -> int:
        """The file system that the object seems to be on: that of the host's folder above it."""
        if isinstance(found.entry, Host):
            return os.lstat(found.entry.where).st_dev
        path = found.path
        while path:
            path = path.rpartition("/")[0]
            with suppress(OSError):
                return os.stat(path or "/").st_dev
        return 0

    def _put_stat(self, task: Task, found: Found, va: int) -> int:
        status = self._status(task, found)
        head = (self._device(found), status.ino, status.links, status.mode, status.uid, status.gid)
        times = [part for time in status.times for part in divmod(time, _NS)]
        task.write(va, _STAT.pack(*head, status.rdev, status.size, PAGE_SIZE, status.blocks, *times))
        return 0

    def _put_statx(self, task: Task, found: Found, va: int) -> int:
        status, device = self._status(task, found), self._device(found)
        head = (_STATX_BASIC, PAGE_SIZE, 0, status.links, status.uid, status.gid)
        accessed, changed, inode_changed = status.times
        times = [part for time in (accessed, 0, inode_changed, changed) for part in divmod(time, _NS)]
        numbers = (os.major(status.rdev), os.minor(status.rdev), os.major(device), os.minor(device))
        about = (status.mode, status.ino, status.size, status.blocks, 0)
        task.write(va, _STATX.pack(*head, *about, *times, *numbers))
        return 0

    def _access(self, task: Task, found: Found, wanted: int) -> int:
        if wanted & ~7:
            raise UapiError(EINVAL, f"access mode {wanted:#x}")
        if isinstance(found.entry, Host):
            if os.access(found.entry.where, wanted):
                return 0
            raise UapiError(EACCES, f"{found.path} of the host does not allow it")
        status = self._status(task, found)
        allowed = status.mode >> 6 & 7
        if status.uid == 0:
            allowed |= os.R_OK | os.W_OK
        if wanted & ~allowed:
            raise UapiError(EACCES, f"{found.path} has mode {status.mode & 0o777:#o}")
        return 0

    def _readlink(self, task: Task, at: int, va: int, buffer: tuple[int, ...]) -> int | Reply:
        text = read_path(task, va)
        if text is None:
            return CONTINUE
        behind = self._behind_link(task, at, text) if "/fd/" in text or at != AT_FDCWD else None
        if behind is not None:
            target = behind
        else:
            found = self._resolver.resolve(task, at, text, follow=False)
            if found is None:
                return CONTINUE
            target = _target(found)
        size = signed(buffer[1])
        if size <= 0:
            raise UapiError(EINVAL, f"a buffer of {size} bytes")
        raw = os.fsencode(target)[:size]
        task.write(buffer[0], raw)
        return len(raw)

    def _behind_link(self, task: Task, at: int, text: str) -> str | None:
        """The virtual path behind a descriptor's link in /proc."""
        where = self._resolver.where(task, at, text)
        with suppress(OSError, ValueError):
            link = os.lstat(where)
            if stat.S_ISLNK(link.st_mode) and link.st_dev == os.stat("/proc").st_dev:
                behind = os.stat(where)
                return self._resolver.path_of((behind.st_dev, behind.st_ino))
        return None

    def _getcwd(self, task: Task, args: tuple[int, ...]) -> int | Reply:
        """In a folder that stands for a virtual one, the virtual one's name."""
        paths = self._resolver.shadow.paths
        if not paths:
            return CONTINUE
        with suppress(OSError):
            cwd = os.stat(f"/proc/{task.tid}/cwd")
            path = paths.get((cwd.st_dev, cwd.st_ino))
            if path is not None:
                raw = os.fsencode(path or "/") + b"\0"
                if len(raw) > args[1]:
                    raise UapiError(ERANGE, f"the path needs {len(raw)} bytes")
                task.write(args[0], raw)
                return len(raw)
        return CONTINUE


def _target(found: Found) -> str:
    """Where a symbolic link leads. EINVAL: it is none."""
    if isinstance(found.entry, Link):
        return found.entry.target
    if isinstance(found.entry, Host):
        with suppress(OSError):
            return os.readlink(found.entry.where)
    raise UapiError(EINVAL, f"{found.path} is no symbolic link")


def _is_empty(task: Task, va: int) -> bool:
    try:
        return task.read(va, 1) == b"\0"
    except UapiError:
        return False


def _no_length(found: Found) -> int:
    """truncate(2): nothing of the machine can be cut or extended."""
    if isinstance(found.entry, Host):
        raise UapiError(EACCES, f"{found.path} is a file of the host, on a way that only leads there to read")
    if found.entry is None and not found.path.startswith(ANONYMOUS):
        raise UapiError(EISDIR, f"{found.path} is a folder")
    if isinstance(found.entry, Text):
        raise UapiError(EACCES, f"{found.path} can only be read")
    raise UapiError(EINVAL, f"{found.path} has no length")


def _no_attribute(found: Found) -> int:
    raise UapiError(ENODATA, f"{found.path} has no extended attributes")
