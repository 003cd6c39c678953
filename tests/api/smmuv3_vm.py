"""A VMM with one guest on the machine smmuv3, through the Python face: nesting, names, commands, events, devices."""

import errno
import os

import softiommu
from drivers.smmuv3_guest import RAM, RAM_SIZE, Guest, context
from softiommu.abi.iommufd import (
    HwptAllocFlags,
    HwptDataType,
    InvalidateDataType,
    VeventqType,
    ViommuArmSmmuv3Invalidate,
    ViommuType,
)
from softiommu.drivers.driver import Prot

RW = (Prot.READ | Prot.WRITE).value
#: Set where these tests run on a device node.
NODE = os.environ.get("SOFTIOMMU_TEST_NODE")
EDU0, NVME0, TEST0 = "0000:00:04.0", "0000:00:07.0", "0000:00:08.0"
#: What the guest calls its devices.
EDU, TEST = 0x8, 0x10
#: Guest addresses at which every context has a page of zeros, and one for what a device read.
BLANK, RESULT = 0x1000, 0x2000
_EDU_BUFFER = 0x40000


class Vm:
    """A guest's RAM behind a nesting parent, a vIOMMU, and two devices: one with ATS and PASIDs, one without."""

    def __init__(self, machine="smmuv3", viommu=None):
        self.iommufd = softiommu.open_kernel(NODE) if NODE else softiommu.open(machine)
        self.guest, self._devices = Guest(), []
        self.ioas = self.iommufd.ioas()
        self.ram = self.ioas.map_file(self.guest.memory.file.fd, 0, RAM_SIZE, iova=RAM)
        self.edu, self.test = self.device(EDU0), self.device(TEST0)
        self.parent = self.edu.hwpt(self.ioas, HwptAllocFlags.ALLOC_NEST_PARENT)
        self.viommu = viommu() if viommu else self.edu.viommu(ViommuType.ARM_SMMUV3, self.parent)
        self.events = self.viommu.event_queue(VeventqType.ARM_SMMUV3, 16, 32)
        self.names = {name: self.viommu.vdevice(device, name) for device, name in ((self.edu, EDU), (self.test, TEST))}
        for device in (self.edu, self.test):
            device.enable()
        self.blank, self.result = self.guest.memory.alloc(4096), self.guest.memory.alloc(4096)

    def device(self, address):
        """A device, bound to the end."""
        self._devices.append(self.iommufd.device(address))
        return self._devices[-1]

    def page(self, content):
        """A page of the guest's RAM that begins with these bytes."""
        at = self.guest.memory.alloc(4096)
        self.guest.memory.write(at, content)
        return at

    def table(self):
        """A stage 1 of the guest's, with the two pages of its own."""
        pages = self.guest.pages()
        pages.map(BLANK, self.blank, 4096, RW)
        pages.map(RESULT, self.result, 4096, RW)
        return pages

    def use(self, ssid, pages, asid):
        """A substream's context is this table now. What was there may be cached."""
        self.guest.set_context(ssid, context(pages, asid))

    def nested(self, device, **fields):
        """A nested HWPT of the guest's contexts."""
        return device.hwpt(self.viommu, 0, (HwptDataType.ARM_SMMUV3, self.guest.ste(**fields)))

    def command(self, *commands):
        """The guest's commands; how many were carried out, and the errno."""
        entries = [ViommuArmSmmuv3Invalidate(*command) for command in commands]
        try:
            return self.viommu.invalidate(InvalidateDataType.VIOMMU_INVALIDATE_DATA_ARM_SMMUV3, entries), 0
        except OSError as error:
            return error.handled, error.errno

    @property
    def messages(self):
        """What the kernel printed."""
        return self.iommufd.backend.machine.messages

    # Devices

    def read_by_edu(self, iova):
        """Eight bytes that the device reads at a guest's address; zeros: it is blocked."""
        self.run_edu(BLANK, _EDU_BUFFER, 1)
        self.run_edu(iova, _EDU_BUFFER, 1)
        self.run_edu(_EDU_BUFFER, RESULT, 3)
        return self.guest.memory.read(self.result, 8)

    def run_edu(self, source, target, command):
        """Copy eight bytes."""
        for register, value in ((0x80, source), (0x88, target), (0x90, 8), (0x98, command)):
            self.edu.write(0, register, 8, value)
        assert not self.edu.read(0, 0x98, 8) & 1

    def read_by_test(self, iova, pasid=None):
        """The same by the device with ATS, for one of its PASIDs."""
        self.test.write(0, 0x10, 4, 0 if pasid is None else 1 << 31 | pasid)
        for at, command in ((BLANK, 3), (iova, 3), (RESULT, 1)):
            self.test.write(0, 0, 8, at)
            self.test.write(0, 8, 4, command)
            assert not self.test.read(0, 8, 4) & 1
        return self.guest.memory.read(self.result, 8)

    def close(self):
        """Everything goes; nothing is left."""
        self.iommufd.backend.close_fd(self.events.fd)
        for device in self._devices:
            device.close()
        self.iommufd.close()
        if NODE:
            return
        machine = self.iommufd.backend.machine
        assert not machine.physical.pinned
        assert machine.physical.accounts.total == 0

    def __enter__(self):
        return self

    def __exit__(self, kind, error, at):
        if kind is None:
            self.close()


def refusal(call, *arguments, **keys):
    """The errno with which a call is refused."""
    try:
        call(*arguments, **keys)
    except OSError as error:
        return error.errno
    raise AssertionError(f"it was not refused, as with {errno.errorcode[errno.EINVAL]}")
