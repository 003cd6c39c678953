"""The fast lane: whatever it translates, a full walk translates to the same address, and leaves no other trace."""

import random
from itertools import product

import numpy as np
import pytest

from softiommu.memory.physical import CHUNK, PhysicalMemory
from softiommu.pagetable import batch, formats, lane, nested, walk
from softiommu.pagetable.engine import PageTable
from softiommu.pagetable.kinds import EXECUTE, HW_ACCESSED, HW_DIRTY, OK, PRIVILEGED, READ, WRITE
from softiommu.pagetable.nested import Stage
from softiommu.pagetable.walk import Tree

WANTS = (0, READ, WRITE, READ | WRITE, READ | EXECUTE, READ | PRIVILEGED, READ | WRITE | PRIVILEGED)
OPTIONS = (0, HW_ACCESSED | HW_DIRTY)


def mapped(table, chance, share):
    """A table with pages and large leaves; in one entry of `share` some bits were changed then."""
    memory = PhysicalMemory(2 * CHUNK)
    pages = PageTable(memory, table)
    granule = 1 << table.granule_lg2
    top = (1 << min(table.input_bits, 48) - 1) & ~((1 << 31) - 1)
    starts = []
    for _ in range(12):
        lg2 = chance.choice([lg2 for lg2 in range(12, 31) if pages.sizes >> lg2 & 1])
        iova = top + chance.randrange(64) * max(granule, 1 << lg2)
        if iova + (4 << lg2) >> table.input_bits == 0 and not any(pages.leaves(iova, iova + (4 << lg2) - 1)):
            pages.map(iova, chance.randrange(1 << 9) << 30, 4 << lg2, chance.choice((READ, READ | WRITE)))
            starts.append((iova, lg2))
    used = [pa for pa in range(0, memory.size, 8) if memory.read_u64(pa)]
    for pa in chance.sample(used, len(used) // share):
        flips = chance.choice((1, 1, 2, 3))
        memory.write_u64(pa, memory.read_u64(pa) ^ sum(1 << bit for bit in chance.sample(range(64), flips)))
    return memory, pages, [start + (n << lg2) for start, lg2 in starts for n in range(4)]


@pytest.mark.parametrize("name", sorted(formats.VARIANTS))
def test_what_the_lane_translates_a_full_walk_translates_alike(name):
    chance = random.Random(name)
    translated = 0
    for option, share in product(OPTIONS, (8, 1 << 30)):
        table = formats.VARIANTS[name]._replace(option=formats.VARIANTS[name].option | option)
        memory, pages, places = mapped(table, chance, share)
        before = memory.read(0, memory.size)
        iovas = [chance.choice(places) + chance.randrange(1 << chance.choice((12, 21))) for _ in range(600)]
        for want in WANTS:
            usual = lane.lane(table, want)
            if usual is None:
                continue
            oas = [0] * len(iovas)
            left = lane.lane_many(usual, memory.space, pages.root, iovas, oas)
            assert left == oas.count(lane.UNUSUAL)
            translated += len(oas) - left
            for iova, oa in zip(iovas, oas, strict=True):
                if oa != lane.UNUSUAL:
                    found = walk.one_stage(Tree(table, memory.space, pages.root), iova, want)
                    assert (found[0], found[1]) == (OK, oa), (hex(iova), want)
            assert memory.read(0, memory.size) == before
            memory.write(0, before)
    assert translated > 300 or table.input_bits > 62


def test_what_drivers_map_is_usual():
    """Every variant has a lane for reads, and for writes, in which its own leaves of every level stay."""
    for name, table in formats.VARIANTS.items():
        if table.input_bits > 62:
            continue
        memory = PhysicalMemory(2 * CHUNK)
        pages = PageTable(memory, table._replace(option=table.option & ~HW_DIRTY))
        levels = [table.granule_lg2 + table.bits * level for level in range(table.leaf_top + 1)]
        iovas = []
        for lg2 in [lg2 for lg2 in levels if lg2 < min(table.input_bits, 40) - 1]:
            iova = 1 << lg2
            pages.map(iova, 1 << lg2, 1 << lg2, READ | WRITE)
            iovas.append(iova + 5)
        for want in (READ, WRITE):
            usual = lane.lane(pages.table, want)
            assert usual is not None, name
            oas = [0] * len(iovas)
            assert lane.lane_many(usual, memory.space, pages.root, iovas, oas) == 0, (name, want)
            assert oas == iovas


@pytest.mark.parametrize(
    ("first", "second"),
    [("x86-64-4level", "vtdss-48"), ("arm64-4k-48-s1", "arm64-4k-40-s2"), ("riscv-sv48", "riscv-sv39x4")],
)
def test_a_nested_batch_is_what_single_walks_are(first, second):
    chance = random.Random(first)
    memory = PhysicalMemory(4 * CHUNK)
    host = PageTable(memory, formats.VARIANTS[second])
    host.map(0, 0, 3 * CHUNK, READ | WRITE)
    guest = PageTable(memory, formats.VARIANTS[first])
    guest.map(0x40000000, CHUNK, 64 << 12, READ | WRITE)
    guest.unmap(0x40000000 + (20 << 12), 4096)
    stages = Stage(guest.table, guest.root), Stage(host.table, host.root)
    iovas = np.array([0x40000000 + chance.randrange(80 << 12) for _ in range(5000)], np.uint64)
    oas, ends = batch.translate_nested(*stages, memory, iovas, READ)
    for iova, oa, end in list(zip(iovas.tolist(), oas.tolist(), ends.tolist(), strict=True))[:500]:
        found = nested.nested_walk(*stages, memory, iova, READ)
        assert (found.pa if found.status == OK else oa, found.status) == (oa, end)
    assert 0 < np.count_nonzero(ends) < len(ends)
