"""A random guest on VT-d's nesting: it maps, unmaps and invalidates at will, and the host moves its pages.

The oracle keeps what must be cached, in the unit and in the device. An invalidation empties what it names, and may
empty more; so a missing one shows the stale translation, and a correct one never does. (The architecture lets caches
forget at any time. Ours do not, so that of what nothing names or borders on the stale translation is expected.)
"""

from collections import Counter

from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from drivers.vtd_guest import ALL, HOST, RW, DeviceTlb, Rig
from softiommu.abi.generic_invalidation import InvalidateV1, InvalidateV2, Scope, Target
from softiommu.drivers.driver import DomainFlags
from softiommu.hardware.cache import Shape
from softiommu.hardware.iommu import TranslationFaultError
from softiommu.hardware.vtd.caches import Shapes
from softiommu.hardware.vtd.events import Reason

PAGES, DATA = 12, 4
#: Where the guest maps from, across a border of page tables; where its data pages are; and their places in the host.
IOVA, GPA, PLACES = (512 - 6) << 12, 3 << 20, 8
PASIDS = (None, 5, 6)
#: Nothing is evicted.
LARGE = Shapes(iotlb=Shape(1, 4096))

pages = st.integers(0, PAGES - 1)
which = st.integers(0, 1)
pasids = st.sampled_from(PASIDS)
#: Other pages (None: none), and whether that is told.
CHANGES = st.tuples(st.none() | st.integers(0, DATA - 1), st.booleans())


class Cached:
    """What one cache holds: (PASID, page) to where that leads, and whether it must still be there."""

    def __init__(self, seen):
        self.seen, self.held = seen, {}

    def check(self, key, answer, fresh):
        """An answer is what was cached, or, where it may be gone, what the tables say now."""
        old, sure = self.held.get(key, (fresh, True))
        assert answer == old or (not sure and answer == fresh)
        self.seen["fresh" if answer == fresh else "stale"] += 1
        self.held.pop(key, None)
        if answer is not None:
            self.held[key] = answer, True

    def forget(self, chosen, window):
        """A command for these PASIDs and pages; the pages of the smallest block of 2**n that has them may go, too."""
        first, last = (IOVA >> 12) + window[0], (IOVA >> 12) + window[-1]
        am = (first ^ last).bit_length()
        for pasid, page in list(self.held):
            if pasid not in chosen:
                continue
            if page in window:
                del self.held[pasid, page]
            elif (IOVA >> 12) + page >> am == first >> am:
                self.held[pasid, page] = self.held[pasid, page][0], False


