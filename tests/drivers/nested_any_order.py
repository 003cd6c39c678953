"""A guest that maps, unmaps and invalidates at will, against what the architecture lets its device see.

What the device read is cached until the guest (or the host, whose pages it was) has it forgotten: till then the device
sees the old, and after that never. The architecture lets caches forget at any time. Ours do not, so what is seen is
known exactly.
"""

from collections import Counter

from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from drivers.nested_host import PAGE, PAGES, page

#: Addresses of the guest's processes that are used.
BASE, SLOTS = 0x40_0000, 3
RW = 3
SPACES = st.integers(0, 2)
PLACES = st.integers(0, SLOTS - 1)
#: Few pages, so that what the host hides is often what a guest has mapped.
DATA = st.integers(0, 3)
#: Other pages (None: none) at a place, whether the guest has the old forgotten, and how.
CHANGES = st.tuples(st.none() | DATA, st.booleans(), st.booleans())


class AnyOrder(RuleBasedStateMachine):
    """Three processes of one device, of which the first is that of requests without a PASID.

    `guest` has the vendor's `table`, `route(process, table)`, `forget_page`, `forget_process`, `forget_route` and
    `forget_everything`. The first two of these tell whether the process's table is forgotten, too.
    """

    #: Whether a page that the host takes away goes with all that was cached of guests.
    whole_translations = False
    #: Whether what is cached is found by the process alone, whose entry is read for walks only.
    found_by_process = False
    #: Whether the device has a TLB: there an invalidation without a PASID is for all processes.
    device_tlb = False

    def make(self):
        raise NotImplementedError

    def __init__(self, seen):
        super().__init__()
        #: How often the device saw what the tables say, and how often what they said.
        self.seen = seen
        self.guest = self.make()
        #: Two tables for each process, what they map, and which one it has.
        self.tables = [[self.guest.table() for _ in range(2)] for _ in range(3)]
        self.mapped = [[{}, {}] for _ in range(3)]
        self.chosen = [0, 0, 0]
        for process, tables in enumerate(self.tables):
            for table in range(2):
                for place in range(SLOTS):
                    self.map(process, table, place, (process + table + place) % 4)
            self.guest.route(process, tables[0])
        self.shown = set(range(PAGES))
        #: What the hardware has: pages of data by process and place (so does the device), and tables by process.
        self.leaves, self.kept, self.routes = {}, {}, {}

    def teardown(self):
        self.guest.close()

    # The guest changes its tables

    @rule(process=SPACES, table=st.integers(0, 1), place=PLACES, data=DATA)
    def map(self, process, table, place, data):
        self.unmap(process, table, place)
        assert self.tables[process][table].map(BASE + place * PAGE, page(data), PAGE, RW) == (0, PAGE)
        self.mapped[process][table][place] = data

    @rule(process=SPACES, table=st.integers(0, 1), place=PLACES)
    def unmap(self, process, table, place):
        self.tables[process][table].unmap(BASE + place * PAGE, PAGE)
        self.mapped[process][table].pop(place, None)

    @rule(process=SPACES, table=st.integers(0, 1))
    def move(self, process, table):
        self.guest.route(process, self.tables[process][table])
        self.chosen[process] = table

    # and has the old forgotten

    @rule(process=SPACES, place=PLACES, plain=st.booleans())
    def forget_page(self, process, place, plain):
        if self.guest.forget_page(process, BASE + place * PAGE, plain):
            self.routes.pop(process, None)
        self.leaves.pop((process, place), None)
        self._drop_kept(process, (place,))

    @rule(process=SPACES, plain=st.booleans())
    def forget_process(self, process, plain):
        if self.guest.forget_process(process, plain):
            self.routes.pop(process, None)
        self._drop(process)

    @rule(process=SPACES, plain=st.booleans())
    def forget_route(self, process, plain):
        self.guest.forget_route(process, plain)
        self.routes.pop(process, None)
        self._drop(process)

    @rule(plain=st.booleans())
    def forget_everything(self, plain):
        self.guest.forget_everything(plain)
        self.leaves.clear()
        self.kept.clear()
        self.routes.clear()

    def _drop(self, process):
        self.leaves = {key: value for key, value in self.leaves.items() if key[0] != process}
        self._drop_kept(process, range(SLOTS))

    def _drop_kept(self, process, places):
        for key in [key for key in self.kept if process in (0, key[0]) and key[1] in places]:
            del self.kept[key]

    # The host changes its own

    @rule(data=DATA)
    def hide(self, data):
        if data in self.shown:
            self.guest.hide(data)
            self.shown.remove(data)
            self.kept.clear()
            if self.whole_translations:
                self.leaves.clear()

    @rule(data=DATA)
    def show(self, data):
        if data not in self.shown:
            self.guest.show(data)
            self.shown.add(data)

    @rule(process=SPACES, place=PLACES)
    def hide_what_was_read(self, process, place):
        self._read(process, place)
        for data in self.leaves.get((process, place)), self.mapped[process][self.chosen[process]].get(place):
            if data is not None:
                self.hide(data)
                self._read(process, place)
                self.show(data)
                self._read(process, place)

    # The device

    @rule(process=SPACES, place=PLACES, changes=st.lists(CHANGES, max_size=3))
    def read(self, process, place, changes):
        self._read(process, place)
        for data, tells, plain in changes:
            table = self.chosen[process]
            self.unmap(process, table, place)
            if data is not None:
                self.map(process, table, place, data)
            self._read(process, place)
            self.forget_page(process, (place + 1) % SLOTS, plain)
            self.forget_page((process + 1) % 3, place, plain)
            self._read(process, place)
            if tells:
                self.forget_page(process, place, plain)
                self._read(process, place)

    @rule()
    def look_around(self):
        for process in range(len(self.tables)):
            for place in range(SLOTS):
                self._read(process, place)

    def _read(self, process, place):
        shown = self.kept.get((process, place))
        if shown is None:
            shown = self._look_up(process, place)
            if self.device_tlb and shown is not None:
                self.kept[process, place] = shown
        fresh = self.mapped[process][self.chosen[process]].get(place)
        self.seen["fresh" if shown == (fresh if fresh in self.shown else None) else "stale"] += 1
        assert self.guest.reach(BASE + place * PAGE, process or None) == shown

    def _look_up(self, process, place):
        """What the IOMMU finds, as far as the host shows it."""
        data = self.leaves.get((process, place))
        if data is None or not self.found_by_process:
            table = self.routes.setdefault(process, self.chosen[process])
        if data is None:
            data = self.mapped[process][table].get(place)
        shown = data if data in self.shown else None
        if data is not None and (shown is not None or not self.whole_translations):
            self.leaves[process, place] = data
        return shown

    @invariant()
    def the_parent_is_whole(self):
        assert self.guest.memory.read_u64(page(PAGES - 1)) == PAGES - 1


class Attached(AnyOrder):
    """The host attaches each process's table: what another had is forgotten with that."""

    #: Whether the IOMMU then forgets of all processes.
    forgets_all = False

    @rule(process=SPACES, table=st.integers(0, 1))
    def move(self, process, table):
        if table != self.chosen[process]:
            self.guest.route(process, self.tables[process][table])
            self.chosen[process] = table
            self.routes.pop(process, None)
            self._drop(process)
            if self.forgets_all:
                self.leaves.clear()


def check(machine, examples, steps):
    """Run it, and see that the device saw both what was cached and what was new."""
    seen = Counter()
    how = settings(max_examples=examples, stateful_step_count=steps, deadline=None)
    run_state_machine_as_test(lambda: machine(seen), settings=how)
    assert min(seen["stale"], seen["fresh"]) > 0, seen
