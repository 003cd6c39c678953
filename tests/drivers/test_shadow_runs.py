"""Leaves that lie together are merged together, and nobody can tell: random histories beside a dict of pages."""

import itertools
from errno import ENOMEM

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from drivers.shadow_rig import ALL, GUEST_RAM, HOST, IOMMUS, RW, Rig
from softiommu.abi.software_nesting import TableFormat
from softiommu.drivers.driver import DomainFlags, Range
from softiommu.drivers.shadow import walk as shadow_walk
from softiommu.drivers.shadow.walk import GuestTable
from softiommu.errors import UapiError
from softiommu.pagetable.engine import PageTable
from softiommu.pagetable.formats import VARIANTS
from softiommu.pagetable.formats.x86_64 import Pte
from softiommu.pagetable.kinds import READ, WRITE

PAGE, LARGE = 4096, 2 << 20
IOVA, PAGES = 5 * LARGE - 100 * PAGE, 700


class Shown:
    """A guest with `PAGES` pages from IOVA on, and what its device may see: as it was when it was last said."""

    def __init__(self, iommu, to):
        self.rig = Rig(iommu)
        self.table = self.rig.table()
        self.now, self.said = {}, {}
        self.map(0, PAGES, to, READ | WRITE)
        self.said = dict(self.now)
        self.domain = self.rig.bind(self.table)
        self.rig.device.attach(self.domain, None)

    def map(self, first, count, to, prot):
        """Map pages to consecutive ones, in place of what is there; small leaves only."""
        for page in range(first, min(first + count, PAGES)):
            if page in self.now:
                self.table.unmap(IOVA + page * PAGE, PAGE)
            self.now[page] = (to + (page - first) * PAGE) % GUEST_RAM, prot
            assert self.table.map(IOVA + page * PAGE, self.now[page][0], PAGE, prot) == (0, PAGE)

    def unmap(self, first, count):
        for page in range(first, min(first + count, PAGES)):
            if self.now.pop(page, None):
                self.table.unmap(IOVA + page * PAGE, PAGE)

    def invalidate(self, first, count):
        assert self.rig.invalidate(self.domain, (IOVA + first * PAGE, count, 0, 0)) == (0, 1)
        for page in range(first, first + count):
            self.said.pop(page, None)
            if page in self.now:
                self.said[page] = self.now[page]

    def host(self, cut):
        """The host takes all of the guest's RAM away, and gives it back in two pieces, or in one. With the RAM go the
        guest's tables, so that they are read again."""
        parent = self.rig.parent
        parent.unmap(0, GUEST_RAM)
        parent.flush()
        for first, last in itertools.pairwise([0, cut, GUEST_RAM] if cut else [0, GUEST_RAM]):
            parent.map(first, HOST + first, last - first, RW)
        self.said = dict(self.now)

    def check(self, pages):
        for page in pages:
            expected = self.said.get(page, (None, 0))
            assert self.rig.rights(IOVA + page * PAGE) == expected, page

    def end(self):
        self.rig.device.detach(None)
        assert not self.rig.parent.index
        self.domain.free()


PLACES = st.integers(0, PAGES - 1)
COUNTS = st.sampled_from((1, 1, 2, 7, 64, 512))
STEPS = st.one_of(
    st.tuples(st.just("unmap"), PLACES, COUNTS, st.booleans()),
    st.tuples(st.just("map"), PLACES, COUNTS, st.booleans(), st.sampled_from((0, PAGE, LARGE)), st.booleans()),
    st.tuples(st.just("invalidate"), PLACES, COUNTS),
    st.tuples(st.just("host"), st.sampled_from((0, LARGE, 200 * PAGE))),
)


