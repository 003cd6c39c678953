"""The client's memory as the recordings describe it: buffers at 2 MiB boundaries, argument pages, watched bytes."""

import ctypes
import mmap
import os

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

PAGE = 4096
BIG = 2 << 20
NONE, READ, WRITE, EXEC = 0, 1, 2, 4
SHARED, PRIVATE, FIXED, ANONYMOUS, NORESERVE = 1, 2, 0x10, 0x20, 0x4000


def map_at(address, length, prot, flags, fd=-1, offset=0):
    """mmap(2): the address, or OSError."""
    got = _libc.mmap(address, length, prot, flags, fd, offset)
    if got is None or got == ctypes.c_void_p(-1).value:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return got


def unmap(address, length):
    """munmap(2)."""
    if _libc.munmap(address, length):
        raise OSError(ctypes.get_errno(), "munmap")


def protect(address, length, letters):
    """mprotect(2) with letters of `rwx`, `-` for none."""
    if _libc.mprotect(address, length, protection(letters)):
        raise OSError(ctypes.get_errno(), "mprotect")


def protection(letters):
    """PROT_* of letters of `rwx`."""
    return sum(bit for letter, bit in (("r", READ), ("w", WRITE), ("x", EXEC)) if letter in letters)


#: Places are given in ascending order: what is empty now must stay so, where a recording has a hole.
_next_place = 0x10000000000


def free_place(size):
    """A 2 MiB-aligned address with `size` bytes and 2 MiB more of nothing behind, which nobody else is given."""
    global _next_place
    place = _next_place
    _next_place += -(-size // BIG) * BIG + BIG
    return place


class Buffer:
    """A named buffer of a recording."""

    def __init__(self, size, kind):
        self.size, self.watched = size, "+w" in kind
        kind = kind.removesuffix("+w")
        self.address = free_place(size)
        pages = -(-size // PAGE) * PAGE
        if kind == "shm":
            fd = os.memfd_create("shm")
            os.ftruncate(fd, pages)
            map_at(self.address, pages, READ | WRITE, SHARED | FIXED, fd)
            os.close(fd)
        elif kind != "hole":
            prot = {"rw": READ | WRITE, "ro": READ, "none": NONE}[kind]
            map_at(self.address, pages, prot, PRIVATE | ANONYMOUS | FIXED)
        self.seen = self.bytes() if self.watched else b""

    def bytes(self, offset=0, length=None):
        """What the program reads there."""
        return ctypes.string_at(self.address + offset, self.size - offset if length is None else length)

    def store(self, offset, data):
        """The program writes there."""
        ctypes.memmove(self.address + offset, data, len(data))


class Argument:
    """The struct of one ioctl, placed as the recording says."""

    def __init__(self, data, place):
        self.length = len(data)
        self.place = place
        self.base = free_place(BIG)
        if place == "z":
            self.address = 0
        elif place == "x":
            self.address = self.base
        else:
            size = -(-max(len(data), 1) // PAGE) * PAGE
            map_at(self.base, size, READ | WRITE, PRIVATE | ANONYMOUS | FIXED)
            self.address = self.base + (size - len(data) if place == "e" else 0)
            ctypes.memmove(self.address, data, len(data))
            if place == "r":
                protect(self.base, size, "r")
            self.size = size

    def finish(self):
        """The bytes after the call; the page is gone then."""
        if self.place in "zx":
            return None
        after = ctypes.string_at(self.address, self.length)
        unmap(self.base, self.size)
        return after


assert mmap.PAGESIZE == PAGE
