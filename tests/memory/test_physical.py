"""Physical memory: sparse RAM, what is given out, windows, and accesses to what is not there."""

import os

import pytest
from hypothesis import given, settings, strategies as st

from softiommu.errors import ModelError, UapiError
from softiommu.memory.physical import ABSENT, CHUNK, DIRECT, INDIRECT, REACH, BadAddressError, Mmio, PhysicalMemory
from softiommu.memory.shared import SharedMemory

HIGH = 1 << 40


class Bytes:
    """Memory that can only be asked for."""

    def __init__(self, size):
        self.data = bytearray(size)

    def read(self, offset, length):
        if offset + length > len(self.data):
            raise UapiError(14, "gone")
        return bytes(self.data[offset : offset + length])

    def write(self, offset, data):
        if offset + len(data) > len(self.data):
            raise UapiError(14, "gone")
        self.data[offset : offset + len(data)] = data


def shared(size, seals=0):
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    import fcntl

    fcntl.fcntl(fd, 1033, seals)
    return SharedMemory(fd)


SEAL_SHRINK, SEAL_WRITE = 2, 8


def test_a_terabyte_costs_nothing_until_it_is_touched():
    memory = PhysicalMemory(1 << 40)
    memory.write_u64((1 << 40) - 8, 7)
    assert memory.read_u64((1 << 40) - 8) == 7
    assert memory.read((1 << 39) + 3, 5) == bytes(5)


def test_given_memory_is_zero_aligned_and_given_again():
    memory = PhysicalMemory(1 << 20)
    first = memory.alloc(4096)
    assert first
    memory.write(first, b"x" * 4096)
    memory.free(first)
    again = memory.alloc(100)
    assert (again, memory.read(again, 4096)) == (first, bytes(4096))
    assert memory.alloc(0x4000, 0x4000) % 0x4000 == 0
    assert memory.given == 0x5000


@pytest.mark.parametrize("size", [4096, 1 << 20])
def test_memory_written_before_it_was_given_is_zero(size):
    memory = PhysicalMemory(4 << 20)
    memory.write(0, b"x" * (4 << 20))
    pa = memory.alloc(size)
    assert memory.read(pa, size) == bytes(size)
    assert memory.read(pa + size, 1) == b"x"


def test_memory_that_was_not_given_cannot_come_back():
    memory = PhysicalMemory(1 << 20)
    pa = memory.alloc(4096)
    memory.free(pa)
    with pytest.raises(ModelError, match="nothing was given"):
        memory.free(pa)


def test_memory_runs_out_with_an_error():
    memory = PhysicalMemory(0x4000)
    memory.alloc(0x3000)
    with pytest.raises(MemoryError):
        memory.alloc(0x1000)


@pytest.mark.parametrize("size", [0x4000, CHUNK, CHUNK + 0x1000])
def test_an_access_outside_is_an_error_of_the_access(size):
    memory = PhysicalMemory(size)
    for pa, length in ((size, 1), (size - 1, 2), (1 << 60, 8), (size, 8), (size - 4, 8)):
        with pytest.raises(BadAddressError, match="no memory at physical address"):
            memory.read(pa, length)
        with pytest.raises(BadAddressError):
            memory.write(pa, bytes(length))
    for pa in (size, 1 << 60, size - 4):
        with pytest.raises(BadAddressError):
            memory.read_u64(pa)
        with pytest.raises(BadAddressError):
            memory.write_u64(pa, 0)


@given(st.integers(0, 40), st.binary(min_size=1, max_size=24))
def test_words_and_bytes_are_the_same_memory(pa, data):
    memory = PhysicalMemory(0x1000)
    memory.write(pa, data)
    assert memory.read(pa, len(data)) == data
    for at in range(pa, pa + 8):
        assert memory.read_u64(at) == int.from_bytes(memory.read(at, 8), "little")
        assert memory.read_u32(at) == int.from_bytes(memory.read(at, 4), "little")
    memory.write_u32(pa, 0x89ABCDEF)
    assert memory.read(pa, 4) == bytes.fromhex("efcdab89")


