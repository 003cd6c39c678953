"""Programs that call in any order, on every machine: each call is answered or refused, and nothing outlives them."""

import ctypes
import os
import random
from contextlib import suppress

import pytest

from softiommu.abi import iommufd as abi, vfio
from softiommu.errors import UapiError
from softiommu.iommufd import dispatch
from softiommu.machine.assemble import machine
from softiommu.machine.description import builtin_names, load
from softiommu.memory.local import LocalCaller

MACHINES = [name for name in builtin_names() if any(iommu.model != "mock" for iommu in load(name).iommus)]
PAGE, MEMORY = 4096, 64 * 4096
IOVAS = (0, 1, 2, 3, 8, 0xFEDFF, 0xFEE00, 0x100000, 0x7FFFFFF, 0x8000000, 0xFFFFFFFFF)
CONFIG = 7 << 40


class Program:
    """A program on a machine: its memory and the files it has open."""

    def __init__(self, built, seed):
        self.built, self.random, self.caller = built, random.Random(seed), LocalCaller()
        self.memory = ctypes.create_string_buffer(MEMORY + PAGE)
        self.base = -(-ctypes.addressof(self.memory) // PAGE) * PAGE
        self.argument = ctypes.create_string_buffer(64)
        self.files, self.iommufds, self.answered = [], [], 0
        self.open_iommufd()

    def open(self, path):
        file = self.built.entries[path].open(self.caller, os.O_RDWR)
        fd = self.caller.install(file)
        self.files.append(fd)
        return fd

    def open_iommufd(self):
        self.iommufds.append(self.open("/dev/iommu"))

    def close(self, fd):
        self.files.remove(fd)
        if fd in self.iommufds:
            self.iommufds.remove(fd)
        self.caller.close(fd)

    def call(self, struct):
        """A command of a struct's type on one of the iommufds."""
        command = next(row.cmd for row in abi.IOCTLS if row.struct is type(struct))
        context = self.caller.file(self.random.choice(self.iommufds)).context
        dispatch.execute(context, self.caller, command, struct)

    def ioctl(self, fd, command, struct):
        """A command of VFIO."""
        struct.argsz = struct.SIZE
        ctypes.memmove(self.argument, struct.to_bytes(), struct.SIZE)
        self.caller.file(fd).ioctl(self.caller, command, ctypes.addressof(self.argument))
        return type(struct).from_bytes(self.argument.raw[: struct.SIZE])

    # What it may do next

    def id(self):
        """Ids are the lowest free numbers."""
        return self.random.randrange(7)

    def iova(self):
        return self.random.choice(IOVAS) * PAGE + self.random.choice((0, 0, 0, 0, 16))

    def length(self):
        return self.random.choice((1, 1, 2, 5)) * PAGE - self.random.choice((0, 0, 0, 0, 16))

    def make(self):
        self.call(abi.IoasAlloc())

    def map(self):
        va = self.base + self.random.randrange(MEMORY // PAGE - 5) * PAGE
        self.call(abi.IoasMap(40, self.random.choice((3, 5, 6, 7, 7)), self.id(), 0, va, self.length(), self.iova()))

    def copy(self):
        flags, ids = self.random.choice((3, 5, 6, 7)), (self.id(), self.id())
        self.call(abi.IoasCopy(40, flags, *ids, self.length(), self.iova(), self.iova()))

    def unmap(self):
        whole = self.random.random() < 0.3
        self.call(abi.IoasUnmap(24, self.id(), *((0, 2**64 - 1) if whole else (self.iova(), self.length()))))

    def hwpt(self):
        self.call(abi.HwptAlloc(flags=self.random.choice((0, 0, 0, 1, 2, 8)), dev_id=self.id(), pt_id=self.id()))

    def destroy(self):
        self.call(abi.Destroy(id=self.id()))

    def large_pages(self):
        self.call(abi.Option(option_id=1, op=0, object_id=self.id(), val64=self.random.randrange(2)))

    def bind(self):
        fd = self.open(self.random.choice(self.built.vfio.devices).node)
        number = self.random.choice(self.iommufds)
        self.ioctl(fd, vfio.DEVICE_BIND_IOMMUFD, vfio.DeviceBindIommufd(iommufd=number))

    def attach(self):
        cmd = vfio.DeviceAttachIommufdPt(pt_id=self.id())
        self.ioctl(self.random.choice(self.files), vfio.DEVICE_ATTACH_IOMMUFD_PT, cmd)

    def detach(self):
        self.ioctl(self.random.choice(self.files), vfio.DEVICE_DETACH_IOMMUFD_PT, vfio.DeviceDetachIommufdPt())

    def transfer(self):
        """The device of a file, if it is an edu, moves a page between memory and itself."""
        file, buffer = self.caller.file(self.random.choice(self.files)), ctypes.addressof(self.argument)
        places, to_memory = [0x40000, self.iova()], self.random.randrange(2)
        source, target = places if to_memory else reversed(places)
        registers = {CONFIG + 4: 6, 0x80: source, 0x88: target, 0x90: PAGE, 0x98: 1 | 2 * to_memory}
        for offset, value in registers.items():
            ctypes.memmove(buffer, value.to_bytes(8, "little"), 8)
            file.write(self.caller, buffer, 2 if offset > CONFIG else 8, offset)

    def leave(self):
        if self.random.random() < 0.3:
            self.close(self.random.choice(self.files))
        if not self.iommufds:
            self.open_iommufd()

    def run(self, steps):
        """Any calls, then its end."""
        often = (self.make, self.map, self.map, self.copy, self.unmap, self.hwpt, self.destroy, self.large_pages)
        devices = (self.bind, self.bind, self.attach, self.attach, self.attach, self.detach, self.transfer, self.leave)
        for _ in range(steps):
            with suppress(UapiError):
                self.random.choice(often + devices)()
                self.answered += 1
        while self.files:
            self.close(self.random.choice(self.files))


@pytest.mark.parametrize("kernel", ["6.12", "7.2"])
@pytest.mark.parametrize("name", MACHINES)
def test_whatever_a_program_calls_nothing_outlives_it(name, kernel):
    built = machine(name, kernel)
    given = []
    for seed in (*range(12), *range(12)):
        program = Program(built, seed)
        program.run(150)
        assert program.answered > 10
        assert not built.physical.pinned
        assert not built.services.owners
        assert (program.caller.mm.pinned, program.caller.mm.locked) == (0, 0)
        given.append(built.hardware.memory.given)
    # Structures of devices stay, once they are made; a program that does the same again leaves no more of them.
    assert given[11] == given[-1]
