"""NVMe behind a VT-d unit, and with guests that write anything: what is not mapped fails, and nothing else happens."""

import struct

import pytest
from hypothesis import given, settings, strategies as st
from nvme_driver import (
    ACQ,
    AQA,
    ASQ,
    CC,
    CREATE_CQ,
    CREATE_SQ,
    CSTS,
    ENABLE,
    FLUSH,
    READ,
    WRITE,
    Driver,
)

from softiommu.hardware.bus import Port
from softiommu.hardware.devices.nvme.controller import Nvme
from softiommu.hardware.devices.nvme.namespace import Namespace, RamBacking
from softiommu.hardware.vtd import model, tables
from softiommu.hardware.vtd.events import FaultHigh, FaultLow, Reason
from softiommu.memory.physical import Mmio, PhysicalMemory
from softiommu.pagetable import engine, formats
from softiommu.pagetable.kinds import READ as READABLE, WRITE as WRITABLE

SID = 0x38
IOVA = 1 << 32  # device addresses are this much above those of memory


class Translated(Driver):
    """A driver behind an IOMMU, which maps what it allocates."""

    def __init__(self):
        memory = PhysicalMemory(16 << 20)
        self.unit = model.Unit(memory)
        self.pages = engine.PageTable(memory, formats.VARIANTS["vtdss-48"])
        root, contexts = memory.alloc(4096), memory.alloc(4096)
        memory.write_u64(root + 16 * (SID >> 8), contexts | 1)
        memory.write_u64(contexts + 16 * (SID & 255), tables.ContextLow.of(P=1, SSPTPTR=self.pages.root >> 12))
        memory.write_u64(contexts + 16 * (SID & 255) + 8, tables.ContextHigh.of(AW=2, DID=1))
        self.unit.write(0x20, 8, root)
        self.unit.write(0x18, 4, 1 << 30)
        self.unit.write(0x18, 4, 1 << 31)
        self.nvme = Nvme(Port(memory, SID, self.unit), [Namespace(RamBacking(1 << 20))])
        super().__init__(self.nvme.function, memory, -IOVA)

    def alloc(self, size=4096, align=4096, rights=READABLE | WRITABLE):
        at = super().alloc(size, align)
        self.pages.map(at, at - IOVA, -(-size // 4096) * 4096, rights)
        return at

    def fault(self):
        low, high = (self.unit.read(0x220 + 8 * n, 8) for n in range(2))
        return FaultLow(low).FI << 12, FaultHigh(high)


@pytest.fixture
def translated():
    made = Translated()
    assert made.enable() == 1
    made.make_queues()
    return made


def test_blocks_move_through_a_second_stage(translated):
    pages = [translated.alloc() for _ in range(4)]
    for number, page in enumerate(pages):
        translated.store(page, bytes([number + 1]) * 4096)
    assert translated.io(WRITE, 0, 32, pages).status == 0
    assert translated.io(READ, 0, 32, pages[::-1]).status == 0
    assert [translated.load(page, 1) for page in pages] == [b"\4", b"\3", b"\2", b"\1"]
    assert not translated.fault()[1].F


@pytest.mark.parametrize(("opcode", "reason"), [(WRITE, Reason.NO_READ), (READ, Reason.NO_WRITE)])
def test_a_page_that_is_not_mapped_is_a_transfer_error_and_a_fault(translated, opcode, reason):
    pages = [translated.alloc() for _ in range(4)]
    for page in pages:
        translated.store(page, b"m" * 4096)
    translated.pages.unmap(pages[2], 4096)
    done = translated.io(opcode, 0, 32, pages)
    assert (done.status, done.retry) == (0x004, True)
    at, high = translated.fault()
    assert (at, high.FR, high.SID, high.T) == (pages[2], reason, SID, int(opcode == WRITE))
    if opcode == WRITE:
        assert translated.nvme.subsystem.find(1).read(0, 16384) == bytes(16384)
    else:
        found = [translated.load(page, 4096) for page in pages]
        assert found == [bytes(4096), bytes(4096), b"m" * 4096, b"m" * 4096]
    assert translated.run(1, FLUSH, 1).status == 0


def test_a_page_that_may_only_be_read_is_not_written(translated):
    page = translated.alloc(rights=READABLE)
    assert translated.io(WRITE, 0, 1, [page]).status == 0
    assert translated.io(READ, 0, 1, [page]).status == 0x004
    assert translated.fault()[1].FR == Reason.NO_WRITE


def test_a_list_that_is_not_mapped_is_a_transfer_error(translated):
    page = translated.alloc()
    done = translated.run(1, READ, 1, prp1=page, prp2=IOVA + 0x700000, dword12=23)
    assert done.status == 0x004
    assert translated.fault()[0] == IOVA + 0x700000


@pytest.mark.parametrize("which", ["at", "completions"])
def test_a_queue_that_is_not_mapped_any_more_is_fatal(translated, which):
    translated.make_queues(2)
    ring = translated.rings[2]
    translated.pages.unmap(getattr(ring, which), 4096)
    translated.push(ring, FLUSH, 1)
    translated.ring_doorbell(ring)
    assert translated.read(CSTS) & 2
    assert translated.fault()[0] == getattr(ring, which)
    translated.ring_doorbell(translated.rings[0])
    translated.write(CC, 0)
    assert translated.enable() == 1


# Controllers whose DMA reaches themselves

WINDOW = 1 << 40
QUEUE_2 = (1 << 41) + 0xFF8  # those of queue 2, at the end of a page


@pytest.fixture
def mirrored(nvme):
    """A controller whose BAR lies in memory, too."""

    def write(offset, data):
        for at in range(0, len(data), 4):
            nvme.write(offset + at, int.from_bytes(data[at : at + 4], "little"))

    show = Mmio(write, lambda offset, length: bytes(length))
    nvme.memory.map_window(WINDOW, show, 0, 0x4000)
    nvme.memory.map_window(QUEUE_2, show, 0x1010, 8)
    return nvme


def test_a_command_may_disable_the_controller_that_runs_it(mirrored):
    ring = mirrored.rings[1]
    mirrored.push(ring, READ, 1, prp1=WINDOW, dword12=0)
    mirrored.push(ring, READ, 1, prp1=mirrored.alloc())
    mirrored.ring_doorbell(ring)
    assert (mirrored.read(CC), mirrored.read(CSTS)) == (0, 0)
    assert mirrored.pop(ring) is None
    assert mirrored.enable() == 1
    assert mirrored.identify(1)[0] == 0


def test_a_command_may_ring_the_doorbell_that_started_it(mirrored):
    ring = mirrored.rings[1]
    page = mirrored.alloc()
    mirrored.store(page, struct.pack("<4I", mirrored.rings[0].tail, 0, 3, 0))  # the tail of queue 1 becomes 3
    assert mirrored.io(WRITE, 0, 1, [page]).status == 0
    mirrored.push(ring, READ, 1, prp1=WINDOW + 0x1000)
    mirrored.push(ring, FLUSH, 1)
    mirrored.write(0x1008, 2)
    assert [mirrored.pop(ring).status for _ in range(2)] == [0, 0]


def test_commands_that_ring_their_own_doorbells_do_not_run_for_ever(mirrored):
    mirrored.make_queues(2, size=4)
    ring, page = mirrored.rings[2], mirrored.alloc()
    for slot in range(4):  # each consumes a completion, and lets the next one run
        mirrored.store(page, struct.pack("<2I", (slot + 2) % 4, (slot - 1) % 4))
        assert mirrored.io(WRITE, slot, 1, [page]).status == 0
        mirrored.push(ring, READ, 1, prp1=QUEUE_2, prp2=page, dword10=slot)
    mirrored.write(0x1010, 1)
    assert 4 < mirrored.nvme.logs.reads < 100  # as many rounds as the longest queue has entries
    mirrored.write(CC, 0)
    assert mirrored.enable() == 1


@pytest.mark.parametrize("queue", ["ACQ", "IO"])
def test_a_completion_may_land_on_the_controller(mirrored, queue):
    if queue == "ACQ":
        mirrored.write(CC, 0)
        mirrored.write(ACQ, WINDOW, 8)
        mirrored.write(CC, ENABLE)
        for tail in (1, 2, 3):
            mirrored.write(0x1000, tail)
    else:
        assert mirrored.run(0, CREATE_CQ, prp1=WINDOW, dword10=0xF0002, dword11=1).status == 0
        assert mirrored.run(0, CREATE_SQ, prp1=mirrored.alloc(), dword10=0xF0002, dword11=2 << 16 | 1).status == 0
        mirrored.write(0x1010, 5)
    mirrored.write(0x1000 + 8 * 50, 1)
    mirrored.write(CC, 0)
    assert mirrored.enable() == 1
    assert mirrored.identify(1)[0] == 0


# Guests that write anything


def running():
    memory = PhysicalMemory(8 << 20)
    nvme = Nvme(Port(memory, SID), [Namespace(RamBacking(1 << 16)), Namespace(RamBacking(1 << 16), 1)], pairs=3)
    driver = Driver(nvme.function, memory)
    driver.enable(8)
    driver.make_queues(1, 4)
    return driver


U64 = st.integers(0, (1 << 64) - 1)
ADDRESSES = st.one_of(st.integers(0, 0x8000), st.integers(0, 2047).map(lambda n: n << 12), U64)
WORDS = st.one_of(st.integers(0, 64), st.integers(0, 0xFFFFFFFF), st.sampled_from((0xF0001, 0xF0002, 0x10003, 1 << 16)))
COMMANDS = st.tuples(
    st.just("command"),
    st.sampled_from((0, 0, 1)),
    st.one_of(st.sampled_from((*range(13), 0x80)), st.integers(0, 255)),
    st.sampled_from((0, 1, 2, 3, 0xFFFFFFFF)),
    ADDRESSES,
    ADDRESSES,
    st.tuples(*[WORDS] * 6),
)
DOORBELLS = st.tuples(st.just("bar"), st.integers(0, 9).map(lambda n: 0x1000 + 4 * n), st.just(4), st.integers(0, 20))
REGISTERS = st.tuples(st.just("bar"), st.integers(0, 0x40), st.sampled_from((1, 2, 4, 8)), U64)
ANYWHERE = st.tuples(st.just("bar"), st.integers(0, 0x4000), st.sampled_from((1, 2, 4, 8)), U64)
CONTROLS = st.tuples(
    st.just("bar"), st.sampled_from((CC, AQA, ASQ, ACQ)), st.just(4), st.sampled_from((ENABLE, 0, 0x70007, 0x3000))
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(COMMANDS, COMMANDS, DOORBELLS, REGISTERS, ANYWHERE, CONTROLS), max_size=30))
def test_whatever_a_guest_writes_the_controller_goes_on(steps):
    driver = running()
    for kind, *rest in steps:
        if kind == "bar":
            offset, width, value = rest
            driver.write(offset, value, width)
            driver.read(offset, width)
            continue
        id, opcode, nsid, prp1, prp2, words = rest
        dwords = {f"dword{10 + n}": word for n, word in enumerate(words)}
        driver.push(driver.rings[id], opcode, nsid, prp1=prp1, prp2=prp2, **dwords)
        driver.ring_doorbell(driver.rings[id])
        driver.pop(driver.rings[id])
    driver.function.reset()
    driver.function.write_config(4, 2, 6)
    assert driver.enable(8) == 1
    assert driver.identify(1)[0] == 0


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(min_size=64, max_size=64), min_size=1, max_size=7), st.integers(0, 1))
def test_any_64_bytes_are_a_command(entries, id):
    driver = running()
    ring = driver.rings[id]
    for raw in entries[: ring.size - 1]:
        driver.store(ring.at + 64 * ring.tail, raw)
        ring.tail = (ring.tail + 1) % ring.size
    driver.ring_doorbell(ring)
    done = [driver.pop(ring) for _ in range(ring.size)]
    cids = [struct.unpack_from("<H", raw, 2)[0] for raw in entries[: ring.size - 1]]
    assert {one.cid for one in done if one is not None} <= set(cids)
    assert driver.identify(1)[0] == 0