def test_windows_show_other_memory_and_join():
    memory = PhysicalMemory(0x4000)
    low, high = Bytes(0x1000), Bytes(0x2000)
    memory.map_window(0x10000, low, 0, 0x1000)
    memory.map_window(0x11000, high, 0x1000, 0x1000)
    memory.write(0x10FFC, b"abcdefgh")
    assert (bytes(low.data[-4:]), bytes(high.data[0x1000:0x1004])) == (b"abcd", b"efgh")
    assert memory.read(0x10FFE, 4) == b"cdef"
    memory.write_u64(0x11008, 0x1122334455667788)
    assert memory.read_u64(0x11008) == 0x1122334455667788
    memory.unmap_window(0x10000, 0x1000)
    with pytest.raises(BadAddressError):
        memory.read(0x10000, 1)
    assert memory.read(0x11008, 1) == b"\x88"


def test_a_window_may_follow_ram_without_a_gap():
    memory = PhysicalMemory(0x4000)
    memory.map_window(0x4000, Bytes(0x1000), 0, 0x1000)
    memory.write(0x3FFE, b"abcd")
    assert memory.read(0x3FFC, 8) == b"\0\0abcd\0\0"
    memory.unmap_window(0x4000, 0x1000)
    assert memory.read_u32(0x3FFC) == 0x62610000


def test_a_window_whose_memory_is_gone_fails_the_access():
    memory = PhysicalMemory(0x4000)
    memory.map_window(0x10000, Bytes(0x1000), 0, 0x2000)
    assert memory.read(0x10000, 8) == bytes(8)
    with pytest.raises(BadAddressError):
        memory.read(0x11000, 8)
    with pytest.raises(BadAddressError):
        memory.write(0x11000, b"x")


def test_a_device_sees_each_access():
    memory = PhysicalMemory(0x4000)
    seen = []
    memory.map_window(0xFEE00000, Mmio(lambda at, data: seen.append((at, data))), 0, 0x100000)
    memory.write_u32(0xFEE00010, 0x04030201)
    assert seen == [(0x10, b"\1\2\3\4")]
    assert memory.read(0xFEE00020, 4) == bytes(4)


def test_overlapping_windows_are_a_bug():
    memory = PhysicalMemory(0x4000)
    memory.map_window(0x10000, Bytes(0x1000), 0, 0x1000)
    for pa in (0x3000, 0xF800, 0x10800):
        with pytest.raises(ModelError, match="overlaps"):
            memory.map_window(pa, Bytes(0x1000), 0, 0x1000)
    for pa, length in ((0x10800, 0x800), (0x10000, 0x800), (0x10800, 0x1000), (0x20000, 0x1000)):
        with pytest.raises(ModelError, match="not whole windows"):
            memory.unmap_window(pa, length)
    with pytest.raises(ModelError, match="no multiple"):
        PhysicalMemory(100)


def test_compare_exchange_changes_only_what_it_expects():
    memory = PhysicalMemory(0x4000)
    assert memory.compare_exchange(8, 0, 5)
    assert not memory.compare_exchange(8, 0, 6)
    assert memory.read_u64(8) == 5


