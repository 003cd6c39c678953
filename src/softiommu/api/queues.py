"""Fault queues and event queues: what devices tell the program, and its answers."""

from __future__ import annotations

import select
from typing import TYPE_CHECKING, NamedTuple

from softiommu.abi import iommufd as abi

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from softiommu.api.iommufd import Iommufd


class Fault(NamedTuple):
    """An I/O page fault: device object, PASID (None without), group, rights wanted, address; `cookie` to answer by."""

    device_id: int
    pasid: int | None
    group: int
    last: bool
    perm: abi.PgfaultPerm
    addr: int
    cookie: int


class Event(NamedTuple):
    """An event of a vIOMMU; `data` is None where events were lost before the next one."""

    sequence: int
    data: bytes | None


class _Queue:
    """An object with a descriptor. Closing it closes the descriptor and destroys the object."""

    def __init__(self, iommufd: Iommufd, id: int, fd: int) -> None:
        self.iommufd, self.id, self.fd = iommufd, id, fd

    @property
    def ready(self) -> bool:
        """Whether something waits to be read."""
        return bool(self.iommufd.backend.poll(self.fd) & select.POLLIN)

    def close(self) -> None:
        """Close the descriptor and destroy the object. EBUSY while HWPTs use it."""
        self.iommufd.backend.close_fd(self.fd)
        self.iommufd.destroy(self.id)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class FaultQueue(_Queue):
    """The page faults of devices attached to HWPTs made with it."""

    def read(self, room: int = 64) -> list[Fault]:
        """The faults of every complete group that waits, as far as `room` entries go; [] when none waits."""
        size = abi.HwptPgfault.SIZE
        raw = self.iommufd.backend.read(self.fd, room * size)
        return [_fault(abi.HwptPgfault.from_bytes(raw, at)) for at in range(0, len(raw), size)]

    def respond(self, cookie: int, success: bool = True) -> None:
        """Answer a group by its cookie."""
        code = abi.PageResponseCode.SUCCESS if success else abi.PageResponseCode.INVALID
        self.iommufd.backend.write(self.fd, abi.HwptPageResponse(cookie, code).to_bytes())


def _fault(entry: abi.HwptPgfault) -> Fault:
    pasid = entry.pasid if entry.flags & abi.PgfaultFlags.PASID_VALID else None
    last = bool(entry.flags & abi.PgfaultFlags.LAST_PAGE)
    return Fault(entry.dev_id, pasid, entry.grpid, last, abi.PgfaultPerm(entry.perm), entry.addr, entry.cookie)


class EventQueue(_Queue):
    """The events of one type of a vIOMMU. `data_size`: bytes of each event's data."""

    def __init__(self, iommufd: Iommufd, id: int, fd: int, data_size: int) -> None:
        super().__init__(iommufd, id, fd)
        self.data_size = data_size

    def read(self, room: int = 64) -> list[Event]:
        """The events that wait, as far as room for `room` of them goes; [] when none waits."""
        header = abi.VeventHeader.SIZE
        raw = self.iommufd.backend.read(self.fd, room * (header + self.data_size))
        events, at = [], 0
        while at < len(raw):
            head = abi.VeventHeader.from_bytes(raw, at)
            at += header
            if head.flags & abi.VeventqFlag.LOST_EVENTS:
                events.append(Event(head.sequence, None))
                continue
            events.append(Event(head.sequence, raw[at : at + self.data_size]))
            at += self.data_size
        return events
