"""Open files: what a descriptor of the program names, ours or the host's.

A file of ours answers the calls that a `struct file` of the kernel would answer. Its owner (a front door) calls
`release` once, when the last descriptor and the last mapping of it are gone.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from errno import EINVAL, EIO, ENODEV, ENOTTY
from typing import TYPE_CHECKING, NamedTuple

from softiommu.errors import UapiError

if TYPE_CHECKING:
    from softiommu.memory.client import Backing, Caller

POLLIN, POLLOUT = 1, 4
#: What /proc/PID/fd shows for an eventfd.
EVENTFD_LINK = "anon_inode:[eventfd]"


class MmapRequest(NamedTuple):
    """The arguments of mmap(2) as the kernel's file operation sees them: `length` is rounded up to pages."""

    length: int
    offset: int
    prot: int
    flags: int


Watch = Callable[[int, Callable[[], None]], Callable[[], None]]


def _unmapped(offset: int, length: int) -> bool:
    return False


def _unheld(fd: int) -> bool:
    return False


class File:
    """An open file. Every method is a file operation; the default is what the kernel answers for a missing one."""

    kind = "file"
    #: Whether a descriptor needs read, write and pread of its own (a fault queue), or only ioctl and mmap (iommufd).
    has_data = False
    #: It will never have data to read: no device can produce any. Such a file needs no watching.
    always_empty = False

    def __init__(self) -> None:
        #: Set by the front door: called when `poll` may answer differently.
        self.on_poll_change: Callable[[], None] | None = None
        #: Set by the front door: whether some process still maps any byte of (offset, length) of `pages_fd`.
        self.is_mapped: Callable[[int, int], bool] = _unmapped
        #: Set by the front door: whether some process still has the eventfd of which `fd` is a duplicate of ours.
        self.is_held: Callable[[int], bool] = _unheld
        #: Set by a front door that can wait: calls back while a descriptor of this process is readable, until the
        #: function that it returns is called.
        self.watch: Watch | None = None
        #: Set by a front door that can carry out accesses to mappings without pages: why it cannot for this caller, or
        #: nothing.
        self.trap_obstacle: Callable[[Caller], str] | None = None

    def ioctl(self, caller: Caller, cmd: int, arg: int) -> int:
        """Answer one ioctl: its return value, or UapiError. `cmd` is 32 bits wide, `arg` 64."""
        raise UapiError(ENOTTY, f"a {self.kind} has no ioctl {cmd:#x}")

    def read(self, caller: Caller, va: int, count: int, offset: int | None = None) -> int:
        """read(2), or pread(2) when `offset` is given, into `va` of the caller: the bytes stored."""
        raise UapiError(EINVAL, f"a {self.kind} cannot be read")

    def write(self, caller: Caller, va: int, count: int, offset: int | None = None) -> int:
        """write(2), or pwrite(2) when `offset` is given, from `va` of the caller: the bytes taken."""
        raise UapiError(EINVAL, f"a {self.kind} cannot be written")

    def poll(self) -> int:
        """The ready events now (POLLIN | POLLOUT). A change calls `on_poll_change`."""
        return POLLIN | POLLOUT

    def mmap(self, caller: Caller, request: MmapRequest) -> None:
        """Check one mmap. When it returns, the front door maps `pages_fd()` at the same offset."""
        raise UapiError(ENODEV, f"a {self.kind} cannot be mapped")

    def pages_fd(self) -> int | None:
        """A descriptor of this process whose pages a mapping of this file shows; None when it cannot be mapped."""
        return None

    def is_trapped(self, offset: int) -> bool:
        """Whether a mapping has no page at a file offset, so that each access comes to `load` or `store`."""
        return False

    def load(self, offset: int, width: int) -> int:
        """A load of 1, 2, 4 or 8 bytes from a mapping. UapiError: it is a bus error."""
        raise UapiError(EIO, f"a {self.kind} has no memory at {offset:#x}")

    def store(self, offset: int, width: int, value: int) -> None:
        """A store of 1, 2, 4 or 8 bytes to a mapping. UapiError: it is a bus error."""
        raise UapiError(EIO, f"a {self.kind} has no memory at {offset:#x}")

    def release(self) -> None:
        """The last descriptor and the last mapping are gone."""

    def poll_changed(self) -> None:
        """Tell the front door that `poll` may answer differently now."""
        if self.on_poll_change is not None:
            self.on_poll_change()


class HostFile(File):
    """A file of the host that the program passed by number: `fd` is our own duplicate, closed with this object."""

    kind = "host file"

    def __init__(self, fd: int, size: Callable[[], int], backing: Callable[[], Backing | None]) -> None:
        super().__init__()
        self.fd = fd
        weakref.finalize(self, os.close, fd)
        #: The file's size in bytes now.
        self.size = size
        #: The file's pages when it is memory (memfd, shmem, hugetlbfs), else None.
        self.backing = backing


class DmabufFile(File):
    """A dma-buf: a device's memory as a file. Its exporter can revoke it; mappings then stop translating for good."""

    kind = "dma-buf"

    def __init__(self, backing: Backing, size: int) -> None:
        super().__init__()
        self.backing = backing
        self.size = size
        self.revoked = False
        #: Called when the exporter takes the buffer back; each removes its mapping from the domains.
        self.on_revoke: list[Callable[[], None]] = []

    def set_revoked(self, revoked: bool) -> None:
        """Take the buffer back, or give it for new mappings again."""
        if revoked and not self.revoked:
            for callback in self.on_revoke:
                callback()
            self.on_revoke = []
        self.revoked = revoked
