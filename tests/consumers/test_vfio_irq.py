"""Interrupts reach the program's eventfds, and only those that it asked for."""

import os
import select
from errno import EBADF, EBUSY, EFAULT, EINVAL, ENOTTY, ERANGE

import pytest

from consumers.rig import CONFIG, Rig, signals
from softiommu.abi import vfio
from softiommu.abi.vfio import IrqFlags, IrqSetFlags as Set, PciIrq
from softiommu.consumers.vfio.device import VfioDevice
from softiommu.drivers.driver import DeviceFeatures
from softiommu.drivers.noiommu import NoIommuDevice
from softiommu.hardware.bus import Port
from softiommu.hardware.pci import Bar, Features, Function, Identity, MsixPlace
from softiommu.hardware.pci_config import CapabilityId
from softiommu.memory.physical import PhysicalMemory

TRIGGER, MASK, UNMASK = Set.ACTION_TRIGGER, Set.ACTION_MASK, Set.ACTION_UNMASK
NONE, BOOL, EVENTFD = Set.DATA_NONE, Set.DATA_BOOL, Set.DATA_EVENTFD
RAISE, ACKNOWLEDGE = 0x60, 0x64


class Ram:
    """Registers that are memory."""

    def __init__(self):
        self.bytes = bytearray(4096)

    def read(self, offset, width):
        """Bytes."""
        return int.from_bytes(self.bytes[offset : offset + width], "little")

    def write(self, offset, width, value):
        """Bytes."""
        self.bytes[offset : offset + width] = value.to_bytes(width, "little")


class IrqRig(Rig):
    """The rig, with calls for interrupts; `many` has MSI-X and 8 MSI vectors."""

    def __init__(self):
        super().__init__()
        place = MsixPlace(vectors=6, bar=0, table=0x800, pending=0xC00)
        self.many = Function(
            Port(PhysicalMemory(1 << 20), 0x30), Identity(1, 2, 3), {0: Bar(4096, Ram())}, Features(msi=8, msix=place)
        )
        device = NoIommuDevice("many")
        device.features = DeviceFeatures()
        self.devices["many"] = VfioDevice(self.many, device, "0000:00:06.0", self.groups[0])

    def set(self, file, flags, index, start=0, values=(), count=None, room=0):
        """SET_IRQS: its errno."""
        width = 4 if flags & EVENTFD else 1
        data = b"".join(value.to_bytes(width, "little", signed=width == 4) for value in values)
        count = len(values) if count is None else count
        head = vfio.IrqSet(20 + len(data) + room, int(flags), index, start, count)
        return self.errno(file, vfio.DEVICE_SET_IRQS, head.to_bytes() + data)

    def write(self, file, offset, value):
        """Store 4 bytes in BAR 0."""
        self.pwrite(file, offset, value.to_bytes(4, "little"))

    def master(self, file):
        """Bus mastering on."""
        self.pwrite(file, CONFIG + 4, b"\6\0")


def test_kinds_of_interrupts_are_told():
    rig = IrqRig()
    alone, many = rig.bound()[0], rig.bound("many")[0]

    def kinds(file):
        return [rig.call(file, vfio.DEVICE_GET_IRQ_INFO, vfio.IrqInfo(16, 9, index, 9)) for index in range(5)]

    event, fixed = int(IrqFlags.EVENTFD), int(IrqFlags.EVENTFD | IrqFlags.NORESIZE)
    intx = int(IrqFlags.EVENTFD | IrqFlags.MASKABLE | IrqFlags.AUTOMASKED)
    assert [(kind.flags, kind.count) for kind in kinds(alone)] == [
        (intx, 1),
        (fixed, 1),
        (fixed, 0),
        (fixed, 1),
        (fixed, 1),
    ]
    assert [(kind.flags, kind.count) for kind in kinds(many)[1:3]] == [(fixed, 8), (event, 6)]
    assert rig.errno(alone, vfio.DEVICE_GET_IRQ_INFO, vfio.IrqInfo(16, 0, 5)) == EINVAL
    conventional = Rig(express=False).bound()[0]
    assert rig.errno(conventional, vfio.DEVICE_GET_IRQ_INFO, vfio.IrqInfo(16, 0, PciIrq.ERR)) == EINVAL


