"""A program with VFIO devices behind a VT-d unit, called by structure."""

from __future__ import annotations

import os

from iommufd.fakes import BASE, FakeCaller, FakeMm
from softiommu.abi import iommufd as abi, vfio
from softiommu.consumers.vfio.device import VfioDevice
from softiommu.consumers.vfio.file import DeviceFile
from softiommu.consumers.vfio.group import VfioGroup
from softiommu.consumers.vfio.reset import Bus
from softiommu.drivers.function import Function
from softiommu.drivers.vtd.driver import VtdDriver
from softiommu.errors import UapiError
from softiommu.hardware.bus import Port
from softiommu.hardware.devices.edu import Edu
from softiommu.hardware.vtd.model import Unit
from softiommu.hardware.vtd.presets import QEMU
from softiommu.iommufd import dispatch, kernels, table
from softiommu.iommufd.file import IommufdFile
from softiommu.memory.accounts import Accounts
from softiommu.memory.files import HostFile
from softiommu.memory.frames import Frames
from softiommu.memory.physical import PhysicalMemory
from softiommu.memory.pins import Physical

CONFIG = 7 << 40


class Rig:
    """Devices by name, each an edu: `alone` in a group of its own, `left` and `right` behind one bridge."""

    def __init__(self, kernel="7.2", express=True):
        memory = PhysicalMemory(16 << 20)
        self.unit = Unit(memory, *QEMU["vtd"])
        driver = VtdDriver(memory, self.unit)
        self.services = table.services(kernels.kernel(kernel), Physical(Frames(), Accounts()))
        self.caller = FakeCaller(FakeMm(64))
        self.at = BASE + 60 * 4096
        self.groups = [VfioGroup(0), VfioGroup(1)]
        bus, shared = Bus(), object()
        self.edus, self.devices = {}, {}
        for name, address, sid, group, behind in (
            ("alone", "0000:00:04.0", 0x20, None, None),
            ("left", "0000:02:01.0", 0x200, shared, bus),
            ("right", "0000:02:02.0", 0x200, shared, bus),
        ):
            edu = self.edus[name] = Edu(Port(memory, sid, self.unit), express=express)
            device = driver.device(Function(address, (sid,), group))
            self.devices[name] = VfioDevice(edu.function, device, address, self.groups[group is not None], behind)

    def iommufd(self):
        """Open /dev/iommu: the file and its number."""
        file = IommufdFile(self.services)
        return file, self.caller.install(file)

    def cdev(self, name):
        """Open a device's own node."""
        return DeviceFile(self.devices[name], self.services)

    def ioas(self, file):
        """A new IOAS."""
        cmd = abi.IoasAlloc(12)
        dispatch.execute(file.context, self.caller, abi.IOAS_ALLOC, cmd)
        return cmd.out_ioas_id

    def raw(self, file, cmd, data):
        """An ioctl whose structure (with what follows it) is `data`: its result, and the bytes after it."""
        if not data:
            return file.ioctl(self.caller, cmd, 0), b""
        self.caller.write(self.at, data)
        result = file.ioctl(self.caller, cmd, self.at)
        return result, self.caller.read(self.at, len(data))

    def call(self, file, cmd, struct):
        """An ioctl with a structure that is answered in place."""
        if not struct.argsz:
            struct.argsz = struct.SIZE
        _, after = self.raw(file, cmd, struct.to_bytes())
        return type(struct).from_bytes(after)

    def errno(self, file, cmd, data):
        """The errno of an ioctl; 0 when it succeeds."""
        if not isinstance(data, bytes | int):
            data.argsz = data.argsz or data.SIZE
            data = data.to_bytes()
        try:
            file.ioctl(self.caller, cmd, data) if isinstance(data, int) else self.raw(file, cmd, data)
        except UapiError as error:
            return error.errno
        return 0

    def bind(self, file, number):
        """Bind a device's file to an iommufd: the id of the device."""
        return self.call(file, vfio.DEVICE_BIND_IOMMUFD, vfio.DeviceBindIommufd(16, 0, number)).out_devid

    def bound(self, name="alone"):
        """A device that is bound: its file, its iommufd, and its id."""
        iommufd, number = self.iommufd()
        file = self.cdev(name)
        return file, iommufd, self.bind(file, number)

    def attach(self, file, pt_id):
        """Attach: the HWPT's id."""
        return self.call(file, vfio.DEVICE_ATTACH_IOMMUFD_PT, vfio.DeviceAttachIommufdPt(12, 0, pt_id)).pt_id

    def detach(self, file):
        """Detach."""
        self.call(file, vfio.DEVICE_DETACH_IOMMUFD_PT, vfio.DeviceDetachIommufdPt(8))

    def eventfd(self):
        """An eventfd: what reads it, and its number in the program."""
        fd = os.eventfd(0, os.EFD_NONBLOCK)
        number = self.caller.install(HostFile(os.dup(fd), lambda: 0, lambda: None))
        return fd, number

    def pread(self, file, offset, count):
        """pread(2): the bytes."""
        done = file.read(self.caller, self.at, count, offset)
        return self.caller.read(self.at, done)

    def pwrite(self, file, offset, data):
        """pwrite(2): how many bytes."""
        self.caller.write(self.at, data)
        return file.write(self.caller, self.at, len(data), offset)


def signals(fd):
    """How often an eventfd was signalled since it was last asked."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0
