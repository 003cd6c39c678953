"""What an SMMUv3 finds of a stream: STEs, CDs, substreams, overrides; and what it keeps until a command names it."""

import pytest
from smmuv3_rig import ASID, RW, SID, VMID, Rig, change, context, mapped, nest, reach

from softiommu.hardware.iommu import Translation
from softiommu.hardware.smmuv3.commands import Op
from softiommu.hardware.smmuv3.events import Event
from softiommu.hardware.smmuv3.presets import QEMU
from softiommu.hardware.smmuv3.registers import Gbpa
from softiommu.hardware.smmuv3.tables import Config, L1Cd, L1Std, Ste0, Ste1
from softiommu.pagetable.formats import arm64
from softiommu.pagetable.kinds import PRIVILEGED

# Configuration


def test_what_an_ste_says_happens():
    rig = Rig()
    rig.ste(Ste0.of(V=1, CONFIG=Config.BYPASS))
    assert rig.smmu.translate(SID, 0x5000, RW) == Translation(0x5000, 52, 7)
    assert reach(rig.smmu, 1 << 52) is Event.F_ADDR_SIZE
    assert reach(rig.smmu, 0, pasid=1) is Event.C_BAD_SUBSTREAMID
    rig.take_events()
    rig.ste(Ste0.of(V=1, CONFIG=Config.ABORT))
    assert reach(rig.smmu, 0x5000) == 0x5000  # cached
    rig.op(Op.CFGI_STE, SID=SID, LEAF=1)
    assert reach(rig.smmu, 0x5000) is Event.SILENT
    assert rig.take_events() == []
    assert reach(rig.smmu, 0x5000, sid=64) is Event.C_BAD_STREAMID
    assert rig.event()[0].SID == 64


def test_entries_that_are_wrong_are_kept_like_others():
    rig = Rig()
    pages = rig.pages("arm64-4k-48-s1")
    mapped(pages, 0x1000, 0x100000)
    assert reach(rig.smmu, 0x1000) is Event.C_BAD_STE
    rig.stage1(pages, V=0)
    assert reach(rig.smmu, 0x1000) is Event.C_BAD_STE
    rig.op(Op.CFGI_STE, SID=SID, LEAF=1)
    assert reach(rig.smmu, 0x1000) is Event.C_BAD_CD
    rig.stage1(pages)
    assert reach(rig.smmu, 0x1000) is Event.C_BAD_CD
    rig.op(Op.CFGI_CD, SID=SID, LEAF=1)
    assert reach(rig.smmu, 0x1000) == 0x100000


def test_without_translation_gbpa_decides():
    rig = Rig(on=False)
    assert reach(rig.smmu, 0x1234) == 0x1234
    rig.set("GBPA", Gbpa.of(ABORT=1))
    assert reach(rig.smmu, 0x1234) == 0x1234
    rig.set("GBPA", Gbpa.of(ABORT=1, UPDATE=1))
    assert rig.get("GBPA") == Gbpa.of(ABORT=1)
    assert reach(rig.smmu, 0x1234) is Event.SILENT


@pytest.mark.parametrize("split", [6, 8, 10])
def test_a_two_level_stream_table(split):
    rig = Rig(on=False)
    leaf_table = rig.memory.alloc(64 << 10, 64 << 10)
    rig.set("STRTAB_BASE_CFG", 15 | split << 6 | 1 << 16)
    rig.memory.write_u64(rig.strtab + 8, L1Std.of(SPAN=3, L2PTR=leaf_table >> 6))
    rig.on()
    first = 1 << split
    rig.words(leaf_table + 64 * 3, Ste0.of(V=1, CONFIG=Config.BYPASS))
    assert reach(rig.smmu, 0x77, sid=first + 3) == 0x77
    assert reach(rig.smmu, 0, sid=first + 2) is Event.C_BAD_STE
    assert reach(rig.smmu, 0, sid=first + 4) is Event.C_BAD_STREAMID
    assert reach(rig.smmu, 0, sid=first + 1 << split) is Event.C_BAD_STREAMID
    assert reach(rig.smmu, 0, sid=1 << 15) is Event.C_BAD_STREAMID
    rig.memory.write_u64(rig.strtab, L1Std.of(SPAN=split + 2, L2PTR=leaf_table >> 6))
    assert reach(rig.smmu, 0, sid=0) is Event.C_BAD_STREAMID
    rig.memory.write_u64(rig.strtab, L1Std.of(SPAN=1, L2PTR=(1 << 40) >> 6))
    rig.take_events()
    assert reach(rig.smmu, 0, sid=0) is Event.F_STE_FETCH
    assert rig.event()[3] == 1 << 40
    # A level-1 descriptor stays until a command without LEAF.
    rig.memory.write_u64(rig.strtab + 8, 0)
    rig.op(Op.CFGI_STE, SID=first + 3, LEAF=1)
    assert reach(rig.smmu, 0x77, sid=first + 3) == 0x77
    rig.op(Op.CFGI_STE, SID=first + 3)
    assert reach(rig.smmu, 0x77, sid=first + 3) is Event.C_BAD_STREAMID


