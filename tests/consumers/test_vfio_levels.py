"""Registers as memory, against the dumbest way to have them: a copy of all bytes, compared register by register."""

import os

import pytest
from hypothesis import given, settings, strategies as st

from consumers.mapped_rig import Model, Registers
from softiommu.consumers.vfio.levels import LevelPages, Place, pages
from softiommu.hardware.bus import Port
from softiommu.hardware.pci import Bar, Function, Identity, Mapping
from softiommu.memory.physical import PhysicalMemory

BASE, SIZE = 0x10000, 0x2000
LEVELS = Registers(Model()).levels()
STORE = st.tuples(st.just("store"), st.integers(0, len(LEVELS) - 1), st.integers(0, 2**64 - 1) | st.integers(0, 3))
SCRIBBLE = st.tuples(st.just("scribble"), st.integers(0, SIZE - 1), st.integers(0, 255))
STEPS = st.lists(STORE | SCRIBBLE | st.tuples(st.just("look")) | st.tuples(st.just("show")), max_size=40)


class Device:
    """The model of the rig behind a function, and its BAR 0 as memory."""

    def __init__(self):
        self.model = Model()
        bar = Bar(SIZE, self.model.registers, mapping=Mapping.LEVEL)
        self.function = Function(Port(PhysicalMemory(1 << 20), 8), Identity(1, 2, 3), {0: bar})
        self.model.function = self.function
        self.function.write_config(4, 2, 2)
        self.fd = os.memfd_create("level")
        os.ftruncate(self.fd, BASE + SIZE)
        self.pages = LevelPages(self.function, Place(0, BASE, bar), self.fd)
        self.function.on_change = self.pages.show
        self.pages.show()

    def byte(self, at):
        return os.pread(self.fd, 1, BASE + at)[0]

    def load(self, level):
        return int.from_bytes(os.pread(self.fd, level.width, BASE + level.offset), "little")

    def store(self, level, value):
        os.pwrite(self.fd, value.to_bytes(level.width, "little"), BASE + level.offset)


class Oracle:
    """What the device should be told: for each look, the registers whose memory differs, those that start last."""

    def __init__(self):
        self.model = Model()
        self.model.function = self
        self.shown = {level: self.model.registers.shown(level.offset, level.width) for level in LEVELS}
        self.memory = dict(self.shown)

    def changed(self):
        self.show()

    def show(self):
        for level in LEVELS:
            value = self.model.registers.shown(level.offset, level.width)
            if self.memory[level] == self.shown[level]:
                self.memory[level] = self.shown[level] = value

    def look(self):
        differ = [level for level in LEVELS if self.memory[level] != self.shown[level]]
        values = {level: self.memory[level] for level in differ}
        for level in differ:
            self.shown[level] = values[level]
            self.model.registers.write(level.offset, level.width, values[level])
        for level in differ:
            value = self.model.registers.shown(level.offset, level.width)
            self.memory[level] = self.shown[level] = value
        return bool(differ)


@settings(max_examples=300, deadline=None)
@given(steps=STEPS)
def test_any_stores_looks_and_changes_are_those_of_a_copy_of_all_bytes(steps):
    device, oracle = Device(), Oracle()
    covered = {level.offset + n for level in LEVELS for n in range(level.width)}
    try:
        for step in steps:
            if step[0] == "store":
                level = LEVELS[step[1]]
                value = step[2] & (1 << 8 * level.width) - 1
                device.store(level, value)
                oracle.memory[level] = value
            elif step[0] == "scribble":
                if step[1] not in covered:
                    os.pwrite(device.fd, bytes([step[2]]), BASE + step[1])
            elif step[0] == "look":
                assert device.pages.look() == oracle.look()
            else:
                device.pages.show()
                oracle.show()
            assert device.model.seen == oracle.model.seen
            assert {level: device.load(level) for level in LEVELS} == oracle.memory
    finally:
        os.close(device.fd)


@pytest.mark.parametrize(("length", "whole"), [(1, 4096), (4096, 4096), (4097, 8192), (0x100, 4096)])
def test_a_length_in_whole_pages(length, whole):
    assert pages(length) == whole
