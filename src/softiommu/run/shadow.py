"""Real folders that stand for virtual ones.

A folder that only the machine has is shown by a folder of the same shape in a private temporary place: opendir,
fchdir and readdir work on it natively. It is made at the first need, and its files are empty: a file's content comes
when it is opened. Every object in it is known by its inode, so a path through it leads back to the virtual one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Set
from contextlib import suppress

from softiommu.machine.nodes import Entry, Link


class Shadow:
    """The folder tree, and which inode of it stands for which virtual path."""

    def __init__(self, entries: Mapping[str, Entry], folders: Set[str]) -> None:
        self._entries, self._folders = entries, folders
        self._place: str | None = None
        self.paths: dict[tuple[int, int], str] = {}
        #: Folders above them, which the host has: what `..` of a virtual folder leads to.
        self.above = {above for folder in folders for above in _above(folder)} - folders

    def place(self, path: str) -> str:
        """Where the object that stands for a virtual path is; everything is made at the first call."""
        if self._place is None:
            import tempfile

            self._place = tempfile.mkdtemp(prefix="softiommu-")
            self._build(self._place)
        return self._place + path

    def _build(self, place: str) -> None:
        for folder in self._folders:
            os.makedirs(place + folder, exist_ok=True)
        for path, entry in self._entries.items():
            os.makedirs(os.path.dirname(place + path), exist_ok=True)
            if isinstance(entry, Link):
                os.symlink(entry.target, place + path)
            else:
                os.close(os.open(place + path, os.O_CREAT | os.O_WRONLY, 0o444))
        for path in [*self._folders, *self._entries, *self.above]:
            status = os.lstat(place + path)
            self.paths[status.st_dev, status.st_ino] = path

    def close(self) -> None:
        """Take the tree away again."""
        if self._place is not None:
            import shutil

            with suppress(OSError):
                shutil.rmtree(self._place)
            self._place = None
            self.paths.clear()


def _above(path: str) -> Iterator[str]:
    """The folders above a path; the root folder is the empty string."""
    while path:
        path = path.rpartition("/")[0]
        yield path
