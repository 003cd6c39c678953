"""Files that hold the blocks of a machine's drives. Each is one drive's alone, for as long as its machine is there."""

from __future__ import annotations

import fcntl
import gc
import os
import weakref
from errno import EWOULDBLOCK
from typing import TYPE_CHECKING, NamedTuple

from softiommu.errors import ConfigError
from softiommu.hardware.devices.nvme.namespace import FileBacking

if TYPE_CHECKING:
    from softiommu.machine.reading import Table


class Medium(NamedTuple):
    """A file that a description names: its path, from the working directory, and how errors call it."""

    path: str
    shown: str


def read(table: Table) -> Medium | None:
    """The key `file`; None: it is not there, so that the blocks are in memory. ConfigError."""
    path = table.text("file", "")
    return Medium(path, str(table.error("file", f"the file {path}"))) if path else None


def open_file(medium: Medium, least: int, claim: bool) -> FileBacking:
    """The file, of `least` bytes or more. ConfigError: it cannot be opened, is too short, or (`claim`) is another's."""
    try:
        fd = os.open(medium.path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"{medium.shown} cannot be opened: {error.strerror}") from error
    backing = FileBacking(fd)
    weakref.finalize(backing, os.close, fd)
    if backing.size < least:
        raise ConfigError(f"{medium.shown} has {backing.size} bytes: expected {least:#x} or more")
    if claim and not _claimed(fd):
        raise ConfigError(
            f"{medium.shown} is in use by another drive or another softiommu\n"
            "hint: give each drive a file of its own; a file is free again when the machine that has it has ended"
        )
    return backing


def _claimed(fd: int) -> bool:
    """Lock a file for who has this descriptor; False: another has it. Where there are no locks it counts as ours."""
    try:
        return _flock(fd)
    except BlockingIOError:
        # A machine of this process that nobody has any more may still wait for the garbage collector.
        gc.collect()
    try:
        return _flock(fd)
    except BlockingIOError:
        return False


def _flock(fd: int) -> bool:
    """True, or BlockingIOError."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno == EWOULDBLOCK:
            raise
    return True
