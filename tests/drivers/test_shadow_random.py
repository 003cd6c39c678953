"""Random guests under software nesting: DMA sees what the architecture allows a guest with caching mode, and no more.

The oracle is a set of translations for each page: those that were true at some time since it was last invalidated.
What the parent does counts at once. It walks the guest's table by hand, through a dict of the parent's pages.
"""

from errno import E2BIG, EINVAL, EOPNOTSUPP, EOVERFLOW

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from drivers.shadow_rig import ALL, GUEST_RAM, HOST, IOMMUS, RW, SID, Rig
from softiommu.abi.generic_invalidation import GENERIC
from softiommu.abi.software_nesting import HwptBound
from softiommu.drivers.driver import DomainFlags, Prot
from softiommu.drivers.function import Function
from softiommu.errors import UapiError
from softiommu.hardware.iommu import TranslationFaultError
from softiommu.pagetable.formats.x86_64 import Pte
from softiommu.pagetable.kinds import READ, WRITE

PAGE, LARGE = 4096, 2 << 20
#: Guest tables lie in the first pages of its RAM, data from here on.
TABLES, DATA = 24, 0x100000
#: The guest's addresses: some pages of two tables, and two places for large leaves.
PAGES = [LARGE - 4 * PAGE + n * PAGE for n in range(8)]
LARGES = [4 * LARGE, 5 * LARGE]
SEEN = PAGES + [at + skew for at in LARGES for skew in (0, 5 * PAGE, LARGE - PAGE)]


class Oracle:
    """What is allowed."""

    def __init__(self, rig, table, pasid=None, parent=None):
        self.guest, self.root, self.pasid = rig.guest, table.root, pasid
        #: The parent: page of the guest's RAM -> page of the host's (counted from HOST), rights.
        self.parent = {page: (page, RW) for page in range(0, GUEST_RAM, PAGE)} if parent is None else parent
        self.states = {at: {self.truth(at)} for at in SEEN}
        #: Where the guest changed its table and did not say so.
        self.unsaid = set()

    def truth(self, iova):
        """Where the guest's table leads now, with its rights; None: nowhere."""
        table, rights = self.root, READ | WRITE
        for level in (3, 2, 1, 0):
            if not self.parent.get(table, (0, Prot.NONE))[1].readable:
                return None
            at = table + 8 * (iova >> 12 + 9 * level & 511)
            pte = Pte(self.guest.read_u64(self.parent[table][0] + at - table))
            if not pte.P:
                return None
            rights &= READ | (WRITE * pte.RW)
            needs = Pte.of(A=1, D=int(level == 0 and bool(rights & WRITE)))
            if level == 0 or pte.PS:
                needs = Pte.of(A=1, D=int(bool(rights & WRITE)))
            if int(pte) & int(needs) != int(needs) and not self.parent[table][1].writable:
                return None
            if level == 0 or pte.PS:
                size = 1 << 12 + 9 * level
                return (pte.ADDR << 12 & -size) + (iova & size - 1), rights
            table = pte.ADDR << 12
        raise AssertionError

    def composed(self, state):
        """What a device sees of it: the parent's page, the rights of both."""
        if state is None:
            return None, 0
        host, rights = self.parent.get(state[0] & -PAGE, (0, Prot.NONE))
        rights = rights.value & state[1]
        return (host + state[0] % PAGE, rights) if rights else (None, 0)

    def guest_changed(self, first, last):
        """Everything that is true now may be seen, beside what may have been kept."""
        self.unsaid |= {at for at in SEEN if first <= at <= last}
        for at, states in self.states.items():
            states.add(self.truth(at))

    def invalidated(self, first, last):
        """Only what is true now is left."""
        for at in SEEN:
            if first <= at <= last:
                self.states[at] = {self.truth(at)}
                self.unsaid.discard(at)

    def parent_changed(self):
        """It counts at once, but where the guest did not say how its table leads there."""
        for at, states in self.states.items():
            self.states[at] = {self.truth(at)} | (states if at in self.unsaid else set())

    def check(self, rig):
        """The device sees something that is allowed, everywhere."""
        for at, states in self.states.items():
            assert rig.rights(at, self.pasid) in {self.composed(state) for state in states}, (hex(at), states)


