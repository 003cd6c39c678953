"""The virtio block device: negotiation, requests, and drivers whose rings are wrong or hostile."""

import os
import random
import struct

import pytest

from softiommu.hardware.bus import Port
from softiommu.hardware.devices import virtio_blk
from softiommu.hardware.devices.nvme.namespace import FileBacking, RamBacking
from softiommu.hardware.devices.virtio_blk import OFFERED, Registers, VirtioBlk
from softiommu.hardware.virtio.common import Status
from softiommu.memory.physical import PhysicalMemory
from split_ring import (
    AVAILABLE,
    DESCRIPTORS,
    ENTRIES,
    FEATURES,
    FLUSH,
    GET_ID,
    HEADERS,
    IN,
    INDIRECT,
    IOERR,
    NEEDS_RESET,
    NEXT,
    OK,
    OUT,
    UNSUPP,
    WRITE,
    Ring,
)

MEMORY, SECTORS, QUEUE, DATA = 1 << 20, 64, 0x10000, 0x20000


class Rig:
    """A device with its driver."""

    def __init__(self, backing=None):
        self.memory = PhysicalMemory(MEMORY)
        self.function = VirtioBlk(Port(self.memory, 0x10), backing or RamBacking(SECTORS * 512), "disk one").function
        self.refused = []
        self.function.on_refusal = self.refused.append
        self.function.write_config(4, 2, 6)
        self.ring = Ring(self.memory.read, self.memory.write, QUEUE, QUEUE, self.kick)

    def read(self, register):
        return self.function.read_bar(0, register.offset, register.size)

    def write(self, register, value):
        self.function.write_bar(0, register.offset, register.size, value)

    def kick(self):
        self.function.write_bar(0, 0x3000, 2, 0)

    def negotiate(self, features=FEATURES):
        """As far as FEATURES_OK: the status that the device leaves."""
        self.write(Registers.DEVICE_STATUS, 0)
        self.write(Registers.DEVICE_STATUS, 3)
        for half in range(2):
            self.write(Registers.DRIVER_FEATURE_SELECT, half)
            self.write(Registers.DRIVER_FEATURE, features >> 32 * half & 0xFFFFFFFF)
        self.write(Registers.DEVICE_STATUS, 11)
        return Status(self.read(Registers.DEVICE_STATUS))

    def start(self, features=FEATURES):
        self.ring.clear()
        assert self.negotiate(features).FEATURES_OK
        entries, desc, available, used = self.ring.addresses
        for register, value in (
            (Registers.QUEUE_SELECT, 0),
            (Registers.QUEUE_SIZE, entries),
            (Registers.QUEUE_DESC, desc),
            (Registers.QUEUE_DRIVER, available),
            (Registers.QUEUE_DEVICE, used),
            (Registers.QUEUE_ENABLE, 1),
            (Registers.DEVICE_STATUS, 15),
        ):
            self.write(register, value)
        return self

    @property
    def broken(self):
        return bool(self.read(Registers.DEVICE_STATUS) & NEEDS_RESET)


@pytest.fixture
def rig():
    return Rig().start()


def test_it_tells_what_it_is_and_what_it_offers(rig):
    assert rig.function.read_config(0, 4) == 0x1042_1AF4
    assert rig.function.read_config(8, 4) >> 8 == 0x010000
    assert rig.read(Registers.CAPACITY) == SECTORS
    assert rig.read(Registers.BLK_SIZE) == 512
    assert rig.read(Registers.NUM_QUEUES) == 1
    assert int(OFFERED) == FEATURES


def test_its_structures_are_found_by_capabilities(rig):
    config = b"".join(rig.function.read_config(at, 4).to_bytes(4, "little") for at in range(0, 256, 4))
    at, found = config[0x34], []
    while at:
        if config[at] == 9:
            _, _, length, kind, bar, _, _, offset, size = struct.unpack_from("<BBBBBBHII", config, at)
            multiplier = struct.unpack_from("<I", config, at + 16)[0] if length > 16 else None
            found.append((kind, bar, offset, size, multiplier))
        at = config[at + 1]
    common, notify, isr = (1, 0, 0, 0x38, None), (2, 0, 0x3000, 4, 4), (3, 0, 0x1000, 1, None)
    assert found == [common, notify, isr, (4, 0, 0x2000, 0x18, None), (5, 0, 0, 0, 0)]