@pytest.mark.parametrize("iommu", IOMMUS)
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(to=st.sampled_from((0, 412 * PAGE, LARGE - 100 * PAGE)), steps=st.lists(STEPS, max_size=6))
def test_a_part_of_what_was_merged_together_changes_as_if_each_leaf_were_alone(iommu, to, steps):
    guest = Shown(IOMMUS[iommu], to)
    for step in steps:
        match step:
            case "unmap", first, count, said:
                guest.unmap(first, count)
            case "map", first, count, said, where, writable:
                place = where if where != PAGE else to + first * PAGE  # where it was
                guest.map(first, count, place, READ | WRITE * writable)
            case "invalidate", first, count:
                said = True
            case "host", cut:
                guest.host(cut)
                first, count, said = 0, 0, False
        if said:
            guest.invalidate(first, min(count, PAGES - first))
        near = {page + n for page in (0, 100, 612, first, first + count) for n in (-2, -1, 0, 1)}
        guest.check(sorted(page for page in near | set(range(0, PAGES, 61)) if 0 <= page < PAGES))
    guest.check(range(PAGES))
    guest.end()


def test_what_lies_together_costs_one_entry_for_each_of_the_guests_tables():
    guest = Shown(IOMMUS["vtd"], 0)
    assert len(guest.domain._merge._entries) == 3
    assert guest.rig.driver.work.merged == len(guest.domain._merge) == PAGES
    guest.unmap(300, 1)
    guest.invalidate(300, 1)
    assert (guest.rig.driver.work.merged, guest.rig.driver.work.dropped) == (PAGES, 1)
    guest.map(300, 1, 300 * PAGE, READ | WRITE)
    guest.invalidate(0, PAGES)
    assert (guest.rig.driver.work.merged, guest.rig.driver.work.dropped) == (PAGES + 1, 1)
    guest.end()


