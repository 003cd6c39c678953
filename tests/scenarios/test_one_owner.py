"""One entity owns the whole translation path.

An I/O address space is a plain page table; it becomes a route of (RID) or of (RID, PASID) only when a device attaches.
The same address space serves devices with and without PASIDs, before and after a guest turns PASIDs on.
"""

import mmap

import pytest

import softiommu
from softiommu.abi.iommufd import HwptAllocFlags

#: An IOMMU of each make, with a device that has no PASIDs (edu0) and one that has (of the model pcitest).
MACHINES = ("vtd-nested", "smmuv3", "amd", "riscv")
IOVA, PAGE = 0x10000, 4096
BLOCKED = bytes(4)


class Edu:
    """A device without PASIDs: it copies between memory and a buffer of its own."""

    def __init__(self, device):
        self.device = device
        device.enable()

    def _move(self, source, target, command):
        for register, value in ((0x80, source), (0x88, target), (0x90, 4), (0x98, command)):
            self.device.write(0, register, 8, value)

    def read(self, iova):
        """What it reads at an address, shown where the test can see it."""
        self._move(iova, 0x40000, 1)
        self._move(0x40000, IOVA + 2 * PAGE, 3)


class Test:
    """A device with PASIDs: it copies whole pages."""

    __test__ = False

    def __init__(self, device):
        self.device = device
        device.enable()

    def _move(self, iova, command, pasid):
        self.device.write(0, 0x10, 4, 0 if pasid is None else 1 << 31 | pasid)
        self.device.write(0, 0, 8, iova)
        self.device.write(0, 8, 4, command)

    def read(self, iova, pasid=None):
        """What it reads at an address, stored by the same way. A refused read leaves its buffer: zeros come first."""
        self._move(IOVA + 2 * PAGE, 3, pasid)
        self._move(iova, 3, pasid)
        self._move(IOVA + 2 * PAGE, 1, pasid)


def able_name(host):
    """The device with PASIDs."""
    return next(device.name for device in host.backend.machine.description.devices if device.model == "pcitest")


@pytest.fixture(params=MACHINES)
def host(request):
    with softiommu.open(request.param) as iommufd:
        yield iommufd


@pytest.fixture
def memory():
    pages = mmap.mmap(-1, 3 * PAGE)
    pages[:4], pages[PAGE : PAGE + 4] = b"one.", b"two."
    return pages


def seen(pages, read, *arguments):
    """The first bytes that a device read."""
    pages[2 * PAGE :] = bytes(PAGE)
    read(*arguments)
    return pages[2 * PAGE : 2 * PAGE + 4]


def test_an_address_space_is_a_plain_table_until_a_device_attaches(host, memory):
    with host.ioas() as space, host.device("edu0") as device:
        edu = Edu(device)
        with space.map(memory, iova=IOVA):
            assert seen(memory, edu.read, IOVA) == BLOCKED
            device.attach(space)
            assert seen(memory, edu.read, IOVA) == b"one."
            device.detach()
            assert seen(memory, edu.read, IOVA) == BLOCKED


def test_devices_with_and_without_pasids_share_one_address_space(host, memory):
    with host.ioas() as space, host.device("edu0") as plain, host.device(able_name(host)) as able:
        edu, test = Edu(plain), Test(able)
        table = able.hwpt(space, flags=HwptAllocFlags.ALLOC_PASID)
        assert plain.attach(table) == able.attach(table) == able.attach(table, 7) == table.id
        with space.map(memory, iova=IOVA):
            for read, *pasid in ((edu.read,), (test.read,), (test.read, 7)):
                assert seen(memory, read, IOVA, *pasid) == b"one."
                assert seen(memory, read, IOVA + PAGE, *pasid) == b"two."
        for read, *pasid in ((edu.read,), (test.read,), (test.read, 7)):
            assert seen(memory, read, IOVA, *pasid) == BLOCKED
        able.detach(7)
        able.detach()
        plain.detach()
        table.destroy()


def test_the_same_table_serves_before_and_after_pasids_are_turned_on(host, memory):
    with host.ioas() as space, host.ioas() as other, host.device(able_name(host)) as device:
        test = Test(device)
        table, second = (device.hwpt(ioas, flags=HwptAllocFlags.ALLOC_PASID) for ioas in (space, other))
        device.attach(table)
        with space.map(memory, iova=IOVA), other.map(memory, iova=IOVA):
            assert seen(memory, test.read, IOVA) == b"one."
            assert seen(memory, test.read, IOVA, 3) == BLOCKED
            device.attach(table, 3)
            assert seen(memory, test.read, IOVA, 3) == b"one."
            memory[:4] = b"more"
            assert seen(memory, test.read, IOVA) == b"more"
            device.attach(second, 3)
            assert seen(memory, test.read, IOVA, 3) == b"more"
            device.detach(3)
            assert seen(memory, test.read, IOVA, 3) == BLOCKED
            assert seen(memory, test.read, IOVA) == b"more"
        device.detach()
        second.destroy()
        table.destroy()


def test_each_pasid_of_a_device_has_an_address_space_of_its_own(host, memory):
    with host.ioas() as space, host.ioas() as other, host.device(able_name(host)) as device:
        test = Test(device)
        first, second = (device.hwpt(ioas, flags=HwptAllocFlags.ALLOC_PASID) for ioas in (space, other))
        device.attach(first)
        device.attach(first, 1)
        device.attach(second, 2)
        with space.map(memory, iova=IOVA), other.map(memory, iova=IOVA), other.map(memory, iova=0x80000):
            assert seen(memory, test.read, 0x80000, 2) == b"one."
            assert seen(memory, test.read, 0x80000, 1) == BLOCKED
            assert seen(memory, test.read, 0x80000) == BLOCKED
        for pasid in (2, 1, None):
            device.detach(pasid)
        second.destroy()
        first.destroy()
