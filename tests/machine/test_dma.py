"""DMA on every machine, against a dict of pages: what is mapped moves, as it is mapped, and nothing else is touched."""

import random
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from softiommu.drivers.driver import DomainFlags, Prot
from softiommu.hardware.bus import DmaError
from softiommu.machine.assemble import machine
from softiommu.machine.description import builtin_names, load

MACHINES = [name for name in builtin_names() if any(iommu.model != "mock" for iommu in load(name).iommus)]
PAGE, PAGES = 4096, 24
BASE = 0x4000_0000
RW, RO = Prot.READ | Prot.WRITE, Prot.READ

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("map"), st.integers(0, PAGES - 1), st.integers(1, 6), st.sampled_from((RW, RO))),
        st.tuples(st.just("unmap"), st.integers(0, PAGES - 1), st.integers(1, 6), st.just(RW)),
        st.tuples(st.just("read"), st.integers(0, PAGES * PAGE - 1), st.integers(1, 3 * PAGE), st.just(RW)),
        st.tuples(st.just("write"), st.integers(0, PAGES * PAGE - 1), st.integers(1, 3 * PAGE), st.just(RW)),
    ),
    max_size=25,
)


class Rig:
    """One device of a machine, its domain, and the memory that it may reach, beside what it should be."""

    def __init__(self, name):
        self.built = machine(name)
        self.hardware = self.built.hardware
        self.wired = self.hardware.devices[0]
        self.port = self.wired.function.port
        self.port.bus_master = True
        self.domain = self.wired.device.alloc_paging(DomainFlags.NONE, None)
        self.wired.device.attach(self.domain, None)
        self.memory = self.hardware.memory
        #: Twice as many pages as can be mapped: those between are nobody's.
        self.ram = self.memory.alloc(2 * PAGES * PAGE)
        self.memory.write(self.ram, bytes(range(256)) * (2 * PAGES * PAGE // 256))
        self.expected = bytearray(self.memory.read(self.ram, 2 * PAGES * PAGE))
        self.pages = {}

    def pa(self, page):
        return self.ram + 2 * page * PAGE

    def map(self, page, count, prot):
        for number in range(page, min(page + count, PAGES)):
            if number not in self.pages:
                self.domain.map(BASE + number * PAGE, self.pa(number), PAGE, prot)
                self.pages[number] = prot

    def unmap(self, page, count, prot):
        for number in range(page, min(page + count, PAGES)):
            if self.pages.pop(number, None) is not None:
                assert self.domain.unmap(BASE + number * PAGE, PAGE) == PAGE
        self.domain.flush()

    def pieces(self, offset, length):
        """The pages of a transfer: number, place in the expected memory, bytes."""
        end = offset + length
        while offset < end:
            size = min(PAGE - offset % PAGE, end - offset)
            yield offset // PAGE, 2 * PAGE * (offset // PAGE) + offset % PAGE, size
            offset += size

    def read(self, offset, length, prot):
        wanted = b""
        for page, at, size in self.pieces(offset, length):
            if page not in self.pages:
                with pytest.raises(DmaError):
                    self.port.read(BASE + offset, length)
                return
            wanted += self.expected[at : at + size]
        assert self.port.read(BASE + offset, length) == wanted

    def write(self, offset, length, prot):
        data = random.Random(offset).randbytes(length)
        done = 0
        for page, at, size in self.pieces(offset, length):
            if not self.pages.get(page, Prot.NONE).writable:
                with pytest.raises(DmaError) as caught:
                    self.port.write(BASE + offset, data)
                assert caught.value.done == done
                break
            self.expected[at : at + size] = data[done : done + size]
            done += size
        else:
            self.port.write(BASE + offset, data)
        assert self.memory.read(self.ram, len(self.expected)) == self.expected


@pytest.mark.parametrize("name", MACHINES)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS)
def test_a_device_reaches_what_is_mapped_and_nothing_else(name, steps):
    rig = Rig(name)
    for what, where, count, prot in steps:
        getattr(rig, what)(where, count, prot)
    rig.wired.device.detach(None)
    for what, where, count, prot in (("read", 0, 8, RW), ("write", 0, 8, RW)):
        rig.pages.clear()
        getattr(rig, what)(where, count, prot)
    rig.domain.free()


@pytest.mark.parametrize("name", [name for name in MACHINES if name != "viommu"])
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 1 << 32), st.booleans())
def test_whatever_tables_contain_a_device_reaches_memory_or_is_refused(name, seed, wild):
    """Every table is filled with garbage that leads into memory, out of it and around in it."""
    chance = random.Random(seed)
    rig = Rig(name)
    rig.map(0, PAGES, RW)
    for pa in list(rig.memory._given):
        if pa == rig.ram:
            continue
        for at in range(pa, pa + rig.memory._given[pa], 8):
            if chance.random() < 0.5 or rig.memory.read_u64(at):
                low = chance.getrandbits(12) | chance.choice((0, 1, 3, 7))
                high = chance.getrandbits(64) if wild else chance.randrange(rig.memory.size >> 12) << 12
                rig.memory.write_u64(at, (high & ~0xFFF) | low)
    for _ in range(40):
        iova = chance.choice((BASE + chance.randrange(PAGES * PAGE), chance.getrandbits(64), chance.getrandbits(39)))
        pasid = chance.choice((None, None, chance.getrandbits(20)))
        for _ in range(2):
            with suppress(DmaError):
                assert len(rig.port.read(iova, 16, pasid)) == 16
            with suppress(DmaError):
                rig.port.write(iova, b"garbage", pasid)
