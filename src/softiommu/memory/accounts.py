"""Who pays for pinned pages: the kernel's locked_vm of a user, and VmPin and VmLck of an address space."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from enum import Enum
from errno import ENOMEM
from typing import NamedTuple

from softiommu.errors import UapiError
from softiommu.memory.client import PAGE_SIZE, Mm


class Mode(Enum):
    """Against what RLIMIT_MEMLOCK holds the pages of a mapping. UNCOUNTED: a device's own memory, not even in VmPin."""

    UNCOUNTED = "uncounted"
    NONE = "none"
    USER = "user"
    PROCESS = "process"


class Payer(NamedTuple):
    """The process and the user (where a user is counted at all) that a mapping's pages are charged to."""

    mm: Mm
    uid: int | None


class Accounts:
    """The ledger of one machine."""

    def __init__(self) -> None:
        #: Whether RLIMIT_MEMLOCK is taken to be unlimited, whatever the processes have.
        self.unlimited = False
        self._user: Counter[int | None] = Counter()
        self._pinned: Counter[Hashable] = Counter()
        self._locked: Counter[Hashable] = Counter()

    def charge(self, payer: Payer, pages: int, mode: Mode) -> None:
        """Count `pages` as pinned by `payer`. ENOMEM past RLIMIT_MEMLOCK, with nothing counted. No pages are never too
        many: the kernel asks only when a page set's pins changed."""
        if not pages:
            return
        key = payer.mm.key
        if mode in (Mode.USER, Mode.PROCESS) and not self.unlimited:
            used = self._user[payer.uid] if mode is Mode.USER else self._locked[key]
            limit = payer.mm.memlock_limit() // PAGE_SIZE
            if used + pages > limit:
                whose = f"user {payer.uid}" if mode is Mode.USER else "the process"
                raise UapiError(
                    ENOMEM, f"{pages} more pinned pages of {whose} ({used} now) pass RLIMIT_MEMLOCK ({limit} pages)"
                )
        self._add(payer, pages, mode)

    def uncharge(self, payer: Payer, pages: int, mode: Mode) -> None:
        """Take back an earlier charge of the same mode."""
        self._add(payer, -pages, mode)

    def _add(self, payer: Payer, pages: int, mode: Mode) -> None:
        if mode is Mode.UNCOUNTED:
            return
        key = payer.mm.key
        if mode is Mode.USER:
            self._user[payer.uid] += pages
        elif mode is Mode.PROCESS:
            self._locked[key] += pages
        self._pinned[key] += pages
        payer.mm.set_locked(self._pinned[key], self._locked[key])
        if not self._pinned[key]:
            del self._pinned[key], self._locked[key]

    @property
    def total(self) -> int:
        """Pages pinned now, over all address spaces: 0 when nothing leaked."""
        return self._pinned.total()
