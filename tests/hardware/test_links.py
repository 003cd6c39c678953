"""A walk by cached links is a walk, in every format; and what a link led to when it was cached it leads to later."""

import random

import pytest
from hypothesis import given, settings, strategies as st

from softiommu.hardware import links
from softiommu.hardware.cache import Cache, PageCache, Shape
from softiommu.hardware.links import LinkedWalker
from softiommu.memory.physical import PhysicalMemory
from softiommu.pagetable.engine import PageTable
from softiommu.pagetable.formats import VARIANTS
from softiommu.pagetable.kinds import LENIENT, OK, READ, WRITE
from softiommu.pagetable.nested import Stage
from softiommu.pagetable.walk import walk

SOME = ("x86-64-4level", "x86-64-5level", "vtdss-48", "amdv1-1level", "amdv1-3level", "amdv1-6level")
TAGS = (7,)


def linked(ways=8):
    memory = PhysicalMemory(8 << 20)
    return memory, LinkedWalker(memory, Cache(Shape(4, ways)))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SOME), st.sampled_from([0, 1, 8]), st.data())
def test_a_walk_by_links_is_a_walk(variant, ways, data):
    memory, walker = linked(ways)
    pages = PageTable(memory, VARIANTS[variant])
    places = st.sampled_from([0, 0x1000, 0x5000, 0x1FF000, 0x200000, 0x201000, 1 << 30, (1 << 30) + 0x3000, 1 << 45])
    for _ in range(data.draw(st.integers(0, 5))):
        size = data.draw(st.sampled_from([0x1000, 0x3000, 0x200000]))
        pages.map(data.draw(places), data.draw(places), size, data.draw(st.sampled_from([1, 3])))
    stage = Stage(pages.table, pages.root)
    for _ in range(8):
        iova, want = data.draw(places) + 8, data.draw(st.sampled_from([0, READ, WRITE, WRITE | LENIENT]))
        expected = walk(pages.table, memory, pages.root, iova, want)
        assert walker.walk(TAGS, stage, iova, want) == expected


def test_a_link_leads_where_it_led():
    memory, walker = linked()
    pages = PageTable(memory, VARIANTS["amdv1-4level"])
    pages.map(0x5000, 0x90000, 0x2000, READ)
    stage = Stage(pages.table, pages.root)
    assert walker.walk(TAGS, stage, 0x5000, READ).oa == 0x90000
    memory.write_u64(pages.root, 0)
    assert walker.walk(TAGS, stage, 0x6000, READ).oa == 0x91000
    assert walker.walk((8,), stage, 0x6000, READ).status != OK
    walker.links.drop(lambda page, link: True)
    assert walker.walk(TAGS, stage, 0x6000, READ).status != OK


@pytest.mark.parametrize("ways", [0, 8])
def test_links_are_counted(ways):
    memory, walker = linked(ways)
    pages = PageTable(memory, VARIANTS["vtdss-48"])
    pages.map(0x5000, 0x90000, 0x2000, READ)
    for _ in range(2):
        walker.walk(TAGS, Stage(pages.table, pages.root), 0x5000, READ)
    assert (walker.links.counters.fills, walker.links.counters.hits) == ((3, 1) if ways else (0, 0))


@pytest.mark.parametrize("ways", [1, 4])
@pytest.mark.parametrize("variant", [*SOME, "riscv-sv48"])
def test_walks_by_known_links_and_entries_are_those_of_the_kernel(variant, ways, monkeypatch):
    """Tables change at will, and nothing or anything is forgotten: both find, keep and count the same."""
    chance, ask = random.Random(variant), links.known_entries
    memory = PhysicalMemory(8 << 20)
    pages = PageTable(memory, VARIANTS[variant])
    stage, quick = Stage(pages.table, pages.root), 0
    spots = [base + (n << 12) for base in (0, 1 << 21, 5 << 21, 1 << 30, 3 << 38) for n in (0, 1, 9)]
    spots = [spot for spot in spots if spot >> pages.table.input_bits == 0]
    for spot in spots:
        pages.map(spot, spot & 0x3FFFFFFF, 4096, READ | WRITE)
    walkers = [LinkedWalker(memory, PageCache(Shape(2, ways))) for _ in range(2)]
    used = [pa for pa in range(0, 0x20000, 8) if memory.read_u64(pa)]
    for number in range(600):
        if number > 200 and chance.random() < 0.1:
            pa = chance.choice(used)
            memory.write_u64(pa, memory.read_u64(pa) ^ 1 << chance.randrange(64))
        if chance.random() < 0.02:
            size = chance.choice((21, 30))
            for walker in walkers:
                walker.links.drop(lambda page, link, size=size: page.lg2 == size)
        iova, want = chance.choice(spots) + 8, chance.choice((READ, READ, READ, WRITE, 0))
        before, found = memory.read(0, 0x20000), []
        for walker, known in zip(walkers, (ask, lambda *_: None), strict=True):
            monkeypatch.setattr(links, "known_entries", known)
            memory.write(0, before)
            found.append((walker.walk((7,), stage, iova, want), memory.read(0, 0x20000), walker.links.items()))
            found.append(vars(walker.links.counters).copy())
        assert found[:2] == found[2:]
        quick += found[0][0].status == OK
    assert quick > 200
