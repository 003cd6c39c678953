"""Random guests under software nesting, and where exactly their devices get to.

The architecture lets what was cached be forgotten at any time. A shadow is not so: a page of it is as the guest's table
was when it was read last, and it is read when it is invalidated, or when its host gives a table of it back; the host's
own changes of a page are seen at once. So a missing invalidation shows the stale translation, and a right one never.
Where the program itself fills the table there is nothing to invalidate: the device never sees what was.
"""

from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from drivers.shadow_rig import ALL, HOST, RW, SID, Rig
from drivers.test_shadow_random import WITH_PASIDS
from softiommu.abi.generic_invalidation import InvalidateV1, InvalidateV2, Scope, Target
from softiommu.drivers.driver import DomainFlags, Prot
from softiommu.drivers.function import Function
from softiommu.pagetable.formats.x86_64 import Pte

PAGE = 4096
#: Pages of a guest's RAM. Each of two address spaces has a table of each upper level; the last level's are for both.
UPPER, TABLES, DATA = ((1, 2, 3), (4, 5, 6)), (8, 9, 10), (32, 33, 34, 35)
PASIDS = (None, 5)
#: The device's pages, on both sides of a border of tables.
FIRST, COUNT = 509, 6
SLOTS = 2

spaces, slots = st.integers(0, 1), st.integers(0, SLOTS - 1)
places = st.integers(0, COUNT - 1)
versions = st.sampled_from((InvalidateV1, InvalidateV2))
tables = st.sampled_from(TABLES)
prots = st.sampled_from((RW, RW, Prot.READ))
leaves = st.none() | st.tuples(st.sampled_from(DATA), prots)


def iova(place):
    return FIRST + place << 12


def slot_of(place):
    return FIRST + place >> 9


