"""Which paths of the program are the machine's: resolution over the host's file system and the virtual entries.

Most paths are the host's, so the question is answered by one stat of the same path seen through the program's eyes.
The component-by-component walk is for names that are virtual as written, and for those that the host lacks.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from errno import ELOOP, ENOENT, ENOTDIR
from typing import TYPE_CHECKING, NamedTuple

from softiommu.errors import UapiError
from softiommu.machine.nodes import Entry, Link, World
from softiommu.run.shadow import Shadow

if TYPE_CHECKING:
    from softiommu.run.session import Session
    from softiommu.run.tracee import Task

AT_FDCWD = -100
#: How the path of a file begins that another file gave.
ANONYMOUS = "anon_inode:"
_MOST_LINKS = 40


class Host(NamedTuple):
    """An object of the host behind a path that the host lacks, such as /dev/vfio/.. : where we see it."""

    where: str


class Found(NamedTuple):
    """A path of the machine: its canonical form, and what is there (None: a folder that the host lacks)."""

    path: str
    entry: Entry | Host | None


class Tree:
    """The virtual paths, and the folders they imply."""

    def __init__(self, world: World) -> None:
        self.entries = dict(world.entries)
        #: Folder -> names in it. The root folder is the empty string.
        self.folders: dict[str, set[str]] = {}
        for path in self.entries:
            while path:
                path, _, name = path.rpartition("/")
                self.folders.setdefault(path, set()).add(name)
        self.numbers = {path: n for n, path in enumerate(sorted([*self.entries, *self.folders]), 1)}
        #: Folders that the host has too, by device and inode number.
        self.mixed: dict[tuple[int, int], str] = {}
        #: Entries that hide one of the host.
        self.hidden: dict[tuple[int, int], str] = {}
        for folder in self.folders:
            with suppress(OSError):
                self.mixed[_inode(os.stat(folder or "/"))] = folder
        for path in self.entries:
            with suppress(OSError):
                self.hidden[_inode(os.lstat(path))] = path
        self.virtual_folders = self.folders.keys() - set(self.mixed.values())

    def find(self, path: str) -> Found | None:
        """What is at a canonical path, if it is the machine's."""
        if path in self.entries:
            return Found(path, self.entries[path])
        return Found(path, None) if path in self.virtual_folders else None