class Guest:
    """A guest that maps, unmaps and invalidates; and a host that changes what is under it."""

    def __init__(self, rig, pasid=None, parent=None, pasids=False):
        self.rig, self.table, self.pasid = rig, rig.table(), pasid
        for page in range(0, GUEST_RAM, PAGE) if parent is None else ():
            rig.parent.map(page, HOST + page, PAGE, RW)
        self.mapped = {}
        self.domain = rig.bind(self.table, pasids=pasids)
        rig.device.attach(self.domain, pasid)
        self.oracle = Oracle(rig, self.table, pasid, parent)

    def change(self, iova, size, to, prot, invalidate):
        """Map a leaf, or unmap the one that is there."""
        if iova in self.mapped:
            self.table.free_tables(self.table.unmap(iova, self.mapped.pop(iova)).tables)
        else:
            self.table.map(iova, to, size, prot)
            self.mapped[iova] = size
        self.oracle.guest_changed(iova, iova + size - 1)
        if invalidate:
            self.invalidate(iova, size // PAGE)

    def invalidate(self, first, pages):
        """Ask for it."""
        assert self.rig.invalidate(self.domain, (first, pages, 0, 0)) == (0, 1)
        self.oracle.invalidated(first, first + (pages << 12) - 1 if pages != ALL else ALL)

    def host(self, page, to, prot):
        """The host takes a page away, or gives one."""
        oracle, parent = self.oracle, self.rig.parent
        if page in oracle.parent:
            del oracle.parent[page]
            parent.unmap(page, PAGE)
            parent.flush()
        else:
            oracle.parent[page] = to, prot
            parent.map(page, HOST + to, PAGE, prot)
        oracle.parent_changed()

    def end(self):
        """Nothing is left."""
        self.rig.device.detach(None)
        assert not self.rig.parent.index
        self.domain.free()
        self.table.destroy()
        self.rig.parent.free()
        return self.rig.memory.given


ADDRESSES = st.one_of(
    st.tuples(st.sampled_from(PAGES), st.just(PAGE)), st.tuples(st.sampled_from(LARGES), st.just(LARGE))
)
TARGETS = st.integers(0, 3)
PROTS = st.sampled_from((READ, READ | WRITE))
CHANGES = st.tuples(st.just("change"), ADDRESSES, TARGETS, PROTS, st.booleans())
INVALIDATIONS = st.tuples(st.just("invalidate"), st.sampled_from(SEEN), st.sampled_from((1, 2, 8, 512, ALL)))
HOST_PAGES = st.one_of(st.integers(1, TABLES).map(lambda n: n * PAGE), TARGETS.map(lambda n: DATA + n * PAGE))
HOSTS = st.tuples(st.just("host"), HOST_PAGES, st.integers(0, 7), st.sampled_from((RW, RW, Prot.READ)))
STEPS = st.lists(st.one_of(CHANGES, CHANGES, INVALIDATIONS, HOSTS), max_size=20)


def play(guest, step):
    """One step of a history."""
    match step:
        case "change", (iova, size), target, prot, invalidate:
            to = DATA + target * PAGE if size == PAGE else target % 2 * LARGE
            guest.change(iova, size, to, prot, invalidate)
        case "invalidate", first, pages:
            guest.invalidate(0 if pages == ALL else first, pages)
        case "host", page, to, prot:
            # A table keeps its bytes: what is given back is where it was; data may move.
            guest.host(page, page if page < DATA else DATA + to * PAGE, prot)


@pytest.mark.parametrize("iommu", IOMMUS)
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS)
def test_dma_sees_only_what_the_architecture_allows(iommu, steps):
    guest = Guest(Rig(IOMMUS[iommu], whole=False))
    for step in steps:
        play(guest, step)
        guest.oracle.check(guest.rig)
    guest.invalidate(0, ALL)
    assert all(len(states) == 1 for states in guest.oracle.states.values())
    guest.oracle.check(guest.rig)
    guest.end()


#: IOMMUs that have PASIDs.
WITH_PASIDS = {**{name: IOMMUS[name] for name in ("smmuv3", "amd", "riscv")}, "vtd": 'model = "vtd"\nunit = "full"'}


@pytest.mark.parametrize("iommu", WITH_PASIDS)
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(st.tuples(st.integers(0, 2), st.one_of(CHANGES, CHANGES, INVALIDATIONS, HOSTS)), max_size=20))
def test_each_pasid_sees_what_its_own_table_allows(iommu, steps):
    rig = Rig(WITH_PASIDS[iommu], Function("gpu", (SID,), pasid_bits=8), whole=False)
    guests, parent = [], None
    for pasid in (None, 5, 6):
        guests.append(Guest(rig, pasid, parent, pasids=True))
        parent = guests[0].oracle.parent
    for which, step in steps:
        play(guests[which], step)
        for guest in guests:
            if step[0] == "host":
                guest.oracle.parent_changed()
            guest.oracle.check(rig)
    for guest in reversed(guests):
        guest.invalidate(0, ALL)
        guest.oracle.check(rig)
        rig.device.detach(guest.pasid)
    assert not rig.parent.index


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(st.one_of(CHANGES, HOSTS), max_size=25))
def test_a_guest_that_always_invalidates_sees_exactly_its_table(steps):
    guest = Guest(Rig(whole=False))
    for step in steps:
        play(guest, (*step[:4], True) if step[0] == "change" else step)
        assert all(len(states) == 1 for states in guest.oracle.states.values())
        guest.oracle.check(guest.rig)
    guest.end()


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    words=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 511), st.integers(0, ALL)), max_size=40),
    links=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 511), st.integers(0, 7)), max_size=20),
    probes=st.lists(st.integers(0, ALL >> 17), max_size=10),
)
def test_garbage_in_a_guests_table_reaches_nothing_but_the_guests_memory(words, links, probes):
    rig = Rig()
    base = rig.guest.alloc(8 * PAGE, 8 * PAGE)
    table = rig.table()
    for page, number, word in words:
        rig.guest.write_u64(base + page * PAGE + 8 * number, word)
    for page, number, to in links:
        rig.guest.write_u64(base + page * PAGE + 8 * number, base + to * PAGE | 7)
    for number in range(32):
        rig.guest.write_u64(table.root + 8 * number, base + number % 8 * PAGE | 7)
    domain = rig.bind(table)
    rig.device.attach(domain, None)
    reached = probes + [leaf.first for leaf in domain._merge.meeting(0, 1 << 47)[:20]]
    for iova in reached:
        try:
            pa = rig.unit.translate(SID, iova, READ, None).pa
        except TranslationFaultError:
            continue
        assert HOST <= pa < HOST + GUEST_RAM
    rig.device.detach(None)
    assert not rig.parent.index


