"""Walks: over hostile tables they end; nested ones agree with two single walks; rights come from every level."""

import random

import pytest
from hypothesis import given, settings, strategies as st

from softiommu.memory.physical import PhysicalMemory
from softiommu.pagetable import formats
from softiommu.pagetable.engine import PageTable
from softiommu.pagetable.formats import amdv1, arm64, riscv, vtdss, x86_64
from softiommu.pagetable.kinds import (
    BAD_TABLE,
    EXECUTE,
    FORBIDDEN,
    MALFORMED,
    NOT_MAPPED,
    OK,
    OUT_OF_RANGE,
    READ,
    WRITE,
)
from softiommu.pagetable.nested import Stage, nested_walk
from softiommu.pagetable.walk import walk

RAM = 1 << 20
ENDS = {OK, NOT_MAPPED, MALFORMED, BAD_TABLE, FORBIDDEN, OUT_OF_RANGE}


@pytest.mark.parametrize("name", sorted(formats.VARIANTS))
def test_a_walk_over_random_memory_ends(name):
    table = formats.VARIANTS[name]
    chance = random.Random(name)
    memory = PhysicalMemory(RAM)
    for at in range(0, RAM, 8):
        # Entries that lead back into this memory, so that walks go deep: loops, self references, reserved bits.
        entry = chance.getrandbits(64) & ~(((1 << 40) - 1) << 12) | chance.randrange(RAM) & ~0xFFF
        memory.write_u64(at, entry if table.fmt != formats.riscv.RISCV else entry & ~(0x3FF << 54) | chance.getrandbits(4))
    seen = set()
    for _ in range(400):
        root = chance.randrange(RAM) & ~((8 << table.top_bits) - 1)
        found = walk(table, memory, root, chance.getrandbits(table.input_bits + 1), chance.getrandbits(3))
        assert found.status in ENDS
        seen.add(found.status)
    assert len(seen) >= 3


def test_a_root_outside_memory_is_a_bad_table():
    memory = PhysicalMemory(RAM)
    assert walk(x86_64.VARIANTS["x86-64-4level"], memory, 1 << 45, 0).status == BAD_TABLE


@pytest.mark.parametrize("first", ["x86-64-4level", "arm64-4k-48-s1", "riscv-sv39", "arm64-64k-48-s1"])
@pytest.mark.parametrize("second", ["vtdss-48", "arm64-4k-40-s2", "riscv-sv39x4", "amdv1-4level", "arm64-16k-40-s2"])
@given(data=st.data())
@settings(max_examples=12, deadline=None)
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
    want = data.draw(st.sampled_from([READ, WRITE]))
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


def test_a_table_takes_rights_from_what_is_below_it():
    memory = PhysicalMemory(RAM)
    pages = PageTable(memory, vtdss.VARIANTS["vtdss-39"])
    pages.map(0x1000, 0x5000, 0x1000, READ | WRITE)
    assert walk(pages.table, memory, pages.root, 0x1000, WRITE).status == OK
    memory.write_u64(pages.root, memory.read_u64(pages.root) & ~vtdss.W)
    found = walk(pages.table, memory, pages.root, 0x1000, WRITE)
    assert (found.status, found.oa, found.allowed & (READ | WRITE)) == (FORBIDDEN, 0x5000, READ)


def test_skipped_levels_need_zero_bits():
    memory = PhysicalMemory(RAM)
    table = amdv1.VARIANTS["amdv1-4level"]
    root, leaf = memory.alloc(4096), memory.alloc(4096)
    memory.write_u64(root, leaf | amdv1.PR | amdv1.IR | amdv1.IW | 1 << amdv1.NEXT_LEVEL_LOW)
    memory.write_u64(leaf + 8 * 3, amdv1.leaf(table, 0, 0x7000, 12, READ))
    assert walk(table, memory, root, 0x3123).oa == 0x7123
    assert walk(table, memory, root, 0x3123 | 1 << 21).status == NOT_MAPPED
    assert walk(table, memory, root, 0x3123 | 1 << 30).status == NOT_MAPPED


def test_reserved_bits_are_malformed():
    t = x86_64.VARIANTS["x86-64-4level"]
    assert x86_64.load(t, 1, x86_64.P | x86_64.PS | 1 << 13)[0] == 3
    r = riscv.VARIANTS["riscv-sv39"]
    assert riscv.load(r, 0, riscv.V | riscv.W)[0] == 3
    assert riscv.load(r, 0, riscv.V | riscv.R | 1 << 54)[0] == 3
    assert riscv.load(r, 0, riscv.V | riscv.R | riscv.N | 1 << 10)[0] == 3


def test_every_power_of_two_is_a_leaf_of_the_amd_format():
    t = amdv1.VARIANTS["amdv1-4level"]
    for lg2 in range(12, 39):
        level = min((lg2 - 12) // 9, t.leaf_top)
        pte = amdv1.leaf(t, level, 0, lg2, READ)
        assert amdv1.load(t, level, pte)[2] == lg2


def test_contiguous_leaves_of_arm_have_the_granules_sizes():
    def lg2s(name):
        return [n for n in range(64) if arm64.sizes(arm64.VARIANTS[name]) >> n & 1]

    assert lg2s("arm64-4k-48-s1") == [12, 16, 21, 25, 30]
    assert lg2s("arm64-16k-47-s1") == [14, 21, 25, 30]
    assert lg2s("arm64-64k-48-s1") == [16, 21, 29, 34]


@pytest.mark.parametrize("name", ["x86-64-4level", "vtdss-48", "amdv1-4level", "riscv-sv48"])
def test_written_leaves_are_harvested_once(name):
    memory = PhysicalMemory(16 << 20)
    pages = PageTable(memory, formats.VARIANTS[name])
    pages.map(0x10000, 0x40000, 0x8000, READ | WRITE)
    pages.harvest(0, 1 << 30, clear=True)
    assert pages.harvest(0, 1 << 30, clear=True) == []
    (leaf,) = pages.leaves(0x12000, 0x12000)
    bit = next(mask for mask in (1 << 6, 1 << 7, 1 << 9) if formats.dirty(pages.table, leaf.pte | mask))
    memory.write_u64(leaf.at, leaf.pte | bit)
    assert [found.iova for found in pages.harvest(0, 1 << 30, clear=False)] == [leaf.iova]
    assert [found.iova for found in pages.harvest(0, 1 << 30, clear=True)] == [leaf.iova]
    assert pages.harvest(0, 1 << 30, clear=True) == []


def test_execute_is_a_right_of_its_own():
    memory = PhysicalMemory(RAM)
    pages = PageTable(memory, x86_64.VARIANTS["x86-64-4level"])
    pages.map(0x1000, 0x5000, 0x1000, READ)
    assert pages.translate(0x1000, EXECUTE).status == OK
    leaf = pages.translate(0x1000)
    memory.write_u64(leaf.at, leaf.pte | 1 << x86_64.XD_LOW)
    assert pages.translate(0x1000, EXECUTE).status == FORBIDDEN
