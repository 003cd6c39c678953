"""One IOMMU on both sides: what a kind of IOMMU must tell, and random tables for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from random import Random
from typing import NamedTuple

from qemu import e1000
from qemu.e1000 import AREA, Nic
from qemu.garbage import Aim, Limits, Step, Wish, path, populate, relocate, spoil, tables
from qemu.qtest import Qtest
from qemu.sides import CARD, DATA, RAM, TABLES, Both, ModelMemory, Side
from softiommu.hardware.iommu import Translation
from softiommu.pagetable import formats
from softiommu.pagetable.engine import PageTable
from softiommu.pagetable.kinds import LEAF, OK, READ, WRITE, Table
from softiommu.pagetable.walk import signed, span_lg2

#: QEMU's machines have no device above.
NOTHING = 1 << 41


class Probe(NamedTuple):
    """A 4-byte read or a write of one card."""

    iova: int
    want: int


class Record(NamedTuple):
    """A fault as software sees it. `detail`: what else the architecture's record has, and both sides know."""

    reason: int
    iova: int
    want: int
    sid: int
    detail: tuple[int, ...] = ()


class Answer(NamedTuple):
    """What an access came to: a physical address, or None and what was recorded."""

    pa: int | None
    record: Record | None = None


class Space(NamedTuple):
    """A table, whose links show addresses `shift` above it."""

    pages: PageTable
    shift: int = 0


class Scenario(NamedTuple):
    """What the tables map: the card's own area at `card`, and addresses that lead to known places."""

    card: int
    aims: list[Aim]
    spaces: list[Space]
    #: How far above their place a second stage shows all tables.
    shown: int = 0
    #: Where the entries are without which the card cannot reach its area.
    needed: frozenset[int] = frozenset()
    #: What was set up, for messages.
    about: str = ""
    #: Addresses with more bits are not tried: QEMU ignores the rest.
    limit: int = 64

    @property
    def root(self) -> int:
        """The address of the outermost table (the first stage's), as the hardware is told it."""
        return self.spaces[-1].pages.root + self.spaces[-1].shift

    def canonical(self, width: int) -> Scenario:
        """The same for tables whose input is a signed number of `width` bits."""
        high = (1 << 64) - (1 << width)
        aims = [aim._replace(iova=aim.iova | (high if aim.iova >> width - 1 else 0)) for aim in self.aims]
        return self._replace(aims=aims, card=self.card | (high if self.card >> width - 1 else 0))

    def raised(self, high: int) -> Scenario:
        """The same at addresses with more bits set."""
        aims = [aim._replace(iova=aim.iova | high) for aim in self.aims]
        return self._replace(aims=aims, card=self.card | high)


class Way(NamedTuple):
    """The way of an address through one stage."""

    table: Table
    iova: int
    steps: list[Step]


def walks(scenario: Scenario, iova: int) -> list[Way]:
    """The ways of an address: through the first stage, then the second's for what it gives."""
    found = []
    for space in reversed(scenario.spaces):
        way = Way(space.pages.table, iova, path(space.pages, iova, space.shift))
        found.append(way)
        if not way.steps:
            break
        kind, oa, lg2, _ = formats.load(way.table, way.steps[-1].level, signed(way.steps[-1].entry))
        if kind != LEAF:
            break
        iova = oa | iova & (1 << lg2) - 1
    return found


class Case(NamedTuple):
    """An access of which the two sides think differently."""

    probe: Probe
    ours: Answer
    theirs: Answer
    scenario: Scenario


class Deviation(NamedTuple):
    """Something that QEMU does otherwise than the architecture: a name, and which differences it explains."""

    name: str
    explains: Callable[[Case], bool]


