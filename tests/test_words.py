"""Words: fields read and written as the manual numbers them, and what is refused."""

import enum

import pytest
from hypothesis import given, strategies as st

from softiommu.words import Word, bit, bits


class Kind(enum.IntEnum):
    NONE = 0
    ONE = 1
    NEST = 7


class Entry(Word):
    V = bit(0)
    CONFIG = bits(3, 1, Kind)
    ADDRESS = bits(51, 6)
    TOP = bit(63)


class Small(Word, width=32):
    LOW = bits(7, 0)


@given(st.integers(0, 1), st.sampled_from(Kind), st.integers(0, 2**46 - 1), st.integers(0, 1))
def test_fields_come_back_as_they_were_put(v, config, address, top):
    word = Entry.of(V=v, CONFIG=config, ADDRESS=address, TOP=top)
    read = (word.V, word.CONFIG, word.ADDRESS, word.TOP)
    assert read == (v, config, address, top)
    assert word == v | config << 1 | address << 6 | top << 63
    assert isinstance(word.CONFIG, Kind)
    assert word.reserved == 0


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**46 - 1))
def test_replacing_one_field_leaves_the_other_bits(raw, address):
    word = Entry(raw).replace(ADDRESS=address)
    assert address == word.ADDRESS
    assert int(word) & ~Entry.ADDRESS.mask == raw & ~Entry.ADDRESS.mask


def test_a_word_is_told_by_its_fields():
    assert repr(Entry.of(V=1, CONFIG=Kind.NEST, ADDRESS=0x1000)) == "<Entry 0x4000f V=1 CONFIG=NEST ADDRESS=0x1000>"
    assert repr(Entry(0x10)) == "<Entry 0x10 reserved=0x10>"
    assert repr(Small(5)) == "<Small 0x5 LOW=5>"


def test_a_value_too_wide_is_refused():
    with pytest.raises(ValueError, match="V has 1 bits"):
        Entry.of(V=2)
    with pytest.raises(ValueError, match="does not fit"):
        Entry.of(ADDRESS=-1)
    with pytest.raises(ValueError, match="no 32-bit Small"):
        Small(1 << 32)


def test_an_unknown_field_is_refused():
    with pytest.raises(AttributeError, match="no field W"):
        Entry.of(W=1)


def test_a_word_does_not_change():
    with pytest.raises(AttributeError, match="use replace"):
        Entry(0).V = 1


def test_overlapping_fields_are_refused_when_they_are_written():
    with pytest.raises(TypeError, match="B overlaps"):

        class Bad(Word):
            A = bits(3, 0)
            B = bits(5, 3)


def test_a_field_past_the_width_is_refused_when_it_is_written():
    with pytest.raises(TypeError, match="leaves the 32 bits"):

        class Bad(Word, width=32):
            A = bits(32, 30)

    with pytest.raises(ValueError, match="high, low"):
        bits(0, 3)


def test_a_reserved_encoding_reads_as_its_number():
    assert Entry.of(CONFIG=3).CONFIG == 3
    assert repr(Entry(6)) == "<Entry 0x6 CONFIG=3>"
