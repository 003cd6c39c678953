"""A guest that fills its queues and registers with anything: it can only hurt itself.

Whatever lies in its memory, the controller raises nothing, changes no byte that is not mapped for it, does bounded work
for a doorbell, and works again after a reset.
"""

import random
import struct

import pytest
from nvme_driver import ACQ, AQA, ASQ, CC, CREATE_CQ, CREATE_SQ, ENABLE, Driver

from softiommu.hardware.bus import Port
from softiommu.hardware.devices.nvme.controller import Nvme
from softiommu.hardware.devices.nvme.namespace import Namespace, RamBacking
from softiommu.hardware.vtd import model, tables
from softiommu.memory.physical import PhysicalMemory
from softiommu.pagetable import engine, formats
from softiommu.pagetable.kinds import READ, WRITE

READ_OPCODE, WRITE_OPCODE = 2, 1
SID, PAGE, MEMORY = 0x38, 4096, 4 << 20
#: What the guest has: its device sees memory's page n at IOVA + n pages.
IOVA, FIRST, PAGES = 1 << 32, 0x100000, 24
READ_ONLY = 3  # so many of them, at the end, cannot be written
BAR_SIZE = 0x4000
#: A doorbell runs at most the 64 commands of a queue; each names 129 pages at most.
MOST_ACCESSES = 20_000


class CountingPort(Port):
    """Counts the accesses of the device."""

    accesses = 0

    def read(self, iova, length, pasid=None):
        self.accesses += 1
        return super().read(iova, length, pasid)

    def write(self, iova, data, pasid=None):
        self.accesses += 1
        super().write(iova, data, pasid)


