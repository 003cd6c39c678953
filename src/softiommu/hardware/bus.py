"""The way of a device's DMA: bus mastering, translation by the IOMMU in front of it, then memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from softiommu.hardware.iommu import Iommu, TranslationFaultError
from softiommu.memory.physical import CHUNK, CHUNK_LG2, BadAddressError
from softiommu.pagetable.kinds import READ, WRITE

if TYPE_CHECKING:
    from softiommu.memory.physical import PhysicalMemory

_PAGE_LG2 = 12
_PAGE = 1 << _PAGE_LG2

#: Fills buffers, or takes what is in them, one after the other.
Transfer = Callable[[Sequence[memoryview]], None]


class DmaError(Exception):
    """A DMA that did not go through: an unsupported request, or one that was aborted. `done` bytes went before it."""

    def __init__(self, iova: int, done: int, why: str) -> None:
        super().__init__(f"DMA at iova {iova:#x}: {why}")
        self.iova, self.done, self.why = iova, done, why


class Port:
    """A function's port to memory. `sid` is what it is known by (its requester id, or its bridge's)."""

    def __init__(self, memory: PhysicalMemory, sid: int, iommu: Iommu | None = None) -> None:
        self._memory, self.sid, self.iommu = memory, sid, iommu
        #: The Command register's Bus Master Enable, kept by the function.
        self.bus_master = False

    def read(self, iova: int, length: int, pasid: int | None = None) -> bytes:
        """The bytes at `iova`. DmaError: some of them cannot be read."""
        if not self.bus_master or not 0 < length <= _PAGE - iova % _PAGE:
            return self.gather([(iova, length)], pasid)
        pa, _, _ = self._leaf(iova, 0, READ, pasid)
        try:
            return self._memory.read(pa, length)
        except BadAddressError as error:
            raise DmaError(iova, 0, str(error)) from error

    def write(self, iova: int, data: bytes, pasid: int | None = None) -> None:
        """Store `data` at `iova`. DmaError: some of it cannot be stored; what comes before it is."""
        if not self.bus_master or not 0 < len(data) <= _PAGE - iova % _PAGE:
            self.scatter([(iova, len(data))], data, pasid)
            return
        pa, _, _ = self._leaf(iova, 0, WRITE, pasid)
        try:
            self._memory.write(pa, data)
        except BadAddressError as error:
            raise DmaError(iova, 0, str(error)) from error

    def gather(self, segments: Sequence[tuple[int, int]], pasid: int | None = None) -> bytes:
        """The bytes of all segments (first address, bytes), one after the other. DmaError."""
        parts = []
        for pa, size, iova, done in self._runs(segments, READ, pasid):
            try:
                parts.append(self._memory.read(pa, size))
            except BadAddressError as error:
                raise DmaError(iova, done, str(error)) from error
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def scatter(self, segments: Sequence[tuple[int, int]], data: bytes, pasid: int | None = None) -> None:
        """Store `data` in segments, one after the other. DmaError; what comes before is stored."""
        view = memoryview(data)
        for pa, size, iova, done in self._runs(segments, WRITE, pasid):
            try:
                self._memory.write(pa, view[done : done + size])
            except BadAddressError as error:
                raise DmaError(iova, done, str(error)) from error

    def fill(self, segments: Sequence[tuple[int, int]], fill: Transfer, pasid: int | None = None) -> None:
        """Let `fill` store into segments: in place where they are memory. DmaError; what comes before is stored."""
        placed = self._in_place(segments, WRITE, pasid)
        if placed is not None:
            views, error = placed
            fill(views)
            if error is not None:
                raise error
            return
        runs: list[tuple[int, int, int, int]] = []
        try:
            runs += self._runs(segments, WRITE, pasid)
        finally:
            self._fill(runs, fill)

    def _fill(self, runs: Sequence[tuple[int, int, int, int]], fill: Transfer) -> None:
        views = self._memory.views(runs)
        if views is not None:
            fill(views)
            return
        data = memoryview(bytearray(sum(size for _, size, _, _ in runs)))
        fill([data])
        for pa, size, iova, done in runs:
            try:
                self._memory.write(pa, data[done : done + size])
            except BadAddressError as error:
                raise DmaError(iova, done, str(error)) from error

    def drain(self, segments: Sequence[tuple[int, int]], take: Transfer, pasid: int | None = None) -> None:
        """Let `take` have the bytes of segments: in place where they are plain memory. DmaError: it gets none."""
        placed = self._in_place(segments, READ, pasid)
        if placed is not None:
            views, error = placed
            if error is not None:
                raise error
            take(views)
            return
        runs = list(self._runs(segments, READ, pasid))
        found = self._memory.views(runs)
        if found is None:
            found = []
            for pa, size, iova, done in runs:
                try:
                    found.append(memoryview(self._memory.read(pa, size)))
                except BadAddressError as bad:
                    raise DmaError(iova, done, str(bad)) from bad
        take(found)

    def _in_place(
        self, segments: Sequence[tuple[int, int]], want: int, pasid: int | None
    ) -> tuple[list[memoryview], DmaError | None] | None:
        """The bytes of segments in place, as far as they can be reached; None unless all that can lie in large leaves
        of memory: the usual case, of pages scattered in RAM. A translation serves all that a transfer has in its leaf.
        """
        self._check_master(segments)
        views: list[memoryview] = []
        chunks: dict[int, memoryview] = {}
        known, add = chunks.get, views.append
        for iova, size in segments:
            end = iova + size
            while True:
                number, at = iova >> CHUNK_LG2, iova & CHUNK - 1
                chunk = known(number)
                if chunk is None:
                    try:
                        chunk = self._chunk(iova, sum(map(len, views)), want, pasid)
                    except DmaError as error:
                        return views, error
                    if chunk is None:
                        return None
                    chunks[number] = chunk
                size = end - iova
                add(chunk[at : at + size])
                if at + size <= CHUNK:
                    break
                iova += CHUNK - at
        return views, None

    def _chunk(self, iova: int, done: int, want: int, pasid: int | None) -> memoryview | None:
        """The chunk of memory that an address lies in; None when its leaf is smaller, or it is no memory. DmaError."""
        pa, first, end = self._leaf(iova, done, want, pasid)
        return self._memory.chunk(pa) if end - first >= CHUNK else None

    def _check_master(self, segments: Sequence[tuple[int, int]]) -> None:
        if not self.bus_master:
            raise DmaError(segments[0][0] if segments else 0, 0, "the function may not master the bus")

    def _runs(
        self, segments: Sequence[tuple[int, int]], want: int, pasid: int | None
    ) -> Iterator[tuple[int, int, int, int]]:
        """Segments cut where translations end, and joined in memory: physical address, bytes, address of the first of
        them, and bytes done before.

        A translation serves what follows in its leaf, as a device asks once for a burst.
        """
        self._check_master(segments)
        first, end, shift = 0, 0, 0
        start = size = origin = done = 0
        for iova, length in segments:
            last = iova + length
            if first <= iova < last <= end and start + size != iova + shift:
                # The usual case of a page of a list.
                yield start, size, origin, done
                start, size, origin, done = iova + shift, length, iova, done + size
                continue
            while iova < last:
                if not first <= iova < end:
                    try:
                        pa, first, end = self._leaf(iova, done + size, want, pasid)
                    except DmaError:
                        if size:
                            yield start, size, origin, done
                        raise
                    shift = pa - iova
                part = min(last, end) - iova
                if size and start + size == iova + shift:
                    size += part
                else:
                    if size:
                        yield start, size, origin, done
                    start, size, origin, done = iova + shift, part, iova, done + size
                iova += part
        if size:
            yield start, size, origin, done

    def reach(self, iova: int, want: int, pasid: int | None = None) -> None:
        """Find out where an access of one byte would go. DmaError: nowhere."""
        self._leaf(iova, 0, want, pasid)

    def _leaf(self, iova: int, done: int, want: int, pasid: int | None) -> tuple[int, int, int]:
        """Where an address goes, and for which addresses that is so: the first, and the one after the last."""
        if iova >> 64:
            raise DmaError(iova, done, "the address is past 2**64")
        if self.iommu is None:
            return iova, 0, 1 << 64
        try:
            pa, lg2, _ = self.iommu.translate(self.sid, iova, want, pasid)
        except TranslationFaultError as fault:
            raise DmaError(iova, done, str(fault)) from fault
        size = 1 << max(lg2, _PAGE_LG2)
        first = iova & -size
        return pa, first, first + size
