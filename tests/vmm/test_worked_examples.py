"""BTM and HTTU of an SMMUv3: an old VMM masks them, a new one negotiates them, and one that guesses breaks its guest.

The guest's tables, and what devices do with them, are those of the SMMUv3 model. What the VMM shows of the ID registers
decides how the guest's driver behaves.
"""

from errno import EOPNOTSUPP

import pytest

import softiommu
from hardware.smmuv3_rig import ASID, VMID, Rig, context, leaf, mapped, nest, reach
from softiommu.abi import iommufd as abi
from softiommu.api import HwInfo
from softiommu.hardware.smmuv3.commands import Op
from softiommu.hardware.smmuv3.events import Event
from softiommu.hardware.smmuv3.presets import FULL
from softiommu.hardware.smmuv3.registers import Idr0
from softiommu.pagetable.formats import arm64
from softiommu.pagetable.kinds import WRITE
from softiommu.vmm.capabilities import Capability, Request, Verdict, lint, negotiate, told

IOVA = 0x5000
PAGE = (1 << 30) + 0x3000
#: The host shows the guest's memory from 1 GiB 32 MiB upwards.
HOST = (32 << 20) + 0x3000
#: KVM has VMIDs of its own; the vIOMMU takes it for the stage-2 domain if it is asked to.
KVMS = 3
#: What the uAPI had before it knew of either.
OLD = ~(Capability.BTM | Capability.HTTU)
BTM, HTTU = 1 << 62, 1 << 63


def info(idr0, capabilities=0):
    data = abi.HwInfoArmSmmuv3(idr0=int(idr0), idr1=int(FULL.idr1), idr3=int(FULL.idr3), idr5=int(FULL.idr5))
    return HwInfo(int(abi.HwInfoType.ARM_SMMUV3), data.to_bytes(), capabilities, 0)


# BTM: TLB maintenance of CPUs is broadcast with the VMID that KVM gave the VM


class Guest:
    """Its driver leaves TLB maintenance to the CPUs where the SMMU says that it listens to them."""

    def __init__(self, idr0: Idr0, stage2_vmid: int):
        self.idr0, self.vmid = idr0, stage2_vmid
        self.rig = Rig()
        self.pages, _ = nest(self.rig, cd={}, S2VMID=stage2_vmid)
        mapped(self.pages, IOVA, PAGE)

    def unmap(self):
        self.pages.unmap(IOVA, IOVA + 0xFFF)
        if self.idr0.BTM:
            self._invalidate(KVMS)  # TLBI VAE1IS: as the interconnect brings it
        else:
            self._invalidate(self.vmid)  # CMD_TLBI_NH_VA, whose VMID the kernel overwrites

    def _invalidate(self, vmid):
        self.rig.op(Op.TLBI_NH_VA, VMID=vmid, ASID=ASID, ADDR=IOVA >> 12, LEAF=1)

    def dma(self):
        return reach(self.rig.smmu, IOVA)


HAS_BTM = FULL.idr0.replace(BTM=1)


def test_an_old_vmm_masks_btm_whatever_the_kernel_says():
    seen = info(HAS_BTM, BTM)
    offer = negotiate(seen, told(seen) & OLD)
    answer = offer.answer("IDR0", "BTM")
    assert (answer.verdict, answer.offered, offer.flags) == (Verdict.NEEDS, 0, 0)
    guest = Guest(offer.words["IDR0"], VMID)
    assert guest.dma() == HOST
    guest.unmap()
    assert guest.dma() is Event.F_TRANSLATION


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


def test_a_new_vmm_enables_btm_and_the_vmid_is_shared():
    offer = negotiate(info(HAS_BTM, BTM), None, Request.BTM)
    assert offer.answer("IDR0", "BTM").verdict is Verdict.FORWARD
    assert offer.flags == 1 << 31
    guest = Guest(offer.words["IDR0"], KVMS)
    assert guest.dma() == HOST
    guest.unmap()
    assert guest.dma() is Event.F_TRANSLATION


