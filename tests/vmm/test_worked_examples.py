"""BTM and HTTU of an SMMUv3: an old VMM masks them, a new one negotiates them, and one that guesses breaks its guest.

Each VM is whole: a machine, a VMM of one of three kinds, a guest's driver that does what its ID registers say, and a
device whose DMA shows what came of it.
"""

import pytest
from hypothesis import settings

from drivers.smmuv3_guest import atc_inv, tlbi_va
from drivers.smmuv3_machines import arm
from softiommu.abi import iommufd as abi
from softiommu.abi.iommufd import HwptAllocFlags, ViommuType
from softiommu.abi.smmuv3_extension import ViommuBtm
from softiommu.api import HwInfo
from softiommu.hardware.smmuv3.broadcast import Broadcast, Tlbi
from softiommu.hardware.smmuv3.events import Event, Event0
from softiommu.hardware.smmuv3.presets import FULL
from softiommu.hardware.smmuv3.registers import CommandError, Idr0, Registers
from softiommu.hardware.smmuv3.tables import Cd0, Eats
from softiommu.pagetable.formats import arm64
from softiommu.vmm.capabilities import Capability, Request, Verdict, lint, negotiate, probe
from softiommu.vmm.offers import smmuv3_offer
from softiommu.vmm.smmuv3 import VirtualSmmu
from softiommu.vmm.smmuv3_viommu import OnViommu
from vmm import smmuv3_vm
from vmm.smmuv3_vm import BLANK, IOVA, RESULT, RW, TEST, forget_streams
from vmm.test_any_guest import SmmuGuest

#: KVM has VMIDs of its own.
KVMS = 3
ASID = 7
#: What the uAPI had before it knew of either.
OLD = ~(Capability.BTM | Capability.HTTU)
BLOCKED, READ_ONLY_CLEAN = bytes(8), arm64.DBM | arm64.AP_READ_ONLY

HEARS = "idr0 = { BTM = 1 }"
KNOWS_BTM, KNOWS_HTTU = "extensions = { BTM = 1 }", "extensions = { HTTU = 1 }"
#: IDR0 says HTTU, the interconnect has no atomic accesses, and the firmware knows.
BROKEN = ('atomics = "no"', "iort = { HTTU = 0 }", KNOWS_HTTU)


class Vm(smmuv3_vm.Vm):
    """A VMM and its guest. `vmm` is old (it knows neither feature), new, or raw: it copies both from the register."""

    def __init__(self, vmm, *lines):
        self.vmm = vmm
        super().__init__(arm(*lines))
        self.hardware = self.iommufd.backend.machine.hardware
        self.commands = 0

    def make_unit(self):
        self.seen = seen = probe(self.iommufd, self.test_device)
        self.parent = self.test_device.hwpt(self.ioas, HwptAllocFlags.ALLOC_NEST_PARENT)
        known = seen if self.vmm == "new" else seen._replace(kernel=seen.kernel & OLD)
        self.requests = Request.BTM if Capability.BTM in known.kernel else Request(0)
        flags = negotiate(seen.infos[0], known.kernel, self.requests).flags
        data = bytearray(ViommuBtm(KVMS).to_bytes()) if flags else None
        self.viommu = self.test_device.viommu(ViommuType.ARM_SMMUV3, self.parent, data, flags)
        identity = smmuv3_offer(known, self.requests)
        if self.vmm == "raw":
            has = Idr0(abi.HwInfoArmSmmuv3.from_bytes(seen.infos[0].data).idr0)
            identity = identity._replace(idr0=identity.idr0.replace(BTM=has.BTM, HTTU=has.HTTU))
        self.identity = identity
        self.backing = OnViommu(self.viommu, 16, self.notes.append)
        return VirtualSmmu(self.ram, self.backing, identity, self.heard)

    # The guest's driver

    @property
    def shown(self):
        return self.guest.read(Registers.IDR0)

    def boot(self, *, ats=Eats.OFF):
        """A table whose leaves the guest's hardware is to mark, where it can; ASIDs are those of the guest's CPUs."""
        self.pages, self.old = self.table(), self.ram.page(b"old page")
        self.pages.map(IOVA, self.old, 4096, RW)
        self.guest.stream(TEST, EATS=ats)
        flags = {"HA": int(self.shown.HTTU >= 1), "HD": int(self.shown.HTTU >= 2)}
        self.guest.use(TEST, self.pages, ASID, ASET=0, **flags)
        self.guest.boot()

    def move(self):
        """Another page at the address, and what the guest's driver does so that devices see it."""
        self.pages.unmap(IOVA, 4096)
        self.pages.map(IOVA, self.ram.page(b"new page"), 4096, RW)
        if self.shown.BTM:
            # TLBI VAE1IS of one of its CPUs, which has KVM's VMID in VTTBR_EL2.
            self.hardware.broadcast(Broadcast(Tlbi.VAE1, KVMS, ASID, IOVA, IOVA + 4095))
        else:
            self.tell(tlbi_va(IOVA, ASID))

    def tell(self, *commands):
        self.commands += len(commands)
        assert self.guest.submit(*commands) == CommandError.NONE

    def sees_after_move(self):
        assert self.read_by_test(IOVA) == b"old page"
        self.move()
        return self.read_by_test(IOVA)

    def leaf(self):
        (found,) = self.pages.leaves(RESULT, RESULT)
        return found

    def write_where_clean(self):
        """A device writes to a page that nobody used yet: what came of it, and the guest's entry."""
        found = self.leaf()
        # A guest without HTTU marks the page before it gives it to the device.
        if self.shown.HTTU >= 2:
            self.ram.write_u64(found.at, found.pte & ~arm64.AF | READ_ONLY_CLEAN)
        self.ram.write(self.blank, b"a secret")
        self.ram.write(self.result, b"untouchd")
        for at, command in ((BLANK, 3), (RESULT, 1)):
            self.test.run(at, command)
        return self.ram.read(self.result, 8), self.leaf().pte


