"""Descriptors of our files in supervised processes: making one, knowing one again, and noticing the last close.

A file with pages or without data is a re-opened memfd, so that mmap works natively; inotify tells the last close, of
the last descriptor or mapping. A file that is read and polled (a fault queue) is a socket whose peer is ours: its
readiness is one byte in it, and the peer's hang-up tells the last close. Both are known by the mount and inode numbers
of /proc/TID/fdinfo/FD, read anew at each call (1.1 us): a number that was closed and reused is never taken for ours.
"""

from __future__ import annotations

import ctypes
import os
import select
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from softiommu.memory import shared
from softiommu.memory.files import POLLIN, POLLOUT, File

if TYPE_CHECKING:
    from collections.abc import Callable

    from softiommu.memory.client import Caller

_libc = ctypes.CDLL(None, use_errno=True)
_IN_CLOSE = 0x18
_EVENT = struct.Struct("=iIII")
#: The flags of open(2) that stay with a descriptor's file.
_STATUS_FLAGS = os.O_ACCMODE | os.O_NONBLOCK | os.O_APPEND
#: Where a read or write is EINVAL: the position that a memfd is handed out with, for those that do not come to us.
_LAST_POSITION = 2**63 - 1


class OpenFile:
    """One open file of ours, while any process has it."""

    def __init__(self, file: File, path: str, flags: int) -> None:
        self.file = file
        self.access = flags & os.O_ACCMODE
        #: The path it was opened by, or what /proc/PID/fd shows for it.
        self.path = path
        self.inode = (0, 0)
        self.key = b""
        self.watch = -1
        self.peer: socket.socket | None = None
        self.token = False
        #: False once the last descriptor and mapping are gone.
        self.open = True

    @property
    def trapped(self) -> bool:
        """Whether its reads and writes must come to us, so that its number is in the high range."""
        return self.file.has_data and not self.file.always_empty


def identity(text: bytes) -> bytes:
    """The mount and inode numbers in the text of /proc/PID/fdinfo/FD."""
    start = text.find(b"mnt_id:")
    end = text.find(b"\n", text.find(b"ino:", start))
    return text[start:end]


