"""The hostile program's memory: real pages of this process, with nothing mapped between them, and watched."""

from __future__ import annotations

import ctypes
import mmap
from random import Random

from softiommu.errors import ModelError

PAGE = mmap.PAGESIZE
PAGES, FIXED_PAGES = 16, 2
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


class WroteOutside(ModelError):  # noqa: N818  # it says what happened
    """A call changed bytes that it was not given."""


class Arena:
    """PAGES that can be written, a hole, FIXED_PAGES that can be read, a hole; a hole before too."""

    def __init__(self, random: Random) -> None:
        self._size = (PAGES + FIXED_PAGES + 3) * PAGE
        base = _libc.mmap(None, self._size, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        assert base not in (None, ctypes.c_void_p(-1).value), "no memory"
        self._base = int(base)
        self.start = self._base + PAGE
        self.end = self.start + PAGES * PAGE
        self.fixed = self.end + PAGE
        self._protect(self.start, PAGES, mmap.PROT_READ | mmap.PROT_WRITE)
        self._protect(self.fixed, FIXED_PAGES, mmap.PROT_READ | mmap.PROT_WRITE)
        self._view = (ctypes.c_char * (PAGES * PAGE)).from_address(self.start)
        self._view.raw = random.randbytes(PAGES * PAGE)
        ctypes.memmove(self.fixed, random.randbytes(FIXED_PAGES * PAGE), FIXED_PAGES * PAGE)
        self._protect(self.fixed, FIXED_PAGES, mmap.PROT_READ)
        self._seen = self._view.raw
        self._fixed = ctypes.string_at(self.fixed, FIXED_PAGES * PAGE)

    def _protect(self, address: int, pages: int, prot: int) -> None:
        assert _libc.mprotect(address, pages * PAGE, prot) == 0, "mprotect"

    def store(self, address: int, data: bytes) -> None:
        """The program writes; what falls outside the writable pages is left out."""
        if self.start <= address < self.end:
            data = data[: self.end - address]
            at = address - self.start
            ctypes.memmove(address, data, len(data))
            self._seen = self._seen[:at] + data + self._seen[at + len(data) :]

    def load(self, address: int, length: int) -> bytes:
        """What the program reads, as far as its memory reaches."""
        if not self.start <= address < self.end:
            return b""
        return ctypes.string_at(address, min(length, self.end - address))

    def check(self, given: list[tuple[int, int]], anywhere: int = 0) -> None:
        """Only bytes of the (address, length) ranges changed, or at most `anywhere` bytes. WroteOutside."""
        now = self._view.raw
        if ctypes.string_at(self.fixed, FIXED_PAGES * PAGE) != self._fixed:
            raise WroteOutside("a page that cannot be written was written")
        if now == self._seen:
            return
        changed = [at for at in range(len(now)) if now[at] != self._seen[at]]
        self._seen = now
        if len(changed) <= anywhere:
            return
        for at in changed:
            address = self.start + at
            if not any(first <= address < first + length for first, length in given):
                spans = ", ".join(f"{first:#x}+{length:#x}" for first, length in given)
                raise WroteOutside(f"byte {at:#x} of the arena at {self.start:#x} changed; given were {spans}")

    def close(self) -> None:
        """Give the pages back."""
        _libc.munmap(self._base, self._size)
