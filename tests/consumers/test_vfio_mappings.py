"""Registers that a program maps as memory: its stores reach the device, and it sees there what the device says."""

import fcntl
import os
import random

import pytest

from consumers.mapped_rig import TABLE, Model, Registers, opened, pages, request
from consumers.rig import Rig
from softiommu.abi import vfio
from softiommu.consumers.vfio.mappings import Mappings
from softiommu.consumers.vfio.regions import offset_of
from softiommu.errors import ModelError
from softiommu.hardware.bus import Port
from softiommu.hardware.pci import Bar, Function, Identity, Mapping
from softiommu.memory.physical import PhysicalMemory

NAME, GO, STATE, ADDRESS, CLEAR, BELL = 0x00, 0x08, 0x0C, 0x10, 0x18, 0x1000
COMMAND = (7 << 40) + 4


@pytest.fixture
def mapped():
    rig, file, model = opened()
    return rig, file, model, pages(rig, file)


def look(rig):
    """The front door looks: whether anything was stored."""
    return sum(bool(poll()) for poll in list(rig.services.pollers.values())) > 0


def test_a_mapping_shows_registers_as_they_are(mapped):
    _, _, _, memory = mapped
    assert (memory.word(NAME, 8), memory.word(GO), memory.word(STATE)) == (0x1122334455667788, 0, 0)


def test_stores_reach_the_device_in_an_order_that_makes_sense(mapped):
    rig, _, model, memory = mapped
    memory.store(GO, 5)
    memory.store(ADDRESS, 0x123456789A, 8)
    assert look(rig)
    assert model.seen == [("GO", 5, 0x123456789A)]
    assert (memory.word(GO), memory.word(STATE)) == (5, 1)
    assert not look(rig)


def test_what_is_stored_anew_with_the_same_value_is_no_store(mapped):
    rig, _, model, memory = mapped
    memory.store(GO, 5)
    look(rig)
    memory.store(GO, 5)
    assert not look(rig)
    assert model.registers.STATE == 1


def test_a_register_that_always_shows_nothing_takes_the_same_value_again(mapped):
    rig, _, model, memory = mapped
    for _ in range(3):
        memory.store(CLEAR, 1)
        assert look(rig)
        assert memory.word(CLEAR) == 0
    assert model.seen == [("CLEAR", 1)] * 3


def test_doorbells_side_by_side_are_told_apart(mapped):
    rig, _, model, memory = mapped
    memory.store(BELL + 4, 6)
    memory.store(BELL + 28, 8)
    look(rig)
    assert model.seen == [("BELL", 1, 6), ("BELL", 7, 8)]
    assert [memory.word(BELL + 4 * n) for n in range(8)] == [0, 3, 0, 0, 0, 0, 0, 4]


def test_a_register_that_cannot_be_written_shows_its_value_again(mapped):
    rig, _, model, memory = mapped
    memory.store(NAME, 0, 8)
    memory.store(STATE, 77)
    assert look(rig)
    assert (memory.word(NAME, 8), memory.word(STATE)) == (0x1122334455667788, 0)
    assert model.seen == []


def test_bytes_of_no_register_are_the_programs(mapped):
    rig, _, model, memory = mapped
    memory.store(0x1C, 99)
    memory.store(0x800, 98)
    assert not look(rig)
    assert (memory.word(0x1C), memory.word(0x800), model.seen) == (99, 98, [])


def test_pread_and_pwrite_agree_with_a_mapping(mapped):
    rig, file, model, memory = mapped
    memory.store(ADDRESS, 0xABCD, 8)
    assert rig.pread(file, ADDRESS, 8) == (0xABCD).to_bytes(8, "little")
    rig.pwrite(file, ADDRESS, (0x77).to_bytes(8, "little"))
    rig.pwrite(file, GO, (3).to_bytes(4, "little"))
    assert (memory.word(ADDRESS, 8), memory.word(GO), memory.word(STATE)) == (0x77, 3, 1)
    assert model.seen == [("GO", 3, 0x77)]
    assert not look(rig)


def test_stores_and_pwrites_in_any_order_end_alike(mapped):
    rig, file, _, memory = mapped
    chance, value = random.Random(3), 0
    for _ in range(300):
        if chance.random() < 0.5:
            value = chance.getrandbits(64)
            memory.store(ADDRESS, value, 8)
        elif chance.random() < 0.5:
            value = chance.getrandbits(64)
            rig.pwrite(file, ADDRESS, value.to_bytes(8, "little"))
        if chance.random() < 0.5:
            look(rig)
        assert rig.pread(file, ADDRESS, 8) == value.to_bytes(8, "little")
        assert memory.word(ADDRESS, 8) == value


