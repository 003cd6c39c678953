"""The host's physical memory: sparse RAM from address 0, and windows above it that show other memory or devices.

RAM costs nothing until it is touched, whatever its size. All of it lies in one arena of reserved addresses, which
kernels index by physical address; the pages of a file that cannot shrink are mapped into the same arena, where they
belong. Everything else is reached through its backing. A map of 2 MiB chunks tells kernels what they may index.

Access to memory that is not there is an error of the access (BadAddressError), never of the process: a file that may
be cut short is read with pread(2), since a mapping of it would kill us.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from mmap import MADV_DONTNEED
from typing import Any, NamedTuple, Protocol

from softiommu.errors import ModelError
from softiommu.memory import arena

PAGE = 4096
CHUNK_LG2 = 21
CHUNK = 1 << CHUNK_LG2

#: What a chunk of the map is to a kernel: nothing; all of it may be indexed; the owner of the memory knows.
ABSENT, DIRECT, INDIRECT = 0, 1, 2

#: Zeroed by a store rather than by giving the pages back.
_SMALL = 64 << 10

#: Addresses that kernels can index, unless RAM is larger.
REACH = 2 << 40


class BadAddressError(Exception):
    """There is no memory at a physical address."""

    def __init__(self, pa: int, length: int) -> None:
        super().__init__(f"there is no memory at physical address {pa:#x}..{pa + length - 1:#x}")
        self.pa, self.length = pa, length


class Backing(Protocol):
    """What a window shows, by offset. One with an attribute `fd` is a file, whose pages can be mapped."""

    def read(self, offset: int, length: int, /) -> bytes:
        """The bytes at `offset`; OSError (UapiError) when they are gone."""
        ...

    def write(self, offset: int, data: bytes, /) -> None:
        """Store at `offset`; OSError (UapiError) when the memory is gone."""
        ...


class Mmio:
    """A window of a device: each access is one call. A doorbell that cannot be read needs no `read`."""

    def __init__(
        self, write: Callable[[int, bytes], None], read: Callable[[int, int], bytes] = lambda offset, n: bytes(n)
    ) -> None:
        self.read, self.write = read, write


class Window(NamedTuple):
    """Physical addresses that show a backing; `direct` when its pages lie in the arena."""

    pa: int
    length: int
    backing: Backing
    offset: int
    direct: bool


class Space(NamedTuple):
    """Memory as a kernel sees it: 64-bit words by address / 8, and what of it may be indexed (`present`)."""

    words: Any
    present: Any
    #: `present` has an entry for each 2**shift bytes.
    shift: int
    #: Addresses from here on are absent.
    limit: int


class PhysicalMemory:
    """`size` bytes of RAM (a multiple of 4 KiB), and windows anywhere above."""

    def __init__(self, size: int, reach: int = REACH) -> None:
        if size <= 0 or size % PAGE:
            raise ModelError(f"{size:#x} bytes of RAM are no multiple of {PAGE:#x}")
        self.size = size
        self._arena, self._limit = arena.reserve(size, max(reach, -(-size // CHUNK) * CHUNK))
        self._bytes = memoryview(self._arena)
        self._words = self._bytes.cast("Q")
        self._halves = self._bytes.cast("I")
        self._present = bytearray(-(-self._limit // CHUNK))
        whole = size >> CHUNK_LG2
        self._present[:whole] = bytes([DIRECT]) * whole
        if size % CHUNK:
            self._present[whole] = INDIRECT
        self._next = PAGE  # address 0 is given to nobody, so that it can mean "none"
        self._given: dict[int, int] = {}
        self._free: defaultdict[int, list[int]] = defaultdict(list)
        self._starts: list[int] = []
        self._windows: list[Window] = []

    # Giving RAM out

    @property
    def given(self) -> int:
        """Bytes that `alloc` gave and that did not come back."""
        return sum(self._given.values())

    def alloc(self, size: int, align: int = PAGE) -> int:
        """The address of `size` zeroed bytes (whole pages) at a multiple of `align`. MemoryError: RAM is used up."""
        size = -(-size // PAGE) * PAGE
        fitting = self._free[size]
        if fitting and fitting[-1] & align - 1 == 0:
            pa = fitting.pop()
        else:
            pa = -(-self._next // align) * align
            if pa + size > self.size:
                raise MemoryError(f"{size:#x} bytes of {self.size:#x} bytes of RAM are not free")
            self._next = pa + size
        # Also what was never given may have been written: by a device that is not translated.
        if size <= _SMALL:
            self._bytes[pa : pa + size] = bytes(size)
        else:
            self._arena.madvise(MADV_DONTNEED, pa, size)
        self._given[pa] = size
        return pa

    def free(self, pa: int) -> None:
        """Give back what `alloc` gave. The bytes stay until they are given again, as on a machine."""
        size = self._given.pop(pa, None)
        if size is None:
            raise ModelError(f"nothing was given at physical address {pa:#x}")
        self._free[size].append(pa)

    # Windows

    def map_window(self, pa: int, backing: Backing, offset: int, length: int) -> None:
        """Show `length` bytes of `backing` from `offset` at `pa`, which must be above RAM and free."""
        index = bisect_right(self._starts, pa)
        below = self._windows[index - 1] if index else None
        floor = below.pa + below.length if below else self.size
        if pa < floor or length <= 0 or (index < len(self._starts) and pa + length > self._starts[index]):
            raise ModelError(f"a window at {pa:#x}..{pa + length - 1:#x} overlaps other memory")
        fd = getattr(backing, "fd", None)
        inside = pa + length <= self._limit and not (pa | length) % CHUNK
        direct = fd is not None and inside and arena.show(self._arena, pa, length, fd, offset)
        self._starts.insert(index, pa)
        self._windows.insert(index, Window(pa, length, backing, offset, direct))
        self._mark(pa, length, DIRECT if direct else INDIRECT)

    def unmap_window(self, pa: int, length: int) -> None:
        """Take the windows of `pa`..`pa+length` away. ModelError when that would cut one, or there is none."""
        first, end = bisect_left(self._starts, pa), bisect_left(self._starts, pa + length)
        gone = self._windows[first:end]
        cut = first and self._windows[first - 1].pa + self._windows[first - 1].length > pa
        if not gone or cut or gone[-1].pa + gone[-1].length > pa + length:
            raise ModelError(f"{pa:#x}..{pa + length - 1:#x} are not whole windows")
        del self._starts[first:end], self._windows[first:end]
        for window in gone:
            if window.direct:
                arena.hide(self._arena, window.pa, window.length)
            self._mark(window.pa, window.length, ABSENT)
        for window in self._windows[max(first - 1, 0) : first + 1]:
            if not window.direct:  # a neighbour may be in the same chunk
                self._mark(window.pa, window.length, INDIRECT)

    def _mark(self, pa: int, length: int, state: int) -> None:
        first, end = pa // CHUNK, min(-(-(pa + length) // CHUNK), len(self._present))
        if first < end:
            self._present[first:end] = bytes([state]) * (end - first)
        if self.size % CHUNK:
            self._present[self.size >> CHUNK_LG2] = INDIRECT  # a window may follow RAM in its last chunk

    # Access

    def read(self, pa: int, length: int) -> bytes:
        """`length` bytes at `pa`. BadAddressError where there are none."""
        if pa + length <= self.size or self._is_direct(pa, length):
            return self._bytes[pa : pa + length].tobytes()
        return b"".join(self._read(window, at, size) for window, at, size in self._pieces(pa, length))

    def write(self, pa: int, data: bytes | memoryview) -> None:
        """Store `data` at `pa`. BadAddressError where there is no memory; what came before it is stored."""
        length = len(data)
        if pa + length <= self.size or self._is_direct(pa, length):
            self._bytes[pa : pa + length] = data
            return
        for window, at, size in self._pieces(pa, length):
            self._write(window, at, data[at - pa : at - pa + size])

    def chunk(self, pa: int) -> memoryview | None:
        """The bytes of the chunk that `pa` lies in; None unless it lies in the arena."""
        start = pa & -CHUNK
        return self._bytes[start : start + CHUNK] if self._is_direct(start, CHUNK) else None

    def views(self, runs: Sequence[tuple[int, int, int, int]]) -> list[memoryview] | None:
        """The bytes of runs (address, bytes, and what the caller keeps) in place; None unless all lie in the arena."""
        present, memory, views = self._present, self._bytes, []
        for pa, length, _, _ in runs:
            end = pa + length
            if end > self._limit or not present[pa >> CHUNK_LG2] == present[end - 1 >> CHUNK_LG2] == DIRECT:
                return None
            if length > CHUNK and not self._is_direct(pa, length):
                return None
            views.append(memory[pa:end])
        return views

    def _is_direct(self, pa: int, length: int) -> bool:
        """Whether all of it lies in the arena."""
        first, end = pa >> CHUNK_LG2, (pa + length - 1 >> CHUNK_LG2) + 1
        return pa + length <= self._limit and self._present.count(DIRECT, first, end) == end - first

    def read_u32(self, pa: int) -> int:
        """The 32-bit word at `pa`: in one piece when that is a multiple of 4."""
        if pa < self._limit and self._present[pa >> CHUNK_LG2] == DIRECT and not pa & 3:
            return self._halves[pa >> 2]
        return int.from_bytes(self.read(pa, 4), "little")

    def write_u32(self, pa: int, value: int) -> None:
        """Store a 32-bit word at `pa`: in one piece when that is a multiple of 4."""
        if pa < self._limit and self._present[pa >> CHUNK_LG2] == DIRECT and not pa & 3:
            self._halves[pa >> 2] = value
        else:
            self.write(pa, value.to_bytes(4, "little"))

    def read_u64(self, pa: int) -> int:
        """The 64-bit word at `pa`: in one piece when that is a multiple of 8."""
        if pa < self._limit and self._present[pa >> CHUNK_LG2] == DIRECT and not pa & 7:
            return self._words[pa >> 3]
        return int.from_bytes(self.read(pa, 8), "little")

    def write_u64(self, pa: int, value: int) -> None:
        """Store a 64-bit word at `pa`: in one piece when that is a multiple of 8."""
        if pa < self._limit and self._present[pa >> CHUNK_LG2] == DIRECT and not pa & 7:
            self._words[pa >> 3] = value
        else:
            self.write(pa, value.to_bytes(8, "little"))

    def compare_exchange(self, pa: int, old: int, new: int) -> bool:
        """Store `new` if the word at `pa` is `old`: how hardware updates accessed and dirty bits."""
        if self.read_u64(pa) != old:
            return False
        self.write_u64(pa, new)
        return True

    def _pieces(self, pa: int, length: int) -> Iterator[tuple[Window | None, int, int]]:
        """An access cut at the ends of RAM and of windows: (None for RAM, address, bytes)."""
        end = pa + length
        while pa < end:
            window = None if pa < self.size else self._find(pa, end - pa)
            size = min(end, window.pa + window.length if window else self.size) - pa
            yield window, pa, size
            pa += size

    def _find(self, pa: int, length: int) -> Window:
        index = bisect_right(self._starts, pa) - 1
        if index >= 0:
            window = self._windows[index]
            if pa < window.pa + window.length:
                return window
        raise BadAddressError(pa, length)

    def _read(self, window: Window | None, pa: int, length: int) -> bytes:
        if window is None or window.direct:
            return self._bytes[pa : pa + length].tobytes()
        try:
            data = window.backing.read(window.offset + pa - window.pa, length)
        except OSError as error:
            raise BadAddressError(pa, length) from error
        if len(data) != length:
            raise BadAddressError(pa + len(data), length - len(data))
        return data

    def _write(self, window: Window | None, pa: int, data: bytes | memoryview) -> None:
        if window is None or window.direct:
            self._bytes[pa : pa + len(data)] = data
            return
        try:
            window.backing.write(window.offset + pa - window.pa, bytes(data))
        except OSError as error:
            raise BadAddressError(pa, len(data)) from error

    # Kernels

    @cached_property
    def space(self) -> Space:
        """What may be indexed, for kernels that run as plain Python."""
        return Space(self._bytes.cast("q"), memoryview(self._present), CHUNK_LG2, self._limit)

    @cached_property
    def arrays(self) -> Space:
        """What may be indexed, for compiled kernels: NumPy arrays of the same memory."""
        import numpy as np

        words = np.frombuffer(self._bytes, np.int64)
        return Space(words, np.frombuffer(self._present, np.uint8), CHUNK_LG2, self._limit)

    @cached_property
    def anywhere(self) -> Space:
        """All memory, also where a backing must be asked; for plain Python, and slower than `space`."""
        words = _Anywhere(self)
        return Space(words, words.present, 3, 1 << 62)


class _Anywhere:
    """Words of any memory by their number. `present` asks for one before it is taken."""

    def __init__(self, memory: PhysicalMemory) -> None:
        self._memory = memory
        self.present = _Present(memory)

    def __getitem__(self, number: int) -> int:
        word = self._memory.read_u64(number << 3)
        return word - (word >> 63 << 64)

    def __setitem__(self, number: int, word: int) -> None:
        self._memory.write_u64(number << 3, word & (1 << 64) - 1)


class _Present:
    """Whether a word is there, by its number."""

    def __init__(self, memory: PhysicalMemory) -> None:
        self._memory = memory

    def __getitem__(self, number: int) -> int:
        try:
            self._memory.read_u64(number << 3)
        except BadAddressError:
            return ABSENT
        return DIRECT
