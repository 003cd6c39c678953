"""A walk by cached links is a walk, in every format; and what a link led to when it was cached it leads to later."""

import pytest
from hypothesis import given, settings, strategies as st

from softiommu.hardware.cache import Cache, Shape
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