def test_a_page_of_a_table_that_maps_itself_goes_and_comes_back_with_what_it_leads_to():
    """Tables of 64 KiB: the parent takes a page of the last one, which is data of the guest's, too."""
    rig, large = Rig(whole=False), 1 << 16
    for page in range(0, GUEST_RAM, PAGE):
        rig.parent.map(page, HOST + page, PAGE, RW)
    table, count = rig.table("arm64-64k-48-s1"), GUEST_RAM >> 16
    first = (512 - count // 2) << 16  # the entries of half of the leaves lie in the second page
    for number in range(count):
        table.map(first + number * large, number * large, large, READ | WRITE)
    domain = rig.bind(table, format=TableFormat.ARM64_64K)
    rig.device.attach(domain, None)
    second = (table.translate(first).at & -large) + PAGE
    assert second < count // 2 * large

    def seen():
        return [rig.rights(first + page) for page in range(0, GUEST_RAM, PAGE)]

    everything = [(page, READ | WRITE) for page in range(0, GUEST_RAM, PAGE)]
    assert seen() == everything
    for _ in range(2):
        rig.parent.unmap(second, PAGE)
        rig.parent.flush()
        gone = {second, *range(GUEST_RAM // 2, GUEST_RAM, PAGE)}
        assert seen() == [(None, 0) if page in gone else (page, rights) for page, rights in everything]
        rig.parent.map(second, HOST + second, PAGE, RW)
        assert seen() == everything
    rig.device.detach(None)
    assert not rig.parent.index


@pytest.mark.parametrize("iommu", ["smmuv3", "amd", "riscv"])
def test_what_was_written_through_a_large_page_is_known_when_a_part_of_it_goes(iommu):
    rig = Rig(IOMMUS[iommu], whole=False)
    parent = rig.device.alloc_paging(DomainFlags.NEST_PARENT | DomainFlags.DIRTY_TRACKING, None)
    parent.map(0, HOST, GUEST_RAM, RW)
    table = rig.table()
    for page in range(0, LARGE, PAGE):
        table.map(LARGE + page, page, PAGE, READ | WRITE)
    domain = rig.bind(table, parent=parent)
    rig.device.attach(domain, None)
    parent.set_dirty_tracking(True)
    parent.read_dirty(Range(0, GUEST_RAM - 1), None, True)
    assert rig.reach(LARGE + 7 * PAGE, WRITE) == 7 * PAGE
    table.unmap(LARGE + 9 * PAGE, PAGE)
    rig.invalidate(domain, (LARGE + 9 * PAGE, 1, 0, 0))
    assert [rig.reach(LARGE + page * PAGE) for page in (8, 9, 10)] == [8 * PAGE, None, 10 * PAGE]
    pages = []
    parent.read_dirty(Range(0, GUEST_RAM - 1), Written(pages), True)
    assert 7 * PAGE in pages
    rig.device.detach(None)


class Written:
    """Pages that are reported."""

    def __init__(self, pages):
        self.pages = pages

    def record(self, iova, length):
        self.pages += range(iova, iova + length, PAGE)


class Bytes:
    """A guest's memory as it is, in which flags can be set or not."""

    def __init__(self, memory, writable=True):
        self.memory, self.writable = memory, writable

    def read(self, address, length):
        return self.memory.read(address, length)

    def write_words(self, address, words):
        for number, word in enumerate(words if self.writable else ()):
            self.memory.write_u64(address + 8 * number, word)
        return self.writable


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    name=st.sampled_from(("x86-64-4level", "vtdss-48", "amdv1-4level", "arm64-4k-48-s1", "riscv-sv48")),
    pieces=st.lists(
        st.tuples(st.integers(0, 40), st.integers(1, 40), st.integers(0, 3000), st.booleans()), min_size=1, max_size=6
    ),
    wild=st.lists(st.tuples(st.integers(0, 200), st.integers(0, (1 << 64) - 1)), max_size=3),
    flags=st.lists(st.integers(0, 200), max_size=3),
    writable=st.booleans(),
)
def test_a_table_is_read_as_entry_by_entry(name, pieces, wild, flags, writable):
    """The oracle reads each page's range by itself, where nothing lies together."""
    from softiommu.memory.physical import PhysicalMemory

    memory = PhysicalMemory(4 << 20)
    table, at = PageTable(memory, VARIANTS[name]), 0
    for gap, count, to, writes in pieces:
        at += gap
        for page in range(count):
            table.map((at + page) * PAGE, (to + page) * PAGE, PAGE, READ | WRITE * writes)
        at += count
    lowest = table.translate((at - 1) * PAGE).at & -PAGE
    for number, word in wild:
        memory.write_u64(lowest + 8 * number, word)
    for number in flags:
        memory.write_u64(lowest + 8 * number, memory.read_u64(lowest + 8 * number) ^ Pte.A.mask)
    before = memory.read(lowest, PAGE)
    window = Range(0, 512 * PAGE - 1)
    together = GuestTable(table.table, table.root, Bytes(memory, writable)).read(window)
    after = memory.read(lowest, PAGE)
    memory.write(lowest, before)
    single = GuestTable(table.table, table.root, Bytes(memory, writable))
    alone = [leaf for page in range(512) for leaf in single.read(Range(page * PAGE, page * PAGE + PAGE - 1)).leaves]
    assert memory.read(lowest, PAGE) == after
    parts = [leaf.part(page * PAGE, page * PAGE + PAGE - 1) for leaf in together.leaves for page in _pages(leaf)]
    assert parts == [leaf.part(page * PAGE, page * PAGE + PAGE - 1) for leaf in alone for page in _pages(leaf)]


def _pages(leaf):
    return range(leaf.first // PAGE, leaf.last // PAGE + 1)


def test_leaves_that_lie_together_are_counted_each(monkeypatch):
    monkeypatch.setattr(shadow_walk, "MOST_LEAVES", 600)
    memory = Rig().guest
    table = PageTable(memory, VARIANTS["x86-64-4level"])
    for page in range(601):
        table.map(page * PAGE, page * PAGE, PAGE, READ)
    read = GuestTable(table.table, table.root, Bytes(memory)).read
    assert sum(leaf.leaves for leaf in read(Range(0, 600 * PAGE - 1), 600).leaves) == 600
    with pytest.raises(UapiError, match="no room for more than 600 leaves") as refused:
        read(Range(0, ALL), 600)
    assert refused.value.errno == ENOMEM