def test_configuration_space_has_a_window_to_the_bar(rig):
    write, read = rig.function.write_config, rig.function.read_config
    window = 0xE0
    for offset, width, value in ((0x2000, 4, SECTORS), (0x14, 1, 0x0F), (0x12, 2, 1)):
        write(window + 4, 1, 0)
        write(window + 8, 4, offset)
        write(window + 12, 4, width)
        assert read(window + 16, 4) & (1 << 8 * width) - 1 == value
    write(window + 8, 4, 0x14)
    write(window + 12, 4, 1)
    write(window + 16, 1, 0)
    assert rig.read(Registers.DEVICE_STATUS) == 0
    for bar, offset, width in ((1, 0, 4), (0, 0x4000, 4), (0, 1, 4), (0, 0, 3), (0, 0, 0), (255, 0, 4)):
        write(window + 4, 1, bar)
        write(window + 8, 4, offset)
        write(window + 12, 4, width)
        write(window + 16, 4, 0)
        read(window + 16, 4)


@pytest.mark.parametrize("left_out", [1 << 32, 1 << 33])
def test_a_driver_must_take_this_version_and_translated_addresses(left_out):
    assert not Rig().negotiate(FEATURES & ~left_out).FEATURES_OK


def test_features_that_are_not_offered_are_not_negotiated():
    assert not Rig().negotiate(FEATURES | 1 << 5).FEATURES_OK
    assert Rig().negotiate(FEATURES & ~(1 << 6)).FEATURES_OK


def test_what_is_written_is_read_whatever_the_buffers(rig):
    chance = random.Random(1)
    data = chance.randbytes(8 * 512)
    rig.memory.write(DATA, data)
    assert rig.ring.request(OUT, 3, (DATA, 700), (DATA + 700, 1), (DATA + 701, 8 * 512 - 701)) == (OK, 1)
    assert rig.ring.request(IN, 3, (DATA + 0x8000, 1), (DATA + 0x8001, 4000), (DATA + 0x8FA1, 95)) == (OK, 8 * 512 + 1)
    assert rig.memory.read(DATA + 0x8000, 8 * 512) == data
    assert rig.ring.request(IN, 4, (DATA, 512)) == (OK, 513)
    assert rig.memory.read(DATA, 512) == data[512:1024]


def test_a_disk_in_a_file_is_in_the_file(tmp_path):
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(SECTORS * 512))
    fd = os.open(disk, os.O_RDWR)
    rig = Rig(FileBacking(fd)).start()
    rig.memory.write(DATA, b"x" * 1024)
    assert rig.ring.request(OUT, 1, (DATA, 1024)) == (OK, 1)
    assert rig.ring.request(FLUSH) == (OK, 1)
    os.close(fd)
    assert disk.read_bytes() == bytes(512) + b"x" * 1024 + bytes((SECTORS - 3) * 512)


def test_it_has_a_name(rig):
    assert rig.ring.request(GET_ID, 0, (DATA, 20)) == (OK, 21)
    assert rig.memory.read(DATA, 20) == b"disk one".ljust(20, b"\0")
    assert rig.ring.request(GET_ID, 0, (DATA, 19)) == (IOERR, 1)


@pytest.mark.parametrize(
    ("kind", "sector", "buffers", "status"),
    [
        (IN, SECTORS, [(DATA, 512)], IOERR),
        (IN, SECTORS - 1, [(DATA, 1024)], IOERR),
        (OUT, 2**64 - 1, [(DATA, 512)], IOERR),
        (OUT, 0, [(DATA, 511)], IOERR),
        (IN, 0, [(DATA, 513)], IOERR),
        (IN, 0, [], OK),
        (5, 0, [], UNSUPP),
        (0x80000000, 0, [(DATA, 512)], UNSUPP),
    ],
)
def test_requests_that_cannot_be_have_a_status(rig, kind, sector, buffers, status):
    before = rig.memory.read(DATA, 1024)
    assert rig.ring.request(kind, sector, *buffers) == (status, 1)
    assert rig.memory.read(DATA, 1024) == before
    assert not rig.broken