@pytest.fixture
def make():
    made = []

    def vm(*arguments):
        made.append(Vm(*arguments))
        return made[-1]

    yield vm
    for one in made:
        one.close()


# BTM: TLB maintenance of CPUs is broadcast with the VMID that KVM gave the VM


@pytest.mark.parametrize("lines", [(HEARS,), (HEARS, KNOWS_BTM)], ids=["old kernel", "new kernel"])
def test_an_old_vmm_masks_btm_and_its_guest_sends_commands(make, lines):
    vm = make("old", *lines)
    assert (vm.shown.BTM, vm.requests) == (0, Request(0))
    vm.boot()
    assert vm.sees_after_move() == b"new page"
    assert vm.commands == 1
    assert not lint({"IDR0": vm.identity.idr0}, vm.seen.infos[0], vm.seen.kernel & OLD)


def test_a_new_vmm_on_an_old_kernel_masks_btm_too(make):
    vm = make("new", HEARS)
    assert (vm.shown.BTM, vm.requests) == (0, Request(0))
    vm.boot()
    assert vm.sees_after_move() == b"new page"


def test_a_new_vmm_enables_btm_and_its_guest_sends_no_command(make):
    vm = make("new", HEARS, KNOWS_BTM)
    assert (vm.shown.BTM, vm.requests) == (1, Request.BTM)
    vm.boot()
    assert vm.sees_after_move() == b"new page"
    assert vm.commands == 0
    assert not lint({"IDR0": vm.identity.idr0}, vm.seen.infos[0], vm.seen.kernel, vm.requests)


def test_a_device_tlb_still_needs_commands(make):
    vm = make("new", HEARS, KNOWS_BTM)
    vm.boot(ats=Eats.FULL)
    assert vm.sees_after_move() == b"old page"
    vm.tell(atc_inv(TEST, IOVA))
    assert vm.read_by_test(IOVA) == b"new page"


@pytest.mark.parametrize("lines", [(HEARS,), (HEARS, KNOWS_BTM)], ids=["old kernel", "new kernel"])
def test_a_vmm_that_forwards_btm_lets_devices_reach_what_the_guest_unmapped(make, lines):
    vm = make("raw", *lines)
    assert vm.shown.BTM == 1
    vm.boot()
    assert vm.sees_after_move() == b"old page"
    (finding,) = lint({"IDR0": vm.identity.idr0.replace(HTTU=0)}, vm.seen.infos[0], vm.seen.kernel & OLD)
    assert (finding.register, finding.field, finding.allowed) == ("IDR0", "BTM", 0)
    assert "KVM's VMID in the stage-2 domain" in finding.reason


def test_another_vms_cpus_are_not_heard(make):
    vm = make("new", HEARS, KNOWS_BTM)
    vm.boot()
    assert vm.read_by_test(IOVA) == b"old page"
    vm.pages.unmap(IOVA, 4096)
    vm.hardware.broadcast(Broadcast(Tlbi.VMALLE1, KVMS + 1))
    assert vm.read_by_test(IOVA) == b"old page"
    vm.hardware.broadcast(Broadcast(Tlbi.VMALLE1, KVMS))
    assert vm.read_by_test(IOVA) == BLOCKED


