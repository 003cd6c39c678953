"""Areas: which I/O addresses lead to which pages, and who else reaches them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol

from softiommu.drivers.driver import Prot
from softiommu.memory.client import PAGE_SIZE
from softiommu.memory.pins import Hold, PageSet

if TYPE_CHECKING:
    from softiommu.memory.frames import Run

MAX = 2**64 - 1


class Area:
    """`length` bytes of a page set, from `start` (counted from its first page), at `iova`."""

    __slots__ = ("accesses", "hold", "iova", "last", "locks", "on_revoke", "pages", "prot", "revoked", "start")

    def __init__(self, iova: int, length: int, pages: PageSet, start: int, prot: Prot) -> None:
        self.iova, self.last = iova, iova + length - 1
        self.pages, self.start, self.prot = pages, start, prot
        self.hold: Hold | None = None
        self.accesses = 0
        self.locks = 0
        #: Its dma-buf was taken back: no domain shows it any more.
        self.revoked = False
        self.on_revoke: Callable[[], None] | None = None

    @property
    def length(self) -> int:
        """In bytes."""
        return self.last - self.iova + 1

    def byte(self, iova: int) -> int:
        """The offset in the page set of the byte at `iova`."""
        return self.start + iova - self.iova

    def page(self, iova: int) -> int:
        """The index in the page set of the page at `iova`."""
        return self.byte(iova) // PAGE_SIZE

    def runs(self) -> Iterator[tuple[int, Run]]:
        """The I/O address and the physical run of each piece of the area's pinned pages."""
        iova = self.iova
        for run in self.pages.runs(self.start, self.length):
            yield iova, run
            iova += run.length


class Piece(NamedTuple):
    """Part of an area that a range of I/O addresses meets."""

    area: Area
    first: int
    last: int


class Progress:
    """How many bytes an unmap removed, also when it then raises."""

    bytes = 0


class Elm(NamedTuple):
    """What a new area will show: `length` bytes of `pages` from byte `start`."""

    pages: PageSet
    start: int
    length: int


class Pinner(Protocol):
    """An access: a kernel-side user of an IOAS that needs no domain (iommufd_access)."""

    @property
    def alignment(self) -> int:
        """The alignment it needs of every area: 1, or PAGE_SIZE when it pins."""
        ...

    def unmap(self, iova: int, length: int) -> None:
        """Let go of what it pinned in the range."""
        ...
