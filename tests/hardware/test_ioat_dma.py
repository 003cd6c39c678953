"""I/OAT behind a VT-d unit, and with drivers that write anything: what is not mapped stops the channel, no more."""

import pytest
from hypothesis import given, settings, strategies as st
from ioat_driver import (
    CHAINADDR,
    CHANCMP,
    CHANERR,
    COMPLETE,
    COPY,
    DATA,
    DMACOUNT,
    FILL,
    HALTED,
    IDLE,
    NULL,
    IoatDriver,
    descriptor,
)

from softiommu.hardware.bus import Port
from softiommu.hardware.devices.ioat.engine import Ioat
from softiommu.hardware.vtd import model, tables
from softiommu.hardware.vtd.events import FaultHigh, FaultLow, Reason
from softiommu.memory.physical import PhysicalMemory
from softiommu.pagetable import engine, formats
from softiommu.pagetable.kinds import READ, WRITE

SID = 0x48
IOVA = 1 << 32  # device addresses are this much above those of memory
A, B = DATA + IOVA, DATA + 0x2000 + IOVA
READ_DATA, WRITE_DATA, NEXT, CHAIN, COMPLETION = 1 << 8, 1 << 9, 1 << 2, 1 << 4, 1 << 12


class Translated(IoatDriver):
    """A driver behind an IOMMU, which maps the pages that it uses."""

    def __init__(self):
        memory = PhysicalMemory(16 << 20)
        memory.alloc(8 << 20)  # the driver's own: tables lie above
        self.unit = model.Unit(memory)
        self.pages = engine.PageTable(memory, formats.VARIANTS["vtdss-48"])
        root, contexts = memory.alloc(4096), memory.alloc(4096)
        memory.write_u64(root + 16 * (SID >> 8), contexts | 1)
        memory.write_u64(contexts + 16 * (SID & 255), tables.ContextLow.of(P=1, SSPTPTR=self.pages.root >> 12))
        memory.write_u64(contexts + 16 * (SID & 255) + 8, tables.ContextHigh.of(AW=2, DID=1))
        self.unit.write(0x20, 8, root)
        self.unit.write(0x18, 4, 1 << 30)
        self.unit.write(0x18, 4, 1 << 31)
        super().__init__(Ioat(Port(memory, SID, self.unit)), memory, shift=IOVA)
        for at, size in ((self.ring, 4096), (self.done, 4096), (DATA, 0x10000)):
            self.pages.map(at + IOVA, at, size, READ | WRITE)

    def fault(self):
        low, high = (self.unit.read(0x220 + 8 * n, 8) for n in range(2))
        return FaultLow(low).FI << 12, FaultHigh(high)


@pytest.fixture
def translated():
    return Translated().start()


def test_bytes_move_through_a_second_stage(translated):
    data = bytes(range(256)) * 16
    translated.memory.write(DATA + 0xF80, data)
    assert translated.run(A + 0xF80, B + 0x7FF, 4096) == IDLE
    assert translated.memory.read(DATA + 0x27FE, 4098) == b"\0" + data + b"\0"
    assert translated.told == (translated.ring + IOVA, IDLE)
    assert not translated.fault()[1].F


@pytest.mark.parametrize(
    ("gone", "errors", "reason"),
    [
        (DATA + 0x1000, READ_DATA, Reason.NO_READ),
        (DATA + 0x3000, WRITE_DATA, Reason.NO_WRITE),
    ],
)
def test_a_page_that_is_not_mapped_halts_and_is_recorded(translated, gone, errors, reason):
    translated.memory.write(DATA + 0xFC0, b"d" * 128)
    translated.pages.unmap(gone + IOVA, 4096)
    translated.put(A, B, 64)
    translated.put(A + 0xFC0, B + 0xFC0, 128)
    translated.ring_doorbell()
    assert (translated.state, translated.read(CHANERR)) == (HALTED, errors)
    assert translated.told == (translated.ring + IOVA, HALTED)
    at, high = translated.fault()
    assert (at, high.FR, high.SID) == (gone + IOVA, reason, SID)
    assert translated.memory.read(DATA + 0x3000, 64) == bytes(64)
    translated.start()
    assert translated.run(A, B, 64) == IDLE


def test_a_ring_that_leads_to_what_is_not_mapped_halts(translated):
    translated.put(A, B, 64)
    translated.put(A, B, 64, following=IOVA + 0x800000)
    translated.put(A, B, 64)
    translated.ring_doorbell()
    assert (translated.state, translated.read(CHANERR)) == (HALTED, NEXT)
    assert translated.fault()[0] == IOVA + 0x800000


