"""A device with BARs of every kind of mapping, open through VFIO."""

from __future__ import annotations

import mmap
import os

from consumers.rig import Rig
from softiommu.consumers.vfio.device import VfioDevice
from softiommu.consumers.vfio.group import VfioGroup
from softiommu.consumers.vfio.regions import offset_of
from softiommu.hardware.bus import Port
from softiommu.hardware.pci import Bar, Features, Function, Identity, Mapping, MsixPlace
from softiommu.memory.files import MmapRequest
from softiommu.memory.physical import PhysicalMemory
from softiommu.registers import RegisterFile, array, reg, ro, rw, wo
from softiommu.words import Word, bits

SHARED, PRIVATE = mmap.MAP_SHARED, mmap.MAP_PRIVATE
TABLE, PENDING = 0x2000, 0x3000


class Value32(Word, width=32):
    VALUE = bits(31, 0)


class Value64(Word):
    VALUE = bits(63, 0)


class Registers(RegisterFile):
    STARTERS = frozenset({"GO", "BELL"})

    NAME = reg(0x00, Value64, ro, reset=0x1122334455667788)
    GO = reg(0x08, Value32, rw)
    STATE = reg(0x0C, Value32, ro)
    ADDRESS = reg(0x10, Value64, rw)
    CLEAR = reg(0x18, Value32, wo)
    BELL = array(reg(0x1000, Value32, wo), count=8, stride=4)


class Model:
    """It counts: STATE is how often GO was written. BELL shows half of what was stored."""

    def __init__(self):
        self.registers, self.seen = Registers(self), []
        self.function = None

    def on_write_GO(self, old, new):
        self.seen.append(("GO", int(new), int(self.registers.ADDRESS)))
        self.registers.STATE = self.registers.STATE + 1
        self.function.changed()

    def on_write_BELL(self, index, old, new):
        self.seen.append(("BELL", index, int(new)))

    def on_write_CLEAR(self, old, new):
        self.seen.append(("CLEAR", int(new)))

    def on_show_BELL(self, index):
        return int(self.registers.BELL[index]) // 2

    def on_show_CLEAR(self):
        return 0


class Scratch:
    """Memory of a BAR."""

    def __init__(self):
        self.bytes = {}

    def read(self, offset, width):
        return sum(self.bytes.get(offset + n, 0xEE) << 8 * n for n in range(width))

    def write(self, offset, width, value):
        self.bytes.update({offset + n: value >> 8 * n & 255 for n in range(width)})


def opened(can_trap=True):
    """The rig, the device's file (bound), and its model."""
    rig, model = Rig(), Model()
    bars = {
        0: Bar(0x4000, model.registers, is_64=True, mapping=Mapping.LEVEL),
        2: Bar(0x100, Registers(Model()), mapping=Mapping.LEVEL),
        3: Bar(0x10000, Scratch(), mapping=Mapping.TRAPPED, mapped=range(0x1000, 0x3000)),
        4: Bar(0x1000, Scratch()),
        5: Bar(0x20, Scratch(), io=True),
    }
    port = Port(PhysicalMemory(1 << 20), 0x48)
    features = Features(msix=MsixPlace(4, 0, TABLE, PENDING))
    model.function = Function(port, Identity(1, 2, 0xFF0000), bars, features, model.registers.reset)
    device = VfioDevice(model.function, rig.devices["alone"].device, "0000:00:09.0", VfioGroup(9))
    rig.devices["mapped"] = device
    file = rig.cdev("mapped")
    file.trap_obstacle = lambda caller: "" if can_trap else "not today"
    rig.bind(file, rig.iommufd()[1])
    return rig, file, model


def request(region, at, length, flags=SHARED):
    """An mmap of part of a region."""
    return MmapRequest(length, offset_of(region) + at, mmap.PROT_READ | mmap.PROT_WRITE, flags)


def pages(rig, file, region=0, at=0, length=0x4000):
    """What the program has when it maps part of a region."""
    file.mmap(rig.caller, request(region, at, length))
    return Pages(os.open(f"/proc/self/fd/{file.pages_fd()}", os.O_RDWR), length, offset_of(region) + at)


class Pages(mmap.mmap):
    """A program's mapping: words of it by offset."""

    def __new__(cls, fd, length, offset):
        made = super().__new__(cls, fd, length, offset=offset)
        os.close(fd)
        return made

    def word(self, at, width=4):
        return int.from_bytes(self[at : at + width], "little")

    def store(self, at, value, width=4):
        self[at : at + width] = value.to_bytes(width, "little")
