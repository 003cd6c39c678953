"""An eventfd of the program stands for a write to a BAR: which can be had, and what each signal writes."""

import os
import struct
import subprocess
import sys
from errno import EBADF, EEXIST, EFAULT, EINVAL, ENODEV, ENOSPC, ENOTTY

import pytest

from consumers.mapped_rig import TABLE, opened, pages
from consumers.rig import Rig
from softiommu.abi import vfio
from softiommu.consumers.vfio.ioeventfd import MOST
from softiommu.consumers.vfio.regions import offset_of

GO, ADDRESS = 0x08, 0x10


class Waits:
    """A front door that can wait for descriptors: what it waits for now."""

    def __init__(self):
        self.calls = {}

    def __call__(self, fd, call):
        self.calls[fd] = call
        return lambda: self.calls.pop(fd)

    def hear(self):
        for call in list(self.calls.values()):
            call()


@pytest.fixture
def device():
    rig, file, model = opened()
    file.watch = Waits()
    return rig, file, model


def request(at, width, data, fd, region=0):
    return vfio.DeviceIoeventfd(32, width, offset_of(region) + at, data, fd)


def errno(device, *args, **region):
    rig, file, _ = device
    return rig.errno(file, vfio.DEVICE_IOEVENTFD, request(*args, **region))


def test_each_signal_writes_the_value(device):
    rig, file, model = device
    fd, number = rig.eventfd()
    assert errno(device, GO, 4, 0x55, number) == 0
    os.eventfd_write(fd, 1)
    file.watch.hear()
    file.watch.hear()
    assert model.seen == [("GO", 0x55, 0)] * 2
    with pytest.raises(BlockingIOError):
        os.eventfd_read(fd)


@pytest.mark.parametrize(("width", "written"), [(1, 0x44), (2, 0x3344), (4, 0x11223344)])
def test_a_value_is_written_in_its_width(device, width, written):
    rig, file, model = device
    _, number = rig.eventfd()
    assert errno(device, ADDRESS, width, 0x11223344, number) == 0
    file.watch.hear()
    assert model.registers.ADDRESS == written


def test_what_it_writes_shows_in_a_mapping(device):
    rig, file, _ = device
    memory = pages(rig, file)
    assert errno(device, ADDRESS, 4, 7, rig.eventfd()[1]) == 0
    file.watch.hear()
    assert memory.word(ADDRESS) == 7


@pytest.mark.parametrize("width", [0, 3, 5, 8, 0xC, 0x10, 0x14, 0x80000004])
def test_a_width_is_one_of_1_2_and_4_bytes(device, width):
    assert errno(device, GO, width, 0, device[0].eventfd()[1]) == EINVAL


@pytest.mark.parametrize(
    ("region", "at"),
    [
        (0, 0x4000),
        (0, 0x3FFE),
        (1, 0),
        (3, 0x10000),
        (6, 0),
        (7, 4),
        (8, 0),
        (0, TABLE),
        (0, TABLE + 63),
        (0, TABLE - 2),
    ],
)
def test_it_writes_inside_of_a_bar_and_outside_of_the_msix_table(device, region, at):
    assert errno(device, at, 4, 0, device[0].eventfd()[1], region=region) == EINVAL


@pytest.mark.parametrize(("region", "at"), [(0, 0x3FFC), (0, TABLE - 4), (0, TABLE + 64), (4, 0xFFC), (5, 0x1C)])
def test_every_bar_has_room_for_some(device, region, at):
    assert errno(device, at, 4, 0, device[0].eventfd()[1], region=region) == 0


def test_a_descriptor_is_an_eventfd_or_minus_one(device):
    assert errno(device, GO, 4, 0, -2) == EINVAL
    assert errno(device, GO, 4, 0, 99) == EBADF
    assert errno(device, GO, 4, 0, device[0].iommufd()[1]) == EINVAL


def test_the_same_write_is_there_once_and_can_be_taken_away(device):
    rig, file, model = device
    _, number = rig.eventfd()
    assert errno(device, GO, 4, 1, -1) == ENODEV
    assert errno(device, GO, 4, 1, number) == 0
    assert errno(device, GO, 4, 1, number) == EEXIST
    assert errno(device, GO, 4, 2, rig.eventfd()[1]) == 0
    assert errno(device, GO, 2, 1, rig.eventfd()[1]) == 0
    assert errno(device, GO, 4, 1, -1) == 0
    assert errno(device, GO, 4, 1, -1) == ENODEV
    assert len(file.watch.calls) == 2
    file.watch.hear()
    assert [value for _, value, _ in model.seen] == [2, 1]


def test_a_device_has_a_thousand_at_most(device):
    _, number = device[0].eventfd()
    for value in range(MOST):
        assert errno(device, GO, 4, value, number) == 0
    assert errno(device, GO, 4, MOST, number) == ENOSPC
    assert errno(device, GO, 4, 0, -1) == 0
    assert errno(device, GO, 4, MOST, number) == 0


def test_memory_that_is_off_is_not_written(device):
    rig, file, model = device
    assert errno(device, GO, 4, 1, rig.eventfd()[1]) == 0
    rig.pwrite(file, offset_of(7) + 4, b"\0")
    file.watch.hear()
    assert model.seen == []


def test_nobody_waits_for_a_device_that_is_closed(device):
    rig, file, _ = device
    assert errno(device, GO, 4, 1, rig.eventfd()[1]) == 0
    file.release()
    assert file.watch.calls == {}


def test_a_front_door_that_cannot_wait_has_none():
    rig, file, _ = made = opened()
    assert errno(made, GO, 4, 1, rig.eventfd()[1]) == ENOTTY
    assert not file.device.pci.mappings


@pytest.mark.parametrize("argsz", [0, 27])
def test_a_structure_that_is_too_short_is_refused(device, argsz):
    rig, file, _ = device
    raw = struct.pack("<IIQQi", argsz, 4, offset_of(0) + GO, 0, -1)
    assert rig.errno(file, vfio.DEVICE_IOEVENTFD, raw) == EINVAL
    assert rig.errno(file, vfio.DEVICE_IOEVENTFD, 1 << 20) == EFAULT


def test_a_device_that_is_not_bound_has_none():
    rig = Rig()
    assert rig.errno(rig.cdev("alone"), vfio.DEVICE_IOEVENTFD, request(4, 4, 1, rig.eventfd()[1])) == EINVAL


CLIENT = """
import fcntl, os, struct, time

iommufd = os.open("/dev/iommu", os.O_RDWR)
device = os.open("/dev/vfio/devices/vfio0", os.O_RDWR)
fcntl.ioctl(device, 0x3B76, bytearray(struct.pack("<IIiI", 16, 0, iommufd, 0)))
info = bytearray(struct.pack("<IIIIQQ", 32, 0, 0, 0, 0, 0))
fcntl.ioctl(device, 0x3B6C, info)
bar = struct.unpack_from("<Q", info, 24)[0]
told = os.eventfd(0)
fcntl.ioctl(device, 0x3B74, struct.pack("<IIQQi", 28, 4, bar + 4, 0x12345678, told))
os.eventfd_write(told, 1)
end = time.monotonic() + 20
while os.pread(device, 4, bar + 4) == bytes(4) and time.monotonic() < end:
    time.sleep(0.001)
print(os.pread(device, 4, bar + 4)[::-1].hex())
"""


def test_a_supervised_program_writes_by_a_signal_alone():
    command = [sys.executable, "-m", "softiommu.cli", "run", "--machine", "vtd", "--", sys.executable, "-c", CLIENT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout, done.stderr) == (0, "edcba987\n", "")
