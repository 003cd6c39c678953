"""Structs: their bytes, what is refused, and what a C compiler says of the same fields."""

from __future__ import annotations

import struct as c_struct

import pytest
from hypothesis import given, strategies as st

from abi.compiler import answers
from abi.layouts import all_structs
from softiommu.abi.struct import UserStruct, bytes3, bytes16, s32, s64, u8, u16, u32, u64

C_TYPES = {
    "B": "unsigned char",
    "H": "unsigned short",
    "I": "unsigned int",
    "Q": "unsigned long long",
    "i": "int",
    "q": "long long",
}


class Every(UserStruct, last="d"):
    """One field of each kind."""

    a: u8 = 1
    b: bytes3 = b"xyz"
    c: s32 = -1
    d: u16 = 2
    e: u16 = 3
    f: u32 = 4
    g: s64 = -5
    h: u64 = 0x1000
    token: bytes16 = bytes(range(16))


def raw_of(kind):
    return st.binary(min_size=kind.SIZE, max_size=kind.SIZE)


@given(st.sampled_from([Every, *all_structs()]), st.data())
def test_bytes_become_the_same_bytes(kind, data):
    raw = data.draw(raw_of(kind))
    struct = kind.from_bytes(raw)
    assert struct.to_bytes() == raw
    assert kind(**{name: getattr(struct, name) for name in kind.FIELDS}) == struct


@given(st.sampled_from([Every, *all_structs()]), st.data())
def test_a_field_is_the_little_endian_number_or_the_bytes_at_its_offset(kind, data):
    raw = data.draw(raw_of(kind))
    struct = kind.from_bytes(raw)
    for name, (offset, size) in kind.FIELDS.items():
        part, code = raw[offset : offset + size], kind.CODES[name]
        wanted = part if code.endswith("s") else int.from_bytes(part, "little", signed=code in ("i", "q"))
        assert getattr(struct, name) == wanted


@given(st.sampled_from(all_structs()), st.data(), st.integers(0, 9))
def test_a_struct_is_read_where_it_lies(kind, data, at):
    raw = data.draw(raw_of(kind))
    around = memoryview(b"\xa5" * at + raw + b"\x5a" * 3)
    assert kind.from_bytes(around, at) == kind.from_bytes(raw)


@pytest.mark.parametrize("kind", all_structs(), ids=lambda kind: kind.__name__)
def test_the_class_says_where_each_field_is(kind):
    assert list(kind.OFFSETS) == list(kind.SIZES) == list(kind.CODES) == list(kind.FIELDS)
    assert {name: (kind.OFFSETS[name], kind.SIZES[name]) for name in kind.OFFSETS} == kind.FIELDS
    assert sum(kind.SIZES.values()) == kind.SIZE == kind.LAYOUT.size == len(kind().to_bytes())
    assert kind.MIN_SIZE in {offset + size for offset, size in kind.FIELDS.values()}


@pytest.mark.parametrize("kind", all_structs(), ids=lambda kind: kind.__name__)
def test_a_new_command_says_its_own_size(kind):
    if "size" in kind.FIELDS and kind.FIELDS["size"] == (0, 4) and kind.__module__.split(".")[-1].startswith("iommufd"):
        assert kind().size == kind.SIZE
    else:
        assert not any(kind().to_bytes())


@given(st.sampled_from([Every, *all_structs()]), st.data())
def test_numpy_sees_the_same_layout_and_the_same_values(kind, data):
    import numpy as np

    raw = data.draw(raw_of(kind))
    dtype = kind.dtype()
    assert dtype.itemsize == kind.SIZE
    assert {name: (where[1], where[0].itemsize) for name, where in dtype.fields.items()} == kind.FIELDS
    (row,) = np.frombuffer(raw, dtype)
    struct = kind.from_bytes(raw)
    assert [value if isinstance(value, int) else bytes(value) for value in row.item()] == [
        getattr(struct, name) for name in kind.FIELDS
    ]


def test_a_hole_between_fields_is_refused():
    with pytest.raises(TypeError, match="Hole has a hole before b"):

        class Hole(UserStruct):
            a: u32 = 0
            b: u64 = 0