class Rig(ABC):
    """One IOMMU on both sides."""

    qtest: Qtest
    both: Both
    nic: Nic
    memory: ModelMemory
    sid: int
    deviations: tuple[Deviation, ...] = ()
    #: Leaf sizes that QEMU does not know; bits of addresses that it keeps apart, and among them those that it does not.
    unknown_sizes = 0
    width = 64
    without = 0
    #: What hardware sets in entries that are used.
    flag_bits = 0
    #: Whether data may be taken for tables: not where QEMU does not look at all of an entry.
    data_as_tables = True
    #: Whether links may be changed to show other tables: not where QEMU would walk for ever.
    tables_as_tables = True

    @abstractmethod
    def build(self, random: Random, clean: bool) -> Scenario:
        """Make random tables in the model's memory, and configure both sides to use them. `clean`: nothing is wrong."""

    @abstractmethod
    def structures(self) -> list[tuple[int, int]]:
        """The words that lead to the tables: address, and the bits that QEMU looks at."""

    @abstractmethod
    def translate(self, probe: Probe) -> Translation:
        """Our model's answer. TranslationFaultError."""

    @abstractmethod
    def drain(self, side: Side) -> list[Record]:
        """The faults recorded by now; they are taken away."""

    @abstractmethod
    def flush(self) -> None:
        """Make both sides forget everything."""

    @abstractmethod
    def step(self, probes: list[Probe]) -> list[Record | None]:
        """Let QEMU's card make the accesses that are prepared; what each left in the record."""

    def tries(self, iova: int, scenario: Scenario) -> bool:
        """Whether QEMU treats an address as any other."""
        return not iova >> scenario.limit and not iova & self.without

    def target(self, word: int) -> int:
        """The address that a word of a structure has."""
        return word & (1 << 52) - (1 << 12)

    def known(self, record: Record) -> Record:
        """A record of our model, in the terms that QEMU has for it."""
        return record

    def tame(self, table: Table, level: int, entry: int, nested: bool) -> int:
        """A spoiled entry without what QEMU does not look at. `nested`: it is a second stage's, before a first."""
        return entry

    def rights(self, nested: bool) -> tuple[int, ...]:
        """The rights of leaves, each as often as it is to be found."""
        return (READ | WRITE, READ | WRITE, READ | WRITE, READ, WRITE)

    def release(self) -> None:
        """Give back what `build` made beside tables: usually nothing."""
        return

    # What all have

    def close(self) -> None:
        """End QEMU."""
        self.qtest.close()

    @staticmethod
    def share(probes: list[Probe], records: list[Record]) -> list[Record | None]:
        """Whose record is which, in order: QEMU makes a write in pieces, of which each has its own."""
        found: list[Record | None] = []
        number = 0
        for probe in probes:
            first = number
            pieces = 1 if probe.want == READ else e1000.WRITE_BYTES // 4
            while number < min(len(records), first + pieces) and 0 <= records[number].iova - probe.iova < 64:
                number += 1
            found.append(records[first] if number > first else None)
        if number < len(records):
            raise DisagreementError(f"nobody asked for what record {number} of {len(records)} tells: {records[number]}")
        return found

    def stage(
        self,
        random: Random,
        table: Table,
        scenario: Scenario | None = None,
        clean: bool = False,
        nested: bool = False,
    ) -> Scenario:
        """A random table, before the second stage of `scenario` if there is one; some entries are spoiled. `nested`:
        there will be a first stage before it."""
        pages = PageTable(self.memory, table, compiled=False)
        base = self.both.ram_base
        aim, area, outer = (lambda: self.data_address(random)), base + CARD, None
        if scenario is not None:
            area, outer = scenario.card, scenario.spaces[0].pages
            if scenario.aims:
                aim = lambda: random.choice(scenario.aims).iova  # noqa: E731
        card = random.getrandbits(min(table.input_bits, 40)) & -AREA
        assert pages.map(card, area, AREA, READ | WRITE)[0] == OK, "nothing else is mapped yet"
        kept, shown = [range(card, card + AREA)], 0
        if nested:
            shown = self._behind(random, pages)
            kept.append(range(base + TABLES + shown, base + RAM + shown))
        needed = frozenset(self._needed(pages, tuple(kept))) | (scenario.needed if scenario else frozenset())
        width = min(table.input_bits, self.width)
        spoiled = not clean and random.random() < 0.5
        sizes = pages.sizes & ~self.unknown_sizes
        if spoiled:
            sizes &= entry_sizes(table)
        aims = populate(
            random, pages, Wish(sizes, self.rights(nested), width, self.without, aim), random.randrange(1, 200)
        )
        shift = scenario.shown if scenario is not None else 0
        own = tables(pages) if shift else []
        if spoiled:
            spoil(random, pages, aims, random.randrange(1, 40), self._limits(needed, outer, nested))
        relocate(pages, own, shift, range(base + TABLES, base + RAM))
        return Scenario(card, aims, [*(scenario.spaces if scenario else ()), Space(pages, shift)], shown, needed)

    def _behind(self, random: Random, pages: PageTable) -> int:
        """Let a second stage show all tables at random addresses: the distance."""
        width = min(pages.table.input_bits, 40) - 1
        tables = self.both.ram_base + TABLES
        while True:
            shift = random.getrandbits(width) & -(2 << 20)
            if shift and pages.map(tables + shift, tables, RAM - TABLES, READ | WRITE)[0] == OK:
                return shift

    def _needed(self, pages: PageTable, kept: tuple[range, ...]) -> set[int]:
        """The entries that spoiling must leave: on the ways to the card's area, and to the first stage's tables."""
        needed = set()
        for part in kept:
            for leaf in pages.leaves(part.start, part.stop - 1):
                needed.update(step.at for step in path(pages, leaf.iova))
                needed.update(range(leaf.at, leaf.at + (8 << leaf.lg2 - span_lg2(pages.table, leaf.level)), 8))
        return needed

    def _limits(self, needed: frozenset[int], outer: PageTable | None, nested: bool) -> Limits:
        """What spoiling must leave, and where it may let links lead."""
        base = self.both.ram_base
        avoid = range(base + CARD, base + DATA)

        def tame(table: Table, level: int, entry: int) -> int:
            return self.tame(table, level, entry, nested)

        def is_table(oa: int) -> bool:
            return self._may_be_table(oa, outer)

        return Limits(range(self.memory.first, self.memory.end), needed, avoid, is_table, tame)

    def _may_be_table(self, oa: int, outer: PageTable | None) -> bool:
        """Whether a link may lead here: to tables, and where nothing is. Also to data, where QEMU looks at all of an
        entry. What lies first in RAM and beside it is different from ours, but for addresses where nothing can be."""
        base = self.both.ram_base
        if base + TABLES <= oa < base + RAM:
            return self.tables_as_tables
        if outer is not None:
            return outer.translate(oa).status != OK
        return oa >= NOTHING or (self.data_as_tables and base + DATA <= oa < base + TABLES)

    def data_address(self, random: Random) -> int:
        """Somewhere in the data."""
        return self.both.data + (random.randrange(TABLES - DATA) & -4096)


class DisagreementError(AssertionError):
    """QEMU and our model differ in what no known deviation explains."""


def entry_sizes(table: Table) -> int:
    """The sizes of leaves that have one entry. Where entries of one leaf differ, anything may be cached of them."""
    return sum(1 << span_lg2(table, level) for level in range(table.leaf_top + 1))
