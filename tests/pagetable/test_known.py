"""Walks by known entries: whatever they find, a full walk finds in every field, and neither leaves a trace that the
other does not."""

import random
from itertools import product

import numpy as np
import pytest

from softiommu.memory.physical import CHUNK, PhysicalMemory
from softiommu.pagetable import formats, nested, walk
from softiommu.pagetable.engine import PageTable
from softiommu.pagetable.kinds import ASK, EXECUTE, HW_ACCESSED, HW_DIRTY, LENIENT, OK, PRIVILEGED, READ, WRITE
from softiommu.pagetable.nested import Stage
from softiommu.pagetable.walk import MASK, Tree, Walk

WANTS = (0, READ, WRITE | LENIENT, READ | EXECUTE, READ | WRITE | PRIVILEGED)
OPTIONS = (0, HW_ACCESSED | HW_DIRTY)


@pytest.fixture(autouse=True)
def nothing_is_known():
    walk._known.clear()


def mapped(table, chance, share, size=2 * CHUNK):
    """A table with pages and large leaves; in one entry of `share` some bits were changed then."""
    memory = PhysicalMemory(size)
    pages = PageTable(memory, table)
    top = (1 << min(table.input_bits, 48) - 1) & ~((1 << 31) - 1)
    starts = []
    for _ in range(12):
        lg2 = chance.choice([lg2 for lg2 in range(12, 27) if pages.sizes >> lg2 & 1])
        iova = top + chance.randrange(64) * max(1 << table.granule_lg2, 1 << lg2)
        if iova + (4 << lg2) >> table.input_bits == 0 and not any(pages.leaves(iova, iova + (4 << lg2) - 1)):
            pages.map(iova, chance.randrange(1 << 9) << 30, 4 << lg2, chance.choice((READ, READ | WRITE)))
            starts.append((iova, lg2))
    mutate(memory, chance, share)
    return memory, pages, [start + (n << lg2) for start, lg2 in starts for n in range(4)]


def mutate(memory, chance, share):
    used = (8 * np.flatnonzero(np.frombuffer(memory.read(0, memory.size), np.uint64))).tolist()
    for pa in chance.sample(used, len(used) // share):
        flips = chance.choice((1, 1, 2, 3, 8))
        memory.write_u64(pa, memory.read_u64(pa) ^ sum(1 << bit for bit in chance.sample(range(64), flips)))


def full(table, memory, root, iova, want):
    """A walk by the kernel alone."""
    found = walk.one_stage(Tree(table, memory.space, root), walk.signed(iova), want)
    if found[0] == ASK:
        found = walk.one_stage(Tree(table, memory.anywhere, root), walk.signed(iova), want)
    return Walk(*found[:6], found[6] & MASK)


@pytest.mark.parametrize("name", sorted(formats.VARIANTS))
def test_a_walk_by_known_entries_is_a_walk(name, monkeypatch):
    chance, variant = random.Random(name), formats.VARIANTS[name]
    quick = count(monkeypatch, "find")
    for option, share in product(OPTIONS, (8, 1 << 30)):
        table = variant._replace(option=variant.option | option)
        memory, pages, places = mapped(table, chance, share)
        before = memory.read(0, memory.size)
        iovas = [chance.choice(places) + chance.randrange(1 << chance.choice((12, 21))) for _ in range(60)]
        for want in WANTS:
            found = [walk.walk(table, memory, pages.root, iova, want) for iova in iovas]
            after = memory.read(0, memory.size)
            memory.write(0, before)
            assert found == [full(table, memory, pages.root, iova, want) for iova in iovas], want
            assert memory.read(0, memory.size) == after
            memory.write(0, before)
    assert quick.count(True) > 150


def count(monkeypatch, name):
    """Whether each walk by known entries found something."""
    seen, plain = [], getattr(walk.Known, name)

    def counted(self, *arguments):
        found = plain(self, *arguments)
        seen.append(found is not None)
        return found

    monkeypatch.setattr(walk.Known, name, counted)
    return seen


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("x86-64-4level", "vtdss-48"),
        ("x86-64-5level", "amdv1-3level"),
        ("arm64-4k-48-s1", "arm64-4k-40-s2"),
        ("arm64-64k-48-s1", "arm64-16k-40-s2"),
        ("riscv-sv48", "riscv-sv39x4"),
    ],
)
def test_a_nested_walk_by_known_entries_is_a_nested_walk(first, second, monkeypatch):
    chance = random.Random(first)
    quick = count(monkeypatch, "nested")
    for option, share in product(OPTIONS, (12, 1 << 30)):
        variants = [formats.VARIANTS[name] for name in (first, second)]
        inner, outer = (variant._replace(option=variant.option | option) for variant in variants)
        memory = PhysicalMemory(4 * CHUNK)
        host = PageTable(memory, outer)
        host.sizes = 1 << outer.granule_lg2
        host.map(0, 0, 2 * CHUNK, READ | WRITE)
        guest = PageTable(memory, inner)
        guest.sizes = 1 << inner.granule_lg2
        guest.map(0x40000000, CHUNK, CHUNK, READ | WRITE)
        guest.unmap(0x40000000 + (64 << 12), 1 << 16)
        mutate(memory, chance, share)
        stages = Stage(inner, guest.root), Stage(outer, host.root)
        before = memory.read(0, memory.size)
        iovas = [0x40000000 + chance.randrange(CHUNK + (1 << 14)) for _ in range(40)]
        for want, (face, kernel) in product(
            WANTS, ((nested.nested_walk, nested.two_stages), (nested.walk_first, nested.first_of_two))
        ):
            found = [face(*stages, memory, iova, want) for iova in iovas]
            after = memory.read(0, memory.size)
            memory.write(0, before)
            walks = [nested._walk(kernel, *stages, memory, iova, want) for iova in iovas]
            assert found == [nested._ended(*ends) for ends in walks], want
            assert memory.read(0, memory.size) == after
            memory.write(0, before)
    assert quick.count(True) > 150


