"""A guest that promises nothing, nested in software: its device waits, and finds what the guest has mapped."""

import mmap

import pytest

import softiommu
from api.test_software_nesting import NEST_PARENT, PAGE, RAM, ROOT, Vm
from nesting.guest import PciTest
from softiommu.abi.software_nesting import BOUND, HwptBound
from softiommu.machine.assemble import Machine
from softiommu.machine.description import parse

TEXT = """
name = "shadows"
[[iommu]]
name = "unit"
{iommu}
nesting = "software"
[[device]]
name = "test0"
address = "0000:00:04.0"
model = "pcitest"
{more}
"""
MACHINES = {
    "vtd": ('model = "vtd"\nunit = "full"', ""),
    "amd": ('model = "amd"', ""),
    "riscv": ('model = "riscv"', ""),
    "smmuv3": ('model = "smmuv3"', ""),
    "smmuv3-stalls": ('model = "smmuv3"', "stalls = true"),
}
HERE, THERE, SOURCE, TARGET = 0x7_0000_0000, 0x7_0000_1000, 0x100000, 0x101000


class Guest(Vm):
    """Its table is bound without caching mode: it flushes nothing that was not present."""

    def __init__(self, iommufd):
        self.iommufd, self.device = iommufd, iommufd.device("test0")
        self.ram = mmap.mmap(-1, RAM)
        self._tables = ROOT + PAGE
        space = iommufd.ioas()
        self.parent = self.device.hwpt(space, NEST_PARENT)
        space.map(self.ram, iova=0)
        self.faults = iommufd.fault_queue()
        self.child = self.device.hwpt(self.parent, 0, (BOUND, HwptBound(0, ROOT, 48)), self.faults)
        self.device.attach(self.child)
        self.test = PciTest(self.device)


@pytest.fixture(params=MACHINES)
def guest(request):
    iommu, more = MACHINES[request.param]
    with softiommu.open(Machine(parse(TEXT.format(iommu=iommu, more=more), "test.toml"))) as iommufd:
        made = Guest(iommufd)
        yield made
        made.device.close()


def test_what_the_guest_has_mapped_is_there_without_an_invalidation(guest):
    guest.ram[SOURCE : SOURCE + 5] = b"guest"
    guest.map(HERE, SOURCE)
    assert not guest.test.load(HERE)
    guest.map(THERE, TARGET)
    assert not guest.test.store(THERE)
    assert guest.ram[TARGET : TARGET + 5] == b"guest"
    assert not guest.faults.ready


def test_what_it_has_not_mapped_is_a_fault_of_the_guests(guest):
    guest.ram[SOURCE : SOURCE + 5] = b"later"
    assert guest.test.load(HERE)
    (fault,) = guest.faults.read()
    assert fault.addr == HERE
    guest.map(HERE, SOURCE)
    guest.faults.respond(fault.cookie)  # nobody tells the shadow: the device asks again, and is answered
    assert not guest.test.busy
    guest.map(THERE, TARGET)
    assert not guest.test.store(THERE)
    assert guest.ram[TARGET : TARGET + 5] == b"later"
    assert guest.test.load(THERE + PAGE)
    (fault,) = guest.faults.read()
    guest.faults.respond(fault.cookie, success=False)
    assert not guest.test.busy
    assert not guest.faults.ready
