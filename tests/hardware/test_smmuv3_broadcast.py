"""TLB maintenance that CPUs broadcast reaches an SMMUv3 that takes part in it, and what it does not name stays."""

import pytest
from smmuv3_rig import ASID, RW, VMID, Device, Rig, leaf, mapped, nest, reach

from softiommu.hardware.cache import Entry
from softiommu.hardware.smmuv3.broadcast import Broadcast, Tlbi
from softiommu.hardware.smmuv3.commands import Op
from softiommu.hardware.smmuv3.events import Event
from softiommu.hardware.smmuv3.presets import FULL
from softiommu.hardware.smmuv3.registers import Cr2
from softiommu.hardware.smmuv3.streams import EVERY_ASID, EVERY_PRIVATE_ASID, STAGE2_ONLY
from softiommu.hardware.smmuv3.tables import Eats, Ste1, Strw
from softiommu.pagetable.formats import arm64

BTM = FULL._replace(idr0=FULL.idr0.replace(BTM=1, HYP=1))
IOVA, PAGE = 0x5000, (1 << 30) + 0x3000
HOST = (32 << 20) + 0x3000
OTHER = 10

#: What is cached: StreamWorld, VMID, ASID (or what stands for one), page, and whether the context's ASET is 1.
CACHED = {
    "page": (Strw.NS_EL1, VMID, ASID, 5, False),
    "neighbour": (Strw.NS_EL1, VMID, ASID, 6, False),
    "private": (Strw.NS_EL1, VMID, ASID, 7, True),
    "other asid": (Strw.NS_EL1, VMID, 6, 5, False),
    "other asid, private": (Strw.NS_EL1, VMID, 7, 5, True),
    "other vm": (Strw.NS_EL1, OTHER, ASID, 5, False),
    "global": (Strw.NS_EL1, VMID, EVERY_ASID, 5, False),
    "private global": (Strw.NS_EL1, VMID, EVERY_PRIVATE_ASID, 5, True),
    "stage 2": (Strw.NS_EL1, VMID, STAGE2_ONLY, 5, False),
    "other vm's stage 2": (Strw.NS_EL1, OTHER, STAGE2_ONLY, 5, False),
    "el2": (Strw.EL2, 0, ASID, 5, False),
    "el2, private": (Strw.EL2, 0, ASID, 7, True),
    "el2, other asid": (Strw.EL2, 0, 6, 5, False),
}
OF_VM = {name for name, (world, vmid, *_) in CACHED.items() if world == Strw.NS_EL1 and vmid == VMID}
OF_EL1 = OF_VM | {"other vm", "other vm's stage 2"}
OF_EL2 = {name for name in CACHED if name.startswith("el2")}
AT_5 = {"page", "other asid", "other asid, private", "global", "private global"}

#: 3.17: what each must forget, and what it may keep (ASET = 1, with operations that match an ASID) and here keeps.
FORGOTTEN = [
    (Broadcast(Tlbi.VMALLE1, VMID), OF_VM - {"stage 2"}),
    (Broadcast(Tlbi.VMALLS12E1, VMID), OF_VM),
    (Broadcast(Tlbi.ALLE1), OF_EL1),
    (Broadcast(Tlbi.ASIDE1, VMID, ASID), {"page", "neighbour"}),
    (Broadcast(Tlbi.ASIDE1, VMID, 7), set()),
    (Broadcast(Tlbi.VAE1, VMID, ASID, 0x5000, 0x5FFF), {"page", "global"}),
    (Broadcast(Tlbi.VAE1, VMID, ASID, 0x5000, 0x7FFF), {"page", "neighbour", "global"}),
    (Broadcast(Tlbi.VAE1, VMID, 7, 0x5000, 0x5FFF), {"global"}),
    (Broadcast(Tlbi.VAAE1, VMID, 0, 0x5000, 0x5FFF), AT_5),
    (Broadcast(Tlbi.VAAE1, OTHER, 0, 0x5000, 0x5FFF), {"other vm"}),
    (Broadcast(Tlbi.IPAS2E1, VMID, 0, 0x5000, 0x5FFF), {"stage 2"}),
    (Broadcast(Tlbi.IPAS2E1, VMID, 0, 0x6000, 0x6FFF), set()),
    (Broadcast(Tlbi.ALLE2, e2h=True), OF_EL2),
    (Broadcast(Tlbi.ASIDE2, asid=ASID, e2h=True), {"el2"}),
    (Broadcast(Tlbi.VAE2, 0, ASID, 0x5000, 0x7FFF, True), {"el2"}),
    (Broadcast(Tlbi.VAAE2, 0, 0, 0x5000, 0x7FFF, True), OF_EL2),
    (Broadcast(Tlbi.ALLE2), set()),
    # Nothing here has such ids: what is too wide matches nothing (3.17.4).
    (Broadcast(Tlbi.VMALLS12E1, VMID | 0x100), set()),
    (Broadcast(Tlbi.ASIDE1, VMID, ASID | 0x100), set()),
]


