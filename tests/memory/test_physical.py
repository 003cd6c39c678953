"""Physical memory: sparse RAM, windows, and accesses to what is not there."""

import pytest

from softiommu.errors import ModelError, UapiError
from softiommu.memory.physical import BadAddressError, PhysicalMemory, Registers


class Bytes:
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


def test_a_terabyte_costs_nothing_until_it_is_touched():
    memory = PhysicalMemory(1 << 40)
    memory.store((1 << 40) - 8, 7)
    assert memory.load((1 << 40) - 8) == 7
    assert memory.read((1 << 39) + 3, 5) == bytes(5)


def test_allocated_memory_is_zero_aligned_and_given_again():
    memory = PhysicalMemory(1 << 20)
    first = memory.allocate(4096)
    assert first
    memory.write(first, b"x" * 4096)
    memory.free(first, 4096)
    again = memory.allocate(100)
    assert (again, memory.read(again, 4096)) == (first, bytes(4096))
    assert memory.allocate(0x4000, 0x4000) % 0x4000 == 0


def test_memory_runs_out_with_an_error():
    memory = PhysicalMemory(0x4000)
    memory.allocate(0x3000)
    with pytest.raises(BadAddressError):
        memory.allocate(0x1000)


def test_an_access_outside_is_an_error_of_the_access():
    memory = PhysicalMemory(0x4000)
    for pa, length in ((0x4000, 1), (0x3FFF, 2), (1 << 60, 8)):
        with pytest.raises(BadAddressError, match="no memory at physical address"):
            memory.read(pa, length)
        with pytest.raises(BadAddressError):
            memory.write(pa, bytes(length))


def test_windows_show_other_memory_and_join():
    memory = PhysicalMemory(0x4000)
    low, high = Bytes(0x1000), Bytes(0x2000)
    memory.add_window(0x10000, 0x1000, low)
    memory.add_window(0x11000, 0x1000, high, 0x1000)
    memory.write(0x10FFC, b"abcdefgh")
    assert (bytes(low.data[-4:]), bytes(high.data[0x1000:0x1004])) == (b"abcd", b"efgh")
    assert memory.read(0x10FFE, 4) == b"cdef"
    memory.store(0x11008, 0x1122334455667788)
    assert memory.load(0x11008) == 0x1122334455667788
    memory.remove_window(0x10000)
    with pytest.raises(BadAddressError):
        memory.read(0x10000, 1)


def test_a_window_whose_memory_is_gone_fails_the_access():
    memory = PhysicalMemory(0x4000)
    memory.add_window(0x10000, 0x2000, Bytes(0x1000))
    assert memory.read(0x10000, 8) == bytes(8)
    with pytest.raises(BadAddressError):
        memory.read(0x11000, 8)
    with pytest.raises(BadAddressError):
        memory.write(0x11000, b"x")


def test_registers_see_each_access():
    memory = PhysicalMemory(0x4000)
    seen = []
    memory.add_window(0xFEE00000, 0x1000, Registers(lambda at, n: bytes(n), lambda at, data: seen.append((at, data))))
    memory.write(0xFEE00010, b"\1\2\3\4")
    assert seen == [(0x10, b"\1\2\3\4")]
    assert memory.read(0xFEE00020, 4) == bytes(4)


def test_overlapping_windows_are_a_bug():
    memory = PhysicalMemory(0x4000)
    memory.add_window(0x10000, 0x1000, Bytes(0x1000))
    for pa in (0x3000, 0xF800, 0x10800):
        with pytest.raises(ModelError):
            memory.add_window(pa, 0x1000, Bytes(0x1000))
    with pytest.raises(ModelError):
        memory.remove_window(0x10800)
    with pytest.raises(ModelError):
        PhysicalMemory(100)


def test_exchange_changes_only_what_it_expects():
    memory = PhysicalMemory(0x4000)
    assert memory.exchange(8, 0, 5)
    assert not memory.exchange(8, 0, 6)
    assert memory.load(8) == 5