class AnyBtmGuest(SmmuGuest):
    """It changes what it likes, and leaves TLB maintenance to its CPUs; contexts and streams still need commands."""

    def make_vm(self):
        return Vm("new", HEARS, KNOWS_BTM)

    def write_entry(self, pasid, pages):
        self.vm.guest.use(self.sid, pages, self.asid(pasid), pasid or 0, ASET=0)

    def broadcast(self, op, *fields):
        self.vm.hardware.broadcast(Broadcast(op, KVMS, *fields))

    def tell_page(self, pasid, iova):
        self.broadcast(Tlbi.VAE1, self.asid(pasid), iova, iova + 4095)

    def tell_pages(self, pasid):
        self.broadcast(Tlbi.ASIDE1, self.asid(pasid))

    def tell_everything(self):
        self.tell(forget_streams())
        self.broadcast(Tlbi.VMALLE1)


TestAnyBtmGuest = AnyBtmGuest.TestCase
TestAnyBtmGuest.settings = settings(max_examples=8, stateful_step_count=30, deadline=None)


BTM, HAS_BTM = 1 << 62, FULL.idr0.replace(BTM=1)


def info(idr0, capabilities=0):
    data = abi.HwInfoArmSmmuv3(idr0=int(idr0), idr1=int(FULL.idr1), idr3=int(FULL.idr3), idr5=int(FULL.idr5))
    return HwInfo(int(abi.HwInfoType.ARM_SMMUV3), data.to_bytes(), capabilities, 0)


@pytest.mark.parametrize(
    ("capabilities", "request_", "missing"),
    [
        (0, Request(0), ["kernel software", "to be turned on for the VM"]),
        (0, Request.BTM, ["kernel software"]),
        (BTM, Request(0), ["to be turned on for the VM"]),
    ],
)
def test_btm_needs_the_kernel_and_the_request(capabilities, request_, missing):
    answer = negotiate(info(HAS_BTM, capabilities), None, request_).answer("IDR0", "BTM")
    assert (answer.verdict, answer.offered) == (Verdict.NEEDS, 0)
    assert [need.step.value for need in answer.missing] == missing


# HTTU: the register says that hardware sets flags in tables; the firmware may say that it cannot


def test_httu_is_forwarded_where_the_firmware_leaves_it_and_marks_the_guests_tables(make):
    vm = make("new", KNOWS_HTTU)
    assert vm.shown.HTTU == 2
    vm.boot()
    data, pte = vm.write_where_clean()
    assert data == b"a secret"
    assert pte & arm64.AF
    assert not pte & arm64.AP_READ_ONLY


@pytest.mark.parametrize("lines", [(), (KNOWS_HTTU,), BROKEN], ids=["old kernel", "new kernel", "broken"])
def test_an_old_vmm_masks_httu_and_its_guest_marks_pages_itself(make, lines):
    vm = make("old", *lines)
    assert vm.shown.HTTU == 0
    vm.boot()
    assert vm.write_where_clean()[0] == b"a secret"


@pytest.mark.parametrize("lines", [(), BROKEN], ids=["old kernel", "broken"])
def test_a_new_vmm_masks_httu_where_the_kernel_does_not_vouch_for_the_firmware(make, lines):
    vm = make("new", *lines)
    answer = negotiate(vm.seen.infos[0], vm.seen.kernel).answer("IDR0", "HTTU")
    assert (answer.verdict, answer.hardware, answer.offered) == (Verdict.NEEDS, 2, 0)
    assert [need.step.value for need in answer.missing] == ["a firmware table"]
    assert vm.shown.HTTU == 0
    vm.boot()
    assert vm.write_where_clean()[0] == b"a secret"


def test_a_vmm_that_forwards_httu_stops_the_devices_of_its_guest_and_tells_it_nothing(make):
    vm = make("raw", *BROKEN)
    assert vm.shown.HTTU == 2
    vm.boot()
    data, pte = vm.write_where_clean()
    assert data == b"untouchd"
    assert not pte & arm64.AF
    # The hardware's event is none of those that are handed to a guest: only the host's log has it.
    vm.smmu.service()
    assert vm.guest.records() == []
    assert any("f walk eabt" in line for line in vm.iommufd.backend.machine.messages)
    (finding,) = lint({"IDR0": vm.identity.idr0}, vm.seen.infos[0], vm.seen.kernel)
    assert (finding.field, finding.offered, finding.allowed) == ("HTTU", 2, 0)


def test_a_vmm_that_invents_httu_makes_every_context_an_error(make):
    vm = make("old", "idr0 = { HTTU = 0 }")
    vm.boot()
    word = Cd0(vm.ram.read_u64(vm.guest.contexts[TEST])).replace(HA=1, HD=1)
    vm.ram.write_u64(vm.guest.contexts[TEST], int(word))
    assert vm.write_where_clean()[0] == b"untouchd"
    vm.smmu.service()
    assert {Event0(record[0]).TYPE for record in vm.guest.records()} == {Event.C_BAD_CD}