def filled(identity, **cr2):
    rig = Rig(identity, on=False)
    rig.set("CR2", Cr2.of(**cr2))
    for world, vmid, asid, page, private in CACHED.values():
        rig.smmu.tlb.iotlb.fill((world, vmid, asid, 0), page << 12, 12, Entry(0, 7, private=private))
    return rig


def left(rig):
    tags = {(*page.tags[:3], page.number) for page, _ in rig.smmu.tlb.iotlb.cache.items()}
    return {name for name, fields in CACHED.items() if fields[:4] in tags}


@pytest.mark.parametrize(("message", "forgotten"), FORGOTTEN, ids=lambda value: str(getattr(value, "op", "")))
def test_a_broadcast_forgets_what_it_names_and_nothing_else(message, forgotten):
    rig = filled(BTM, E2H=1)
    rig.smmu.hear(message)
    assert left(rig) == set(CACHED) - forgotten


def test_an_el2_without_hosts_has_no_asids_and_hears_no_host():
    rig = filled(BTM)
    for message in (Broadcast(Tlbi.ASIDE2, 0, ASID), Broadcast(Tlbi.VAAE2), Broadcast(Tlbi.ALLE2, e2h=True)):
        rig.smmu.hear(message)
        assert left(rig) == set(CACHED)
    rig.smmu.hear(Broadcast(Tlbi.VAE2, 0, ASID, 0x5000, 0x7FFF))
    assert left(rig) == set(CACHED) - {"el2", "el2, other asid"}
    rig.smmu.hear(Broadcast(Tlbi.ALLE2))
    assert left(rig) == set(CACHED) - OF_EL2


@pytest.mark.parametrize(
    ("identity", "ptm"), [(BTM, 1), (FULL._replace(idr0=FULL.idr0.replace(HYP=1)), 0)], ids=["PTM", "no BTM"]
)
def test_an_smmu_that_takes_no_part_hears_nothing(identity, ptm):
    rig = filled(identity, PTM=ptm)
    rig.smmu.hear(Broadcast(Tlbi.ALLE1))
    assert left(rig) == set(CACHED)


def test_commands_know_nothing_of_private_asids():
    rig = filled(BTM)
    rig.on(SMMUEN=0)
    rig.op(Op.TLBI_NH_ASID, VMID=VMID, ASID=7)
    rig.op(Op.TLBI_NH_VA, VMID=VMID, ASID=1, ADDR=5)
    assert left(rig) == set(CACHED) - {"other asid, private", "global", "private global"}


def moved(rig, pages):
    pages.unmap(IOVA, 0x1000)
    rig.smmu.hear(Broadcast(Tlbi.VAE1, VMID, ASID, IOVA, IOVA + 0xFFF))
    return reach(rig.smmu, IOVA)


@pytest.mark.parametrize(("aset", "seen"), [(0, Event.F_TRANSLATION), (1, HOST)])
def test_the_context_says_whether_its_asid_is_the_cpus(aset, seen):
    rig = Rig(BTM)
    pages, _ = nest(rig, cd={"ASET": aset})
    mapped(pages, IOVA, PAGE)
    assert reach(rig.smmu, IOVA) == HOST
    assert moved(rig, pages) == seen


def test_a_global_entry_is_of_one_set_of_asids():
    rig = Rig(BTM)
    table = rig.pages("arm64-4k-48-s1")
    mapped(table, IOVA, 0x8000)
    found = leaf(table, IOVA)
    rig.memory.write_u64(found.at, found.pte & ~arm64.NG)
    rig.stage1(table, cdmax=2, s1dss=2, ASET=0)
    assert reach(rig.smmu, IOVA) == 0x8000
    table.unmap(IOVA, 0x1000)
    for ssid, aset in ((1, 0), (2, 1)):
        rig.stage1(table, cdmax=2, s1dss=2, ssid=ssid, ASET=aset, ASID=20 + ssid)
    assert reach(rig.smmu, IOVA, pasid=1) == 0x8000
    assert reach(rig.smmu, IOVA, pasid=2) is Event.F_TRANSLATION


def test_a_device_tlb_hears_of_commands_only():
    rig, device = Rig(BTM), Device()
    pages, _ = nest(rig, ste1=Ste1.of(EATS=Eats.FULL))
    mapped(pages, IOVA, PAGE)
    rig.smmu.connect(0x23, device)
    assert rig.smmu.ats_translate(0x23, IOVA, RW).pa == HOST
    moved(rig, pages)
    assert device.invalidated == []
    rig.op(Op.ATC_INV, SID=0x23, ADDR=IOVA >> 12)
    assert device.invalidated == [(None, IOVA, IOVA + 0xFFF)]
