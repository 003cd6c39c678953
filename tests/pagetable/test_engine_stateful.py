"""Map, unmap and translate in any order, in every format, against a dict of granules."""

import pytest
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from softiommu.memory.physical import PhysicalMemory
from softiommu.pagetable import formats
from softiommu.pagetable.engine import PageTable
from softiommu.pagetable.kinds import ALREADY_MAPPED, FORBIDDEN, HW_ACCESSED, HW_DIRTY, NOT_MAPPED, OK, READ, WRITE

RAM = 64 << 20


def machine_for(name, compiled):
    """A state machine for one variant, on one engine."""
    table = VARIANTS[name]
    granule = 1 << table.granule_lg2
    places = st.sampled_from([0, 1, 2, 3, 15, 16, 17, 31, 32, 511, 512, 513, 1 << 18, (1 << 18) + 7])
    highest = (1 << table.input_bits - table.granule_lg2) - 1
    numbers = st.one_of(places, places.map(lambda n: highest - n), st.integers(0, highest))
    numbers = numbers.map(lambda n: min(max(n, 0), highest))
    lengths = st.one_of(st.integers(1, 40), st.sampled_from([64, 128, 512, 513, 1024]))

    class Machine(RuleBasedStateMachine):
        @initialize()
        def start(self):
            self.memory = PhysicalMemory(RAM)
            self.pages = PageTable(self.memory, table, compiled=compiled)
            #: Granule number -> (output granule, rights, first granule and count of the leaf).
            self.model = {}

        @rule(start=numbers, count=lengths, output=numbers, prot=st.sampled_from([READ, READ | WRITE]))
        def map(self, start, count, output, prot):
            output &= (1 << 40 - table.granule_lg2) - 1
            count = min(count, highest - start + 1)
            status, done = self.pages.map(start * granule, output * granule, count * granule, prot)
            done //= granule
            taken = any(start + n in self.model for n in range(count))
            assert (status == OK) == (not taken)
            assert status in (OK, ALREADY_MAPPED)
            at = 0
            while at < done:
                leaf = self.pages.translate((start + at) * granule)
                size = 1 << leaf.lg2 - table.granule_lg2
                for n in range(size):
                    self.model[start + at + n] = (output + at + n, prot, start + at, size)
                at += size
            assert at == done

        @precondition(lambda self: self.model)
        @rule(data=st.data(), count=lengths)
        def unmap(self, data, count):
            start = data.draw(st.sampled_from(sorted(self.model)))
            count = min(count, highest - start + 1)
            hit = {self.model[n][2:] for n in range(start, start + count) if n in self.model}
            removed = self.pages.unmap(start * granule, count * granule)
            assert removed.length == sum(size for _, size in hit) * granule
            assert leaves_of(removed.ranges, granule) == hit
            # A table that went away translated only what is no longer there.
            for gone in removed.tables:
                assert not any(gone.iova <= n * granule <= gone.last for n in self.model if n not in self.dropped(hit))
            for first, size in hit:
                for n in range(first, first + size):
                    del self.model[n]
            self.pages.free_tables(removed.tables)

        @staticmethod
        def dropped(hit):
            return {n for first, size in hit for n in range(first, first + size)}

        @precondition(lambda self: self.model)
        @rule(data=st.data(), count=lengths, clear=st.booleans())
        def write_and_harvest(self, data, count, clear):
            """What is written is harvested, until it is cleared; nothing else is."""
            if not table.option & HW_DIRTY:
                return
            start = data.draw(st.sampled_from(sorted(self.model)))
            window = start * granule, min(start + count, highest + 1) * granule - 1
            self.pages.harvest(*window, clear=True)
            walk = self.pages.translate(start * granule, WRITE)
            expected = {self.model[start][2:]} if self.model[start][1] & WRITE else set()
            assert walk.status == (OK if expected else FORBIDDEN)
            assert leaves_of(self.pages.harvest(*window, clear=clear), granule) == expected
            assert leaves_of(self.pages.harvest(*window, clear=True), granule) == (set() if clear else expected)

        @precondition(lambda self: self.model)
        @rule(data=st.data())
        def look(self, data):
            number = data.draw(st.one_of(st.sampled_from(sorted(self.model)), numbers))
            walk = self.pages.translate(number * granule + 5)
            if number in self.model:
                output, prot, _, size = self.model[number]
                assert (walk.status, walk.oa) == (OK, output * granule + 5)
                assert walk.allowed & (READ | WRITE) == prot
                assert 1 << walk.lg2 == size * granule
            else:
                assert walk.status == NOT_MAPPED

        def teardown(self):
            if not hasattr(self, "pages"):
                return
            leaves = list(self.pages.leaves(0, (1 << table.input_bits) - 1))
            found = {(leaf.iova // granule, (1 << leaf.lg2) // granule) for leaf in leaves}
            assert found == {entry[2:] for entry in self.model.values()}
            self.pages.free_tables(self.pages.unmap(0, 1 << table.input_bits).tables)
            assert not any(self.memory.read(self.pages.root, 8 << table.top_bits))
            self.pages.destroy()
            assert self.memory.given == 0

    return Machine


def leaves_of(ranges, granule):
    """Ranges of leaves as (first granule, granules of it)."""
    return {
        (at // granule, (1 << run.lg2) // granule) for run in ranges for at in range(run.iova, run.last, 1 << run.lg2)
    }


#: Every variant as hardware is told to leave it alone, and those in which it sets accessed and dirty flags.
VARIANTS = formats.VARIANTS | {
    f"{name}-flags": formats.VARIANTS[name]._replace(option=formats.VARIANTS[name].option | HW_ACCESSED | HW_DIRTY)
    for name in ("vtdss-48", "amdv1-4level", "riscv-sv48", "riscv-sv39x4", "arm64-4k-48-s1", "arm64-16k-40-s2")
}


@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "compiled"])
@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_a_table_holds_what_was_mapped_and_nothing_else(name, compiled):
    quick = settings(
        max_examples=4, stateful_step_count=14, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    run_state_machine_as_test(machine_for(name, compiled), settings=quick)
