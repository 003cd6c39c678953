"""A guest that maps, unmaps, changes its entries and invalidates at will, whatever IOMMU it sees.

What a device may see of a page is what the guest's entries and tables say now, and what was so since the last
invalidation that names it. Everything else is a fault of the front end, or of what lies behind it.
"""

from collections import defaultdict

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

BLOCKED, UNTOUCHED = bytes(8), b"untouchd"
PASIDS = (None, 1, 2)
IOVA = 0x10000
RW = 3
PAGES = 2

pasids = st.sampled_from(PASIDS)
numbers = st.integers(0, PAGES - 1)
tables = st.integers(0, 2)


class AnyGuest(RuleBasedStateMachine):
    """Subclasses say how their IOMMU is told. An entry (of a PASID) is a table's number, or None."""

    def make(self):
        """A machine with a guest whose entries are all absent."""
        raise NotImplementedError

    def write_entry(self, pasid, pages):
        raise NotImplementedError

    def tell_entry(self, pasid):
        raise NotImplementedError

    def tell_page(self, pasid, iova):
        raise NotImplementedError

    def tell_pages(self, pasid):
        raise NotImplementedError

    def tell_everything(self):
        raise NotImplementedError

    def off_and_on(self):
        raise NotImplementedError

    @initialize()
    def boot(self):
        self.vm = self.make()
        self.data = [self.vm.ram.page(bytes([65 + number]) * 8) for number in range(5)]
        self.tables = [self.vm.table() for _ in range(3)]
        self.content = [{} for _ in range(3)]
        #: Entries that may be in use; the last is what memory says.
        self.entries = {pasid: [None] for pasid in PASIDS}
        #: Contents that may still be cached, by PASID and page.
        self.stale = {pasid: defaultdict(set) for pasid in PASIDS}
        for number, pasid in enumerate(PASIDS):
            self.change(number, 0, number)
            self.enter(pasid, number)
            self.forget_entry(pasid)

    def teardown(self):
        if hasattr(self, "vm"):
            self.vm.close()

    def says(self, table, number):
        what = self.content[table].get(number)
        return BLOCKED if what is None else bytes([65 + what]) * 8

    def changes(self, table, number):
        """A page of a table is about to change."""
        for pasid, entries in self.entries.items():
            if table in entries:
                self.stale[pasid][number].add(self.says(table, number))

    @rule(table=tables, number=numbers, what=st.none() | st.integers(0, 3))
    def change(self, table, number, what):
        """Another page at an address, or none; nothing is told."""
        old = self.content[table].get(number)
        self.changes(table, number)
        if old is not None:
            self.tables[table].unmap(IOVA + 4096 * number, 4096)
        if what is not None:
            self.tables[table].map(IOVA + 4096 * number, self.data[what], 4096, RW)
        self.content[table][number] = what

    @rule(pasid=pasids, table=st.none() | tables)
    def enter(self, pasid, table):
        self.write_entry(pasid, None if table is None else self.tables[table])
        self.entries[pasid].append(table)

    @rule(pasid=pasids)
    def forget_entry(self, pasid):
        self.tell_entry(pasid)
        self.entry_forgotten(pasid)

    def entry_forgotten(self, pasid):
        *old, now = self.entries[pasid]
        self.entries[pasid] = [now]
        for table in {table for table in old if table is not None}:
            for number in range(PAGES):
                self.stale[pasid][number].add(self.says(table, number))

    @rule(pasid=pasids, number=numbers)
    def forget_page(self, pasid, number):
        self.tell_page(pasid, IOVA + 4096 * number)
        self.stale[pasid].pop(number, None)
        self.look(pasid, number)

    @rule(pasid=pasids)
    def forget_pages(self, pasid):
        self.tell_pages(pasid)
        self.stale[pasid].clear()
        for number in range(PAGES):
            self.look(pasid, number)

    @rule()
    def forget_everything(self):
        self.tell_everything()
        for pasid in PASIDS:
            self.entry_forgotten(pasid)
            self.stale[pasid].clear()

    @rule()
    def turn(self):
        self.off_and_on()

    @rule(pasid=pasids, number=numbers, changes=st.lists(st.none() | st.integers(0, 3), max_size=2))
    def look_before_and_after_changes(self, pasid, number, changes):
        """Untold, a change is not seen. (The architecture would let it be. What was blocked was not cached.)"""
        table, before = self.entries[pasid][-1], self.look(pasid, number)
        for what in changes if table is not None else ():
            self.change(table, number, what)
            after = self.look(pasid, number)
            self.tally("fresh" if after == self.says(table, number) else "stale")
            assert after == before or before in (BLOCKED, UNTOUCHED)
            before = after

    @rule(pasid=pasids, number=numbers)
    def only_look(self, pasid, number):
        self.look(pasid, number)

    def look(self, pasid, number):
        """What the device reads: something that is allowed."""
        seen = self.vm.read_by_test(IOVA + 4096 * number, pasid)
        entries = self.entries[pasid]
        allowed = {UNTOUCHED if table is None else self.says(table, number) for table in entries}
        allowed |= self.stale[pasid][number]
        assert seen in allowed, f"{seen} of page {number}, PASID {pasid}, and not {allowed}"
        assert self.vm.notes == []
        return seen

    def tally(self, what):
        """The device saw what the tables say (fresh), or what they said."""