def test_intx_is_told_once_and_masked_until_the_program_unmasks_it():
    rig = IrqRig()
    file, _, _ = rig.bound()
    fd, number = rig.eventfd()
    assert rig.set(file, TRIGGER | EVENTFD, PciIrq.INTX, values=[number]) == 0
    rig.write(file, RAISE, 1)
    rig.write(file, RAISE, 2)
    assert signals(fd) == 1
    # The device still has its reason: unmasking tells it again.
    assert rig.set(file, UNMASK | NONE, PciIrq.INTX, count=1) == 0
    assert signals(fd) == 1
    rig.write(file, ACKNOWLEDGE, 3)
    assert rig.set(file, UNMASK | BOOL, PciIrq.INTX, values=[1]) == 0
    assert signals(fd) == 0
    rig.write(file, RAISE, 1)
    assert signals(fd) == 1
    assert rig.set(file, TRIGGER | NONE, PciIrq.INTX, count=0) == 0
    rig.write(file, ACKNOWLEDGE, 1)
    rig.write(file, RAISE, 1)
    assert signals(fd) == 0


def test_intx_that_is_up_when_it_is_enabled_is_told():
    rig = IrqRig()
    file, _, _ = rig.bound()
    fd, number = rig.eventfd()
    rig.write(file, RAISE, 1)
    rig.set(file, TRIGGER | EVENTFD, PciIrq.INTX, values=[number])
    assert signals(fd) == 1


def test_intx_disable_of_the_command_register_masks():
    rig = IrqRig()
    file, _, _ = rig.bound()
    fd, number = rig.eventfd()
    rig.set(file, TRIGGER | EVENTFD, PciIrq.INTX, values=[number])
    rig.pwrite(file, CONFIG + 4, b"\2\4")
    rig.write(file, RAISE, 1)
    assert rig.set(file, UNMASK | NONE, PciIrq.INTX, count=1) == 0
    assert signals(fd) == 0
    for flags, values in ((NONE, ()), (BOOL, (1,))):
        assert rig.set(file, TRIGGER | flags, PciIrq.INTX, values=values, count=1) == 0
    assert signals(fd) == 0, "tests of it are masked, too"
    rig.pwrite(file, CONFIG + 4, b"\2\0")
    assert signals(fd) == 1
    assert rig.set(file, TRIGGER | NONE, PciIrq.INTX, count=1) == 0
    assert signals(fd) == 1


def test_a_mask_of_intx_holds_it_back():
    rig = IrqRig()
    file, _, _ = rig.bound()
    fd, number = rig.eventfd()
    assert rig.set(file, MASK | NONE, PciIrq.INTX, count=1) == EINVAL
    rig.set(file, TRIGGER | EVENTFD, PciIrq.INTX, values=[number])
    assert rig.set(file, MASK | NONE, PciIrq.INTX, count=1) == 0
    rig.write(file, RAISE, 1)
    assert signals(fd) == 0
    assert rig.set(file, MASK | EVENTFD, PciIrq.INTX, values=[number]) == ENOTTY


class Watched:
    """A front door that waits."""

    def __init__(self):
        self.calls = {}

    def __call__(self, fd, call):
        """Watch."""
        self.calls[fd] = call
        return lambda: self.calls.pop(fd)

    def look(self):
        """What is readable is told."""
        for fd, call in list(self.calls.items()):
            if select.select([fd], [], [], 0)[0]:
                call()


