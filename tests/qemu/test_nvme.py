"""The same commands on QEMU's NVMe controller and on ours: the same statuses, the same data, the same disk."""

import struct
import time
from pathlib import Path
from random import Random

import pytest

from hardware import nvme_driver as nvme
from qemu.pci import PortConfig, enable
from qemu.qtest import Qtest
from qemu.test_oracle import program
from softiommu.hardware.bus import Port
from softiommu.hardware.devices.nvme.controller import Nvme
from softiommu.hardware.devices.nvme.namespace import Namespace, RamBacking
from softiommu.memory.physical import PhysicalMemory

RAM, BAR, SLOT = 32 << 20, 0xE0000000, 2
DISK = 4 << 20
BLOCKS = DISK >> 9
COMMANDS = 3_000
#: Data goes to the first half of these pages, and PRP lists lie in the second.
PAGES, HALF = range(0x800000, 0xA00000, 4096), 256


class Card:
    """QEMU's controller as the driver sees a function."""

    def __init__(self, qtest):
        self.qtest = qtest
        self.base = enable(PortConfig(qtest), SLOT << 3, BAR)

    def write_config(self, offset, width, value):
        """It was enabled when it got its address."""

    def read_bar(self, bar, offset, width):
        return self.qtest.read(self.base + offset, width)

    def write_bar(self, bar, offset, width, value):
        self.qtest.write(self.base + offset, width, value)