def test_address_bits_do_not_matter_in_pairs():
    """An entry that is known is what the format says of it with any address."""
    chance = random.Random(1)
    for name, table in formats.VARIANTS.items():
        memory, pages, places = mapped(table, chance, 1 << 30)
        for iova in places * 3:
            walk.walk(table, memory, pages.root, iova, READ)
        for iova in places[:12]:
            at = walk.walk(table, memory, pages.root, iova, READ).at
            was = memory.read_u64(at)
            for _ in range(24):
                mask = chance.getrandbits(64) & chance.choice((-1 & MASK, chance.getrandbits(64)))
                memory.write_u64(at, was ^ mask & ((1 << 56) - (1 << 10)))
                expected = full(table, memory, pages.root, iova, READ)
                assert walk.walk(table, memory, pages.root, iova, READ) == expected, name
            memory.write_u64(at, was)


def test_garbage_is_not_remembered_without_end():
    chance = random.Random(2)
    table = formats.VARIANTS["vtdss-39"]
    memory = PhysicalMemory(2 * CHUNK)
    pages = PageTable(memory, table)
    pages.map(0, 0, 8 << 12, READ)
    leaves = pages.table, memory, pages.root
    at = walk.walk(*leaves, 0, READ).at
    for _ in range(2000):
        software = chance.getrandbits(8) << 52 | chance.getrandbits(2) << 2 | 1
        memory.write_u64(at, software | 0x5000)
        assert walk.walk(*leaves, 0, READ).oa == 0x5000
    known = walk.known_entries(table, READ, memory.space)
    assert len(known._asked) <= 256


def test_what_is_known_of_variants_is_bounded():
    memory = PhysicalMemory(2 * CHUNK)
    pages = PageTable(memory, formats.VARIANTS["arm64-4k-39-s1"])
    pages.map(0, 0x5000, 4096, READ)
    for number in range(2000):
        table = pages.table._replace(option=pages.table.option | (number % 700) << 20)
        assert walk.walk(table, memory, pages.root, 0, READ).status == OK
    assert len(walk._known) <= 512


@pytest.mark.parametrize("direct_first", [False, True])
def test_memory_that_may_not_be_indexed_teaches_nothing_of_empty_entries(direct_first):
    """A guest's RAM behind a backing reads as zeros where it is indexed; a walk there is right all the same."""
    first, second = formats.VARIANTS["x86-64-4level"], formats.VARIANTS["vtdss-48"]
    for direct in (direct_first, not direct_first):
        host, guest = PhysicalMemory(CHUNK), PhysicalMemory(CHUNK)
        base = 4 * CHUNK
        host.map_window(base, guest, 0, CHUNK)
        below = PageTable(host, second)
        inner = PageTable(host if direct else guest, first)
        below.map(0, 0 if direct else base, CHUNK, READ | WRITE)
        inner.map(0x5000, 0x3000, 4096, READ | WRITE)
        stages = Stage(first, inner.root), Stage(second, below.root)
        for iova in (*[0x5000] * 100, 0x6000, 1 << 40):
            found = nested.nested_walk(*stages, host, iova, READ)
            assert (found.stage1.status == OK) == (iova == 0x5000), hex(iova)