WORDS = st.one_of(st.integers(0, 8), st.integers(0, ALL), st.sampled_from((0x1000, 0x10000, ALL & -PAGE)))
ENTRIES = st.lists(st.tuples(WORDS, WORDS, st.integers(0, 3), st.integers(0, 1)), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    flags=st.one_of(st.integers(0, 3), WORDS),
    root=WORDS,
    width=st.one_of(st.integers(20, 60), st.integers(0, ALL >> 32)),
    format=st.one_of(st.integers(0, 7), st.integers(0, ALL >> 32)),
    entries=ENTRIES,
    raw=st.binary(min_size=40, max_size=80),
)
def test_any_data_and_any_entries_give_an_errno(flags, root, width, format, entries, raw):
    rig, refused = Rig(IOMMUS["virtio"]), 0
    try:
        domain = rig.device.alloc_nested(rig.parent, 0, rig.data(HwptBound(flags, root, width, format)))
        rig.device.attach(domain, None)
    except UapiError as error:
        refused = error.errno
        table = rig.table()
        table.map(0x10000, DATA, PAGE, READ)
        domain = rig.bind(table)
        rig.device.attach(domain, None)
    assert refused in (0, EINVAL, EOPNOTSUPP)
    errno, handled = rig.invalidate(domain, *entries)
    assert errno in (0, EINVAL, EOPNOTSUPP)
    assert handled == len(entries) if not errno else handled < len(entries)
    assert rig.ask(domain, GENERIC, raw, 1)[0] in (0, EINVAL, EOPNOTSUPP, EOVERFLOW, E2BIG)
    rig.device.detach(None)
    assert not rig.parent.index


# A child that the program fills


RIGHTS = st.sampled_from((RW, Prot.READ))
MAPS = st.tuples(st.just("map"), st.integers(0, 15), st.integers(0, 15), st.integers(1, 4), RIGHTS)
UNMAPS = st.tuples(st.just("unmap"), st.integers(0, 15), st.integers(1, 6))
WHO = st.sampled_from(("parent", "middle", "child"))


@pytest.mark.parametrize("iommu", IOMMUS)
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(st.tuples(WHO, st.one_of(MAPS, MAPS, UNMAPS)), max_size=25))
def test_children_on_children_are_the_composition_of_their_maps(iommu, steps):
    rig = Rig(IOMMUS[iommu], whole=False)
    middle = rig.device.alloc_mapped(rig.parent, DomainFlags.NEST_PARENT)
    child = rig.device.alloc_mapped(middle, DomainFlags.NONE)
    rig.device.attach(child, None)
    domains = {"parent": rig.parent, "middle": middle, "child": child}
    maps = {name: {} for name in domains}
    for name, step in steps:
        domain, pages = domains[name], maps[name]
        match step:
            case "map", at, to, count, prot:
                if any(at + n in pages for n in range(count)):
                    continue
                domain.map(at * PAGE, to * PAGE + (HOST if name == "parent" else 0), count * PAGE, prot)
                pages.update({at + n: (to + n, prot) for n in range(count)})
            case "unmap", at, count:
                asked = pages.keys() & {at + n for n in range(count)}
                for page in asked:
                    domain.unmap(page * PAGE, PAGE)
                # A leaf that is cut goes whole; AMD has them of 8 KiB. A virtio-iommu may remove nothing of a mapping.
                gone = [page for page in pages if domain.iova_to_pa(page * PAGE) is None]
                assert iommu == "virtio" or asked <= set(gone)
                for page in gone:
                    del pages[page]
                domain.flush()
        for page in range(24):
            at, prot = page, RW
            for name in ("child", "middle", "parent"):
                at, allowed = maps[name].get(at, (0, Prot.NONE))
                prot &= allowed
            assert rig.rights(page * PAGE) == ((at * PAGE, prot.value) if prot else (None, 0))
    rig.device.detach(None)
    for domain in (child, middle):
        domain.free()
    assert not rig.parent.index
