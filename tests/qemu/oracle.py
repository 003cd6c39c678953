"""Rounds of random accesses, by QEMU and by our model: where each goes, or why it is blocked, must be the same."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any, NamedTuple

import numpy as np

from qemu import e1000
from qemu.e1000 import LOOK
from qemu.garbage import path
from qemu.rig import NOTHING, Answer, Case, DisagreementError, Probe, Rig, Scenario, walks
from qemu.sides import CARD, DATA, RAM, TABLES, tags
from softiommu.hardware.iommu import TranslationFaultError
from softiommu.pagetable.kinds import READ, WRITE

#: How many blocked reads, and how many blocked writes, of a round are checked.
_BLOCKED = 96


def _flipped(random: Random, word: int) -> int:
    """A word that is another one by few bits, or altogether."""
    if random.random() < 0.1:
        return random.getrandbits(64)
    for _ in range(random.randrange(1, 4)):
        word ^= 1 << random.choice((random.randrange(16), random.randrange(64)))
    return word


def _shown(scenario: Scenario, iova: int) -> str:
    """The entries on the way to an address, for a message."""
    ways = (" ".join(f"{step.level}:{step.entry:#x}" for step in way.steps) for way in walks(scenario, iova))
    return " and ".join(ways)


class Tally(NamedTuple):
    """What was compared so far."""

    translations: Counter[str]
    faults: Counter[str]
    deviations: Counter[str]


class Oracle:
    """Rounds on one rig."""

    def __init__(self, rig: Rig, seed: int, tolerant: bool = False, density: int = 4) -> None:
        self.rig, self.random, self.tolerant = rig, Random(seed), tolerant
        #: Addresses tried for each leaf.
        self.density = density
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

    def flags(self) -> int:
        """One access through each leaf, below entries of which many have their flags clear: then the tables must look
        alike. -> how many entries were changed by hardware."""
        rig, random, memory = self.rig, self.random, self.rig.memory
        scenario = rig.build(random, clean=True)
        pages = scenario.spaces[0].pages
        own = {step.at for step in path(pages, scenario.card)}
        probes: dict[int, Probe] = {}
        for aim in scenario.aims:
            steps = path(pages, aim.iova)
            found = pages.translate(aim.iova & (1 << pages.table.input_bits) - 1)
            if steps[-1].at in probes or found.oa < rig.both.data or found.oa >= rig.both.ram_base + TABLES:
                continue
            want = WRITE if found.allowed & WRITE and aim.iova and random.random() < 0.5 else READ
            probes[steps[-1].at] = Probe(aim.iova, want)
            for step in steps:
                # All or none: QEMU sets no dirty flag where the accessed flag is set already.
                if step.at not in own:
                    memory.write_u64(step.at, step.entry & ~rig.flag_bits | random.choice((0, rig.flag_bits)))
        rig.both.copy_tables()
        rig.flush()
        rig.nic.move(scenario.card)
        before = rig.both.tables(rig.both.emulator)
        cases = [(probe, self._predict(probe)) for probe in probes.values()]
        self._check_reads([case for case in cases if case[0].want == READ], scenario)
        self._check_writes([case for case in cases if case[0].want == WRITE], scenario)
        theirs, ours = (rig.both.tables(side) for side in (rig.both.emulator, rig.both.model))
        for number in np.flatnonzero(theirs != ours):
            self._disagree(f"an entry was {before[number]:#x}, is {ours[number]:#x}, and to QEMU {theirs[number]:#x}")
        scenario.spaces[0].pages.destroy()
        return int((ours != before).sum())

    def _elsewhere(self) -> tuple[range, ...]:
        """Where QEMU's memory is another than ours: devices, the card's area."""
        base = self.rig.both.ram_base
        return range(1, base + DATA), range(base + RAM, NOTHING)

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
            for number in range(self.density):
                iova = aim.iova + 64 * random.getrandbits(min(aim.lg2, 22) - 6) if number else aim.iova
                if number and random.random() < 0.05:
                    iova ^= 1 << random.randrange(6, 64)
                # The card takes a buffer at 0 for none.
                want = WRITE if iova and random.random() < 0.2 else READ
                found.append(Probe((iova | (4 * random.randrange(16) if want == READ else 0)) & (1 << 64) - 1, want))
        found += (Probe(random.getrandbits(random.randrange(12, 65)) & -64, READ) for _ in range(8))
        random.shuffle(found)
        return [probe for probe in found if self.rig.tries(probe.iova, scenario)]

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
            if ours != theirs and deviation.explains(Case(probe, ours, theirs, scenario)):
                self.tally.deviations[deviation.name] += 1
                return
        if ours != theirs:
            way = "read" if probe.want == READ else "write"
            entries = _shown(scenario, probe.iova)
            self._disagree(f"{way} {probe.iova:#x}: ours {ours}, QEMU {theirs}; {scenario.about}: {entries}")
        else:
            self.tally.faults[f"{ours.record.reason:#x}" if ours.record else "unrecorded"] += 1

    def _disagree(self, message: str) -> None:
        if not self.tolerant:
            raise DisagreementError(message)
        self.disagreements.append(message)