class Descriptors:
    """All our open files."""

    def __init__(self, find_holder: Callable[[OpenFile], Iterator[int]]) -> None:
        #: Finds duplicates (our own descriptors, to be closed) of a file in the supervised processes.
        self._find_holder = find_holder
        self.by_key: dict[bytes, OpenFile] = {}
        self.by_inode: dict[tuple[int, int], OpenFile] = {}
        self._by_watch: dict[int, OpenFile] = {}
        self._by_peer: dict[int, OpenFile] = {}
        self._watched: dict[int, Callable[[], None]] = {}
        self._inotify = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._inotify < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1: " + os.strerror(ctypes.get_errno()))
        #: Readable when a last close waits to be drained, or a descriptor that a file watches is readable.
        self.closers = select.epoll()
        self.closers.register(self._inotify, select.EPOLLIN)
        self.on_close: list[Callable[[OpenFile], None]] = []
        #: Why accesses of a caller to a mapping without pages cannot be carried out; nothing when they can.
        self.trap_obstacle: Callable[[Caller], str] | None = None

    def make(self, file: File, path: str, flags: int) -> tuple[OpenFile, int]:
        """A descriptor of ours to hand out (the caller closes it), and its record. `flags` are those of open(2)."""
        record = OpenFile(file, path, flags)
        file.watch, file.trap_obstacle = self.watch, self.trap_obstacle
        pages = file.pages_fd()
        if file.has_data and pages is None and not file.always_empty:
            fd = self._make_socket(record, flags)
        else:
            fd = self._make_pages(record, pages, flags)
        stat = os.fstat(fd)
        record.inode = (stat.st_dev, stat.st_ino)
        with open(f"/proc/self/fdinfo/{fd}", "rb") as text:
            record.key = identity(text.read())
        self.by_key[record.key] = record
        self.by_inode[record.inode] = record
        shared.device_pages.add(record.inode)
        return record, fd

    def _make_pages(self, record: OpenFile, pages: int | None, flags: int) -> int:
        own = os.memfd_create(record.file.kind, os.MFD_CLOEXEC) if pages is None else pages
        try:
            fd = os.open(f"/proc/self/fd/{own}", flags & _STATUS_FLAGS | os.O_CLOEXEC)
        finally:
            if pages is None:
                os.close(own)
        if not record.file.always_empty:
            os.lseek(fd, _LAST_POSITION, os.SEEK_SET)
        # The watch comes last: it must not see our own close above.
        record.watch = _libc.inotify_add_watch(self._inotify, f"/proc/self/fd/{fd}".encode(), _IN_CLOSE)
        if record.watch < 0:
            number = ctypes.get_errno()
            os.close(fd)
            raise OSError(number, "inotify_add_watch: " + os.strerror(number))
        self._by_watch[record.watch] = record
        return fd

    def _make_socket(self, record: OpenFile, flags: int) -> int:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        ours.setblocking(False)
        theirs.setblocking(not flags & os.O_NONBLOCK)
        if not record.file.poll() & POLLOUT:
            # A full socket is not ready for writing.
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
            with suppress(BlockingIOError):
                while theirs.send(bytes(4096), socket.MSG_DONTWAIT):
                    pass
        record.peer = ours
        self._by_peer[ours.fileno()] = record
        self.closers.register(ours.fileno(), select.EPOLLRDHUP)
        record.file.on_poll_change = lambda: self.update_token(record)
        self.update_token(record)
        return theirs.detach()

    def update_token(self, record: OpenFile) -> None:
        """Make poll(2) of the program tell what `File.poll` tells."""
        wanted = bool(record.file.poll() & POLLIN)
        if record.peer is None or wanted == record.token:
            return
        if wanted:
            with suppress(OSError):  # the program's end is gone
                record.peer.send(b"!")
            record.token = True
        else:
            self._take_token(record)

    def _take_token(self, record: OpenFile) -> None:
        """Only the program's end can read the byte: borrow a descriptor of it."""
        for fd in self._find_holder(record):
            with socket.socket(fileno=fd) as end, suppress(BlockingIOError):
                end.recv(1, socket.MSG_DONTWAIT)
            record.token = False
            return

    def watch(self, fd: int, call: Callable[[], None]) -> Callable[[], None]:
        """Call back while a descriptor of ours is readable, until what is returned is called: before it is closed."""
        self._watched[fd] = call
        self.closers.register(fd, select.EPOLLIN)

        def end() -> None:
            self.closers.unregister(fd)
            # Whoever is called may hold the descriptor open: with the last word of it, it is closed.
            del self._watched[fd]

        return end

    def drain(self) -> None:
        """Release every file whose last descriptor and mapping are gone; tell files of what they watch."""
        for fd, _ in self.closers.poll(0):
            if fd == self._inotify:
                self._drain_inotify()
            elif fd in self._by_peer:
                self.forget(self._by_peer[fd])
            elif fd in self._watched:
                # One that is not watched any more was ended by what came before it.
                self._watched[fd]()

    def _drain_inotify(self) -> None:
        while True:
            try:
                events = os.read(self._inotify, 1 << 16)
            except BlockingIOError:
                return
            at = 0
            while at < len(events):
                watch, mask, _, size = _EVENT.unpack_from(events, at)
                at += _EVENT.size + size
                record = self._by_watch.get(watch)
                if record is not None and mask & _IN_CLOSE:
                    self.forget(record)

    def forget(self, record: OpenFile, release: bool = True) -> None:
        """Nobody has the file any more: take the record out, and release the file."""
        if self.by_key.pop(record.key, None) is not record:
            return
        record.open = False
        del self.by_inode[record.inode]
        shared.device_pages.discard(record.inode)
        if record.peer is not None:
            del self._by_peer[record.peer.fileno()]
            self.closers.unregister(record.peer.fileno())
            record.peer.close()
            record.file.on_poll_change = None
        elif self._by_watch.pop(record.watch, None) is not None:
            _libc.inotify_rm_watch(self._inotify, record.watch)
        if release:
            record.file.release()
            for told in self.on_close:
                told(record)

    def close(self) -> None:
        """Give the descriptors of our own back."""
        self.closers.close()
        os.close(self._inotify)