def test_an_eventfd_unmasks_intx():
    rig = IrqRig()
    file, _, _ = rig.bound()
    file.watch = watched = Watched()
    fd, number = rig.eventfd()
    served, served_number = rig.eventfd()
    assert rig.set(file, UNMASK | EVENTFD, PciIrq.INTX, values=[served_number]) == EINVAL
    rig.set(file, TRIGGER | EVENTFD, PciIrq.INTX, values=[number])
    assert rig.set(file, UNMASK | EVENTFD, PciIrq.INTX, values=[served_number]) == 0
    assert rig.set(file, UNMASK | EVENTFD, PciIrq.INTX, values=[served_number]) == 0
    assert len(watched.calls) == 1
    rig.write(file, RAISE, 1)
    os.eventfd_write(served, 1)
    watched.look()
    assert (signals(fd), signals(served)) == (2, 0), "the device still has its reason"
    rig.write(file, ACKNOWLEDGE, 1)
    os.eventfd_write(served, 1)
    watched.look()
    rig.write(file, RAISE, 1)
    assert signals(fd) == 1
    assert rig.set(file, UNMASK | EVENTFD, PciIrq.INTX, values=[-1]) == 0
    assert not watched.calls
    assert rig.set(file, UNMASK | EVENTFD, PciIrq.INTX, values=[99]) == EBADF
    rig.set(file, UNMASK | EVENTFD, PciIrq.INTX, values=[served_number])
    file.release()
    assert not watched.calls


def test_a_second_eventfd_unmasks_intx_only_when_the_program_has_the_first_no_more():
    rig = IrqRig()
    file, _, _ = rig.bound()
    file.watch = watched = Watched()
    _, number = rig.eventfd()
    rig.set(file, TRIGGER | EVENTFD, PciIrq.INTX, values=[number])
    first, second = rig.eventfd()[1], rig.eventfd()[1]
    assert rig.set(file, UNMASK | EVENTFD, PciIrq.INTX, values=[first]) == 0
    held = list(watched.calls)
    file.is_held = held.__contains__
    for fd in (first, second):
        assert rig.set(file, UNMASK | EVENTFD, PciIrq.INTX, values=[fd]) == EBUSY
    assert rig.set(file, UNMASK | EVENTFD, PciIrq.INTX, values=[99]) == EBADF
    held.clear()
    assert rig.set(file, UNMASK | EVENTFD, PciIrq.INTX, values=[second]) == 0
    assert len(watched.calls) == 1


def test_where_nobody_waits_no_eventfd_unmasks():
    rig = IrqRig()
    file, _, _ = rig.bound()
    _, number = rig.eventfd()
    rig.set(file, TRIGGER | EVENTFD, PciIrq.INTX, values=[number])
    assert rig.set(file, UNMASK | EVENTFD, PciIrq.INTX, values=[number]) == ENOTTY


def test_msi_of_a_device_reaches_its_eventfd():
    rig = IrqRig()
    file, _, _ = rig.bound()
    fd, number = rig.eventfd()
    assert rig.set(file, TRIGGER | EVENTFD, PciIrq.MSI, values=[number]) == 0
    rig.write(file, RAISE, 1)
    assert signals(fd) == 0, "a message needs bus mastering"
    rig.master(file)
    rig.write(file, RAISE, 1)
    assert signals(fd) == 1
    assert rig.errno(file, vfio.DEVICE_RESET, 0) == 0
    rig.write(file, RAISE, 1)
    assert signals(fd) == 1, "a reset restores what SET_IRQS set up"
    assert rig.set(file, TRIGGER | EVENTFD, PciIrq.MSI, values=[-1]) == 0
    rig.write(file, RAISE, 1)
    assert signals(fd) == 0


