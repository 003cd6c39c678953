"""Rounds of random accesses, by QEMU and by our model: where each goes, or why it is blocked, must be the same."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

import numpy as np

from qemu import e1000
from qemu.e1000 import AREA, LOOK, Nic
from qemu.garbage import Aim, Limits, Wish, path, populate, relocate, spoil
from qemu.sides import CARD, DATA, RAM, TABLES, Both, ModelMemory, Side, tags
from softiommu.hardware.iommu import Translation, TranslationFaultError
from softiommu.pagetable.engine import PageTable
from softiommu.pagetable.kinds import OK, READ, WRITE, Table

#: Addresses tried for each leaf, and how many blocked accesses of a round are checked.
_PROBES, _BLOCKED = 4, 96

#: QEMU's machines have no device above.
_NOTHING = 1 << 41


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


class Deviation(NamedTuple):
    """Something that QEMU does otherwise than the architecture: a name, and which differences it explains."""

    name: str
    explains: Callable[[Probe, Answer, Answer], bool]


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
    #: What was set up, for messages.
    about: str = ""

    @property
    def root(self) -> int:
        """The address of the outermost table (the first stage's), as the hardware is told it."""
        return self.spaces[-1].pages.root + self.spaces[-1].shift

    def canonical(self, width: int) -> Scenario:
        """The same for tables whose input is a signed number of `width` bits."""
        high = (1 << 64) - (1 << width)
        aims = [aim._replace(iova=aim.iova | (high if aim.iova >> width - 1 else 0)) for aim in self.aims]
        return self._replace(aims=aims, card=self.card | (high if self.card >> width - 1 else 0))


class Rig(ABC):
    """One IOMMU on both sides."""

    both: Both
    nic: Nic
    memory: ModelMemory
    sid: int
    deviations: tuple[Deviation, ...] = ()
    #: Leaf sizes that QEMU does not know; bits of addresses that it keeps apart.
    unknown_sizes = 0
    width = 64
    #: Whether data may be taken for tables: not where QEMU does not look at all of an entry.
    data_as_tables = True

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

    def target(self, word: int) -> int:
        """The address that a word of a structure has."""
        return word & (1 << 52) - (1 << 12)

    def known(self, record: Record) -> Record:
        """A record of our model, in the terms that QEMU has for it."""
        return record

    def tame(self, table: Table, entry: int, nested: bool) -> int:
        """A spoiled entry without what QEMU does not look at. `nested`: it is a second stage's, before a first."""
        return entry

    def rights(self, nested: bool) -> tuple[int, ...]:
        """The rights of leaves, each as often as it is to be found."""
        return (READ | WRITE, READ | WRITE, READ | WRITE, READ, WRITE)

    def release(self) -> None:
        """Give back what `build` made beside tables: usually nothing."""
        return

    # What all have

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
        aim, area = (lambda: self.data_address(random)), base + CARD
        if scenario is not None:
            area = scenario.card
            if scenario.aims:
                aim = lambda: random.choice(scenario.aims).iova  # noqa: E731
        card = random.getrandbits(min(table.input_bits, 40)) & -AREA
        assert pages.map(card, area, AREA, READ | WRITE)[0] == OK, "nothing else is mapped yet"
        kept, shown = [range(card, card + AREA)], 0
        if nested:
            shown = self._behind(random, pages)
            kept.append(range(base + TABLES + shown, base + RAM + shown))
        width = min(table.input_bits, self.width)
        wish = Wish(pages.sizes & ~self.unknown_sizes, self.rights(nested), width, aim)
        aims = populate(random, pages, wish, random.randrange(1, 200))
        if not clean and random.random() < 0.5:
            spoil(random, pages, aims, random.randrange(1, 40), self._limits(pages, tuple(kept), nested))
        shift = scenario.shown if scenario is not None else 0
        if shift:
            relocate(pages, shift, range(base + TABLES, base + RAM))
        return Scenario(card, aims, [*(scenario.spaces if scenario else ()), Space(pages, shift)], shown)

    def _behind(self, random: Random, pages: PageTable) -> int:
        """Let a second stage show all tables at random addresses: the distance."""
        width = min(pages.table.input_bits, 40) - 1
        tables = self.both.ram_base + TABLES
        while True:
            shift = random.getrandbits(width) & -(2 << 20)
            if shift and pages.map(tables + shift, tables, RAM - TABLES, READ | WRITE)[0] == OK:
                return shift

    def _limits(self, pages: PageTable, kept: tuple[range, ...], nested: bool) -> Limits:
        """What spoiling must leave: the ways to the card's area, and to the first stage's tables if there is one."""
        base, step = self.both.ram_base, 1 << pages.table.granule_lg2
        keep = {entry.at for part in kept for iova in part[::step] for entry in path(pages, iova)}
        # What lies beside RAM is different from ours, but for addresses where nothing can be.
        no_tables = [range(base), range(base + RAM, _NOTHING)]
        if not self.data_as_tables:
            no_tables.append(range(base + DATA, base + TABLES))
        avoid = range(base + CARD, base + DATA)
        return Limits(keep, avoid, tuple(no_tables), lambda table, entry: self.tame(table, entry, nested))

    def data_address(self, random: Random) -> int:
        """Somewhere in the data."""
        return self.both.data + (random.randrange(TABLES - DATA) & -4096)


def _flipped(random: Random, word: int) -> int:
    """A word that is another one by few bits, or altogether."""
    if random.random() < 0.1:
        return random.getrandbits(64)
    for _ in range(random.randrange(1, 4)):
        word ^= 1 << random.choice((random.randrange(16), random.randrange(64)))
    return word


def _entries(space: Space, iova: int) -> str:
    """The entries on the way to an address, for a message."""
    return " ".join(f"{step.level}:{step.entry:#x}" for step in path(space.pages, iova, space.shift))


class DisagreementError(AssertionError):
    """QEMU and our model differ in what no known deviation explains."""


class Tally(NamedTuple):
    """What was compared so far."""

    translations: Counter[str]
    faults: Counter[str]
    deviations: Counter[str]


class Oracle:
    """Rounds on one rig."""

    def __init__(self, rig: Rig, seed: int, tolerant: bool = False) -> None:
        self.rig, self.random, self.tolerant = rig, Random(seed), tolerant
        self.tally = Tally(Counter(), Counter(), Counter())
        self.disagreements: list[str] = []
        self._data = tags(rig.both.data)
        ram = np.frombuffer(rig.both.emulator.qtest.ram, np.uint32)
        self._ram = ram[DATA // 4 : TABLES // 4]

    def run(self, translations: int, faults: int) -> Tally:
        """Rounds until so many translations and faults agree."""
        while self.tally.translations.total() < translations or self.tally.faults.total() < faults:
            self.round()
        return self.tally

    def round(self) -> None:
        """New tables, and accesses at mapped, nearly mapped and any addresses."""
        rig = self.rig
        scenario = rig.build(self.random, clean=False)
        rig.both.copy_tables()
        rig.flush()
        for side in rig.both.sides:
            rig.drain(side)
        rig.nic.move(scenario.card)
        good: dict[int, list[tuple[Probe, Answer]]] = {READ: [], WRITE: []}
        blocked: dict[int, list[tuple[Probe, Answer]]] = {READ: [], WRITE: []}
        for probe in self._probes(scenario):
            answer = self._predict(probe)
            if answer.pa is None:
                blocked[probe.want].append((probe, answer))
            elif 0 <= answer.pa - rig.both.data <= TABLES - DATA - 64:
                good[probe.want].append((probe, answer))
        # Blocked ones first: QEMU checks no rights of what it has cached.
        for want, cases in blocked.items():
            self._check_blocked(want, cases[:_BLOCKED], scenario)
        self._check_reads(good[READ], scenario)
        self._check_writes(good[WRITE], scenario)
        for space in scenario.spaces:
            space.pages.destroy()
        self.rig.release()

    def configurations(self, count: int) -> None:
        """A right configuration, and `count` times one word of it that is changed."""
        rig, random, both = self.rig, self.random, self.rig.both
        scenario = rig.build(random, clean=True)
        both.copy_tables()
        places = rig.structures()
        for _ in range(count):
            at, mask = random.choice(places)
            word = rig.memory.read_u64(at)
            new = word ^ (word ^ _flipped(random, word)) & mask
            if any(rig.target(new) in part for part in self._elsewhere()):
                continue
            both.store(at, new)
            self._look(scenario, f"{word:#x} at {at:#x} is now {rig.memory.read_u64(at):#x}")
            both.store(at, word)
        for space in scenario.spaces:
            space.pages.destroy()
        self.rig.release()

    def _elsewhere(self) -> tuple[range, ...]:
        """Where QEMU's memory is another than ours: devices, the card's area."""
        base = self.rig.both.ram_base
        return range(1, base), range(base + CARD, base + DATA), range(base + RAM, _NOTHING)

    def _look(self, scenario: Scenario, about: str) -> None:
        rig = self.rig
        rig.flush()
        for side in rig.both.sides:
            rig.drain(side)
        probe = Probe(scenario.card + LOOK, READ)
        ours = self._predict(probe)
        if ours.pa is not None and ours.pa != rig.both.ram_base + CARD + LOOK:
            return
        seen = rig.nic.look(probe.iova)
        records = rig.drain(rig.both.emulator)
        theirs = Answer(ours.pa if seen else None, records[0] if records else None)
        if ours == theirs and seen:
            self.tally.translations["look"] += 1
        else:
            self._compare(probe, ours, theirs, scenario._replace(about=about))

    def _probes(self, scenario: Scenario) -> list[Probe]:
        random, found = self.random, []
        for aim in scenario.aims:
            for number in range(_PROBES):
                iova = aim.iova + 64 * random.getrandbits(min(aim.lg2, 22) - 6) if number else aim.iova
                if number and random.random() < 0.05:
                    iova ^= 1 << random.randrange(6, 64)
                # The card takes a buffer at 0 for none.
                want = WRITE if iova and random.random() < 0.2 else READ
                found.append(Probe((iova | (4 * random.randrange(16) if want == READ else 0)) & (1 << 64) - 1, want))
        found += (Probe(random.getrandbits(random.randrange(12, 65)) & -64, READ) for _ in range(8))
        random.shuffle(found)
        return found

    def _predict(self, probe: Probe) -> Answer:
        try:
            found = self.rig.translate(probe)
        except TranslationFaultError:
            records = self.rig.drain(self.rig.both.model)
            return Answer(None, self.rig.known(records[0]) if records else None)
        return Answer(found.pa)

    # Comparing

    def _check_blocked(self, want: int, cases: list[tuple[Probe, Answer]], scenario: Scenario) -> None:
        if not cases:
            return
        rig, nic = self.rig, self.rig.nic
        iovas = np.array([probe.iova for probe, _ in cases], np.uint64)
        words = np.zeros(len(cases), np.uint32)
        if want == READ:
            nic.load_reads(iovas)
        else:
            nic.load_writes(iovas, np.full(len(cases), 0xDEAD0001, np.uint32) + np.arange(len(cases), dtype=np.uint32))
        records = rig.step([probe for probe, _ in cases])
        if want == READ:
            words = nic.landed(len(cases))
        for (probe, ours), record, word in zip(cases, records, words, strict=True):
            theirs = Answer(None, record)
            if record is None and want == READ and word not in (0, 0xFFFFFFFF):
                theirs = Answer(self._where(int(word)))
            self._compare(probe, ours, theirs, scenario)

    def _where(self, word: int) -> int:
        """The address of a word of data; 0 when it is none."""
        found = np.flatnonzero(self._data == word)
        return self.rig.both.data + 4 * int(found[0]) if len(found) else 0

    def _check_reads(self, cases: list[tuple[Probe, Answer]], scenario: Scenario) -> None:
        if not cases:
            return
        got = self.rig.nic.read(np.array([probe.iova for probe, _ in cases], np.uint64))
        expected = self._data[np.array([(answer.pa or 0) - self.rig.both.data >> 2 for _, answer in cases])]
        if (got == expected).all():
            self.tally.translations["read"] += len(cases)
            return
        for (probe, ours), word, right in zip(cases, got, expected, strict=True):
            if word == right:
                self.tally.translations["read"] += 1
            else:
                theirs = Answer(self._where(int(word))) if word not in (0, 0xFFFFFFFF) else self._again(probe)
                self._compare(probe, ours, theirs, scenario)

    def _again(self, probe: Probe) -> Answer:
        """QEMU's record of an access that it blocked."""
        self.rig.flush()
        self.rig.drain(self.rig.both.emulator)
        iovas = np.array([probe.iova], np.uint64)
        if probe.want == READ:
            self.rig.nic.load_reads(iovas)
        else:
            self.rig.nic.load_writes(iovas, np.zeros(1, np.uint32))
        return Answer(None, self.rig.step([probe])[0])

    def _check_writes(self, cases: list[tuple[Probe, Answer]], scenario: Scenario) -> None:
        words = np.arange(len(cases), dtype=np.uint32) + np.uint32(0x600D0000)
        expected = self._data.copy()
        places = np.array([(answer.pa or 0) - self.rig.both.data >> 2 for _, answer in cases], np.int64)
        for start in range(0, len(cases), e1000.MAX_WRITES):
            part = slice(start, start + e1000.MAX_WRITES)
            self.rig.nic.write(np.array([probe.iova for probe, _ in cases[part]], np.uint64), words[part])
        count = e1000.WRITE_BYTES // 4
        expected[places[:, None] + np.arange(count)] = words[:, None]
        if np.array_equal(self._ram, expected):
            self.tally.translations["write"] += len(cases)
        else:
            self._explain_writes(cases, words, places, expected, scenario)
        self._ram[:] = self._data

    def _explain_writes(self, cases: Any, words: Any, places: Any, expected: Any, scenario: Scenario) -> None:
        wrong = set(np.flatnonzero(self._ram != expected).tolist())
        known = {int(place) + n for place in places for n in range(e1000.WRITE_BYTES // 4)}
        stray = sorted(wrong - known)
        landed = self._ram.copy()
        for (probe, ours), place, word in zip(cases, places, words, strict=True):
            if not any(int(place) + n in wrong for n in range(e1000.WRITE_BYTES // 4)):
                self.tally.translations["write"] += 1
                continue
            where = np.flatnonzero(landed == word)
            theirs = Answer(self.rig.both.data + 4 * int(where[0])) if len(where) else self._again(probe)
            self._compare(probe, ours, theirs, scenario)
            stray = [at for at in stray if landed[at] != word]
        if stray:
            self._disagree(f"QEMU wrote at {self.rig.both.data + 4 * stray[0]:#x} and {len(stray) - 1} other places")

    def _compare(self, probe: Probe, ours: Answer, theirs: Answer, scenario: Scenario) -> None:
        for deviation in self.rig.deviations:
            if ours != theirs and deviation.explains(probe, ours, theirs):
                self.tally.deviations[deviation.name] += 1
                return
        if ours != theirs:
            way = "read" if probe.want == READ else "write"
            ways = " and ".join(_entries(space, probe.iova) for space in reversed(scenario.spaces))
            self._disagree(f"{way} {probe.iova:#x}: ours {ours}, QEMU {theirs}; {scenario.about}: {ways}")
        else:
            self.tally.faults[f"{ours.record.reason:#x}" if ours.record else "unrecorded"] += 1

    def _disagree(self, message: str) -> None:
        if not self.tolerant:
            raise DisagreementError(message)
        self.disagreements.append(message)
