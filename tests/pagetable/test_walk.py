"""Walks: hostile tables end in a fault; two stages agree with two single walks; flags are set by what is used."""

import random

import pytest
from hypothesis import given, settings, strategies as st

from softiommu.memory.physical import CHUNK, Mmio, PhysicalMemory
from softiommu.pagetable import formats
from softiommu.pagetable.engine import PageTable
from softiommu.pagetable.formats import amdv1, arm64, riscv, vtdss, x86_64
from softiommu.pagetable.kinds import (
    ADDRESS_SIZE,
    AMDV1,
    BAD_TABLE,
    FORBIDDEN,
    HW_ACCESSED,
    HW_DIRTY,
    LENIENT,
    MALFORMED,
    NOT_ACCESSED,
    NOT_MAPPED,
    OK,
    OUT_OF_RANGE,
    READ,
    RISCV,
    WRITE,
)
from softiommu.pagetable.nested import Stage, nested_walk
from softiommu.pagetable.walk import walk

RAM = 1 << 20
ENDS = {OK, NOT_MAPPED, MALFORMED, BAD_TABLE, FORBIDDEN, OUT_OF_RANGE, ADDRESS_SIZE, NOT_ACCESSED}


def hostile(name, ram=RAM):
    """Memory full of entries that lead back into it: loops, self references, reserved bits, addresses beyond."""
    table, chance = formats.VARIANTS[name], random.Random(name)
    memory = PhysicalMemory(ram)
    for at in range(0, ram, 8):
        entry = chance.getrandbits(64)
        if chance.random() < 0.9:
            entry = entry & ~((1 << 40) - 1 << 12) | chance.randrange(ram) & ~0xFFF | 1
        if table.fmt == RISCV and chance.random() < 0.7:
            entry = entry & ~(0x3FF << 54 | 0xDE) | chance.choice([0, 0xF, 0xDE])
        if table.fmt == AMDV1 and chance.random() < 0.7:
            entry &= ~(0x1FF << 52)
        memory.write_u64(at, entry)
    return table, memory, chance


@pytest.mark.parametrize("name", sorted(formats.VARIANTS))
def test_a_walk_over_hostile_tables_ends_with_a_status(name):
    table, memory, chance = hostile(name)
    seen = set()
    for _ in range(300):
        root = chance.randrange(RAM) & ~((8 << table.top_bits) - 1)
        found = walk(table, memory, root, chance.getrandbits(min(table.input_bits + 1, 64)), chance.getrandbits(3))
        assert found.status in ENDS
        assert (found.lg2 > 0) == (found.status in (OK, FORBIDDEN, NOT_ACCESSED)) or found.status == ADDRESS_SIZE
        seen.add(found.status)
    assert len(seen) >= 2