class RandomGuest(RuleBasedStateMachine):
    """Two tables of a guest, three routes of a device, and the host's pages beneath."""

    def __init__(self, seen):
        super().__init__()
        self.rig = Rig(flags=DomainFlags.NEST_PARENT | DomainFlags.PASID, shapes=LARGE)
        self.tlb = DeviceTlb(self.rig.unit)
        self.rig.parent.unmap(2 << 20, 2 << 20)
        self.places = [HOST + (2 << 20) + (n << 12) for n in range(PLACES)]
        self.host = {}
        for number in range(DATA):
            self.move(number, number)
        self.tables = [self.rig.table() for _ in range(2)]
        self.content = [{}, {}]
        self.nested = [self.rig.nest(table) for table in self.tables]
        self.routes = dict.fromkeys(PASIDS)
        self.unit, self.device = Cached(seen), Cached(seen)
        for pasid in PASIDS:
            self.attach(pasid, 0)
        self.map(0, 0, PAGES, 0)

    def move(self, number, place):
        self.rig.parent.map(GPA + (number << 12), self.places[place], 4096, RW)
        self.host[number] = self.places[place]

    def now(self, pasid, page):
        """What the tables say."""
        route = self.routes[pasid]
        number = None if route is None else self.content[route].get(page)
        return self.host.get(number)

    # The guest

    @rule(which=which, first=pages, count=st.integers(1, PAGES), number=st.integers(0, DATA - 1))
    def map(self, which, first, count, number):
        for page in range(first, min(first + count, PAGES)):
            if page not in self.content[which]:
                target = (number + page) % DATA
                self.tables[which].map(IOVA + (page << 12), GPA + (target << 12), 4096, RW.value)
                self.content[which][page] = target

    @rule(which=which, page=pages, count=st.integers(1, 8))
    def unmap(self, which, page, count):
        removed = self.tables[which].unmap(IOVA + (page << 12), count << 12)
        self.tables[which].free_tables(removed.tables)
        for gone in range(page, page + count):
            self.content[which].pop(gone, None)

    @rule(which=which, page=pages, count=st.integers(1, PAGES), leaf=st.integers(0, 1), everything=st.booleans())
    def invalidate(self, which, page, count, leaf, everything):
        entry = (0, ALL, leaf) if everything else (IOVA + (page << 12), count, leaf)
        assert self.rig.invalidate(self.nested[which], entry) == (0, 1)
        window = range(PAGES) if everything else range(page, page + count)
        self.forgotten(which, window, PASIDS, 15)

    @rule(
        which=which,
        version=st.sampled_from([InvalidateV1, InvalidateV2]),
        scope=st.sampled_from(Scope),
        pasid=st.sampled_from((5, 6)),
        page=pages,
        count=st.integers(1, PAGES),
        caches=st.integers(1, 15),
    )
    def invalidate_generic(self, which, version, scope, pasid, page, count, caches):
        entry = version(scope=scope, targets=caches)
        window, chosen = range(PAGES), PASIDS
        if scope.name.startswith("RANGE"):
            entry.targets = caches & ~int(Target.CONFIG) or 1
            entry.addr, entry.count, entry.granule_lg2 = IOVA + (page << 12), count, 12
            window = range(page, page + count)
        if scope in (Scope.PASID, Scope.RANGE):
            entry.pasid, chosen = pasid, (pasid,)
        elif scope in (Scope.NO_PASID, Scope.RANGE_NO_PASID):
            chosen = (None,)
        assert self.rig.invalidate_generic(self.nested[which], entry) == (0, 1)
        self.forgotten(which, window, chosen, entry.targets)

    def forgotten(self, which, window, chosen, caches):
        chosen = [pasid for pasid in chosen if self.routes[pasid] == which]
        if caches & (Target.LEAF | Target.TABLES):
            self.unit.forget(chosen, window)
        if caches & Target.DEVICE_TLB:
            self.device.forget(chosen, window)

    # The host

    @rule(pasid=pasids, which=st.sampled_from((None, 0, 1)))
    def attach(self, pasid, which):
        if which is None:
            self.rig.device.detach(pasid)
        else:
            self.rig.device.attach(self.nested[which], pasid)
        if which != self.routes[pasid]:
            self.unit.forget([pasid], range(PAGES))
            self.device.forget([pasid], range(PAGES))
        self.routes[pasid] = which

    @rule(number=st.integers(0, DATA - 1), place=st.integers(0, PLACES - 1))
    def move_a_page(self, number, place):
        self.rig.parent.unmap(GPA + (number << 12), 4096)
        self.rig.parent.flush()
        self.unit.held.clear()
        self.device.held.clear()
        self.move(number, place)

    # The device

    @rule()
    def request_everything(self):
        for pasid in PASIDS:
            for page in range(PAGES):
                self.request(pasid, page)

    @rule(pasid=pasids, page=pages, changes=st.lists(CHANGES, max_size=3))
    def request_before_and_after_changes(self, pasid, page, changes):
        which = self.routes[pasid]
        self.request(pasid, page)
        for number, tells in changes if which is not None else ():
            self.unmap(which, page, 1)
            if number is not None:
                self.map(which, page, 1, number)
            self.request(pasid, page)
            self.invalidate(which, (page + 2) % PAGES, 1, 0, False)
            for other in {5, 6} - {pasid}:
                self.invalidate_generic(which, InvalidateV2, Scope.RANGE, other, page, 1, Target.LEAF)
            self.request(pasid, page)
            if tells:
                self.invalidate(which, page, 1, 0, False)
                self.request(pasid, page)

    @rule(pasid=pasids)
    def request_a_range_by_the_devices_tlb(self, pasid):
        for page in range(PAGES):
            self.request_by_the_devices_tlb(pasid, page)

    def request(self, pasid, page):
        answer = self.rig.reach(IOVA + (page << 12), pasid)
        found = None if isinstance(answer, Reason) else answer + HOST
        self.unit.check((pasid, page), found, self.now(pasid, page))

    def request_by_the_devices_tlb(self, pasid, page):
        key, kept = (pasid, page), (pasid, (IOVA >> 12) + page) in self.tlb.held
        try:
            answer = self.tlb.read(IOVA + (page << 12), pasid)
        except TranslationFaultError:
            assert self.routes[pasid] is None
            answer = None
        found = None if answer is None else answer + HOST
        if kept:
            assert self.device.held[key][0] == found  # it was not to be forgotten
            return
        assert not self.device.held.pop(key, (None, False))[1]  # it was to be forgotten, or might be
        self.unit.check(key, found, self.now(pasid, page))
        if found is not None:
            self.device.held[key] = found, True


def test_a_guest_in_any_order_sees_what_is_cached_until_it_invalidates_it():
    seen = Counter()
    how = settings(max_examples=40, stateful_step_count=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    run_state_machine_as_test(lambda: RandomGuest(seen), settings=how)
    assert min(seen["stale"], seen["fresh"]) > 20, seen