def test_a_vmm_that_forwards_btm_lets_devices_reach_what_the_guest_unmapped():
    seen = info(HAS_BTM)
    shown = negotiate(seen).words["IDR0"].replace(BTM=HAS_BTM.BTM)
    guest = Guest(shown, VMID)
    assert guest.dma() == HOST
    guest.unmap()
    assert guest.dma() == HOST  # no invalidation named the VMID of stage 2
    (finding,) = lint({"IDR0": shown}, seen)
    assert (finding.register, finding.field, finding.allowed) == ("IDR0", "BTM", 0)
    assert "KVM's VMID in the stage-2 domain" in finding.reason


def test_a_kernel_that_does_not_know_the_request_refuses_it():
    flags = negotiate(info(HAS_BTM, BTM), None, Request.BTM).flags
    with softiommu.open("smmuv3") as iommufd, iommufd.ioas() as ioas, iommufd.device("edu0") as device:
        cmd = abi.ViommuAlloc(40, flags, int(abi.ViommuType.ARM_SMMUV3), device.id, ioas.id)
        with pytest.raises(OSError, match="flags") as error:
            iommufd.backend.call("VIOMMU_ALLOC", abi.VIOMMU_ALLOC, cmd)
        assert error.value.errno == EOPNOTSUPP


# HTTU: the register says that hardware sets flags in tables; the IORT may say that it cannot


def write(silicon, shown):
    """What a write reaches of a guest that uses HTTU where it is shown, and the entry afterwards."""
    rig = Rig(silicon)
    pages, _ = nest(rig)
    flags = {"HA": int(shown.HTTU >= 1), "HD": int(shown.HTTU >= 2)}
    rig.cd(*context(pages, **flags))
    mapped(pages, IOVA, PAGE)
    found = leaf(pages, IOVA)
    if flags["HD"]:  # clean: the hardware is to make it writable, and so dirty
        rig.memory.write_u64(found.at, found.pte & ~arm64.AF | arm64.DBM | arm64.AP_READ_ONLY)
    return reach(rig.smmu, IOVA, WRITE), leaf(pages, IOVA).pte


BROKEN = FULL._replace(idr0=FULL.idr0.replace(HTTU=0))


def test_httu_is_forwarded_where_the_kernel_says_that_the_firmware_leaves_it():
    shown = negotiate(info(FULL.idr0, HTTU)).words["IDR0"]
    assert shown.HTTU == 2
    pa, pte = write(FULL, shown)
    assert pa == HOST
    assert pte & arm64.AF
    assert not pte & arm64.AP_READ_ONLY


@pytest.mark.parametrize("silicon", [FULL, BROKEN], ids=["works", "broken"])
def test_httu_is_masked_where_the_kernel_does_not_say_so(silicon):
    seen = info(FULL.idr0)
    answer = negotiate(seen).answer("IDR0", "HTTU")
    assert (answer.verdict, answer.hardware, answer.offered) == (Verdict.NEEDS, 2, 0)
    assert [need.step.value for need in answer.missing] == ["a firmware table"]
    assert write(silicon, negotiate(seen).words["IDR0"])[0] == HOST


def test_an_old_vmm_masks_httu_whatever_the_kernel_says():
    seen = info(FULL.idr0, HTTU)
    assert negotiate(seen, told(seen) & OLD).words["IDR0"].HTTU == 0


def test_a_vmm_that_forwards_httu_stops_the_devices_of_its_guest():
    seen = info(FULL.idr0)
    shown = negotiate(seen).words["IDR0"].replace(HTTU=FULL.idr0.HTTU)
    assert write(BROKEN, shown)[0] is Event.C_BAD_CD
    (finding,) = lint({"IDR0": shown}, seen)
    assert (finding.field, finding.offered, finding.allowed) == ("HTTU", 2, 0)