def test_a_file_that_cannot_shrink_is_indexed_in_place():
    memory = PhysicalMemory(CHUNK)
    file = shared(2 * CHUNK, SEAL_SHRINK)
    memory.map_window(HIGH, file, CHUNK, CHUNK)
    assert memory.space.present[HIGH // CHUNK] == DIRECT
    file.write(CHUNK + 16, b"from the program")
    assert memory.read(HIGH + 16, 16) == b"from the program"
    memory.write_u64(HIGH + 8, 2**64 - 2)
    assert int(memory.arrays.words[HIGH // 8 + 1]) == memory.space.words[HIGH // 8 + 1] == -2
    assert file.read(CHUNK + 8, 8) == b"\xfe" + b"\xff" * 7
    memory.unmap_window(HIGH, CHUNK)
    assert memory.space.present[HIGH // CHUNK] == ABSENT
    assert memory.space.words[HIGH // 8 + 1] == 0, "the arena no longer shows the file"
    with pytest.raises(BadAddressError):
        memory.read_u64(HIGH + 8)
    assert file.read(CHUNK + 8, 1) == b"\xfe"


def test_a_file_cut_short_under_a_window_fails_the_access():
    memory = PhysicalMemory(CHUNK)
    file = shared(CHUNK)
    memory.map_window(HIGH, file, 0, CHUNK)
    assert memory.space.present[HIGH // CHUNK] == INDIRECT
    memory.write(HIGH, b"x" * 8192)
    os.ftruncate(file.fd, 4096)
    assert memory.read(HIGH, 1) == b"x"
    for access in (lambda: memory.read(HIGH + 4096, 8), lambda: memory.write_u64(HIGH + 4096, 1)):
        with pytest.raises(BadAddressError):
            access()
    assert memory.anywhere.present[(HIGH + 4088) >> 3] == DIRECT
    assert memory.anywhere.present[(HIGH + 4096) >> 3] == ABSENT


@pytest.mark.parametrize(("size", "seals"), [(CHUNK - 1, SEAL_SHRINK), (CHUNK, SEAL_SHRINK | SEAL_WRITE)])
def test_a_file_too_short_or_read_only_is_asked_instead(size, seals):
    memory = PhysicalMemory(CHUNK)
    memory.map_window(HIGH, shared(size, seals), 0, CHUNK)
    assert memory.space.present[HIGH // CHUNK] == INDIRECT
    assert memory.space.words[HIGH // 8] == 0
    assert memory.read(HIGH, 4) == bytes(4)
    with pytest.raises(BadAddressError):
        memory.write(HIGH + CHUNK - 2, b"abc")


def test_without_room_for_the_arena_windows_are_asked():
    memory = PhysicalMemory(CHUNK + 0x1000, reach=1 << 60)
    memory.map_window(HIGH, shared(CHUNK, SEAL_SHRINK), 0, CHUNK)
    memory.write_u64(HIGH, 3)
    assert memory.read_u64(HIGH) == 3
    memory.write_u64(CHUNK + 0xFF8, 4)
    assert memory.arrays.present[1] == INDIRECT
    assert memory.anywhere.words[(CHUNK + 0xFF8) >> 3] == 4


def test_windows_past_the_reach_of_kernels_are_asked():
    memory = PhysicalMemory(CHUNK, reach=1 << 30)
    memory.map_window(1 << 50, shared(CHUNK, SEAL_SHRINK), 0, CHUNK)
    memory.write_u64(1 << 50, 3)
    assert memory.read_u64(1 << 50) == 3


@given(st.lists(st.tuples(st.integers(0, 15), st.booleans()), max_size=40))
@settings(max_examples=40)
def test_the_map_of_chunks_says_what_there_is(steps):
    """Windows of half a chunk come and go: a chunk is absent exactly when it has none."""
    memory = PhysicalMemory(CHUNK)
    half, there = CHUNK // 2, set()
    for number, add in steps:
        pa = HIGH + number * half
        if add and number not in there:
            memory.map_window(pa, Bytes(8), 0, half)
            there.add(number)
        elif not add and number in there:
            memory.unmap_window(pa, half)
            there.remove(number)
    for chunk in range(8):
        state = memory.space.present[HIGH // CHUNK + chunk]
        assert state == (INDIRECT if {2 * chunk, 2 * chunk + 1} & there else ABSENT)


def test_memories_that_nobody_uses_make_room_for_new_ones():
    """Each takes 2 TiB of addresses, of which a process has 128."""

    class Owner:
        """What is in a cycle with its memory is freed by the garbage collector alone."""

        def __init__(self):
            self.memory, self.me = PhysicalMemory(4 << 20), self

    assert {Owner().memory.space.limit for _ in range(150)} == {REACH}
