"""The host's physical memory: sparse RAM from address 0, and windows above it that show other memory or registers.

RAM costs nothing until it is touched, whatever its size. Page tables and queues live in it, and kernels index it
directly (`words`). A window is reached through its backing. Access to memory that is not there is an error of the
access (BadAddressError), never of the process.
"""

from __future__ import annotations

import mmap
from bisect import bisect_right
from collections import defaultdict
from typing import TYPE_CHECKING, Protocol

from softiommu.errors import ModelError, UapiError

if TYPE_CHECKING:
    from collections.abc import Callable

PAGE = 4096
_MAP_NORESERVE = 0x4000


class BadAddressError(Exception):
    """There is no memory at a physical address."""

    def __init__(self, pa: int, length: int) -> None:
        super().__init__(f"there is no memory at physical address {pa:#x}..{pa + length - 1:#x}")
        self.pa, self.length = pa, length


class Shown(Protocol):
    """What a window shows, by offset from its start."""

    def read(self, offset: int, length: int) -> bytes:
        """The bytes at `offset`; UapiError when they are gone."""
        ...

    def write(self, offset: int, data: bytes) -> None:
        """Store at `offset`; UapiError when the memory is gone."""
        ...


class Registers:
    """A window of device registers: each access is one call."""

    def __init__(self, read: Callable[[int, int], bytes], write: Callable[[int, bytes], None]) -> None:
        self.read, self.write = read, write


class PhysicalMemory:
    """`ram` bytes of RAM (a multiple of 4 KiB), and windows anywhere above."""

    def __init__(self, ram: int) -> None:
        if ram <= 0 or ram % PAGE:
            raise ModelError(f"{ram:#x} bytes of RAM are no multiple of {PAGE:#x}")
        self.ram = ram
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        self._arena = mmap.mmap(-1, ram, flags=flags)
        #: RAM as 64-bit words, for the walker.
        self.words = memoryview(self._arena).cast("Q")
        self._bytes = memoryview(self._arena)
        self._next = PAGE  # address 0 is given to nobody, so that it can mean "none"
        self._free: defaultdict[int, list[int]] = defaultdict(list)
        self._starts: list[int] = []
        self._windows: list[tuple[int, int, Shown, int]] = []

    # Giving RAM out

    def allocate(self, size: int, align: int = PAGE) -> int:
        """The address of `size` zeroed bytes at a multiple of `align`. BadAddressError: RAM is used up."""
        size = -(-size // PAGE) * PAGE
        if align <= size and self._free[size]:
            pa = self._free[size].pop()
            self._bytes[pa : pa + size] = bytes(size)
            return pa
        pa = -(-self._next // align) * align
        if pa + size > self.ram:
            raise BadAddressError(pa, size)
        self._next = pa + size
        return pa

    def free(self, pa: int, size: int) -> None:
        """Give bytes that `allocate` gave back."""
        self._free[-(-size // PAGE) * PAGE].append(pa)

    # Windows

    def add_window(self, pa: int, length: int, shown: Shown, offset: int = 0) -> None:
        """Show `length` bytes of `shown` from `offset` at `pa`, which must be above RAM and free."""
        index = bisect_right(self._starts, pa)
        below = self._windows[index - 1] if index else (0, self.ram, shown, 0)
        if pa < below[0] + below[1] or (index < len(self._starts) and pa + length > self._starts[index]):
            raise ModelError(f"a window at {pa:#x}..{pa + length - 1:#x} overlaps other memory")
        self._starts.insert(index, pa)
        self._windows.insert(index, (pa, length, shown, offset))

    def remove_window(self, pa: int) -> None:
        """Take the window that starts at `pa` away."""
        index = bisect_right(self._starts, pa) - 1
        if index < 0 or self._starts[index] != pa:
            raise ModelError(f"no window starts at {pa:#x}")
        del self._starts[index], self._windows[index]

    # Access

    def read(self, pa: int, length: int) -> bytes:
        """`length` bytes at `pa`. BadAddressError where there are none."""
        if pa + length <= self.ram:
            return bytes(self._bytes[pa : pa + length])
        parts = []
        while length:
            shown, offset, size = self._window(pa, length)
            try:
                parts.append(shown.read(offset, size))
            except UapiError as error:
                raise BadAddressError(pa, size) from error
            pa, length = pa + size, length - size
        return b"".join(parts)

    def write(self, pa: int, data: bytes) -> None:
        """Store `data` at `pa`. BadAddressError where there is no memory; what came before it is stored."""
        length = len(data)
        if pa + length <= self.ram:
            self._bytes[pa : pa + length] = data
            return
        at = 0
        while at < length:
            shown, offset, size = self._window(pa + at, length - at)
            try:
                shown.write(offset, data[at : at + size])
            except UapiError as error:
                raise BadAddressError(pa + at, size) from error
            at += size

    def _window(self, pa: int, length: int) -> tuple[Shown, int, int]:
        """What `pa` shows, the offset in it, and for how many of `length` bytes that is so."""
        if pa < self.ram:
            raise BadAddressError(pa, length)  # an access across the end of RAM is one error
        index = bisect_right(self._starts, pa) - 1
        if index >= 0:
            start, size, shown, offset = self._windows[index]
            if pa < start + size:
                return shown, offset + pa - start, min(length, start + size - pa)
        raise BadAddressError(pa, length)

    def load(self, pa: int) -> int:
        """The 64-bit word at `pa`, a multiple of 8."""
        if pa < self.ram:
            return self.words[pa >> 3]
        return int.from_bytes(self.read(pa, 8), "little")

    def store(self, pa: int, word: int) -> None:
        """Store a 64-bit word at `pa`, a multiple of 8."""
        if pa < self.ram:
            self.words[pa >> 3] = word
        else:
            self.write(pa, word.to_bytes(8, "little"))

    def exchange(self, pa: int, old: int, new: int) -> bool:
        """Store `new` if the word at `pa` is `old`: how hardware updates accessed and dirty bits."""
        if self.load(pa) != old:
            return False
        self.store(pa, new)
        return True