class Guest:
    """A guest with some pages of memory, behind an IOMMU, that does anything to its controller."""

    def __init__(self, seed):
        self.chance = random.Random(seed)
        self.memory = memory = PhysicalMemory(MEMORY)
        self.unit = model.Unit(memory)
        self.pages = engine.PageTable(memory, formats.VARIANTS["vtdss-48"])
        root, contexts = memory.alloc(PAGE), memory.alloc(PAGE)
        memory.write_u64(root + 16 * (SID >> 8), contexts | 1)
        memory.write_u64(contexts + 16 * (SID & 255), tables.ContextLow.of(P=1, SSPTPTR=self.pages.root >> 12))
        memory.write_u64(contexts + 16 * (SID & 255) + 8, tables.ContextHigh.of(AW=2, DID=1))
        writable = PAGES - READ_ONLY
        self.pages.map(IOVA, FIRST, writable * PAGE, READ | WRITE)
        self.pages.map(IOVA + writable * PAGE, FIRST + writable * PAGE, READ_ONLY * PAGE, READ)
        for offset, width, value in ((0x20, 8, root), (0x18, 4, 1 << 30), (0x18, 4, 1 << 31)):
            self.unit.write(offset, width, value)
        self.port = CountingPort(memory, SID, self.unit)
        nvme = Nvme(self.port, [Namespace(RamBacking(1 << 16)), Namespace(RamBacking(1 << 18), 1)], pairs=3)
        self.function = nvme.function
        self.function.write_config(4, 2, 6)

    def address(self):
        """An address that a driver may give: mapped, nearly so, or any."""
        page = IOVA + self.chance.randrange(PAGES + 2) * PAGE
        offset = self.chance.choice((0, 0, 0, 4, 8, 512, 4088, 1))
        return self.chance.choice((page, page, page + offset, page + offset, self.chance.getrandbits(64), 0))

    def command(self):
        """64 bytes that a controller may take for a command."""
        chance = self.chance
        if chance.random() < 0.1:
            return chance.randbytes(64)
        opcode = chance.choice((*range(13), READ_OPCODE, WRITE_OPCODE, 0x80, chance.randrange(256)))
        nsid = chance.choice((0, 1, 1, 2, 3, 0xFFFFFFFF))
        cid = chance.randrange(8) << 16
        if opcode in (CREATE_CQ, CREATE_SQ) and chance.random() < 0.7:
            words = (chance.randint(1, 15) << 16 | chance.randint(1, 3), chance.randint(1, 3) << 16 | 3)
        else:
            words = (
                chance.choice((0, 1, 7, 64, chance.getrandbits(32))),
                chance.choice((0, 4, chance.getrandbits(32))),
            )
        rest = [chance.choice((0, 1, 15, 127, 1023, chance.getrandbits(32))) for _ in range(4)]
        return struct.pack("<IIQQQQ6I", cid | opcode, nsid, 0, 0, self.address(), self.address(), *words, *rest)

    def fill(self):
        """A page of memory gets commands, entries of a list, or noise."""
        what = self.chance.randrange(3)
        if what == 0:
            data = b"".join(self.command() for _ in range(64))
        elif what == 1:
            data = struct.pack("<512Q", *(self.address() for _ in range(512)))
        else:
            data = self.chance.randbytes(PAGE)
        self.memory.write(FIRST + self.chance.randrange(PAGES) * PAGE, data)

    def enable(self):
        """Start the controller, with queues where it can reach them, or anywhere."""
        entries = self.chance.choice((1, 15, 63)), self.chance.choice((1, 15, 255))
        queues = [IOVA + self.chance.randrange(PAGES - READ_ONLY) * PAGE for _ in range(2)]
        if self.chance.random() < 0.2:
            queues[self.chance.randrange(2)] = self.address()
        for register, width, value in (
            (CC, 4, 0),
            (AQA, 4, entries[1] << 16 | entries[0]),
            (ASQ, 8, queues[0]),
            (ACQ, 8, queues[1]),
            (CC, 4, self.chance.choice((*[ENABLE] * 9, self.chance.getrandbits(32)))),
        ):
            self.function.write_bar(0, register, width, value)

    def bring_up(self):
        """A driver that knows how: admin queues, and an I/O queue pair of 16 entries."""
        self.function.reset()
        self.function.write_config(4, 2, 6)
        for register, width, value in (
            (AQA, 4, 15 << 16 | 15),
            (ASQ, 8, IOVA),
            (ACQ, 8, IOVA + PAGE),
            (CC, 4, ENABLE),
        ):
            self.function.write_bar(0, register, width, value)
        made = [(CREATE_CQ, IOVA + 2 * PAGE, 3), (CREATE_SQ, IOVA + 3 * PAGE, 1 << 16 | 1)]
        for tail, (opcode, at, dword11) in enumerate(made):
            raw = struct.pack("<IIQQQQ6I", opcode, 0, 0, 0, at, 0, 15 << 16 | 1, dword11, 0, 0, 0, 0)
            self.memory.write(FIRST + 64 * tail, raw)
        self.function.write_bar(0, 0x1000, 4, len(made))
        self.memory.write(FIRST + 3 * PAGE, b"".join(self.command() for _ in range(16)))

    def doorbell(self):
        """Any doorbell, any value."""
        value = self.chance.choice((*[self.chance.randrange(16)] * 9, self.chance.getrandbits(16)))
        self.function.write_bar(
            0, 0x1000 + 4 * self.chance.choice((0, 0, 0, 2, 2, self.chance.randrange(10))), 4, value
        )

    def store(self):
        """Any register, with any width."""
        width = self.chance.choice((1, 2, 4, 8))
        offset = self.chance.choice((self.chance.randrange(0x40), self.chance.randrange(BAR_SIZE)))
        self.function.write_bar(0, offset, width, self.chance.getrandbits(64))
        self.function.read_bar(0, offset, width)

    def configure(self):
        """Any byte of configuration space; the device may then be off, asleep, or reset."""
        offset = self.chance.choice((4, self.chance.randrange(0x100), self.chance.randrange(0x1000)))
        self.function.write_config(offset, self.chance.choice((1, 2, 4)), self.chance.getrandbits(32))
        if self.chance.random() < 0.8:
            self.function.write_config(4, 2, 6)
            power = self.function.find_capability(1)
            self.function.write_config(power + 4, 2, 0)

    def run(self, steps):
        """Do anything but touch memory; the most accesses that one step made."""
        most, often = 0, (*[self.doorbell] * 24, *[self.store] * 3, self.enable, self.configure)
        for _ in range(steps):
            before = self.port.accesses
            self.chance.choice(often)()
            most = max(most, self.port.accesses - before)
        return most

    def others(self):
        """The memory that the device has no right to write."""
        end = FIRST + (PAGES - READ_ONLY) * PAGE
        read_only = self.memory.read(end, READ_ONLY * PAGE)
        return self.memory.read(0, FIRST), read_only, self.memory.read(FIRST + PAGES * PAGE, 1 << 20)


@pytest.mark.parametrize("seed", range(24))
def test_a_guest_that_does_anything_hurts_only_itself(seed):
    guest = Guest(seed)
    guest.memory.write(FIRST + PAGES * PAGE, random.Random(seed).randbytes(1 << 20))
    for _ in range(30):
        for _ in range(4):
            guest.fill()
        if guest.chance.random() < 0.8:
            guest.bring_up()
        before = guest.others()
        assert guest.run(25) < MOST_ACCESSES
        assert guest.others() == before
    guest.function.reset()
    driver = Driver(guest.function, Mapped(guest))
    assert driver.enable(8) == 1
    assert driver.identify(1)[0] == 0


class Mapped:
    """What a good driver has of the same memory, at the addresses of the device."""

    def __init__(self, guest):
        self._memory, self._next = guest.memory, IOVA

    def alloc(self, size, align):
        at, self._next = self._next, self._next + -(-size // PAGE) * PAGE
        self.write(at, bytes(size))
        return at

    def read(self, at, length):
        return self._memory.read(at - IOVA + FIRST, length)

    def write(self, at, data):
        self._memory.write(at - IOVA + FIRST, data)