def test_the_msix_table_is_the_hosts(mapped):
    rig, file, _, memory = mapped
    assert memory.word(TABLE, 8) == 2**64 - 1
    memory.store(TABLE, 0, 8)
    look(rig)
    assert rig.pread(file, TABLE, 8) == b"\xff" * 8


def test_every_mapping_of_a_device_shows_the_same(mapped):
    rig, file, _, memory = mapped
    part = pages(rig, file, 0, 0x1000, 0x1000)
    memory.store(BELL, 8)
    look(rig)
    assert (memory.word(BELL), part.word(0)) == (4, 4)
    part.store(0, 20)
    look(rig)
    assert (memory.word(BELL), part.word(0)) == (10, 10)


def test_a_reset_shows_in_a_mapping(mapped):
    rig, file, _, memory = mapped
    memory.store(ADDRESS, 5, 8)
    memory.store(GO, 1)
    look(rig)
    rig.raw(file, vfio.DEVICE_RESET, b"")
    assert (memory.word(ADDRESS, 8), memory.word(GO), memory.word(STATE)) == (0, 0, 0)
    assert not look(rig)
    assert rig.pread(file, GO, 4) == bytes(4)


def size(file):
    """Bytes of the pages: 0 means that touching them is a bus error."""
    return os.fstat(file.pages_fd()).st_size


def test_memory_that_is_off_has_no_pages_and_what_is_shown_after_is_the_devices(mapped):
    rig, file, model, memory = mapped
    memory.store(ADDRESS, 5, 8)
    look(rig)
    rig.pwrite(file, COMMAND, b"\0")
    assert size(file) == 0
    model.registers.ADDRESS = 6
    assert not look(rig)
    rig.pwrite(file, COMMAND, b"\2")
    assert size(file) == offset_of(2) + 0x1000
    assert memory.word(ADDRESS, 8) == 6
    memory.store(ADDRESS, 7, 8)
    assert look(rig)
    assert model.registers.ADDRESS == 7


def test_a_mapping_made_while_memory_is_off_has_pages_later():
    rig, file, _ = opened()
    rig.pwrite(file, COMMAND, b"\0")
    file.mmap(rig.caller, request(0, 0, 0x4000))
    assert size(file) == 0
    rig.pwrite(file, COMMAND, b"\2")
    assert pages(rig, file).word(NAME, 8) == 0x1122334455667788


def test_a_file_that_the_program_cuts_short_or_fills_harms_nobody(mapped):
    rig, file, model, _ = mapped
    os.ftruncate(file.pages_fd(), offset_of(0) + 0x1004)
    look(rig)
    os.ftruncate(file.pages_fd(), 0)
    assert not look(rig)
    model.function.changed()
    os.pwrite(file.pages_fd(), b"\xff" * 0x4000, offset_of(0))
    look(rig)
    assert ("GO", 0xFFFFFFFF, 2**64 - 1) in model.seen


def test_a_file_without_pages_gets_none_and_no_file_gets_seals(mapped):
    trapped = Rig().bound()[0].pages_fd()
    os.ftruncate(trapped, 0)
    for change in (lambda: os.ftruncate(trapped, 4096), lambda: os.pwrite(trapped, b".", offset_of(0))):
        with pytest.raises(PermissionError):
            change()
    for fd in (trapped, mapped[1].pages_fd()):
        with pytest.raises(PermissionError):
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


def test_nobody_looks_before_a_mapping_and_after_the_file(mapped):
    rig, file, _ = opened()
    assert not rig.services.pollers
    file.mmap(rig.caller, request(3, 0x1000, 0x1000))
    assert not rig.services.pollers
    pages(rig, file)
    assert len(rig.services.pollers) == 1
    file.release()
    assert not rig.services.pollers
    assert file.pages_fd() is None


def test_looks_end_when_nobody_maps_the_file_and_come_back_with_a_mapping(mapped):
    rig, file, model, memory = mapped
    file.is_mapped = lambda offset, length: True
    for _ in range(5000):
        assert not look(rig)
    assert rig.services.pollers
    file.is_mapped = lambda offset, length: False
    for _ in range(5000):
        assert not look(rig)
    assert not rig.services.pollers
    memory.store(GO, 9)
    file.mmap(rig.caller, request(0, 0, 0x4000))
    assert look(rig)
    assert model.seen == [("GO", 9, 0)]


def test_a_trapped_bar_below_one_of_memory_is_a_models_mistake():
    bars = {
        0: Bar(0x1000, Registers(Model()), mapping=Mapping.TRAPPED),
        1: Bar(0x1000, Registers(Model()), mapping=Mapping.LEVEL),
    }
    function = Function(Port(PhysicalMemory(1 << 20), 8), Identity(1, 2, 3), bars)
    with pytest.raises(ModelError, match="lies below"):
        Mappings(function, offset_of)
