"""A small machine of test doubles: files that answer a few calls and remember what was asked of them."""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Callable, Mapping
from errno import EINVAL, EPERM
from pathlib import Path

from softiommu.errors import UapiError
from softiommu.machine.nodes import Entry, Link, Node, Text
from softiommu.memory.client import Caller
from softiommu.memory.files import POLLIN, POLLOUT, File, MmapRequest
from softiommu.run.log import CallLog
from softiommu.run.supervisor import RunOptions, run

COUNT, ECHO, REFUSE, NEW_QUEUE, CRASH, WHO = 0x3B80, 0x3B81, 0x3B82, 0x3B83, 0x3B84, 0x3B85
PIN, UNPIN, PEEK, POKE, QUEUE, FILE_OF, MAPPED, ALIVE = range(0x3B86, 0x3B8E)


class Events:
    """Counts of what happened, printed at the end."""

    def __init__(self) -> None:
        self.opened = self.released = self.ioctls = 0


class Counter(File):
    """Answers the commands above; COUNT returns how often this file was called."""

    kind = "iommufd"

    def __init__(self, events: Events, extents: list[object]) -> None:
        super().__init__()
        self.events = events
        self.calls = 0
        self.extents = extents
        self.queue: Queue | None = None
        self._pages = os.memfd_create("pages", os.MFD_CLOEXEC)
        os.ftruncate(self._pages, 8192)
        os.pwrite(self._pages, b"second page", 4096)
        events.opened += 1

    def ioctl(self, caller: Caller, cmd: int, arg: int) -> int:
        """One of the commands."""
        self.events.ioctls += 1
        self.calls += 1
        if cmd == COUNT:
            return self.calls
        if cmd == ECHO:
            # A u32 that comes back as its successor.
            caller.write(arg, struct.pack("<I", struct.unpack("<I", caller.read(arg, 4))[0] + 1))
            return 0
        if cmd == REFUSE:
            raise UapiError(EPERM, "the double refuses")
        if cmd == NEW_QUEUE:
            self.queue = Queue(self.events)
            try:
                return caller.install(self.queue)
            except UapiError:
                self.queue.release()
                raise
        if cmd == CRASH:
            raise RuntimeError("the double crashes")
        return self._more(caller, cmd, arg)

    def _more(self, caller: Caller, cmd: int, arg: int) -> int:
        if cmd == WHO:
            caller.write(arg, f"{caller.name} {caller.uid} {caller.capable(14)}".encode().ljust(64, b"\0"))
            return 0
        if cmd == QUEUE:
            # Put a message in the queue that NEW_QUEUE made.
            assert self.queue is not None
            self.queue.put(caller.read(arg, 8))
            return 0
        if cmd == FILE_OF:
            file = caller.file(arg)
            return {"iommufd": 1, "queue": 2, "host file": 3}[file.kind]
        if cmd == MAPPED:
            return int(self.is_mapped(4096, 4096))
        if cmd == ALIVE:
            return self.events.opened - self.events.released
        va, length = struct.unpack("<QQ", caller.read(arg, 16))
        if cmd == PIN:
            self.extents[:] = caller.mm.extents(va, length, write=True)
            caller.mm.set_locked(3, 2)
            return len(self.extents)
        return self._memory(caller, cmd, va, length)

    def _memory(self, caller: Caller, cmd: int, va: int, length: int) -> int:
        if not self.extents:
            raise UapiError(EINVAL, "nothing is pinned, or no such command")
        first = self.extents[0]
        if cmd == UNPIN:
            caller.mm.set_locked(0, 0)
        elif cmd == PEEK:
            # Bytes of the pinned memory into a buffer of the caller.
            caller.write(va, first.backing.read(first.offset, length))  # type: ignore[attr-defined]  # an Extent
        elif cmd == POKE:
            first.backing.write(first.offset, caller.read(va, length))  # type: ignore[attr-defined]  # an Extent
        else:
            raise UapiError(EINVAL, "no such command")
        return 0

    def mmap(self, caller: Caller, request: MmapRequest) -> None:
        """The second page, shared."""
        if not request.flags & 1:
            raise UapiError(EINVAL, "shared only")
        if (request.offset, request.length) != (4096, 4096):
            raise UapiError(EINVAL, "only the second page")

    def pages_fd(self) -> int:
        """Two pages."""
        return self._pages

    def release(self) -> None:
        """Remember it."""
        self.events.released += 1
        os.close(self._pages)


