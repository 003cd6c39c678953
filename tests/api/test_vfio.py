"""A device from Python: bound, attached, and doing DMA; the same on a soft machine and on device nodes."""

import mmap
import os
from errno import EINVAL

import pytest

import softiommu
from softiommu.abi.iommufd import HwInfoType
from softiommu.api.vfio import CONFIG

SOURCE, TARGET, COUNT, COMMAND = 0x80, 0x88, 0x90, 0x98
BUFFER = 0x40000
NODE = os.environ.get("SOFTIOMMU_TEST_NODE")
EDU0, EDU1, NVME0 = "0000:00:04.0", "0000:00:05.0", "0000:00:07.0"


@pytest.fixture
def iommufd():
    with softiommu.open_kernel(NODE) if NODE else softiommu.open("vtd") as opened:
        yield opened


def dma(device, source, target, count, command):
    for register, value in ((SOURCE, source), (TARGET, target), (COUNT, count), (COMMAND, command)):
        device.write(0, register, 8, value)
    assert not device.read(0, COMMAND, 8) & 1


def load(device, iova, count):
    dma(device, iova, BUFFER, count, 1)


def store(device, iova, count):
    dma(device, BUFFER, iova, count, 3)


def test_a_device_copies_between_mapped_pages(iommufd):
    with iommufd.ioas() as ioas, iommufd.device(EDU0) as device:
        device.attach(ioas)
        device.enable()
        pages = mmap.mmap(-1, 3 * 4096)
        pages[4090:4102] = b"across pages"
        with ioas.map(pages, iova=0x10000):
            load(device, 0x10000 + 4090, 12)
            store(device, 0x12000, 12)
            assert pages[0x2000:0x200C] == b"across pages"


def test_nothing_moves_without_a_mapping_nor_after_it(iommufd):
    with iommufd.ioas() as ioas, iommufd.device(EDU0) as device:
        device.attach(ioas)
        device.enable()
        page = mmap.mmap(-1, 4096)
        page[:4] = b"page"
        with ioas.map(page, iova=0x10000):
            load(device, 0x10000, 4)
            store(device, 0x20000, 4)
        store(device, 0x10000, 4)
        load(device, 0x10000, 4)
        with ioas.map(page, iova=0x30000):
            store(device, 0x30000, 2)
        assert page[:4] == b"\0\0ge"


def test_a_read_only_mapping_is_not_written(iommufd):
    with iommufd.ioas() as ioas, iommufd.device(EDU0) as device:
        device.attach(ioas)
        device.enable()
        page = mmap.mmap(-1, 4096)
        page[:4] = b"page"
        with ioas.map(page, iova=0x10000, write=False):
            load(device, 0x10000, 4)
            store(device, 0x10008, 4)
            assert page[:12] == b"page" + bytes(8)


def test_a_device_that_may_not_master_the_bus_moves_nothing(iommufd):
    with iommufd.ioas() as ioas, iommufd.device(EDU0) as device:
        device.attach(ioas)
        device.write(CONFIG, 4, 2, 2)
        page = mmap.mmap(-1, 4096)
        page[:4] = b"page"
        with ioas.map(page, iova=0x10000):
            load(device, 0x10000, 4)
            store(device, 0x10010, 4)
            assert page[0x10:0x14] == bytes(4)


def test_two_devices_share_an_address_space_and_move_apart(iommufd):
    with iommufd.ioas() as one, iommufd.ioas() as two, iommufd.device(EDU0) as left, iommufd.device(EDU1) as right:
        pages = mmap.mmap(-1, 2 * 4096)
        pages[:4] = b"left"
        assert left.attach(one) == right.attach(one)
        left.enable()
        right.enable()
        one.map(pages, iova=0x10000)
        load(right, 0x10000, 4)
        store(right, 0x11000, 4)
        assert pages[4096:4100] == b"left"
        right.attach(two)
        load(right, 0x10000, 4)
        load(left, 0x10000, 4)
        store(left, 0x11010, 4)
        store(right, 0x11020, 4)
        assert pages[4096 + 0x10 : 4096 + 0x24] == b"left" + bytes(16)


def test_a_reset_forgets_what_the_device_held(iommufd):
    queue_sizes = 0x24
    with iommufd.ioas() as ioas, iommufd.device(NVME0) as device:
        device.attach(ioas)
        device.enable()
        device.write(0, queue_sizes, 4, 0x10001)
        assert device.read(0, queue_sizes, 4) == 0x10001
        device.reset()
        device.enable()
        assert device.read(0, queue_sizes, 4) == 0


def test_a_conventional_device_has_no_reset(iommufd):
    with iommufd.device(EDU0) as device, pytest.raises(OSError, match=r"reset|Invalid") as error:
        device.reset()
    assert error.value.errno == EINVAL


def test_the_iommu_tells_of_itself(iommufd):
    with iommufd.device(EDU0) as device:
        info = device.hw_info()
        assert info.type == HwInfoType.INTEL_VTD
        assert len(info.data) == 24


@pytest.mark.skipif(bool(NODE), reason="a kernel's device nodes say nothing of names")
def test_an_unknown_device_is_told_with_those_there_are(iommufd):
    with pytest.raises(softiommu.ConfigError, match=r"VFIO has no device 'edu9': there are edu0, edu1"):
        iommufd.device("edu9")


def test_a_device_is_bound_once(iommufd):
    with iommufd.device(EDU0), pytest.raises(OSError, match=r"refused|bound"):
        iommufd.device(EDU0)
    iommufd.device(EDU0).close()
