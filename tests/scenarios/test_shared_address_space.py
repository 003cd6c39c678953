"""A process of a guest and its device share one address space: the process's page table is the stage 1 of a PASID.

What the process stores at an address the device loads from the same address, and the other way, with no mapping call in
between. Where the guest lets the device ask for pages, the device may also touch what the process has not touched yet:
it waits while the guest maps the page.
"""

import os

import pytest

from api.smmuv3_vm import TEST, TEST0, Vm as ArmVm
from drivers.smmuv3_guest import atc_inv, context, tlbi_va
from nesting.guest import PciTest
from nesting.test_amd_guest import AmdVm
from nesting.test_riscv_guest import RiscvVm
from nesting.test_vtd_guest import ALLOC_PASID, NEST_PARENT, TEST as INTEL_TEST, Vm as IntelVm
from softiommu.abi.generic_invalidation import GENERIC, InvalidateV1, Scope, Target
from softiommu.abi.iommufd import HwptAmdGuest, HwptDataType, HwptVtdS1Invalidate
from softiommu.abi.riscv_extension import HWPT_DATA, HwptRiscv
from softiommu.hardware.amd.tables import Dte, Dte0, Dte1, Gcr3Entry
from softiommu.hardware.riscv.tables import FirstMode, Iosatp, PdtMode, Pdtp, ProcessTa, Tc
from softiommu.hardware.smmuv3.tables import Cd0
from softiommu.machine.assemble import Machine
from softiommu.machine.description import parse

PASID, PAGE, RW = 3, 4096, 3
HERE, THERE = 0x7_0000_0000, 0x7_0123_4000
#: What the guests call their devices, and their address spaces.
NAME, SPACE = 0x43, 9


class Process:
    """A process of the guest: it sees memory by its page table."""

    def __init__(self, ram, pages):
        self._ram, self.pages = ram, pages

    def touch(self, va):
        """There is a page from now on; not what was there."""
        self.pages.unmap(va, PAGE)
        self.pages.map(va, self._ram.alloc(PAGE), PAGE, RW)

    def lose(self, va):
        """The page is taken away. The IOMMU must be told."""
        self.pages.unmap(va, PAGE)

    def store(self, va, content):
        """Write to an address."""
        self._ram.write(self.pages.translate(va).oa, content)

    def load(self, va):
        """Read the page at an address."""
        return self._ram.read(self.pages.translate(va).oa, PAGE)


class _Host:
    """A guest with a process, and a device that works for it. `faults`: where the VMM hears what the device misses."""

    def __init__(self, vm, ram, pages):
        self.vm, self.process = vm, Process(ram, pages)
        self.faults = vm.iommufd.fault_queue()

    def share(self, device, nested, pasid=None):
        """The device, or its PASID, is attached, and does DMA."""
        device.attach(nested, pasid)
        self.nested, self.device = nested, PciTest(device)

    def close(self):
        """Let go of everything."""
        self.vm.close()


class Intel(_Host):
    """The VMM attaches each PASID."""

    def __init__(self):
        vm = IntelVm(INTEL_TEST, NEST_PARENT | ALLOC_PASID)
        super().__init__(vm, vm.ram, vm.ram.table("x86-64-4level"))
        nested = vm.nest(self.process.pages, hwpt_flags=ALLOC_PASID, faults=self.faults)
        self.share(vm.device, nested, PASID)

    def forget(self, va):
        """The guest's invalidation of a page."""
        self.nested.invalidate(0, [HwptVtdS1Invalidate(va, 1)])


class Arm(_Host):
    """The guest has context descriptors for its PASIDs."""

    STE, CD = {}, 0

    def __init__(self):
        vm = ArmVm(self.machine()) if self.STE else ArmVm()
        super().__init__(vm, vm.guest.memory, vm.guest.pages())
        word, *rest = context(self.process.pages, SPACE)
        vm.guest.set_context(PASID, (int(word) | self.CD, *rest))
        ste = vm.guest.ste(**self.STE)
        self.share(vm.test, vm.test.hwpt(vm.viommu, 0, (HwptDataType.ARM_SMMUV3, ste), self.faults))

    def forget(self, va):
        """The guest's invalidation of a page."""
        assert self.vm.command(tlbi_va(va, SPACE), atc_inv(TEST, va, PASID)) == (2, 0)


class Stalling(Arm):
    """The same with a device that is held, as the guest's STE and CD allow."""

    STE, CD = {"S1STALLD": 0, "EATS": 0}, Cd0.S.mask

    @staticmethod
    def machine():
        """smmuv3, but for what firmware says of the device."""
        devices = [("edu0", "0000:00:04.0", "edu", ""), ("test0", TEST0, "pcitest", "pasid_bits = 16\nstalls = true")]
        text = 'name = "stalls"\n[[iommu]]\nname = "smmu0"\nmodel = "smmuv3"\n'
        for name, address, model, more in devices:
            text += f'[[device]]\nname = "{name}"\naddress = "{address}"\nmodel = "{model}"\n{more}\n'
        return Machine(parse(text, "stalls.toml"))


