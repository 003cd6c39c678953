"""A process's page table is a PASID's first stage.

Shared virtual addressing, where the VMM attaches: the guest has processes with page tables in its own memory, a device
works for several of them at once, each by its PASID, and finds what the process has mapped at the same addresses. The
host's own table is below each of them. On SMMUv3 this is the guest's alone: its stream table entry leads to a table of
contexts, so that the interface attaches no PASID beside it (docs/smmuv3.md).
"""

import pytest

import softiommu
from nesting.guest import GuestRam, PciTest
from softiommu.abi.amd_extension import PROCESS, HwptAmdProcess, ProcessFlags
from softiommu.abi.generic_invalidation import GENERIC, InvalidateV1, Scope, Target
from softiommu.abi.iommufd import HwptAllocFlags, HwptDataType, HwptVtdS1
from softiommu.abi.riscv_extension import HWPT_DATA, VIOMMU, HwptRiscv
from softiommu.drivers.riscv.nested import GuestTa, GuestTc
from softiommu.hardware.riscv.tables import FirstMode, Iosatp

RAM, PAGE = 8 << 20, 4096
RW = 3
#: Where every process has its buffer, and where it wants the device's answer.
BUFFER, ANSWER = 0x7F00_0000, 0x7F00_1000
PARENT = HwptAllocFlags.ALLOC_NEST_PARENT | HwptAllocFlags.ALLOC_PASID


class Vm:
    """A guest, the device that it was given, and a table of the host's that shows its RAM."""

    MACHINE, TABLE = "vtd-nested", "x86-64-4level"

    def __init__(self):
        self.ram, self.iommufd = GuestRam(RAM), softiommu.open(self.MACHINE)
        devices = self.iommufd.backend.machine.description.devices
        self.device = self.iommufd.device(next(device.name for device in devices if device.model == "pcitest"))
        self.test = PciTest(self.device)
        self.ioas, self.faults = self.iommufd.ioas(), self.iommufd.fault_queue()
        self.ioas.map_file(self.ram.fd, 0, RAM, 0)
        self.parent = self.device.hwpt(self.ioas, PARENT)
        self.below = self.parent

    def data(self, table, number):
        """What the interface is told of a process's table."""
        return HwptDataType.VTD_S1, HwptVtdS1(0, table.root, 48)

    def start(self, pasid):
        """A process whose device works by this PASID."""
        return Process(self, pasid)

    def close(self):
        """Let go of everything."""
        self.device.close()
        self.iommufd.close()
        self.ram.close()


class AmdVm(Vm):
    """The driver's GCR3 table leads to the guest's tables."""

    MACHINE = "amd"

    def data(self, table, number):
        return PROCESS, HwptAmdProcess(table.root, 4, ProcessFlags.ATS)


class RiscvVm(Vm):
    """So does its process directory. Each address space has a number of the guest's (PSCID), and all one vIOMMU."""

    MACHINE, TABLE = "riscv", "riscv-sv48"

    def __init__(self):
        super().__init__()
        self.below = self.device.viommu(VIOMMU, self.parent)

    def data(self, table, number):
        root = Iosatp.of(MODE=FirstMode.SV48, PPN=table.root >> 12)
        return HWPT_DATA, HwptRiscv(GuestTc.of(V=1, EN_ATS=1), GuestTa.of(PSCID=number), root)


class Process:
    """A page table, and the HWPT by which a PASID has it."""

    def __init__(self, vm, pasid):
        self.vm, self.pasid, self.table = vm, pasid, vm.ram.table(vm.TABLE)
        self.hwpt = vm.device.hwpt(
            vm.below, HwptAllocFlags.ALLOC_PASID, vm.data(self.table, 1 + pasid), faults=vm.faults
        )
        vm.device.attach(self.hwpt, pasid)
        self.answer = self.map(ANSWER)

    def map(self, iova, content=b""):
        """Give the process a page of the guest's RAM."""
        pa = self.vm.ram.alloc(PAGE)
        self.vm.ram.write(pa, content)
        self.table.map(iova, pa, PAGE, RW)
        return pa

    def unmap(self, iova):
        """Take one, and say so."""
        self.table.unmap(iova, PAGE)
        where = {"pasid": self.pasid, "addr": iova, "count": 1, "granule_lg2": 12}
        entry = InvalidateV1(scope=Scope.RANGE, targets=Target.LEAF | Target.DEVICE_TLB, **where)
        assert self.hwpt.invalidate(GENERIC, [entry]) == 1

    def finds(self):
        """What the device finds in the buffer; None: it waits for the page."""
        if self.vm.test.load(BUFFER, self.pasid):
            return None
        self.vm.test.store(ANSWER, self.pasid)
        return self.vm.ram.read(self.answer, 8)

    def end(self):
        """The device works for it no more."""
        self.vm.device.detach(self.pasid)
        self.hwpt.destroy()


@pytest.fixture(params=[Vm, AmdVm, RiscvVm], ids=lambda vm: vm.MACHINE)
def vm(request):
    made = request.param()
    yield made
    made.close()


def test_each_process_finds_its_own_pages_at_the_same_address(vm):
    one, two = vm.start(3), vm.start(200)
    one.map(BUFFER, b"of one..")
    two.map(BUFFER, b"of two..")
    assert (one.finds(), two.finds(), one.finds()) == (b"of one..", b"of two..", b"of one..")
    one.unmap(BUFFER)
    one.map(BUFFER, b"new one.")
    assert (one.finds(), two.finds()) == (b"new one.", b"of two..")


def test_a_device_waits_for_the_page_that_a_process_has_not_yet(vm):
    one, two = vm.start(3), vm.start(200)
    two.map(BUFFER, b"of two..")
    assert one.finds() is None
    (fault,) = vm.faults.read()
    assert (fault.pasid, fault.addr) == (3, BUFFER)
    one.map(BUFFER, b"in time.")
    vm.faults.respond(fault.cookie)
    assert not vm.test.busy
    assert (one.finds(), two.finds()) == (b"in time.", b"of two..")


def test_a_process_that_ends_takes_its_translations_along(vm):
    one, two = vm.start(3), vm.start(200)
    one.map(BUFFER, b"of one..")
    two.map(BUFFER, b"of two..")
    assert one.finds() == b"of one.."
    one.end()
    vm.test.load(BUFFER, 3)
    assert not vm.test.busy
    assert not vm.faults.ready
    assert two.finds() == b"of two.."
    another = vm.start(3)
    another.map(BUFFER, b"another.")
    assert another.finds() == b"another."


def test_what_the_host_takes_away_is_gone_for_every_process(vm):
    one, two = vm.start(3), vm.start(200)
    pa = one.map(BUFFER, b"shared..")
    two.table.map(BUFFER, pa, PAGE, RW)
    assert (one.finds(), two.finds()) == (b"shared..", b"shared..")
    vm.ioas.unmap(0, RAM)
    for process in (one, two):
        assert process.finds() is None
        (fault,) = vm.faults.read()
        assert fault.pasid == process.pasid
        vm.faults.respond(fault.cookie, success=False)
        assert not vm.test.busy


def test_a_process_that_waits_when_it_ends_waits_no_more(vm):
    one = vm.start(3)
    assert one.finds() is None
    assert vm.faults.ready
    one.end()
    assert not vm.test.busy
    assert not vm.faults.ready
