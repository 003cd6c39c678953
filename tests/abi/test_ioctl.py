"""ioctl numbers: their parts, and what the C library's macros make of the same."""

import pytest
from hypothesis import given, strategies as st

from abi.compiler import answers
from softiommu.abi.ioctl import TYPE, Direction, direction, io, ior, iow, iowr, number, size_of, type_of

ENCODERS = {
    "_IOR": (ior, Direction.READ),
    "_IOW": (iow, Direction.WRITE),
    "_IOWR": (iowr, Direction.READ | Direction.WRITE),
}
BYTE = st.integers(0, 0xFF)
SIZE = st.integers(0, (1 << 14) - 1)


@given(st.sampled_from(sorted(ENCODERS)), BYTE, BYTE, SIZE)
def test_a_number_has_the_parts_it_was_made_of(macro, type, nr, size):
    encode, way = ENCODERS[macro]
    cmd = encode(type, nr, size)
    assert (direction(cmd), size_of(cmd), type_of(cmd), number(cmd)) == (way, size, type, nr)
    assert cmd < 1 << 32


@given(BYTE, BYTE)
def test_a_number_without_data_is_type_and_number_only(type, nr):
    assert io(type, nr) == type * 256 + nr
    assert direction(io(type, nr)) is Direction.NONE


@pytest.mark.parametrize(
    ("type", "nr", "size"), [(0x100, 0, 0), (0, 0x100, 0), (-1, 0, 0), (0, -1, 0), (0, 0, 1 << 14)]
)
def test_a_part_that_is_too_wide_is_refused(type, nr, size):
    with pytest.raises(ValueError, match="no room"):
        iowr(type, nr, size)


def test_the_c_library_makes_the_same_numbers(tmp_path):
    cases = [(nr, size) for nr in (0, 0x64, 0xFF) for size in (1, 8, 4095)]
    calls, expected = [], []
    for macro, (encode, _) in ENCODERS.items():
        for nr, size in cases:
            calls.append(f'"%u\\n", (unsigned int){macro}({TYPE}, {nr}, char[{size}])')
            expected.append(str(encode(TYPE, nr, size)))
    calls.append(f'"%u\\n", (unsigned int)_IO({TYPE}, 0x85)')
    expected.append(str(io(TYPE, 0x85)))
    assert answers(tmp_path, ["#include <sys/ioctl.h>"], calls) == expected