class _ByViommu(_Host):
    """The guest has a table of PASIDs, without ATS."""

    VM = None

    def __init__(self):
        vm = self.VM()
        super().__init__(vm, vm.ram, vm.ram.table(vm.TABLE))
        self._test = vm.iommufd.device(TEST0)
        vm.viommu.vdevice(self._test, NAME)
        self.share(self._test, self._test.hwpt(vm.viommu, 0, self.data()))

    def forget(self, va):
        """The guest's invalidation of a page."""
        entry = InvalidateV1(scope=Scope.RANGE, addr=va, count=1, granule_lg2=12, targets=Target.LEAF)
        assert self.vm.viommu.invalidate(GENERIC, [entry]) == 1

    def close(self):
        """The device first."""
        self._test.close()
        super().close()


class Amd(_ByViommu):
    """A GCR3 table."""

    VM = AmdVm

    def data(self):
        """A device table entry."""
        gcr3 = self.vm.page()
        self.vm.ram.write_u64(gcr3 + 8 * PASID, Gcr3Entry.of(V=1, ADDR=self.process.pages.root >> 12))
        entry = Dte(Dte0.of(V=1, TV=1, GV=1), Dte1.of(DomainID=SPACE)).with_gcr3_root(gcr3)
        return HwptDataType.AMD_GUEST, HwptAmdGuest.from_bytes(entry.to_bytes())


class Riscv(_ByViommu):
    """A process directory."""

    VM = RiscvVm

    def data(self):
        """A device context."""
        directory, root = self.vm.page(), self.process.pages.root >> 12
        self.vm.ram.write_u64(directory + 16 * PASID + 8, Iosatp.of(MODE=FirstMode.SV48, PPN=root))
        self.vm.ram.write_u64(directory + 16 * PASID, ProcessTa.of(V=1, PSCID=SPACE))
        return HWPT_DATA, HwptRiscv(Tc.of(V=1, PDTV=1), 0, Pdtp.of(MODE=PdtMode.PD8, PPN=directory >> 12))


@pytest.fixture
def guest(request):
    made = request.param()
    yield made
    made.close()


every_make = pytest.mark.parametrize("guest", [Intel, Arm, Stalling, Amd, Riscv], indirect=True)
#: In a guest of AMD or RISC-V, devices with PASIDs have no ATS, so that they ask for no pages.
those_that_wait = pytest.mark.parametrize("guest", [Intel, Arm, Stalling], indirect=True)


@every_make
def test_a_process_and_its_device_see_the_same_pages(guest):
    content = os.urandom(PAGE)
    process, device = guest.process, guest.device
    process.touch(HERE)
    process.touch(THERE)
    process.store(HERE, content)
    assert not device.load(HERE, PASID)
    assert not device.store(THERE, PASID)
    assert process.load(THERE) == content
    process.store(THERE + 8, b"changed by the process")
    assert not device.load(THERE, PASID)
    assert not device.store(HERE, PASID)
    assert process.load(HERE)[:30] == content[:8] + b"changed by the process"


@every_make
def test_the_process_gets_another_page_and_so_does_the_device(guest):
    process, device = guest.process, guest.device
    process.touch(HERE)
    process.store(HERE, b"the first page.")
    assert not device.load(HERE, PASID)
    process.touch(HERE)
    guest.forget(HERE)
    assert not device.store(HERE, PASID)
    assert process.load(HERE)[:15] == b"the first page."
    process.store(HERE, b"the second page")
    assert not device.load(HERE, PASID)
    process.touch(THERE)
    assert not device.store(THERE, PASID)
    assert process.load(THERE)[:15] == b"the second page"


@every_make
def test_another_pasid_sees_nothing_of_the_process(guest):
    process, device = guest.process, guest.device
    for va in (HERE, THERE):
        process.touch(va)
    process.store(HERE, b"secret")
    assert not device.load(HERE, PASID - 1)
    assert not device.store(THERE, PASID)
    assert process.load(THERE) == bytes(PAGE)


@those_that_wait
def test_a_page_that_the_device_touches_first_is_mapped_on_demand(guest):
    content = os.urandom(PAGE)
    process, device, faults = guest.process, guest.device, guest.faults
    process.touch(HERE)
    process.store(HERE, content)
    assert not device.load(HERE, PASID)
    assert device.store(THERE, PASID)
    (fault,) = faults.read()
    assert (fault.addr, fault.pasid) == (THERE, PASID)
    process.touch(THERE)
    faults.respond(fault.cookie)
    assert not device.busy
    assert process.load(THERE) == content

    process.lose(THERE)
    guest.forget(THERE)
    assert device.load(THERE, PASID)
    (fault,) = faults.read()
    faults.respond(fault.cookie, success=False)  # the guest would kill the process
    assert not device.busy


@those_that_wait
def test_a_device_that_leaves_while_it_waits_is_done(guest):
    assert guest.device.load(HERE, PASID)
    assert guest.faults.ready
    guest.device.device.detach(PASID if isinstance(guest, Intel) else None)
    assert not guest.device.busy
    assert not guest.faults.ready