@pytest.mark.parametrize("first", ["x86-64-5level", "riscv-sv57", "arm64-4k-52-s1"])
@pytest.mark.parametrize("second", ["vtdss-57", "riscv-sv39x4", "amdv1-6level", "arm64-64k-52-s2"])
def test_two_stages_over_hostile_tables_end_with_a_status(first, second):
    t1, memory, chance = hostile(first)
    t2 = formats.VARIANTS[second]
    stage2 = PageTable(memory, t2)
    identity = 1 << t2.granule_lg2
    stage2.map(0, 0, max(RAM // 2, identity), READ | WRITE)
    for _ in range(100):
        stages = Stage(t1, chance.randrange(RAM) & ~0xFFF), Stage(t2, stage2.root)
        found = nested_walk(*stages, memory, chance.getrandbits(t1.input_bits), chance.getrandbits(2))
        assert found.status in ENDS


def test_a_table_that_leads_to_itself_is_walked_once_per_level():
    memory = PhysicalMemory(RAM)
    root = memory.alloc(4096)
    table = x86_64.VARIANTS["x86-64-5level"]
    memory.write(root, x86_64.link(table, 4, root).to_bytes(8, "little") * 512)
    found = walk(table, memory, root, 0x1234567)
    assert (found.status, found.oa, found.lg2, found.level) == (OK, root | 0x567, 12, 0)
    link = riscv.link(riscv.VARIANTS["riscv-sv39"], 2, root)
    memory.write(root, link.to_bytes(8, "little") * 512)
    assert walk(riscv.VARIANTS["riscv-sv39"], memory, root, 0).status == MALFORMED, "no link below level 0"


def test_a_root_outside_memory_is_a_bad_table():
    memory = PhysicalMemory(RAM)
    for root in (1 << 45, RAM, (1 << 52) - 4096):
        assert walk(x86_64.VARIANTS["x86-64-4level"], memory, root, 0).status == BAD_TABLE


def test_an_address_too_wide_is_out_of_range():
    memory = PhysicalMemory(RAM)
    table = vtdss.VARIANTS["vtdss-39"]
    for iova in (1 << 39, 1 << 63, (1 << 64) - 1):
        assert walk(table, memory, 0x1000, iova).status == OUT_OF_RANGE
    assert walk(amdv1.VARIANTS["amdv1-6level"], memory, 0x1000, (1 << 64) - 1).status == NOT_MAPPED


def test_an_output_too_wide_is_an_address_size_error():
    memory = PhysicalMemory(RAM)
    pages = PageTable(memory, arm64.VARIANTS["arm64-4k-48-s1"])
    pages.map(0x1000, 1 << 44, 0x1000, READ)
    narrow = pages.table._replace(output_bits=40)
    assert walk(narrow, memory, pages.root, 0x1000).status == ADDRESS_SIZE


def test_tables_behind_a_window_are_walked_by_asking_for_each_entry():
    """The tables lie in memory that no kernel may index: the walk asks its owner."""
    memory = PhysicalMemory(CHUNK)
    pages = PageTable(memory, vtdss.VARIANTS["vtdss-48"]._replace(option=HW_ACCESSED | HW_DIRTY))
    pages.map(0x5000, 0x9000, 0x1000, READ | WRITE)
    copy = bytearray(memory.read(0, CHUNK))
    base = 1 << 40
    for at in range(0, CHUNK, 8):
        entry = int.from_bytes(copy[at : at + 8], "little")
        if entry and entry & vtdss.ADDR != 0x9000:
            copy[at : at + 8] = (entry + base).to_bytes(8, "little")

    def store(at, data):
        copy[at : at + len(data)] = data

    memory.map_window(base, Mmio(store, lambda at, n: bytes(copy[at : at + n])), 0, CHUNK)
    found = walk(pages.table, memory, base + pages.root, 0x5008, WRITE)
    assert (found.status, found.oa) == (OK, 0x9008)
    assert found.pte & vtdss.D
    assert int.from_bytes(copy[found.at - base : found.at - base + 8], "little") == found.pte
    memory.unmap_window(base, CHUNK)
    assert walk(pages.table, memory, base + pages.root, 0x5008).status == BAD_TABLE


@pytest.mark.parametrize("first", ["x86-64-4level", "arm64-4k-48-s1", "riscv-sv39", "arm64-64k-48-s1"])
@pytest.mark.parametrize("second", ["vtdss-48", "arm64-4k-40-s2", "riscv-sv39x4", "amdv1-4level", "arm64-16k-40-s2"])
@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_nested_is_one_stage_after_the_other(first, second, data):
    t1, t2 = formats.VARIANTS[first], formats.VARIANTS[second]
    memory = PhysicalMemory(16 << 20)
    host = PageTable(memory, t2)
    # The guest's memory is 8 MiB of ours, seen at 0 with a shift that the host's table undoes.
    base = 8 << 20
    guest_granule, host_granule = 1 << t1.granule_lg2, 1 << t2.granule_lg2
    hole = data.draw(st.integers(1, (4 << 20) // host_granule - 1)) * host_granule
    assert host.map(0, base, 8 << 20, READ | WRITE)[0] == OK
    guest_memory = PhysicalMemory(8 << 20)
    guest = PageTable(guest_memory, t1)
    iova = data.draw(st.integers(0, 1 << t1.input_bits - t1.granule_lg2 - 4)) * guest_granule
    output = (4 << 20) + data.draw(st.integers(0, 31)) * guest_granule
    assert guest.map(iova, output, guest_granule, data.draw(st.sampled_from([READ, READ | WRITE])))[0] == OK
    memory.write(base, guest_memory.read(0, 8 << 20))
    host.unmap(hole, host_granule)
    offset = data.draw(st.integers(0, guest_granule - 1))
    want = data.draw(st.sampled_from([0, READ, WRITE]))
    found = nested_walk(Stage(t1, guest.root), Stage(t2, host.root), memory, iova + offset, want)
    single = walk(t1, guest_memory, guest.root, iova + offset, want)
    outer = walk(t2, memory, host.root, output + offset, want)
    if found.fetch_ipa is not None:
        assert walk(t2, memory, host.root, found.fetch_ipa).status == NOT_MAPPED
        return
    assert found.status == (single.status if single.status != OK else outer.status)
    if found.status == OK:
        assert found.pa == base + output + offset
        assert found.lg2 == min(single.lg2, outer.lg2)


def test_flags_of_a_first_stage_are_written_by_the_rights_of_the_second():
    memory = PhysicalMemory(16 << 20)
    host = PageTable(memory, vtdss.VARIANTS["vtdss-48"])
    host.map(0, 0, 16 << 20, READ)
    guest = PageTable(memory, x86_64.VARIANTS["x86-64-4level"])
    guest.map(0x1000, 0x800000, 0x1000, READ | WRITE)
    stages = Stage(guest.table, guest.root), Stage(host.table, host.root)
    assert nested_walk(*stages, memory, 0x1000, READ).status == OK, "A was set when it was mapped"
    found = nested_walk(*stages, memory, 0x1000, WRITE)
    assert (found.status, found.fetch_ipa, found.fetch_want) == (FORBIDDEN, guest.translate(0x1000).at, WRITE)
    assert not guest.translate(0x1000).pte & x86_64.D
    host.unmap(0, 16 << 20)
    host.map(0, 0, 16 << 20, READ | WRITE)
    assert nested_walk(*stages, memory, 0x1000, WRITE).status == OK
    assert guest.translate(0x1000).pte & x86_64.D


def test_the_second_stage_may_be_out_of_memory_below_a_fetch():
    memory = PhysicalMemory(16 << 20)
    host = PageTable(memory, vtdss.VARIANTS["vtdss-48"])
    host.map(0, 1 << 44, 2 << 20, READ | WRITE)
    stages = Stage(x86_64.VARIANTS["x86-64-4level"], 0x1000), Stage(host.table, host.root)
    found = nested_walk(*stages, memory, 0x5000, READ)
    assert (found.status, found.stage1.at) == (BAD_TABLE, 0x1000)
    outside = nested_walk(stages[0]._replace(root=1 << 49), stages[1], memory, 0)
    assert (outside.status, outside.fetch_ipa) == (OUT_OF_RANGE, 1 << 49)


@pytest.mark.parametrize("name", sorted(formats.VARIANTS))
def test_an_access_sets_the_flags_that_it_uses_and_a_look_sets_none(name):
    memory = PhysicalMemory(16 << 20)
    flags = formats.VARIANTS[name].option | HW_ACCESSED | HW_DIRTY
    pages = PageTable(memory, formats.VARIANTS[name]._replace(option=flags))
    length = 1 << pages.table.granule_lg2
    pages.map(0, 0, length, READ | WRITE)
    pages.harvest(0, length - 1, clear=True)
    before = memory.read(0, 16 << 20)
    walk(pages.table, memory, pages.root, 0)
    assert memory.read(0, 16 << 20) == before
    walk(pages.table, memory, pages.root, 0, READ)
    assert pages.harvest(0, length - 1, clear=False) == []
    walk(pages.table, memory, pages.root, 0, WRITE)
    assert [(run.iova, run.length) for run in pages.harvest(0, length - 1, clear=False)] == [(0, length)]


def test_a_clear_access_flag_is_a_fault_where_software_sets_it():
    memory = PhysicalMemory(RAM)
    for name, flag in (("arm64-4k-48-s1", arm64.AF), ("riscv-sv39", riscv.A)):
        pages = PageTable(memory, formats.VARIANTS[name])
        pages.map(0x1000, 0x5000, 0x1000, READ)
        leaf = pages.translate(0x1000)
        memory.write_u64(leaf.at, leaf.pte & ~flag)
        assert pages.translate(0x1000, READ).status == NOT_ACCESSED
        assert pages.translate(0x1000).status == OK
        sets = pages.table._replace(option=pages.table.option | HW_ACCESSED)
        assert walk(sets, memory, pages.root, 0x1000, READ).status == OK
        assert memory.read_u64(leaf.at) == leaf.pte
        ignores = pages.table._replace(option=pages.table.option | arm64.AFFD)
        memory.write_u64(leaf.at, leaf.pte & ~flag)
        if name.startswith("arm"):
            assert walk(ignores, memory, pages.root, 0x1000, READ).status == OK


def test_a_lenient_access_is_told_what_it_may_do_and_sets_flags_for_that_only():
    memory = PhysicalMemory(RAM)
    pages = PageTable(memory, vtdss.VARIANTS["vtdss-48"]._replace(option=HW_ACCESSED | HW_DIRTY))
    pages.map(0x1000, 0x5000, 0x1000, READ)
    assert pages.translate(0x1000, READ | WRITE).status == FORBIDDEN
    assert pages.translate(0x1000).pte & (vtdss.A | vtdss.D) == 0
    found = pages.translate(0x1000, READ | WRITE | LENIENT)
    assert (found.status, found.allowed & (READ | WRITE)) == (OK, READ)
    assert found.pte & (vtdss.A | vtdss.D) == vtdss.A