def test_msi_control_reads_as_the_program_wrote_it_whatever_set_irqs_does():
    # drivers/vfio/pci/vfio_pci_config.c, init_pci_cap_msi_perm and vfio_msi_config_write
    rig = IrqRig()
    file, _, _ = rig.bound("many")
    msi = rig.pread(file, CONFIG + 0x34, 1)[0]
    while rig.pread(file, CONFIG + msi, 1)[0] != CapabilityId.MSI:
        msi = rig.pread(file, CONFIG + msi + 1, 1)[0]
    fds = [rig.eventfd()[1] for _ in range(4)]

    def control():
        return rig.pread(file, CONFIG + msi + 2, 1)[0]

    before = control()
    assert before & 0x71 == 0
    assert rig.set(file, TRIGGER | EVENTFD, PciIrq.MSI, values=fds) == 0
    assert control() == before
    assert rig.many.msi.registers.CONTROL & 0x71 == 0x21
    rig.pwrite(file, CONFIG + msi + 2, b"\x71")
    assert control() == 0x21
    assert rig.set(file, TRIGGER | NONE, PciIrq.MSI, count=0) == 0
    assert control() == 0x21
    assert rig.many.msi.registers.CONTROL & 0x71 == 0
    rig.pwrite(file, CONFIG + msi + 2, b"\x01")
    assert control() == 0


@pytest.mark.parametrize("kind", [PciIrq.MSI, PciIrq.MSIX])
def test_each_vector_has_its_eventfd(kind):
    rig = IrqRig()
    file, _, _ = rig.bound("many")
    rig.master(file)
    fds = [rig.eventfd() for _ in range(4)]
    assert rig.set(file, TRIGGER | EVENTFD, kind, values=[number for _, number in fds]) == 0
    rig.many.signal(2)
    assert [signals(fd) for fd, _ in fds] == [0, 0, 1, 0]
    assert rig.set(file, TRIGGER | EVENTFD, kind, start=2, values=[-1, fds[0][1]]) == 0
    for vector in range(4):
        rig.many.signal(vector)
    assert [signals(fd) for fd, _ in fds] == [2, 1, 0, 0]
    file.release()
    rig.many.signal(0)
    assert signals(fds[0][0]) == 0


def test_vectors_of_msix_are_added_one_by_one_and_those_of_msi_are_not():
    rig = IrqRig()
    file, _, _ = rig.bound("many")
    rig.master(file)
    fd, number = rig.eventfd()
    assert rig.set(file, TRIGGER | EVENTFD, PciIrq.MSIX, values=[-1]) == 0
    assert rig.set(file, TRIGGER | EVENTFD, PciIrq.MSIX, start=5, values=[number]) == 0
    rig.many.signal(5)
    assert signals(fd) == 1
    assert rig.set(file, TRIGGER | EVENTFD, PciIrq.MSI, values=[number]) == EINVAL
    assert rig.set(file, TRIGGER | NONE, PciIrq.MSIX, count=0) == 0
    assert rig.set(file, TRIGGER | EVENTFD, PciIrq.MSI, values=[number, -1]) == 0
    assert rig.set(file, TRIGGER | EVENTFD, PciIrq.MSI, start=2, values=[number]) == EINVAL
    assert rig.set(file, TRIGGER | EVENTFD, PciIrq.MSI, start=2, values=[-1]) == 0


def test_the_msix_table_is_the_hosts():
    rig = IrqRig()
    file, _, _ = rig.bound("many")
    rig.master(file)
    fd, number = rig.eventfd()
    rig.set(file, TRIGGER | EVENTFD, PciIrq.MSIX, values=[number])
    assert rig.pread(file, 0x7FC, 12) == bytes(4) + b"\xff" * 8
    assert rig.pwrite(file, 0x7FC, b"\x01" * 20) == 20
    assert rig.pread(file, 0x7FC, 4) == b"\x01" * 4
    rig.many.signal(0)
    assert signals(fd) == 1


