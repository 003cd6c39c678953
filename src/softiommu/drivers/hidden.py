"""Pages of a driver's own that hardware reads through a parent's table: directories of what is nested on the parent.

Where there is a second stage, hardware takes the addresses in such directories for guest-physical. So they need places
among these, which no program can map: a parent that was made for PASIDs keeps the end of its addresses for them. A
device can read them there, and finds where the guest's own tables lie.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EINVAL, ENOMEM
from typing import Protocol

from softiommu.drivers.driver import Prot, Range
from softiommu.errors import UapiError
from softiommu.memory.physical import PAGE, PhysicalMemory

#: How much of a parent's addresses is kept.
KEPT = 1 << 30


class Parent(Protocol):
    """What a second stage offers."""

    @property
    def hidden(self) -> Places | None:
        """The places that it keeps, if it was made for PASIDs."""
        ...

    def map(self, iova: int, pa: int, length: int, prot: Prot) -> None:
        """Fill the table. ENOMEM."""
        ...

    def unmap(self, iova: int, length: int) -> int:
        """Empty it."""
        ...

    def flush(self) -> None:
        """Let the hardware forget what was removed."""
        ...


class Places:
    """Pages of a range of addresses, the lowest free one first."""

    def __init__(self, where: Range) -> None:
        self._next, self._last = where.first, where.last
        self._given_back: list[int] = []

    def take(self) -> int:
        """A free one. ENOMEM: all are used."""
        if self._given_back:
            return self._given_back.pop()
        if self._next > self._last:
            raise UapiError(ENOMEM, "a parent has no place left for directories")
        self._next += PAGE
        return self._next - PAGE

    def give(self, address: int) -> None:
        """One is free again."""
        self._given_back.append(address)


class Pages:
    """Zeroed pages, by the address that the hardware knows them by: a physical one, or one of a parent. EINVAL: the
    parent keeps no places."""

    def __init__(self, memory: PhysicalMemory, parent: Parent | None = None) -> None:
        self._memory, self._parent = memory, parent
        if parent is not None:
            if parent.hidden is None:
                raise UapiError(EINVAL, "a parent without ALLOC_PASID has no place for a directory of PASIDs")
            self._places = parent.hidden
        self._physical: dict[int, int] = {}

    def make(self, what: str) -> int:
        """One more page: its address. ENOMEM."""
        try:
            pa = self._memory.alloc(PAGE)
        except MemoryError as error:
            raise UapiError(ENOMEM, f"no memory for {what}") from error
        try:
            address = self._show(pa)
        except UapiError:
            self._memory.free(pa)
            raise
        self._physical[address] = pa
        return address

    def _show(self, pa: int) -> int:
        if self._parent is None:
            return pa
        address = self._places.take()
        try:
            self._parent.map(address, pa, PAGE, Prot.READ)
        except UapiError:
            self._places.give(address)
            raise
        return address

    def physical(self, address: int) -> int:
        """Where a page lies in memory."""
        return self._physical[address]

    def free(self) -> None:
        """Give all of them back. Nothing leads to them any more."""
        for address, pa in self._physical.items():
            if self._parent is not None:
                self._parent.unmap(address, PAGE)
                self._parent.flush()
                self._places.give(address)
            self._memory.free(pa)
        self._physical.clear()


class Directory:
    """A tree of such pages. `entry(address)` is what leads to a page, `link(entry)` the address in it, or None."""

    def __init__(
        self,
        memory: PhysicalMemory,
        pages: Pages,
        what: str,
        entry: Callable[[int], int],
        link: Callable[[int], int | None],
    ) -> None:
        self._memory, self._pages, self._what, self._entry, self._link = memory, pages, what, entry, link
        #: The address of the first page, as the hardware has it.
        self.root = pages.make(what)

    def place(self, indices: tuple[int, ...], size: int) -> int:
        """Where in memory an entry is, by its index on each level, of `size` bytes on the last; pages are made on the
        way. ENOMEM."""
        *above, last = indices
        address = self.root
        for index in above:
            at = self._pages.physical(address) + 8 * index
            found = self._link(self._memory.read_u64(at))
            if found is None:
                found = self._pages.make(self._what)
                self._memory.write_u64(at, self._entry(found))
            address = found
        return self._pages.physical(address) + size * last

    def free(self) -> None:
        """Give the pages back."""
        self._pages.free()
