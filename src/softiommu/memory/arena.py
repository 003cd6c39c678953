"""Reserved addresses of our own process, in which a physical address is an offset.

What was not given memory reads as zeros there: a kernel that races with the end of a window does not crash.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import mmap
import os

PAGE = 4096
_MAP_NORESERVE, _MAP_FIXED = 0x4000, 0x10
_RESERVED = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
_F_GET_SEALS, _F_SEAL_SHRINK = 1034, 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_FAILED = ctypes.c_void_p(-1).value


def reserve(size: int, reach: int) -> tuple[mmap.mmap, int]:
    """An arena of `reach` bytes, of which the first `size` can be written; as many as we are allowed; how many.

    A process has room for about sixty arenas of 2 TiB. Those of memories that nobody uses any more are given back by
    the garbage collector, which does not know that addresses are short.
    """
    space = _reserved(reach)
    if space is None:
        gc.collect()
        space = _reserved(reach)
    if space is None:  # a limit on our address space: windows are then reached through their backings
        reach = size
        space = mmap.mmap(-1, reach, flags=_RESERVED)
    space.madvise(mmap.MADV_DONTDUMP)
    if reach > size and _libc.mprotect(_address(space) + size, reach - size, mmap.PROT_READ):
        raise OSError(ctypes.get_errno(), "the arena cannot be protected")
    return space, reach


def _reserved(reach: int) -> mmap.mmap | None:
    try:
        return mmap.mmap(-1, reach, flags=_RESERVED)
    except OSError:
        return None


def show(space: mmap.mmap, at: int, length: int, fd: int, offset: int) -> bool:
    """Map `length` bytes of a file at `at`; whether that is possible and can never hurt.

    It is not when the file may become shorter (a touch past its end is SIGBUS), has pages that can run out (hugetlbfs),
    or cannot be written.
    """
    try:
        sealed = fcntl.fcntl(fd, _F_GET_SEALS) & _F_SEAL_SHRINK
        if not sealed or os.fstat(fd).st_size < offset + length or os.fstatvfs(fd).f_bsize != PAGE:
            return False
    except OSError:
        return False
    access = mmap.PROT_READ | mmap.PROT_WRITE
    if _map(space, at, length, access, mmap.MAP_SHARED | _MAP_FIXED, fd, offset):
        return True
    hide(space, at, length)  # a mapping that fails late leaves a hole
    return False


def hide(space: mmap.mmap, at: int, length: int) -> None:
    """Take a mapped file away: the addresses are reserved again."""
    if not _map(space, at, length, mmap.PROT_READ, _RESERVED | _MAP_FIXED, -1, 0):
        raise OSError(ctypes.get_errno(), "the arena cannot be reserved again")


def _map(space: mmap.mmap, at: int, length: int, access: int, flags: int, fd: int, offset: int) -> bool:
    got: int | None = _libc.mmap(_address(space) + at, length, access, flags, fd, offset)
    return got != _FAILED


def _address(space: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(space))