def test_tests_of_interrupts_signal_what_they_name():
    rig = IrqRig()
    file, _, _ = rig.bound("many")
    fds = [rig.eventfd() for _ in range(3)]
    assert rig.set(file, TRIGGER | NONE, PciIrq.MSIX, count=1) == EINVAL
    rig.set(file, TRIGGER | EVENTFD, PciIrq.MSIX, values=[number for _, number in fds])
    assert rig.set(file, TRIGGER | NONE, PciIrq.MSIX, count=2) == 0
    assert rig.set(file, TRIGGER | BOOL, PciIrq.MSIX, values=[0, 1, 1]) == 0
    assert [signals(fd) for fd, _ in fds] == [1, 2, 1]
    for kind in (PciIrq.ERR, PciIrq.REQ):
        fd, number = fds[0]
        assert rig.set(file, TRIGGER | NONE, kind, count=1) == EINVAL
        assert rig.set(file, TRIGGER | EVENTFD, kind, values=[number]) == 0
        assert rig.set(file, TRIGGER | NONE, kind, count=1) == 0
        assert rig.set(file, TRIGGER | BOOL, kind, values=[1]) == 0
        assert signals(fd) == 2
        assert rig.set(file, TRIGGER | EVENTFD, kind, values=[-1]) == 0
        assert rig.set(file, TRIGGER | BOOL, kind, values=[1]) == 0
        assert signals(fd) == 0
        assert rig.set(file, MASK | NONE, kind, count=1) == ENOTTY


def test_the_host_can_ask_for_the_device_back():
    rig = IrqRig()
    file, _, _ = rig.bound()
    fd, number = rig.eventfd()
    rig.devices["alone"].pci.interrupts.request()
    rig.set(file, TRIGGER | EVENTFD, PciIrq.REQ, values=[number])
    rig.devices["alone"].pci.interrupts.request()
    assert signals(fd) == 1


def test_an_eventfd_that_is_full_stays_full_and_nobody_waits():
    rig = IrqRig()
    file, _, _ = rig.bound("many")
    fd, number = rig.eventfd()
    rig.set(file, TRIGGER | EVENTFD, PciIrq.MSIX, values=[number])
    os.eventfd_write(fd, 2**64 - 2)
    assert rig.set(file, TRIGGER | NONE, PciIrq.MSIX, count=1) == 0
    assert signals(fd) == 2**64 - 2


def test_what_cannot_be_is_refused():
    rig = IrqRig()
    file, _, _ = rig.bound("many")
    fd, number = rig.eventfd()
    msix = PciIrq.MSIX
    assert rig.errno(file, vfio.DEVICE_SET_IRQS, 8) == EFAULT
    assert rig.errno(file, vfio.DEVICE_SET_IRQS, vfio.IrqSet(19)) == EINVAL
    assert rig.set(file, TRIGGER | NONE, 5, count=1) == EINVAL
    assert rig.set(file, TRIGGER | NONE, msix, start=6) == EINVAL
    assert rig.set(file, TRIGGER | NONE, msix, start=1, count=6) == EINVAL
    assert rig.set(file, TRIGGER | NONE, msix, start=2, count=2**32 - 2) == EINVAL
    assert rig.set(file, TRIGGER | NONE | 0x40, msix) == EINVAL
    assert rig.set(file, TRIGGER, msix, count=1) == EINVAL
    assert rig.set(file, TRIGGER | NONE | BOOL, msix, count=1) == EINVAL
    assert rig.set(file, TRIGGER | EVENTFD, msix, values=[number], count=2) == EINVAL
    assert rig.set(file, TRIGGER | EVENTFD, msix) == ERANGE
    assert rig.set(file, TRIGGER | EVENTFD, msix, values=[number, 99]) == EBADF
    assert rig.set(file, TRIGGER | EVENTFD, msix, values=[rig.iommufd()[1]]) == EINVAL
    assert rig.set(file, TRIGGER | NONE, msix, count=1) == EINVAL, "a failure leaves the kind off"
    assert rig.set(file, MASK | NONE, msix, count=1) == ENOTTY
    assert rig.set(file, TRIGGER | MASK | NONE, msix, count=1) == ENOTTY
    assert rig.set(file, TRIGGER | EVENTFD, PciIrq.INTX, values=[99]) == EBADF
    assert rig.set(file, TRIGGER | NONE, PciIrq.INTX, count=1) == EINVAL
    assert signals(fd) == 0
