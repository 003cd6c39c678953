"""Structs: their bytes, what is refused, and what a C compiler says of the same fields."""

import subprocess

import pytest
from hypothesis import given, strategies as st

from abi.layouts import all_structs
from requirements import need
from softiommu.abi.struct import UserStruct, bytes3, u8, u32, u64

C_TYPES = {1: "unsigned char", 2: "unsigned short", 4: "unsigned int", 8: "unsigned long long"}


@given(st.sampled_from(all_structs()), st.data())
def test_bytes_become_the_same_bytes(kind, data):
    raw = data.draw(st.binary(min_size=kind.SIZE, max_size=kind.SIZE))
    struct = kind.from_bytes(raw)
    assert struct.to_bytes() == raw
    assert kind(**{name: getattr(struct, name) for name in kind.FIELDS}) == struct


@given(st.sampled_from(all_structs()))
def test_numpy_sees_the_same_layout(kind):
    dtype = kind.dtype()
    assert dtype.itemsize == kind.SIZE
    assert {name: (where[1], where[0].itemsize) for name, where in dtype.fields.items()} == kind.FIELDS


def test_a_hole_is_refused():
    with pytest.raises(TypeError, match="hole"):

        class Hole(UserStruct):
            a: u32 = 0
            b: u64 = 0


def test_trailing_padding_must_be_named():
    class Named(UserStruct, last="a"):
        a: u32 = 0
        b: u8 = 0
        padding: bytes3 = bytes(3)

    assert (Named.SIZE, Named.MIN_SIZE) == (8, 4)
    assert Named(a=1, b=2).to_bytes() == b"\1\0\0\0\2\0\0\0"


def test_a_value_too_wide_for_its_field_is_refused():
    class Word(UserStruct):
        a: u32 = 0

    with pytest.raises(Exception, match=r"range|requires"):
        Word(a=1 << 32).to_bytes()


def test_a_c_compiler_lays_the_same_fields_out_the_same(tmp_path):
    need("cc")
    lines = ["#include <stdio.h>", "#include <stddef.h>"]
    body = []
    for kind in all_structs():
        tag = f"{kind.__module__.rpartition('.')[2]}_{kind.__name__}"
        fields = "".join(_declare(name, size) for name, (_, size) in kind.FIELDS.items())
        lines.append(f"struct {tag} {{{fields}}};")
        offsets = "".join(f", offsetof(struct {tag}, f_{name})" for name in kind.FIELDS)
        formats = " %zu" * len(kind.FIELDS)
        body.append(f'printf("{tag} %zu{formats}\\n", sizeof(struct {tag}){offsets});')
    source = tmp_path / "layout.c"
    source.write_text("\n".join([*lines, "int main(void) {", *body, "return 0; }"]))
    program = tmp_path / "layout"
    subprocess.run(["cc", "-o", str(program), str(source)], check=True)
    output = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    assert output.splitlines() == [
        f"{kind.__module__.rpartition('.')[2]}_{kind.__name__} {kind.SIZE} "
        + " ".join(str(offset) for offset, _ in kind.FIELDS.values())
        for kind in all_structs()
    ]


def _declare(name, size):
    """A C field; what is no word is an array of bytes (or of words where it starts at a multiple of one)."""
    return f"{C_TYPES[size]} f_{name}; " if size in C_TYPES else f"unsigned char f_{name}[{size}]; "