def test_data_that_cannot_be_reached_is_an_error_of_the_request(rig):
    assert rig.ring.request(OUT, 0, (MEMORY, 512)) == (IOERR, 1)
    assert rig.ring.request(IN, 0, (MEMORY - 512, 1024)) == (IOERR, 1)
    assert rig.ring.request(IN, 0, (2**64 - 512, 1024)) == (IOERR, 1)
    assert rig.refused[0].startswith(f"a request fails: DMA at iova {MEMORY:#x}")
    assert rig.ring.request(IN, 0, (DATA, 512)) == (OK, 513)


def test_a_length_of_4_gib_is_no_work(rig):
    assert rig.ring.request(OUT, 0, (0, 0xFFFFFE00)) == (IOERR, 1)
    assert rig.ring.request(IN, 0, *[(0, 0xFFFFFE00)] * 5) == (IOERR, 1)


def test_indirect_tables_are_followed_once_they_are_negotiated(rig):
    rig.memory.write(QUEUE + HEADERS, struct.pack("<IIQB", IN, 0, 0, 0xFF))
    table = struct.pack("<QIHH", QUEUE + HEADERS, 16, NEXT, 1)
    table += struct.pack("<QIHH", DATA, 512, NEXT | WRITE, 2)
    table += struct.pack("<QIHH", QUEUE + HEADERS + 16, 1, WRITE, 0)
    rig.memory.write(DATA + 0x1000, table)
    rig.ring.describe(0, DATA + 0x1000, len(table), INDIRECT)
    rig.ring.offer(0)
    assert rig.ring.used() == [(0, 513)]
    rig.start(FEATURES & ~(1 << 28))
    rig.ring.describe(0, DATA + 0x1000, len(table), INDIRECT)
    rig.ring.offer(0)
    assert rig.broken


def _loop(ring):
    ring.describe(0, DATA, 16, NEXT, 0)


def _far(ring):
    ring.describe(0, DATA, 16, NEXT, ENTRIES)


def _readable_behind_writable(ring):
    ring.describe(0, DATA, 16, NEXT | WRITE, 1)
    ring.describe(1, DATA, 16)


def _table_in_a_table(ring):
    ring.store(DATA, struct.pack("<QIHH", DATA, 16, INDIRECT, 0))
    ring.describe(0, DATA, 16, INDIRECT)


def _half_a_descriptor(ring):
    ring.describe(0, DATA, 17, INDIRECT)


def _table_that_is_not_there(ring):
    ring.describe(0, MEMORY, 48, INDIRECT)


def _no_status(ring):
    ring.describe(0, DATA, 16)


def _short_header(ring):
    ring.describe(0, DATA, 15, NEXT, 1)
    ring.describe(1, DATA, 1, WRITE)


def _status_that_is_not_there(ring):
    ring.store(DATA, bytes(16))
    ring.describe(0, DATA, 16, NEXT, 1)
    ring.describe(1, MEMORY, 1, WRITE)


RINGS = [
    _loop,
    _far,
    _readable_behind_writable,
    _table_in_a_table,
    _half_a_descriptor,
    _table_that_is_not_there,
    _no_status,
    _short_header,
    _status_that_is_not_there,
]


@pytest.mark.parametrize("make", RINGS, ids=[make.__name__[1:] for make in RINGS])
def test_a_ring_that_cannot_be_followed_breaks_the_device_until_it_is_reset(rig, make):
    make(rig.ring)
    rig.ring.offer(0)
    assert rig.broken
    assert rig.read(Registers.ISR) == 2
    assert rig.refused[-1].startswith("the device needs a reset (DEVICE_NEEDS_RESET): ")
    rig.start()
    assert rig.ring.request(IN, 0, (DATA, 512)) == (OK, 513)


@pytest.mark.parametrize(("count", "broken"), [(ENTRIES, False), (ENTRIES + 1, True), (0x8000, True)])
def test_more_chains_than_entries_cannot_be_available(rig, count, broken):
    rig.ring.store(DATA, struct.pack("<IIQ", FLUSH, 0, 0))
    rig.ring.describe(0, DATA, 16, NEXT, 1)
    rig.ring.describe(1, DATA + 16, 1, WRITE)
    rig.ring.offer(0, count)
    assert rig.broken == broken
    assert len(rig.ring.used()) == (0 if broken else ENTRIES)


