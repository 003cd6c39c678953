"""The program's pages in physical space: what a device writes there, the program sees, page by page."""

import mmap
import os

import pytest

from softiommu.memory.client import PAGE_SIZE
from softiommu.memory.frames import CHUNK, Frames
from softiommu.memory.local import LocalCaller
from softiommu.memory.physical import BadAddressError, PhysicalMemory
from softiommu.memory.shared import SharedMemory
from softiommu.memory.windows import ClientWindows

RAM = 4 << 20


def file(size):
    fd = os.memfd_create("ram")
    os.ftruncate(fd, size)
    return SharedMemory(fd)


@pytest.fixture
def memory():
    return PhysicalMemory(RAM)


@pytest.fixture
def frames(memory):
    return Frames(on_window=ClientWindows(memory))


def test_pages_that_lie_apart_are_each_at_their_own_address(memory, frames):
    backing = file(CHUNK)
    runs = list(frames.runs(backing, 0, 3 * PAGE_SIZE))
    assert len(runs) == 3
    for number, run in enumerate(runs):
        memory.write(run.pa + 5, bytes([number + 1]) * 4)
    seen = os.pread(backing.fd, 3 * PAGE_SIZE, 0)
    assert [seen[n * PAGE_SIZE + 4 : n * PAGE_SIZE + 10] for n in range(3)] == [
        b"\0" + bytes([n + 1]) * 4 + b"\0" for n in range(3)
    ]
    assert memory.read(runs[2].pa, 16) == seen[2 * PAGE_SIZE : 2 * PAGE_SIZE + 16]


def test_an_access_over_two_scattered_pages_goes_to_both(memory, frames):
    backing = file(CHUNK)
    low = min(run.pa for run in frames.runs(backing, 0, 2 * PAGE_SIZE))
    memory.write(low + PAGE_SIZE - 2, b"abcd")
    assert os.pread(backing.fd, 2, 2 * PAGE_SIZE - 2) == b"ab"
    assert os.pread(backing.fd, 2, 0) == b"cd"


def test_large_files_lie_in_one_piece(memory, frames):
    backing = file(1 << 30)
    (run,) = frames.runs(backing, 0, 2 * CHUNK)
    memory.write(run.pa + CHUNK - 2, b"abcd")
    assert os.pread(backing.fd, 4, CHUNK - 2) == b"abcd"


def test_private_memory_of_the_program_is_reached(memory, frames):
    caller = LocalCaller()
    buffer = mmap.mmap(-1, 4 * PAGE_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    import ctypes

    va = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    (extent,) = caller.mm.extents(va, 4 * PAGE_SIZE, True)
    buffer[0:5] = b"hello"
    pa = frames.pa(extent.backing, extent.offset)
    assert memory.read(pa, 5) == b"hello"
    memory.write(pa, b"world")
    assert buffer[0:5] == b"world"


def test_past_the_end_of_a_file_there_is_no_memory(memory, frames):
    backing = file(PAGE_SIZE)
    pa = frames.pa(backing, PAGE_SIZE)
    with pytest.raises(BadAddressError):
        memory.read(pa, 1)


def test_a_chunk_that_is_forgotten_is_gone(memory, frames):
    backing = file(CHUNK)
    pa = frames.pa(backing, 0)
    for number in range(17):
        frames.idle(backing.key if not number else file(CHUNK).key)
    with pytest.raises(BadAddressError):
        memory.read(pa, 1)