class Ram:
    """QEMU's memory."""

    def __init__(self, qtest):
        self.bytes, self.next = qtest.ram, 0x100000

    def alloc(self, size, align):
        at = -(-self.next // align) * align
        self.next = at + -(-size // 4096) * 4096
        return at

    def read(self, at, length):
        return self.bytes[at : at + length]

    def write(self, at, data):
        self.bytes[at : at + len(data)] = data


class Patient(nvme.Driver):
    """A driver that waits: QEMU finishes commands in threads of its own."""

    def pop(self, ring, doorbell=True):
        for _ in range(10_000):
            done = super().pop(ring, doorbell)
            if done is not None:
                return done
            time.sleep(0.001)
            self.read(nvme.CSTS)
        return None

    def start(self):
        self.enable()
        for _ in range(1000):
            if self.read(nvme.CSTS) == 1:
                break
        self.make_queues(interrupts=0)
        return self


@pytest.fixture
def both(tmp_path):
    """Our driver, that of QEMU, and QEMU's disk."""
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(DISK))
    card = [
        "-drive",
        f"file={disk},if=none,id=disk,format=raw",
        "-device",
        f"nvme,serial=S,drive=disk,addr={SLOT},mdts=7",
    ]
    qtest = Qtest(program("qemu-system-x86_64"), "q35", range(RAM), card)
    memory = PhysicalMemory(RAM)
    controller = Nvme(Port(memory, SLOT << 3), [Namespace(RamBacking(DISK))])
    ours, theirs = Patient(controller.function, memory), Patient(Card(qtest), Ram(qtest))
    ours.namespace = controller.subsystem.find(1)
    yield ours.start(), theirs.start(), Path(disk)
    qtest.close()


def blocks(chance):
    """A random command on blocks, with its list of pages: opcode, namespace, fields, list."""
    opcode = chance.choice((nvme.READ, nvme.READ, nvme.WRITE, nvme.WRITE, nvme.COMPARE, nvme.WRITE_ZEROES, nvme.FLUSH))
    lba = chance.choice((*[chance.randrange(BLOCKS)] * 6, BLOCKS - 1, BLOCKS, 1 << 32, (1 << 64) - 1))
    count = chance.choice((1, 2, 7, 8, 9, 16, 17, 100, 600, 1024, 1025, 65536))
    place = chance.choice(PAGES[HALF:-1]) + chance.choice((0, 8))
    entries = [chance.choice(PAGES[:HALF]) for _ in range(130)]
    if chance.random() < 0.1:
        entries[chance.randrange(3)] |= 8
    fields = {
        "prp1": chance.choice(PAGES[:HALF]) + chance.choice((0, 0, 0, 4, 512, 2048, 0xFFC)),
        "prp2": place if chance.random() < 0.8 else chance.choice(PAGES[:HALF]) + chance.choice((0, 4)),
        "dword10": lba & 0xFFFFFFFF,
        "dword11": lba >> 32,
        "dword12": count - 1,
    }
    if fields["prp2"] != place and count > 8:
        fields["prp2"] = place  # a list of data would lead anywhere
    return opcode, chance.choice((*[1] * 12, 0, 0xFFFFFFFF)), fields, (place, struct.pack("<130Q", *entries))


def test_blocks_move_as_with_qemu(both):
    ours, theirs, disk = both
    chance, statuses = Random(1), set()
    first, length = PAGES[0], len(PAGES) * 4096
    fill = chance.randbytes(length)
    for driver in (ours, theirs):
        driver.store(first, fill)
    for _ in range(COMMANDS):
        opcode, nsid, fields, (place, entries) = blocks(chance)
        done = []
        for driver in (ours, theirs):
            driver.store(place, entries)
            one = driver.run(1, opcode, nsid, **fields)
            done.append((one.status, one.retry))
        assert done[0] == done[1], (opcode, nsid, fields)
        if opcode == nvme.READ:
            assert ours.load(first, length) == theirs.load(first, length), fields
        statuses.add(done[0][0])
    assert statuses >= {0, 0x002, 0x00B, 0x013, 0x080, 0x285}
    assert theirs.run(1, nvme.FLUSH, 1).status == 0
    assert ours.namespace.read(0, DISK) == disk.read_bytes()


@pytest.mark.parametrize(
    ("opcode", "dword10", "dword11", "prp1"),
    [
        *[(nvme.CREATE_CQ, 0xF0000 | id, 1, 0) for id in (0, 1, 100)],
        *[(nvme.CREATE_SQ, 0xF0000 | id, 1 << 16 | 1, 0) for id in (0, 1, 100)],
        (nvme.CREATE_CQ, 0x00000002, 1, 0),
        (nvme.CREATE_CQ, 0xFFFF0002, 1, 0),
        (nvme.CREATE_CQ, 0x000F0002, 1, 0x800),
        (nvme.CREATE_CQ, 0x000F0002, 1 | 1 << 16, 0),
        (nvme.CREATE_CQ, 0x000F0002, 0, 0),
        (nvme.CREATE_SQ, 0x000F0002, 1 | 7 << 16, 0),
        (nvme.CREATE_SQ, 0x00000002, 1 | 1 << 16, 0),
        (nvme.CREATE_SQ, 0x000F0002, 1 | 1 << 16, 0x10),
        (nvme.CREATE_SQ, 0x000F0002, 1 << 16, 0),
        (nvme.DELETE_SQ, 0, 0, 0),
        (nvme.DELETE_SQ, 3, 0, 0),
        (nvme.DELETE_CQ, 1, 0, 0),
        (nvme.IDENTIFY, 0xFF, 0, 0),
        (nvme.SET_FEATURES, 0x07, 0, 0),
        (nvme.SET_FEATURES, 0x04, 2 << 20, 0),
        (nvme.SET_FEATURES, 1 << 31 | 0x06, 0, 0),
        (nvme.GET_FEATURES, 0xFF, 0, 0),
        (nvme.GET_FEATURES, 0x07, 0, 0),
        (nvme.GET_FEATURES, 0x09, 100, 0),
        (nvme.ABORT, 7 << 16, 0, 0),
        (0x10, 0, 0, 0),
        (0x7F, 0, 0, 0),
        (0xFF, 0, 0, 0),
    ],
)
def test_admin_commands_have_the_statuses_of_qemu(both, opcode, dword10, dword11, prp1):
    ours, theirs, _ = both
    fields = {"prp1": PAGES[0] + prp1, "dword10": dword10, "dword11": dword11}
    assert ours.run(0, opcode, **fields).status == theirs.run(0, opcode, **fields).status
