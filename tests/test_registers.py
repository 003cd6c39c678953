"""Register files: access rules, halves, arrays, hooks, and what a program should not have done."""

import pytest
from hypothesis import given, strategies as st

from softiommu.errors import ModelError
from softiommu.events import EventBus
from softiommu.registers import (
    RegisterFile,
    ReservedBitsWritten,
    UnknownRegisterRead,
    UnknownRegisterWritten,
    array,
    reg,
    ro,
    rw,
    w1c,
    wo,
)
from softiommu.words import Word, bit, bits


class Control(Word, width=32):
    ENABLE = bit(0)
    DONE = bit(1)
    KICK = bit(2)
    LEVEL = bits(15, 8)


class Base(Word):
    SIZE = bits(2, 0)
    ADDR = bits(63, 12)


class Errors(Word, width=32):
    LOST = bit(0)
    LATE = bit(1)


class Record(Word):
    WHO = bits(15, 0)
    F = bit(63)


class Regs(RegisterFile):
    CONTROL = reg(0x0, Control, rw, 0x100, DONE=ro, KICK=wo)
    ERRORS = reg(0x4, Errors, w1c)
    BASE = reg(0x8, Base, rw)
    IDENTITY = reg(0x10, Base, ro, 0x5000)
    RECORD = array(reg(0x40, Record, ro, F=w1c), count=4, stride=16)


class Model:
    """An owner with hooks, which keeps what they were told."""

    def __init__(self, events=None):
        self.seen = []
        self.ticks = 0
        self.regs = Regs(self, events)

    def on_write_CONTROL(self, old, new):
        self.seen.append(("CONTROL", old, new))
        self.regs.CONTROL = new.replace(DONE=1, KICK=0)

    def on_write_BASE(self, old, new):
        self.seen.append(("BASE", old, new))

    def on_read_IDENTITY(self):
        self.ticks += 1
        return self.ticks - 1

    def on_write_RECORD(self, index, old, new):
        self.seen.append(("RECORD", index, old.F, new.F))

    def on_read_RECORD(self, index):
        return self.regs.RECORD[index].replace(WHO=index)


def heard(*kinds):
    bus, seen = EventBus(), []
    for kind in kinds:
        bus.subscribe(kind, seen.append)
    return bus, seen


def test_registers_have_their_reset_values_and_types():
    regs = Regs(object())
    assert (regs.CONTROL, type(regs.CONTROL), regs.CONTROL.LEVEL) == (0x100, Control, 1)
    assert regs.read(0x10, 8) == 0x5000
    regs.CONTROL = 1
    assert regs.CONTROL.ENABLE == 1
    regs.reset()
    assert regs.CONTROL == 0x100


def test_each_field_is_written_by_its_own_rule():
    regs = Regs(object())
    regs.write(0, 4, 0xFFFF)
    assert regs.CONTROL == Control.of(ENABLE=1, KICK=1, LEVEL=0xFF)
    assert regs.read(0, 4) == 0xFF01, "a write-only field reads as 0"
    regs.ERRORS = 3
    regs.write(4, 4, 1)
    assert regs.ERRORS == Errors.of(LATE=1)
    regs.write(0x10, 8, 2**64 - 1)
    assert regs.IDENTITY == 0x5000


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_two_halves_are_the_whole(first, second):
    whole, halves = Regs(object()), Regs(object())
    for value in (first, second):
        whole.write(0x8, 8, value)
        halves.write(0x8, 4, value & 0xFFFFFFFF)
        halves.write(0xC, 4, value >> 32)
    assert whole.BASE == halves.BASE == second & (Base.SIZE.mask | Base.ADDR.mask)
    assert halves.read(0x8, 4) | halves.read(0xC, 4) << 32 == whole.read(0x8, 8)


@given(st.integers(0, 0x17), st.sampled_from([1, 2, 4, 8]), st.integers(0, 2**64 - 1))
def test_a_write_of_any_size_changes_its_own_bytes_only(offset, size, value):
    regs, bytewise = Regs(object()), Regs(object())
    value &= (1 << 8 * size) - 1
    regs.write(offset, size, value)
    for n in range(size):
        bytewise.write(offset + n, 1, value >> 8 * n & 0xFF)
    assert regs.values == bytewise.values
    assert regs.read(0, 0x18) == sum(regs.read(n, 1) << 8 * n for n in range(0x18))


def test_a_half_clears_only_the_flags_in_it():
    regs = Regs(object())
    regs.RECORD[1] = Record.of(F=1, WHO=9)
    regs.write(0x50, 4, 0xFFFFFFFF)
    assert regs.RECORD[1] == Record.of(F=1, WHO=9)
    regs.write(0x54, 4, 1 << 31)
    assert regs.RECORD[1] == Record.of(WHO=9)


def test_hooks_are_told_what_was_and_what_is():
    model = Model()
    model.regs.write(0, 4, 0x205)
    assert model.seen == [("CONTROL", 0x100, 0x205)]
    assert model.regs.CONTROL == Control.of(ENABLE=1, DONE=1, LEVEL=2)
    model.regs.write(0xC, 4, 7)
    assert model.seen[1:] == [("BASE", 0, 7 << 32)]
    assert (model.regs.read(0x10, 8), model.regs.read(0x10, 4)) == (0, 1), "what a hook gives is read, 0 too"


def test_hooks_of_arrays_are_told_the_index():
    model = Model()
    model.regs.RECORD[2] = Record.of(F=1)
    assert model.regs.read(0x60, 8) == Record.of(F=1, WHO=2)
    model.regs.write(0x64, 4, 1 << 31)
    assert model.seen == [("RECORD", 2, 1, 0)]
    assert len(model.regs.RECORD) == 4
    with pytest.raises(IndexError, match="RECORD has 4 registers, and no number 4"):
        model.regs.RECORD[4]


def test_a_one_in_a_reserved_bit_is_told_and_reads_as_zero():
    bus, seen = heard(ReservedBitsWritten)
    regs = Regs(object(), bus)
    regs.write(0, 4, 0x8000_0001)
    assert seen == [ReservedBitsWritten("CONTROL", 0, 0x8000_0000)]
    assert regs.read(0, 4) == 1
    regs.write(0x78, 8, 0)
    regs.write(0x72, 2, 0xFFFF)
    assert seen[1:] == [ReservedBitsWritten("RECORD[3]", 0x70, 0xFFFF_0000)]


def test_bytes_of_no_register_read_as_zero_and_ignore_writes():
    bus, seen = heard(UnknownRegisterRead, UnknownRegisterWritten)
    regs = Regs(object(), bus)
    regs.write(0x38, 8, 0x1234)
    assert regs.read(0x38, 8) == 0
    assert regs.read(0x14, 8) == 0, "the upper half of IDENTITY, then nothing"
    assert seen == [
        UnknownRegisterWritten("Regs", 0x38, 0x1234),
        UnknownRegisterRead("Regs", 0x38),
        UnknownRegisterRead("Regs", 0x18),
    ]


def test_overlapping_registers_are_refused_when_they_are_written():
    with pytest.raises(TypeError, match="B overlaps A"):

        class Bad(RegisterFile):
            A = reg(0x0, Base)
            B = reg(0x4, Control)

    with pytest.raises(TypeError, match="one every 4"):
        array(reg(0, Base), count=2, stride=4)
    with pytest.raises(TypeError, match="no field NONE"):
        reg(0, Base, rw, NONE=ro)
    with pytest.raises(ModelError):
        Regs(object()).read(0, 0)
