"""Archives that a kernel unpacks as its first root: cpio in the form "newc" (Documentation, early-userspace)."""

from __future__ import annotations

import stat
from collections.abc import Iterable

_TRAILER = "TRAILER!!!"


class Archive:
    """Files and folders in the order in which they are added. A file's folders are added before it."""

    def __init__(self) -> None:
        self._out = bytearray()
        self._names: set[str] = set()

    def file(self, name: str, data: bytes, executable: bool = False) -> None:
        """A file of these bytes."""
        self._add(name, stat.S_IFREG | (0o755 if executable else 0o644), data)

    def link(self, name: str, target: str) -> None:
        """A symbolic link."""
        self._add(name, stat.S_IFLNK | 0o777, target.encode())

    def folders(self, names: Iterable[str]) -> None:
        """Empty folders."""
        for name in names:
            self._add(name, stat.S_IFDIR | 0o755, b"")

    def device(self, name: str, major: int, minor: int) -> None:
        """A character device."""
        self._add(name, stat.S_IFCHR | 0o600, b"", major, minor)

    def close(self) -> bytes:
        """The whole archive."""
        self._entry(_TRAILER, 0, b"", 0, 0)
        return bytes(self._out)

    def _add(self, name: str, mode: int, data: bytes, major: int = 0, minor: int = 0) -> None:
        if name in self._names:
            return
        folder = name.rpartition("/")[0]
        if folder:
            self._add(folder, stat.S_IFDIR | 0o755, b"")
        self._names.add(name)
        self._entry(name, mode, data, major, minor)

    def _entry(self, name: str, mode: int, data: bytes, major: int, minor: int) -> None:
        named = name.encode() + b"\0"
        inode = len(self._names)
        fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(named), 0)
        self._out += b"070701" + b"".join(b"%08X" % field for field in fields) + named
        self._pad()
        self._out += data
        self._pad()

    def _pad(self) -> None:
        self._out += bytes(-len(self._out) % 4)