@pytest.mark.parametrize(
    ("s1dss", "pasid", "expected"),
    [
        (0, None, Event.F_STREAM_DISABLED),
        (0, 0, 0x100000),
        (1, None, 0x1000),
        (1, 0, 0x100000),
        (2, None, 0x100000),
        (2, 0, Event.F_STREAM_DISABLED),
        (3, None, Event.F_STREAM_DISABLED),
        (0, 3, 0x300000),
        (0, 2, Event.C_BAD_CD),
        (0, 4, Event.C_BAD_SUBSTREAMID),
    ],
)
def test_substreams_and_transactions_without(s1dss, pasid, expected):
    rig = Rig()
    own, other = rig.pages("arm64-4k-48-s1"), rig.pages("arm64-4k-48-s1")
    mapped(own, 0x1000, 0x100000)
    mapped(other, 0x1000, 0x300000)
    rig.stage1(other, cdmax=2, s1dss=s1dss, ssid=3, ASID=6)
    rig.cd(*context(own))
    assert reach(rig.smmu, 0x1000, pasid=pasid) == expected
    if expected is Event.C_BAD_SUBSTREAMID:
        first = rig.event()[0]
        assert (first.SSV, first.SSID) == (0, pasid)


@pytest.mark.parametrize(("fmt", "lg2"), [(1, 6), (2, 10)])
def test_two_levels_of_context_descriptors(fmt, lg2):
    rig = Rig()
    pages = rig.pages("arm64-4k-48-s1")
    mapped(pages, 0x1000, 0x100000)
    leaves = rig.memory.alloc(64 << lg2, 64 << lg2)
    rig.ste(Ste0.of(V=1, CONFIG=Config.S1, S1CONTEXTPTR=rig.cds >> 6, S1CDMAX=12, S1FMT=fmt))
    rig.memory.write_u64(rig.cds + 8, L1Cd.of(V=1, L2PTR=leaves >> 12))
    rig.words(leaves + 64 * 5, *context(pages))
    ssid = (1 << lg2) + 5
    assert reach(rig.smmu, 0x1000, pasid=ssid) == 0x100000
    assert reach(rig.smmu, 0x1000, pasid=5) is Event.C_BAD_SUBSTREAMID
    rig.memory.write_u64(rig.cds + 8, 0)
    rig.op(Op.CFGI_CD, SID=SID, SSID=ssid, LEAF=1)
    assert reach(rig.smmu, 0x1000, pasid=ssid) == 0x100000
    rig.op(Op.CFGI_CD, SID=SID, SSID=ssid)
    assert reach(rig.smmu, 0x1000, pasid=ssid) is Event.C_BAD_SUBSTREAMID


def test_overrides_of_privilege_and_kind():
    rig = Rig()
    pages = rig.pages("arm64-4k-48-s1")
    mapped(pages, 0x1000, 0x100000, prot=RW | PRIVILEGED)
    rig.stage1(pages)
    assert reach(rig.smmu, 0x1000) is Event.F_PERMISSION
    rig.stage1(pages, ste1=Ste1.of(PRIVCFG=3))
    rig.forget()
    assert reach(rig.smmu, 0x1000) == 0x100000
    change(rig, pages, 0x1000, add=arm64.PXN)
    rig.stage1(pages, ste1=Ste1.of(PRIVCFG=3, INSTCFG=3))
    rig.forget()
    rig.take_events()
    assert reach(rig.smmu, 0x1000) is Event.F_PERMISSION
    how = rig.event()[1]
    assert (how.PNU, how.IND, how.RNW) == (1, 1, 1)


def test_qemus_smmu_has_no_substreams():
    rig = Rig(QEMU)
    pages = rig.pages("arm64-4k-48-s1")
    mapped(pages, 0x1000, 0x100000)
    rig.stage1(pages)
    assert reach(rig.smmu, 0x1000) == 0x100000
    assert reach(rig.smmu, 0x1000, pasid=0) is Event.C_BAD_SUBSTREAMID
    assert rig.smmu.read(0, 4) == 0x0D44101B


# What is cached