def test_a_hole_at_the_end_is_refused():
    with pytest.raises(TypeError, match="Tail has a hole at its end"):

        class Tail(UserStruct):
            a: u64 = 0
            b: u32 = 0


def test_padding_that_is_named_fills_a_hole():
    class Named(UserStruct, last="a"):
        a: u32 = 0
        b: u8 = 0
        padding: bytes3 = bytes(3)

    assert (Named.SIZE, Named.MIN_SIZE) == (8, 4)
    assert Named(a=1, b=2).to_bytes() == b"\1\0\0\0\2\0\0\0"


def test_a_field_without_a_default_is_refused():
    with pytest.raises(TypeError, match="no default for b"):

        class Bare(UserStruct):
            a: u32 = 0
            b: u32


def test_a_field_that_is_none_of_c_is_refused():
    with pytest.raises(TypeError, match="type int, which is none"):

        class Plain(UserStruct):
            a: int = 0


def test_a_last_field_that_does_not_exist_is_refused():
    with pytest.raises(TypeError, match="no field b"):

        class Short(UserStruct, last="b"):
            a: u32 = 0


def test_a_struct_without_fields_is_refused():
    with pytest.raises(TypeError, match="no fields"):

        class Empty(UserStruct):
            pass

    with pytest.raises(TypeError, match="no fields"):
        UserStruct().to_bytes()
    with pytest.raises(TypeError, match="no fields"):
        UserStruct.from_bytes(b"")


def test_a_misspelt_field_is_refused():
    with pytest.raises(AttributeError, match="hh"):
        Every().hh = 1
    with pytest.raises(TypeError, match="hh"):
        Every(hh=1)


@pytest.mark.parametrize(
    ("name", "value"), [("f", 1 << 32), ("f", -1), ("c", 1 << 31), ("a", 256), ("b", 7), ("a", b"")]
)
def test_a_value_that_does_not_fit_its_field_is_refused(name, value):
    with pytest.raises(c_struct.error):
        Every(**{name: value}).to_bytes()


def test_too_few_bytes_are_refused():
    with pytest.raises(c_struct.error, match="buffer"):
        Every.from_bytes(bytes(Every.SIZE - 1))
    with pytest.raises(c_struct.error, match="buffer"):
        Every.from_bytes(bytes(Every.SIZE), 1)


def test_structs_are_equal_by_kind_and_values_and_have_no_hash():
    class Other(UserStruct):
        a: u32 = 0

    class Same(UserStruct):
        a: u32 = 0

    assert Other(1) == Other(a=1) != Other(2)
    assert Other(1) != Same(1)
    # A struct changes as its command is answered: no key of a dict.
    with pytest.raises(TypeError, match="unhashable"):
        hash(Other())


def test_a_repr_shows_numbers_as_hex_and_can_be_pasted_back():
    text = repr(Every(h=0xFEE00000))
    assert "h=0xfee00000" in text
    assert "c=-0x1" in text
    assert "b=b'xyz'" in text
    assert eval(text) == Every(h=0xFEE00000)


def test_a_c_compiler_lays_the_same_fields_out_the_same(tmp_path):
    head, calls, expected = [], [], []
    for kind in [Every, *all_structs()]:
        tag = f"{kind.__module__.rpartition('.')[2]}_{kind.__name__}"
        head.append(f"struct {tag} {{{''.join(_declare(name, code) for name, code in kind.CODES.items())}}};")
        calls.append(f'"{tag} %zu\\n", sizeof(struct {tag})')
        expected.append(f"{tag} {kind.SIZE}")
        for name in kind.FIELDS:
            calls.append(f'"{tag} {name} %zu\\n", offsetof(struct {tag}, f_{name})')
            expected.append(f"{tag} {name} {kind.OFFSETS[name]}")
    assert answers(tmp_path, head, calls) == expected


def _declare(name, code):
    """A C field: a word, or an array of bytes."""
    return f"{C_TYPES[code]} f_{name}; " if code in C_TYPES else f"unsigned char f_{name}[{code[:-1]}]; "
