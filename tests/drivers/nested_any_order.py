"""A guest that maps, unmaps and invalidates at will, against what the architecture lets its device see.

What the device read is cached until the guest (or the host, whose pages it was) has it forgotten: till then the device
sees the old, and after that never.
"""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from drivers.nested_host import PAGE, PAGES, page

#: Addresses of the guest's processes that are used.
BASE, SLOTS = 0x40_0000, 3
RW = 3
SPACES = st.integers(0, 2)
PLACES = st.integers(0, SLOTS - 1)
#: Few pages, so that what the host hides is often what a guest has mapped.
DATA = st.integers(0, 3)


class AnyOrder(RuleBasedStateMachine):
    """Three processes of one device, of which the first is that of requests without a PASID.

    `guest` has the vendor's `table`, `route(process, table)`, `forget_page`, `forget_process`, `forget_route` and
    `forget_everything`. The first two of these tell whether the process's table is forgotten, too.
    """

    #: Whether a page that the host takes away goes with all that was cached of guests.
    whole_translations = False

    def make(self):
        raise NotImplementedError

    def __init__(self):
        super().__init__()
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
        #: What the hardware has: pages of data by process and place, and tables by process.
        self.leaves, self.routes = {}, {}

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
        self.routes.clear()

    def _drop(self, process):
        self.leaves = {key: value for key, value in self.leaves.items() if key[0] != process}

    # The host changes its own

    @rule(data=DATA)
    def hide(self, data):
        if data in self.shown:
            self.guest.hide(data)
            self.shown.remove(data)
            if self.whole_translations:
                self.leaves.clear()

    @rule(data=DATA)
    def show(self, data):
        if data not in self.shown:
            self.guest.show(data)
            self.shown.add(data)

    # The device

    @rule(process=SPACES, place=PLACES, count=st.integers(1, 3))
    def read(self, process, place, count):
        for _ in range(count):
            self._read(process, place)

    @rule()
    def look_around(self):
        for process in range(len(self.tables)):
            for place in range(SLOTS):
                self._read(process, place)

    def _read(self, process, place):
        table = self.routes.setdefault(process, self.chosen[process])
        data = self.leaves.get((process, place))
        if data is None:
            data = self.mapped[process][table].get(place)
        shown = data if data in self.shown else None
        if data is not None and (shown is not None or not self.whole_translations):
            self.leaves[process, place] = data
        assert self.guest.reach(BASE + place * PAGE, process or None) == shown

    @invariant()
    def the_parent_is_whole(self):
        assert self.guest.memory.read_u64(page(PAGES - 1)) == PAGES - 1


class Attached(AnyOrder):
    """The host attaches each process's table: what another had is forgotten with that."""

    @rule(process=SPACES, table=st.integers(0, 1))
    def move(self, process, table):
        if table != self.chosen[process]:
            self.guest.route(process, self.tables[process][table])
            self.chosen[process] = table
            self.routes.pop(process, None)
            self._drop(process)