class Queue(File):
    """Messages of 8 bytes: read takes one, write puts one."""

    kind = "queue"
    has_data = True

    def __init__(self, events: Events) -> None:
        super().__init__()
        self.events = events
        self.messages: list[bytes] = []
        events.opened += 1

    def put(self, message: bytes) -> None:
        """One more."""
        self.messages.append(message)
        self.poll_changed()

    def read(self, caller: Caller, va: int, count: int, offset: int | None = None) -> int:
        """One message, or 0 when none waits."""
        if count < 8:
            raise UapiError(EINVAL, "too short")
        if not self.messages:
            return 0
        caller.write(va, self.messages.pop(0))
        self.poll_changed()
        return 8

    def write(self, caller: Caller, va: int, count: int, offset: int | None = None) -> int:
        """Put messages."""
        self.put(caller.read(va, 8) if offset is None else struct.pack("<Q", offset))
        return 8

    def poll(self) -> int:
        """IN while a message waits."""
        return POLLOUT | (POLLIN if self.messages else 0)

    def release(self) -> None:
        """Remember it."""
        self.events.released += 1


class Empty(Queue):
    """A queue that nothing is ever put in."""

    always_empty = True


class Bar(Queue):
    """A device whose memory at 1 TiB can be mapped, and is read and written in words."""

    def __init__(self, events: Events) -> None:
        super().__init__(events)
        self._pages = os.memfd_create("bar", os.MFD_CLOEXEC)
        os.ftruncate(self._pages, (1 << 40) + 4096)

    def read(self, caller: Caller, va: int, count: int, offset: int | None = None) -> int:
        """The memory."""
        data = os.pread(self._pages, count, offset or 0)
        caller.write(va, data)
        return len(data)

    def write(self, caller: Caller, va: int, count: int, offset: int | None = None) -> int:
        """The memory, where the device sees it."""
        return os.pwrite(self._pages, caller.read(va, count), offset or 0)

    def mmap(self, caller: Caller, request: MmapRequest) -> None:
        """The memory."""
        if request.offset != 1 << 40:
            raise UapiError(EINVAL, "nothing there")

    def pages_fd(self) -> int:
        """A sparse file."""
        return self._pages

    def release(self) -> None:
        """Give the file back."""
        super().release()
        os.close(self._pages)


class Machine:
    """A world with an iommufd, a device with sysfs around it, and links."""

    def __init__(self, events: Events) -> None:
        extents: list[object] = []
        self.pollers: dict[object, Callable[[], None]] = {}
        node = Node(10, 120, 0o600, lambda caller, flags: Counter(events, extents))
        device = "/sys/devices/pci0000:fd/0000:fd:05.0"
        self.entries: Mapping[str, Entry] = {
            "/dev/iommu": node,
            "/dev/vfio/devices/vfio7": Node(511, 7, 0o600, lambda caller, flags: Queue(events)),
            "/dev/vfio/devices/vfio8": Node(511, 8, 0o600, lambda caller, flags: Bar(events)),
            "/dev/vfio/devices/vfio9": Node(511, 9, 0o600, lambda caller, flags: Empty(events)),
            f"{device}/vendor": Text(lambda: b"0x1234\n"),
            f"{device}/vfio-dev/vfio7/dev": Text(lambda: b"511:7\n"),
            f"{device}/iommu_group": Link("../../../kernel/iommu_groups/7"),
            "/sys/kernel/iommu_groups/7/devices/0000:fd:05.0": Link("../../../../devices/pci0000:fd/0000:fd:05.0"),
            "/sys/bus/pci/devices/0000:fd:05.0": Link("../../../devices/pci0000:fd/0000:fd:05.0"),
        }

    def share_time(self) -> None:
        """There are no devices with long work."""


def main() -> int:
    """`doubles.py [--log FILE] EVENTS argv...`: run argv, then write the counts to the file EVENTS."""
    arguments = sys.argv[1:]
    log = None
    if arguments[0] == "--log":
        log = CallLog(open(arguments[1], "w"))  # noqa: SIM115 - open until the process ends
        arguments = arguments[2:]
    events = Events()
    try:
        return run(Machine(events), arguments[1:], RunOptions(log=log, die_alike=False))
    finally:
        Path(arguments[0]).write_text(json.dumps(vars(events)))


if __name__ == "__main__":
    sys.exit(main())