def test_a_ring_that_is_not_mapped_halts(translated):
    translated.pages.unmap(translated.ring + IOVA, 4096)
    assert (translated.run(A, B, 64), translated.read(CHANERR)) == (HALTED, CHAIN)
    assert translated.fault()[0] == translated.ring + IOVA


def test_a_completion_that_is_not_mapped_halts(translated):
    translated.pages.unmap(translated.done + IOVA, 4096)
    assert (translated.run(A, B, 64), translated.read(CHANERR)) == (HALTED, COMPLETION)
    assert translated.fault()[0] == translated.done + IOVA


# Against a model that knows bytes only

SPAN = 96
PLACES = st.integers(0, SPAN - 1)
SIZES = st.integers(1, 32)
STEPS = st.one_of(
    st.tuples(st.just("copy"), PLACES, PLACES, SIZES),
    st.tuples(st.just("fill"), st.binary(min_size=8, max_size=8), PLACES, SIZES),
    st.tuples(st.just("null"), PLACES, PLACES, SIZES),
)


def expected(memory, steps):
    for kind, source, to, size in steps:
        if kind == "copy":
            memory[to : to + size] = memory[source : source + size]
        elif kind == "fill":
            for n in range(size):
                memory[to + n] = source[n % 8]
    return bytes(memory)


@given(st.lists(st.lists(STEPS, min_size=1, max_size=5), max_size=8), st.binary(min_size=SPAN + 32, max_size=SPAN + 32))
@settings(max_examples=60)
def test_any_chain_in_any_portions_does_what_its_steps_do_one_after_another(portions, start):
    driver = IoatDriver(slots=7).start()
    driver.memory.write(DATA, start)
    for steps in portions:
        for kind, source, to, size in steps:
            operation = {"copy": COPY, "fill": FILL, "null": NULL}[kind] | COMPLETE
            value = int.from_bytes(source, "little") if kind == "fill" else DATA + source
            driver.put(value, DATA + to, size, operation)
        driver.ring_doorbell()
        assert driver.told == (driver.slot(driver.count - 1), IDLE)
    flat = [step for steps in portions for step in steps]
    assert driver.memory.read(DATA, len(start)) == expected(bytearray(start), flat)


# Drivers that write anything

WIDTHS = st.sampled_from([1, 2, 4, 8])
ADDRESSES = st.sampled_from([0, A, A + 0x40, A + 0x80, A + 0xFFF, B, 1 << 40, (1 << 64) - 64, (1 << 64) - 1])
CONTROLS = st.one_of(st.integers(0, 63), st.sampled_from([FILL, FILL | COMPLETE]), st.integers(0, 2**32 - 1))
BADLY_MADE = st.tuples(st.one_of(st.integers(0, 99), st.integers(0, 2**32 - 1)), CONTROLS, *[ADDRESSES] * 3)
VALUES = st.one_of(st.integers(0, 255), st.integers(0, 2**64 - 1), ADDRESSES)
ANYTHING = st.tuples(st.one_of(st.integers(0, 0x1FF), st.integers(0x80, 0xB8)), WIDTHS, VALUES)
CHAINS = st.sampled_from([A, A + 64, A + 128, B])


def go(made):
    """What starts a chain."""
    chain, count = made
    return [(CHANERR, 4, 0xFFFFFFFF), (CHAINADDR, 8, chain), (DMACOUNT, 2, count)]


WRITES = st.one_of(
    ANYTHING.map(lambda one: [one]),
    st.tuples(CHAINS, st.integers(1, 5)).map(go),
    st.sampled_from([A + 0x80, B, 0]).map(lambda at: [(CHANCMP, 8, at)]),
)


@given(st.lists(BADLY_MADE, min_size=3, max_size=3), st.lists(WRITES, min_size=2, max_size=20))
def test_whatever_is_written_the_device_answers_and_reaches_only_what_is_mapped(made, writes):
    driver = Translated()
    for number, fields in enumerate(made):
        driver.memory.write(DATA + 64 * number, descriptor(*fields))
    driver.pages.unmap(driver.done + IOVA, 4096)
    low = driver.memory.read(0, DATA)
    for offset, width, value in (one for several in writes for one in several):
        driver.write(offset, value, width)
        driver.read(offset, width)
    assert driver.memory.read(0, DATA) == low
    driver.pages.map(driver.done + IOVA, driver.done, 4096, READ | WRITE)
    driver.function.reset()
    driver.function.write_config(4, 2, 6)
    driver.start()
    driver.memory.write(DATA, b"good")
    assert driver.run(A, B, 4) == IDLE
    assert driver.memory.read(DATA + 0x2000, 4) == b"good"