def test_a_request_that_makes_more_of_itself_available_does_not_run_for_ever(rig):
    """Each of two requests reads a sector over the available index, which lets the other one go on."""
    for sector, index in ((0, 2), (1, 3)):
        rig.memory.write(DATA, struct.pack("<HH", 0, index).ljust(512, b"\0"))
        assert rig.ring.request(OUT, sector, (DATA, 512)) == (OK, 1)
    rig.start()
    for n in range(2):
        rig.memory.write(DATA + 32 * n, struct.pack("<IIQ", IN, 0, n))
        rig.ring.describe(3 * n, DATA + 32 * n, 16, NEXT, 3 * n + 1)
        rig.ring.describe(3 * n + 1, QUEUE + AVAILABLE, 512, NEXT | WRITE, 3 * n + 2)
        rig.ring.describe(3 * n + 2, DATA + 100, 1, WRITE)
    rig.ring.offer(0)
    assert len(rig.ring.used()) <= ENTRIES


def test_interrupts_are_for_those_who_want_them(rig):
    assert rig.ring.request(IN, 0, (DATA, 512)) == (OK, 513)
    assert rig.function.intx
    assert rig.read(Registers.ISR) == 1
    assert not rig.function.intx
    rig.memory.write(QUEUE + AVAILABLE, b"\1\0")
    assert rig.ring.request(IN, 0, (DATA, 512)) == (OK, 513)
    assert not rig.function.intx


def test_many_requests_are_carried_out_in_the_background_until_a_reset(rig, monkeypatch):
    monkeypatch.setattr(virtio_blk, "_SLICE", 2)
    steps = []
    rig.function.background = lambda step: not steps.append(step)
    for _ in range(2):
        rig.memory.write(QUEUE + HEADERS, struct.pack("<IIQB", FLUSH, 0, 0, 0xFF))
        rig.ring.describe(0, QUEUE + HEADERS, 16, NEXT, 1)
        rig.ring.describe(1, QUEUE + HEADERS + 16, 1, WRITE)
        rig.ring.kick = lambda: None
        for _ in range(5):
            rig.ring.offer(0)
        rig.kick()
        rig.kick()
        assert len(rig.ring.used()) == 2
        (step,) = steps
        assert step()
        assert len(rig.ring.used()) == 2
        rig.start()
        assert not step()
        assert rig.ring.used() == []
        steps.clear()


def test_nothing_runs_before_the_driver_is_ready_or_without_the_right_to_master_the_bus(rig):
    rig.write(Registers.DEVICE_STATUS, 0)
    assert rig.ring.request(FLUSH) is None
    rig.start()
    rig.function.write_config(4, 2, 2)
    assert rig.ring.request(FLUSH) is None
    assert rig.broken


@pytest.mark.parametrize("seed", range(20))
def test_whatever_lies_in_the_queue_the_device_changes_nothing_else(seed):
    chance, rig = random.Random(seed), Rig()
    outside = chance.randbytes(0x8000)
    rig.memory.write(0x40000, outside)
    for _ in range(60):
        rig.start()
        for index in range(ENTRIES):
            address = chance.choice((QUEUE + HEADERS, DATA, DATA + 512, QUEUE + DESCRIPTORS, QUEUE + AVAILABLE))
            address = chance.choice((address, address, address, MEMORY, 2**64 - 16, chance.getrandbits(64) | 1 << 20))
            length = chance.choice((1, 16, 16, 512, 512, 1024, 0, 0xFFFFFFFF))
            flags = chance.choice((0, NEXT, NEXT, NEXT, WRITE, NEXT | WRITE, INDIRECT, chance.getrandbits(16)))
            rig.ring.describe(
                index, address, length, flags, chance.choice((index + 1, index + 1, chance.getrandbits(16)))
            )
        rig.memory.write(QUEUE + HEADERS, struct.pack("<IIQ", chance.choice((0, 1, 4, 8, 9)), 0, chance.randrange(70)))
        for _ in range(6):
            rig.ring.offer(chance.choice((0, 1, 2, chance.getrandbits(16))), chance.choice((1, 1, 1, 3, 300)))
        assert rig.memory.read(0x40000, len(outside)) == outside
    rig.start()
    assert rig.ring.request(IN, 0, (DATA, 512)) == (OK, 513)
