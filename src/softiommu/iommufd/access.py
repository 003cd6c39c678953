"""Accesses: kernel-side users that reach the memory of an IOAS without a device (iommufd_access)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Flag, auto
from errno import EFAULT, EINVAL, ENOENT, EOVERFLOW, EPERM
from typing import NamedTuple

from softiommu.drivers.driver import Prot
from softiommu.errors import UapiError
from softiommu.iommufd.area import MAX, Area, Piece
from softiommu.iommufd.context import Context
from softiommu.iommufd.ioas import Ioas
from softiommu.iommufd.objects import Object
from softiommu.memory.client import PAGE_SIZE, Backing, Extent
from softiommu.memory.pins import DmabufSource, Hold


class Flags(Flag):
    """How an access uses memory."""

    READ = auto()
    WRITE = auto()


class Held(NamedTuple):
    """Pages of one area that an access pinned."""

    area: Area
    hold: Hold
    locked: bool


class Page(NamedTuple):
    """A pinned page: the backing and the offset of its first byte."""

    backing: Backing
    offset: int


class Access(Object):
    """An access. `pins`: it may pin pages, and hears of unmaps through `on_unmap(iova, length)`."""

    kind = "access"
    internal = True

    def __init__(self, ctx: Context, pins: bool, on_unmap: Callable[[int, int], None] | None = None) -> None:
        super().__init__()
        self.ctx, self.pins, self.on_unmap = ctx, pins, on_unmap
        self.ioas: Ioas | None = None
        self._held: dict[tuple[int, int], list[list[Held]]] = {}

    @property
    def alignment(self) -> int:
        """What it needs of every area."""
        return PAGE_SIZE if self.pins else 1

    def unmap(self, iova: int, length: int) -> None:
        """The IOAS unmaps a range: let go of what was pinned there."""
        if self.on_unmap is not None:
            self.on_unmap(iova, length)

    def attach(self, ioas: Ioas) -> None:
        """Reach the memory of `ioas`. EINVAL: attached already; EADDRINUSE: an area is not aligned as it needs."""
        if self.ioas is not None:
            raise UapiError(EINVAL, f"access {self.id} is attached to IOAS {self.ioas.id}")
        self._enter(ioas)
        self.ioas = ioas
        ioas.users += 1

    def replace(self, ioas: Ioas) -> None:
        """Move to another IOAS; pins in the old one are let go."""
        old = self.ioas
        if old is None:
            raise UapiError(ENOENT, f"access {self.id} is not attached")
        if old is ioas:
            return
        self._enter(ioas)
        self.unmap(0, MAX)
        self._leave(old)
        self.ioas = ioas
        ioas.users += 1

    def _enter(self, ioas: Ioas) -> None:
        if ioas.of_parent:
            raise UapiError(EINVAL, f"IOAS {ioas.id} holds addresses of a parent, and no memory")
        ioas.map.add_access(self)

    def detach(self) -> None:
        """Leave the IOAS; pins are let go."""
        if self.ioas is not None:
            self.unmap(0, MAX)
            self._leave(self.ioas)

    def _leave(self, ioas: Ioas) -> None:
        self.ioas = None
        for ranges in list(self._held.values()):
            for held in ranges:
                _release(held)
        self._held.clear()
        ioas.map.remove_access(self)
        ioas.users -= 1

    def close(self) -> None:
        """The owner is done with it."""
        self.detach()

    def destroy(self, ctx: Context) -> None:
        """The owner never attached it, or the file closes."""
        self.detach()

    # Pages

    def pin(self, iova: int, length: int, flags: Flags, lock: bool = False) -> list[Page]:
        """Pin every page of the range. EINVAL: it cannot pin, length 0, or an area is not page aligned; EOVERFLOW;
        ENOENT: a hole; EPERM: the memory forbids the use; EFAULT, ENOMEM from pinning. All or nothing."""
        if not self.pins or not length:
            raise UapiError(EINVAL, "this access cannot pin" if length else "length 0 cannot be pinned")
        pieces = self._pieces(iova, length)
        held: list[Held] = []
        pages: list[Page] = []
        last = iova + length - 1
        try:
            for piece in pieces:
                if piece.area.byte(piece.first) % PAGE_SIZE or (
                    piece.last != last and piece.area.byte(piece.last + 1) % PAGE_SIZE
                ):
                    raise UapiError(EINVAL, f"{piece.first:#x}..{piece.last:#x} is not page aligned in its memory")
                held.append(self._pin_piece(piece, flags, lock))
                pages += _pages(piece)
            if not pieces or pieces[-1].last != last:
                raise UapiError(ENOENT, f"{iova:#x}..{last:#x} is not mapped whole")
        except UapiError:
            _release(held)
            raise
        self._held.setdefault((iova, length), []).append(held)
        return pages

    def _pin_piece(self, piece: Piece, flags: Flags, lock: bool) -> Held:
        area = piece.area
        if isinstance(area.pages.source, DmabufSource):
            raise UapiError(EINVAL, "the pages of a dma-buf cannot be pinned by the CPU")
        _check_prot(area, Flags.WRITE in flags)
        hold = area.pages.hold(area.page(piece.first), area.page(piece.last))
        area.accesses += 1
        area.locks += lock
        return Held(area, hold, lock)

    def unpin(self, iova: int, length: int) -> None:
        """Let one earlier `pin` of exactly this range go."""
        ranges = self._held[iova, length]
        _release(ranges.pop())
        if not ranges:
            del self._held[iova, length]

    def pin_contiguous(self, iova: int, length: int, flags: Flags) -> int:
        """Pin and lock memory that must lie together; its physical address. EFAULT when it does not."""
        pages = self.pin(iova, length, flags, lock=True)
        frames = self.ctx.physical.frames
        base = frames.pa(*pages[0])
        for index, page in enumerate(pages):
            if frames.pa(*page) != base + index * PAGE_SIZE:
                self.unpin(iova, length)
                raise UapiError(EFAULT, f"{iova:#x}..{iova + length - 1:#x} is not physically contiguous")
        return base

    # Bytes

    def read(self, iova: int, length: int) -> bytes:
        """The bytes of a range; errors as `write`."""
        parts = [extent.backing.read(extent.offset, extent.length) for extent in self._extents(iova, length, False)]
        return b"".join(parts)

    def write(self, iova: int, data: bytes) -> None:
        """Store bytes. EINVAL: none; ENOENT: a hole (what is before it was stored); EPERM: mapped without WRITE."""
        at = 0
        for extent in self._extents(iova, len(data), True):
            extent.backing.write(extent.offset, data[at : at + extent.length])
            at += extent.length

    def _extents(self, iova: int, length: int, write: bool) -> Iterator[Extent]:
        if not length:
            raise UapiError(EINVAL, "length 0 cannot be read or written")
        done = iova
        for piece in self._pieces(iova, length):
            pages = piece.area.pages
            _check_prot(piece.area, write)
            if isinstance(pages.source, DmabufSource):
                raise UapiError(EINVAL, "a dma-buf cannot be read or written by the CPU")
            yield from pages.extents(piece.area.byte(piece.first), piece.last - piece.first + 1, write)
            done = piece.last + 1
        if done != iova + length:
            raise UapiError(ENOENT, f"iova {done:#x} of {iova:#x}..{iova + length - 1:#x} is not mapped")

    def _pieces(self, iova: int, length: int) -> list[Piece]:
        last = iova + length - 1
        if last > MAX:
            raise UapiError(EOVERFLOW, f"iova {iova:#x} + length {length:#x} wraps")
        if self.ioas is None:
            raise UapiError(ENOENT, f"access {self.id} is not attached")
        return list(self.ioas.map.pieces(iova, last))


def _check_prot(area: Area, write: bool) -> None:
    """EPERM: the area was mapped without what the access needs."""
    if (Prot.WRITE if write else Prot.READ) not in area.prot:
        raise UapiError(EPERM, f"the area {area.iova:#x}..{area.last:#x} cannot be {'written' if write else 'read'}")


def _pages(piece: Piece) -> list[Page]:
    first, last = piece.area.page(piece.first), piece.area.page(piece.last)
    extents = piece.area.pages.extents(first * PAGE_SIZE, (last - first + 1) * PAGE_SIZE, False)
    return [Page(e.backing, e.offset + n) for e in extents for n in range(0, e.length, PAGE_SIZE)]


def _release(held: list[Held]) -> None:
    for area, hold, locked in held:
        area.pages.release(hold)
        area.accesses -= 1
        area.locks -= locked
