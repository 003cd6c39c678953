"""Vector registers are where this processor has them."""

import platform

import pytest

from softiommu.run.trap.xsave import Vectors

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="only x86-64 has such an image")

HEADER = 512
VALUE = int.from_bytes(bytes(range(1, 65)), "little")
#: The largest register that the processor has, by the name of what it needs.
SIZES = {"avx512f": 64, "avx": 32, "sse2": 16}


def size():
    with open("/proc/cpuinfo") as info:
        flags = next(line for line in info if line.startswith("flags")).split()
    return next(size for name, size in SIZES.items() if name in flags)


def test_registers_do_not_overlap_and_are_kept_whole():
    vectors = Vectors(bytearray(1 << 14))
    numbers = range(32 if size() == 64 else 16)
    for number in numbers:
        vectors.set(number, VALUE + number, False)
    assert vectors.changed
    for number in numbers:
        assert vectors.get(number, size()) == VALUE + number & (1 << 8 * size()) - 1
        assert vectors.get(number, 8) == VALUE + number & (1 << 64) - 1


def test_a_store_of_16_bytes_leaves_the_rest_and_a_whole_one_clears_it():
    vectors = Vectors(bytearray(1 << 14))
    vectors.set(3, VALUE, False)
    vectors.set(3, 5, True)
    above = VALUE & (1 << 8 * size()) - (1 << 128)
    assert vectors.get(3, size()) == above | 5
    vectors.set(3, 7, False)
    assert vectors.get(3, size()) == 7


def test_components_are_in_use_once_they_are_set():
    vectors = Vectors(bytearray(1 << 14))
    vectors.get(0, 64)
    assert (vectors.image[HEADER], vectors.changed) == (0, False)
    vectors.set(0, 1, True)
    assert vectors.image[HEADER] == 1 << 1
    vectors.set(1, 1, False)
    assert vectors.image[HEADER] == 1 << 1 | (size() >= 32) << 2 | (size() == 64) << 6