@pytest.mark.parametrize(
    ("op", "fields", "dropped"),
    [
        (Op.TLBI_NH_VA, {"VMID": VMID, "ASID": ASID, "ADDR": 1}, True),
        (Op.TLBI_NH_VA, {"VMID": VMID, "ASID": ASID, "ADDR": 2}, False),
        (Op.TLBI_NH_VA, {"VMID": VMID, "ASID": ASID + 1, "ADDR": 1}, False),
        (Op.TLBI_NH_VA, {"VMID": VMID + 1, "ASID": ASID, "ADDR": 1}, False),
        (Op.TLBI_NH_VAA, {"VMID": VMID, "ADDR": 1}, True),
        (Op.TLBI_NH_ASID, {"VMID": VMID, "ASID": ASID}, True),
        (Op.TLBI_NH_ASID, {"VMID": VMID, "ASID": ASID + 1}, False),
        (Op.TLBI_NH_ALL, {"VMID": VMID}, True),
        (Op.TLBI_NH_ALL, {"VMID": VMID + 1}, False),
        (Op.TLBI_S12_VMALL, {"VMID": VMID}, True),
        (Op.TLBI_S2_IPA, {"VMID": VMID, "ADDR": 1}, False),
        (Op.TLBI_NSNH_ALL, {}, True),
        (Op.CFGI_STE_RANGE, {"RANGE": 31}, False),
        (Op.TLBI_NH_VA, {"VMID": VMID, "ASID": ASID, "ADDR": 0, "TG": 1, "NUM": 1}, True),
        (Op.TLBI_NH_VA, {"VMID": VMID, "ASID": ASID, "ADDR": 0, "TG": 1, "TTL": 3}, False),
        (Op.TLBI_NH_VA, {"VMID": VMID, "ASID": ASID, "ADDR": 0, "TG": 3, "TTL": 3}, True),
        (Op.TLBI_NH_VA, {"VMID": VMID, "ASID": ASID, "ADDR": 2, "TG": 1, "NUM": 31, "SCALE": 31}, False),
    ],
)
def test_a_stage_1_leaf_stays_until_a_command_names_it(op, fields, dropped):
    rig = Rig()
    pages = rig.pages("arm64-4k-48-s1")
    mapped(pages, 0x1000, 0x100000)
    rig.stage1(pages)
    assert reach(rig.smmu, 0x1000) == 0x100000
    pages.unmap(0x1000, 0x1000)
    rig.op(op, **fields)
    assert reach(rig.smmu, 0x1000) == (Event.F_TRANSLATION if dropped else 0x100000)


@pytest.mark.parametrize(
    ("op", "fields", "dropped"),
    [
        (Op.TLBI_S2_IPA, {"VMID": VMID, "ADDR": 1}, True),
        (Op.TLBI_S2_IPA, {"VMID": VMID + 1, "ADDR": 1}, False),
        (Op.TLBI_S2_IPA, {"VMID": VMID, "ADDR": 2}, False),
        (Op.TLBI_S12_VMALL, {"VMID": VMID}, True),
        (Op.TLBI_NH_ALL, {"VMID": VMID}, False),
        (Op.TLBI_NSNH_ALL, {}, True),
    ],
)
def test_a_stage_2_leaf_stays_until_a_command_names_it(op, fields, dropped):
    rig = Rig()
    pages = rig.pages("arm64-4k-40-s2")
    mapped(pages, 0x1000, 0x100000)
    rig.stage2(pages)
    assert reach(rig.smmu, 0x1000) == 0x100000
    pages.unmap(0x1000, 0x1000)
    rig.op(op, **fields)
    assert reach(rig.smmu, 0x1000) == (Event.F_TRANSLATION if dropped else 0x100000)


def test_a_global_leaf_serves_every_address_space_of_its_vmid():
    rig = Rig()
    pages = rig.pages("arm64-4k-48-s1")
    mapped(pages, 0x1000, 0x100000)
    change(rig, pages, 0x1000, arm64.NG)
    rig.stage1(pages)
    assert reach(rig.smmu, 0x1000) == 0x100000
    pages.unmap(0x1000, 0x1000)
    rig.op(Op.TLBI_NH_ASID, VMID=VMID, ASID=ASID)
    rig.cd(*context(pages, ASID=ASID + 1))
    rig.op(Op.CFGI_CD, SID=SID)
    assert reach(rig.smmu, 0x1000) == 0x100000
    rig.op(Op.TLBI_NH_VA, VMID=VMID, ASID=77, ADDR=1)
    assert reach(rig.smmu, 0x1000) is Event.F_TRANSLATION


def test_combined_leaves_need_the_stage_1_command_too():
    rig = Rig()
    pages1, pages2 = nest(rig)
    mapped(pages1, 0x1000, 1 << 30)
    assert reach(rig.smmu, 0x1000) == 32 << 20
    pages2.unmap(1 << 30, 16 << 20)
    rig.op(Op.TLBI_S2_IPA, VMID=VMID, ADDR=(1 << 30) >> 12)
    assert reach(rig.smmu, 0x1000) == 32 << 20
    rig.op(Op.TLBI_NH_ALL, VMID=VMID)
    assert reach(rig.smmu, 0x1000) is Event.F_TRANSLATION


def test_counters_tell_what_was_cached():
    rig = Rig()
    pages = rig.pages("arm64-4k-48-s1")
    mapped(pages, 0x1000, 0x100000)
    rig.stage1(pages)
    for _ in range(3):
        assert reach(rig.smmu, 0x1000) == 0x100000
    assert rig.smmu.tlb.iotlb.cache.counters.hits == 2
    assert rig.smmu.configuration.streams.counters.misses == 1
    assert rig.smmu.configuration.contexts.counters.hits == 2