class ExactGuest(RuleBasedStateMachine):
    """Two address spaces of a guest: of requests without a PASID, and of requests with one."""

    def __init__(self, iommu, seen):
        super().__init__()
        self.seen = seen
        self.rig = Rig(WITH_PASIDS[iommu], Function("gpu", (SID,), pasid_bits=8), whole=False)
        #: The parent: the host's page of each of the guest's, and its rights.
        self.parent = {}
        for page in (*UPPER[0], *UPPER[1], *TABLES, *DATA):
            self.give(page, page, RW)
        #: What is in memory: the table of each slot, and the leaves of each table.
        self.linked = [[None] * SLOTS for _ in PASIDS]
        self.content = {table: {} for table in TABLES}
        #: What the shadows were read as: the table of each slot, and the leaf of each place.
        self.met = [[None] * SLOTS for _ in PASIDS]
        self.shadow = [[None] * COUNT for _ in PASIDS]
        for number in range(len(TABLES) * COUNT):
            self.store(TABLES[number // COUNT], number % COUNT, (DATA[number % len(DATA)], RW))
        self.domains = [self.make(space) for space in range(len(PASIDS))]

    def make(self, space):
        root, second, third = UPPER[space]
        self.write(root, 0, second)
        self.write(second, 0, third)
        for slot in range(SLOTS):
            self.link(space, slot, TABLES[space + slot])
        domain = self.rig.bind(SimpleNamespace(root=root * PAGE), pasids=True)
        self.rig.device.attach(domain, PASIDS[space])
        self.read_again(space, range(COUNT), whole=True)
        return domain

    def teardown(self):
        for pasid in reversed(PASIDS):
            self.rig.device.detach(pasid)
        assert not self.rig.parent.index

    # The guest changes its tables

    def write(self, table, index, page, prot=RW):
        """An entry, none of whose flags has to be set."""
        entry = 0 if page is None else Pte.of(P=1, RW=int(prot.writable), US=1, A=1, D=1, ADDR=page)
        self.rig.guest.write_u64(table * PAGE + 8 * index, int(entry))

    @rule(table=tables, place=places, leaf=leaves)
    def store(self, table, place, leaf):
        self.write(table, (FIRST + place) % 512, *(leaf or (None,)))
        self.content[table][place] = leaf

    @rule(space=spaces, slot=slots, table=st.none() | tables)
    def link(self, space, slot, table):
        self.write(UPPER[space][-1], slot, table)
        self.linked[space][slot] = table

    def now(self, space, place):
        """The leaf that a walk finds."""
        table = self.linked[space][slot_of(place)]
        return self.content[table][place] if table in self.parent else None

    # and invalidates

    def read_again(self, space, where, *, whole):
        """What the shadow has of some places is what is there now. `whole`: of all that their tables translate."""
        for place in where:
            self.shadow[space][place] = self.now(space, place)
            slot = slot_of(place)
            if whole or self.linked[space][slot] is not None:
                self.met[space][slot] = self.linked[space][slot]

    @rule(space=spaces, place=places, count=st.integers(1, COUNT), leaf=st.integers(0, 1))
    def invalidate_pages(self, space, place, count, leaf):
        assert self.rig.invalidate(self.domains[space], (iova(place), count, leaf, 0)) == (0, 1)
        self.read_again(space, range(place, min(place + count, COUNT)), whole=False)

    @rule(space=spaces, slot=slots, everything=st.booleans())
    def invalidate_much(self, space, slot, everything):
        entry = (0, ALL, 0, 0) if everything else (slot << 21, 512, 0, 0)
        assert self.rig.invalidate(self.domains[space], entry) == (0, 1)
        self.read_again(space, [at for at in range(COUNT) if everything or slot_of(at) == slot], whole=True)

    @rule(
        space=spaces,
        version=versions,
        scope=st.sampled_from(Scope),
        pasid=st.sampled_from((5, 5, 6)),
        place=places,
        count=st.integers(1, COUNT),
        caches=st.sampled_from((Target.LEAF, Target.TABLES, Target.LEAF | Target.DEVICE_TLB)),
    )
    def invalidate_generic(self, space, version, scope, pasid, place, count, caches):
        entry, where = version(scope=scope, targets=caches), range(COUNT)
        if scope.name.startswith("RANGE"):
            entry.addr, entry.count, entry.granule_lg2 = iova(place), count, 12
            where = range(place, min(place + count, COUNT))
        reached = space == 0 or scope not in (Scope.NO_PASID, Scope.RANGE_NO_PASID)
        if scope in (Scope.PASID, Scope.RANGE):
            entry.pasid, reached = pasid, pasid == PASIDS[space]
        assert self.rig.invalidate_generic(self.domains[space], entry) == (0, 1)
        if reached:
            self.read_again(space, where, whole=len(where) == COUNT and not entry.count)

    @rule(space=spaces, place=places, leaf=leaves, near=st.sampled_from((-1, 1)), version=versions)
    def change_what_was_just_read(self, space, place, leaf, near, version):
        """Nobody tells; then other pages and other PASIDs are told; and then this one."""
        self.invalidate_pages(space, place, 1, 1)
        self.the_device_gets_where_the_shadow_leads()
        table = self.linked[space][slot_of(place)]
        if table is not None:
            self.store(table, place, leaf)
        self.the_device_gets_where_the_shadow_leads()
        if 0 <= place + near < COUNT:
            self.invalidate_pages(space, place + near, 1, 1)
        for scope in (Scope.PASID, Scope.RANGE):
            self.invalidate_generic(space, version, scope, 6, place, 1, Target.LEAF)
        self.the_device_gets_where_the_shadow_leads()
        self.invalidate_generic(space, version, Scope.RANGE_ALL_PASIDS, 6, place, 1, Target.LEAF)

    # The host changes what is beneath

    def give(self, page, to, prot):
        self.rig.parent.map(page * PAGE, HOST + to * PAGE, PAGE, prot)
        self.parent[page] = to, prot

    def take(self, page):
        self.rig.parent.unmap(page * PAGE, PAGE)
        self.rig.parent.flush()
        del self.parent[page]

    @rule(page=st.sampled_from(DATA), to=st.sampled_from(DATA), prot=prots)
    def move_a_page_of_data(self, page, to, prot):
        if page in self.parent:
            self.take(page)
        else:
            self.give(page, to, prot)

    @rule(table=tables)
    def take_or_give_a_table(self, table):
        """What it led to is gone; what it leads to when it is there again is read then."""
        met = [(space, slot) for space in range(len(PASIDS)) for slot in range(SLOTS) if self.met[space][slot] == table]
        there = table in self.parent
        if there:
            self.take(table)
        else:
            self.give(table, table, RW)
        for space, slot in met:
            where = [place for place in range(COUNT) if slot_of(place) == slot]
            if there:
                for place in where:
                    self.shadow[space][place] = None
            else:
                self.read_again(space, where, whole=True)

    # The device

    def reached(self, leaf):
        """Where a leaf gets it."""
        page, prot = leaf or (None, Prot.NONE)
        to, allowed = self.parent.get(page, (None, Prot.NONE))
        both = prot & allowed
        return (to * PAGE, both.value) if both else (None, 0)

    @invariant()
    def the_device_gets_where_the_shadow_leads(self):
        for space, pasid in enumerate(PASIDS):
            for place in range(COUNT):
                expected = self.reached(self.shadow[space][place])
                is_fresh = expected == self.reached(self.now(space, place))
                self.seen["fresh" if is_fresh else "stale"] += 1
                assert self.rig.rights(iova(place), pasid) == expected


@pytest.mark.parametrize("iommu", WITH_PASIDS)
def test_a_shadow_is_stale_until_it_is_invalidated_and_then_what_the_guest_mapped(iommu):
    seen = Counter()
    how = settings(max_examples=8, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(lambda: ExactGuest(iommu, seen), settings=how)
    assert min(seen["stale"], seen["fresh"]) > 50, seen


class ExactChild(RuleBasedStateMachine):
    """A child that the program fills, on one such child, on a parent: four pages each."""

    whose, pages, targets = st.integers(0, 2), st.integers(0, 3), st.integers(0, 3)

    def __init__(self, iommu, seen):
        super().__init__()
        self.seen = seen
        self.rig = Rig(WITH_PASIDS[iommu], whole=False)
        middle = self.rig.device.alloc_mapped(self.rig.parent, DomainFlags.NEST_PARENT)
        child = self.rig.device.alloc_mapped(middle, DomainFlags.NONE)
        self.domains, self.maps = (self.rig.parent, middle, child), ({}, {}, {})
        for which in range(3):
            for page in range(4):
                self.map(which, page, page, RW)
        self.rig.device.attach(child, None)
        self.last = [None] * 4

    def teardown(self):
        self.rig.device.detach(None)
        for domain in self.domains[:0:-1]:
            domain.unmap(0, 4 * 4 * PAGE)
            domain.flush()
            domain.free()
        assert not self.rig.parent.index

    def map(self, which, page, to, prot):
        # Each in a block of its own: no page table has a larger leaf for them together.
        where = to * PAGE + HOST if which == 0 else 4 * to * PAGE
        self.domains[which].map(4 * page * PAGE, where, PAGE, prot)
        self.maps[which][page] = to, prot

    @rule(which=whose, page=pages, to=st.none() | targets, prot=prots)
    def change(self, which, page, to, prot):
        if page in self.maps[which]:
            assert self.domains[which].unmap(4 * page * PAGE, PAGE) == PAGE
            self.domains[which].flush()
            del self.maps[which][page]
            self.the_device_gets_where_all_lead()
        if to is not None:
            self.map(which, page, to, prot)

    @invariant()
    def the_device_gets_where_all_lead(self):
        for page in range(4):
            at, both = page, RW
            for mapped in reversed(self.maps):
                at, prot = mapped.get(at, (0, Prot.NONE))
                both &= prot
            expected = (at * PAGE, both.value) if both else (None, 0)
            self.seen["changed" if expected != self.last[page] else "same"] += 1
            self.last[page] = expected
            assert self.rig.rights(4 * page * PAGE) == expected


@pytest.mark.parametrize("iommu", WITH_PASIDS)
def test_a_change_of_what_the_program_fills_or_the_host_is_seen_at_once(iommu):
    seen = Counter()
    how = settings(max_examples=8, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(lambda: ExactChild(iommu, seen), settings=how)
    assert seen["changed"] > 50, seen
