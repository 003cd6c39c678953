"""Asynchronous events: what happened, who waits to hear of it, and what is masked. NVM Express 1.4, section 5.2."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

from softiommu.hardware.devices.nvme.commands import EventDword0, EventType, LogPage

#: How many requests may wait (AERL + 1).
LIMIT = 4

_PAGES = {EventType.ERROR: LogPage.ERRORS, EventType.HEALTH: LogPage.HEALTH}


class AsyncEvents:
    """`complete(cid, dword0)` completes a request."""

    def __init__(self, complete: Callable[[int, EventDword0], None]) -> None:
        self._complete = complete
        #: Command ids of the requests that wait.
        self.requests: list[int] = []
        self._pending: list[tuple[EventType, IntEnum]] = []
        self._masked: set[EventType] = set()

    def reset(self) -> None:
        """Nobody waits, and nothing happened."""
        self.requests.clear()
        self._pending.clear()
        self._masked.clear()

    def request(self, cid: int) -> None:
        """The host wants to hear of an event."""
        self.requests.append(cid)

    def happened(self, type: EventType, information: IntEnum) -> None:
        """Keep an event until it can be told. One that waits already is not kept twice."""
        if (type, information) not in self._pending:
            self._pending.append((type, information))

    def clear(self, page: int) -> None:
        """The host has read a log page: events that lead to it may be told again."""
        self._masked = {type for type in self._masked if _PAGES[type] != page}

    def tell(self) -> None:
        """Complete requests with events that are not masked. One event masks those of its type."""
        for event in list(self._pending):
            type, information = event
            if self.requests and type not in self._masked:
                self._pending.remove(event)
                self._masked.add(type)
                word = EventDword0.of(TYPE=type, INFORMATION=information, LOG_PAGE=_PAGES[type])
                self._complete(self.requests.pop(0), word)