def _inode(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


class Resolver:
    """Answers, for one path of a task: the machine's or the host's."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.tree = Tree(session.world)
        self.shadow = Shadow(self.tree.entries, self.tree.virtual_folders)
        mixed = set(self.tree.mixed.values())
        #: Paths as programs write them most: known without a look at the host.
        self._plainly_host = {folder or "/" for folder in mixed}

    def resolve(self, task: Task, at: int, text: str, follow: bool) -> Found | None:
        """Where `text` leads, from the folder of descriptor `at`. None: the host's matter.

        UapiError: ENOENT, ENOTDIR or ELOOP in a folder of the machine.
        """
        if text in self._plainly_host:
            return None
        if text in self.tree.entries or text in self.tree.virtual_folders:
            return self._walk(task, "", text, follow)
        where = self.where(task, at, text)
        try:
            status = os.stat(where, follow_symlinks=follow)
        except (OSError, ValueError):
            return self._resolve_missing(task, at, text, where, follow)
        return self.by_inode(task, _inode(status))

    def where(self, task: Task, at: int, text: str) -> str:
        """The path by which we see what the task sees as `text`."""
        if not text.startswith("/"):
            return f"/proc/{task.tid}/cwd/{text}" if at == AT_FDCWD else f"/proc/{task.tid}/fd/{at}/{text}"
        if text.startswith("/proc/self/"):
            text = f"/proc/{task.tgid}/{text[11:]}"
        elif text.startswith("/proc/thread-self/"):
            text = f"/proc/{task.tgid}/task/{task.tid}/{text[18:]}"
        return f"/proc/{task.tid}/root{text}" if self._session.roots_differ else text

    def by_inode(self, task: Task, inode: tuple[int, int]) -> Found | None:
        """An existing object of the host that stands for one of the machine: a descriptor, a shadow, a hidden entry."""
        path = self.path_of(inode)
        if path is None:
            return None
        if path.startswith(ANONYMOUS):
            return Found(path, None)
        return self.tree.find(path) or (self._on_host(task, path) if path in self.shadow.above else None)

    def path_of(self, inode: tuple[int, int]) -> str | None:
        """The virtual path of an object of the host that stands for it."""
        record = self._session.descriptors.by_inode.get(inode)
        if record is not None:
            return record.path
        path = self.shadow.paths.get(inode)
        return self.tree.hidden.get(inode) if path is None else path

    def _resolve_missing(self, task: Task, at: int, text: str, where: str, follow: bool) -> Found | None:
        """The host lacks the path: is it in a folder that both have, or behind a dangling link?"""
        if self._session.roots_differ:
            return self._walk(task, self.base(task, at, text), text, follow)
        parent, _, name = where.rstrip("/").rpartition("/")
        try:
            inode = _inode(os.stat(parent or "/"))
        except (OSError, ValueError):
            return self._walk(task, self.base(task, at, text), text, follow)
        folder = self.tree.mixed.get(inode)
        if folder is None:
            folder = self.shadow.paths.get(inode)
        if folder is not None:
            return self._walk(task, folder, name + "/" * where.endswith("/"), follow)
        try:
            os.readlink(where)
        except (OSError, ValueError):
            return None
        return self._walk(task, self.base(task, at, text), text, follow)

    def base(self, task: Task, at: int, text: str) -> str:
        """The folder that a relative path starts from, as the program sees it."""
        if text.startswith("/"):
            return ""
        link = f"/proc/{task.tid}/cwd" if at == AT_FDCWD else f"/proc/{task.tid}/fd/{at}"
        try:
            inode, path = _inode(os.stat(link)), os.readlink(link)
        except OSError:
            return ""
        return self.shadow.paths.get(inode, path).rstrip("/")

    def _walk(self, task: Task, base: str, text: str, follow: bool) -> Found | None:
        walk = _Walk(self.tree, task, f"/proc/{task.tid}/root" if self._session.roots_differ else "")
        walk.current = "" if text.startswith("/") else base
        # What the host has where the walk ended, it does not find by the text itself: it lacks a part of the way.
        return walk.run(text, follow) or self._on_host(task, walk.current)

    def _on_host(self, task: Task, path: str) -> Found | None:
        """What the host has at a canonical path. We look with our own rights: other users see folders of both only."""
        where = (f"/proc/{task.tid}/root" if self._session.roots_differ else "") + (path or "/")
        if not os.path.lexists(where) or (path not in self.tree.mixed.values() and task.euid != os.geteuid()):
            return None
        return Found(path, Host(where))


class _Walk:
    """One path resolution, component by component."""

    def __init__(self, tree: Tree, task: Task, root: str) -> None:
        self._tree, self._task, self._root = tree, task, root
        self.current = ""
        self._links = 0
        self._waiting: list[str] = []

    def run(self, text: str, follow: bool) -> Found | None:
        """Walk `text` from the current folder."""
        self._waiting = _components(text)
        must_be_folder = text.rpartition("/")[2] in ("", ".")
        while self._waiting:
            part = self._waiting.pop()
            if part == "..":
                self.current = self.current.rpartition("/")[0]
                continue
            child = f"{self.current}/{part}"
            target = self._link(child, part, follow or bool(self._waiting) or must_be_folder)
            if target is not None:
                self._follow(target)
                continue
            entry = self._tree.entries.get(child)
            if entry is not None:
                if self._waiting or must_be_folder:
                    raise UapiError(ENOTDIR, f"{child} is no folder")
                return Found(child, entry)
            if child not in self._tree.folders and self.current in self._tree.virtual_folders:
                raise UapiError(ENOENT, f"{self.current} has no {part}")
            self.current = child
        return self._tree.find(self.current)

    def _link(self, child: str, part: str, follow: bool) -> str | None:
        """The target of a symbolic link that is to be followed."""
        entry = self._tree.entries.get(child)
        if isinstance(entry, Link):
            return entry.target if follow else None
        if entry is not None or not follow or child in self._tree.folders:
            return None
        if self.current == "/proc" and part == "self":
            return str(self._task.tgid)
        if self.current == "/proc" and part == "thread-self":
            return f"{self._task.tgid}/task/{self._task.tid}"
        with suppress(OSError, ValueError):
            if stat.S_ISLNK(os.lstat(self._root + child).st_mode):
                return os.readlink(self._root + child)
        return None

    def _follow(self, target: str) -> None:
        self._links += 1
        if self._links > _MOST_LINKS:
            raise UapiError(ELOOP, f"more than {_MOST_LINKS} symbolic links")
        if target.startswith("/"):
            self.current = ""
        self._waiting += _components(target)


def _components(text: str) -> list[str]:
    """The names in a path, last first."""
    return [part for part in reversed(text.split("/")) if part not in ("", ".")]


def children(tree: Tree, folder: str) -> Iterator[tuple[str, Entry | None]]:
    """Names in a folder, with their entries (None for folders), in order."""
    for name in sorted(tree.folders[folder]):
        yield name, tree.entries.get(f"{folder}/{name}")
