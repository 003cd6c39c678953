"""An SMMUv3's translations: both stages, rights, flags, contexts, and what is cached under which tag."""

import pytest
from hypothesis import given, settings, strategies as st
from smmuv3_rig import ASID, SID, VMID, Rig, context, mapped, reach

from softiommu.hardware.iommu import Translation
from softiommu.hardware.smmuv3.commands import Op
from softiommu.hardware.smmuv3.events import Class, Event
from softiommu.hardware.smmuv3.presets import FULL, QEMU
from softiommu.hardware.smmuv3.registers import Gbpa
from softiommu.hardware.smmuv3.tables import Cd1, Config, L1Cd, L1Std, Ste0, Ste1, Strw
from softiommu.pagetable import formats
from softiommu.pagetable.formats import arm64
from softiommu.pagetable.kinds import EXECUTE, HW_DIRTY, OK, PRIVILEGED, READ, WRITE
from softiommu.pagetable.walk import walk

RW = READ | WRITE
STAGE1 = [name for name in arm64.VARIANTS if name.endswith("s1")]
STAGE2 = [name for name in arm64.VARIANTS if name.endswith("s2")]
EL2 = FULL._replace(idr0=FULL.idr0.replace(HYP=1))


def leaf(pages, iova):
    (found,) = pages.leaves(iova, iova)
    return found


def change(rig, pages, iova, clear=0, add=0):
    found = leaf(pages, iova)
    rig.memory.write_u64(found.at, found.pte & ~clear | add)


# Single stages


@pytest.mark.parametrize("name", STAGE1)
def test_stage_1_translates_with_every_granule(name):
    rig = Rig()
    pages = rig.pages(name)
    granule = 1 << pages.table.granule_lg2
    top = (1 << pages.table.input_bits) - granule
    mapped(pages, top, granule * 3, granule)
    rig.stage1(pages)
    assert reach(rig.smmu, top + 5, WRITE) == granule * 3 + 5
    assert reach(rig.smmu, 0) is Event.F_TRANSLATION
    assert reach(rig.smmu, 1 << pages.table.input_bits) is Event.F_TRANSLATION


@pytest.mark.parametrize("name", STAGE2)
def test_stage_2_translates_with_every_granule_and_start_level(name):
    rig = Rig()
    pages = rig.pages(name)
    granule = 1 << pages.table.granule_lg2
    top = (1 << pages.table.input_bits) - granule
    mapped(pages, top, granule * 3, granule)
    rig.stage2(pages)
    assert reach(rig.smmu, top + 5, WRITE) == granule * 3 + 5
    assert reach(rig.smmu, 1 << 52) is Event.F_ADDR_SIZE
    if pages.table.input_bits < 52:
        assert reach(rig.smmu, 1 << pages.table.input_bits) is Event.F_TRANSLATION


def test_the_upper_half_has_its_own_table():
    rig = Rig()
    low, high = rig.pages("arm64-4k-48-s1"), rig.pages("arm64-64k-48-s1")
    mapped(low, 0x1000, 0x100000)
    mapped(high, 0x10000, 0x200000, 0x10000)
    words = context(low, EPD1=0, T1SZ=16, TG1=3, TBI1=1)
    rig.stage1(low)
    rig.cd(words[0], words[1], arm64_cd2(high))
    assert reach(rig.smmu, 0x1000) == 0x100000
    assert reach(rig.smmu, 0xFFFF_0000_0001_0008) == 0x200008
    assert reach(rig.smmu, 0x5AFF_0000_0001_0008) == 0x200008  # TBI1
    assert reach(rig.smmu, 0x5A00_0000_0000_1000) is Event.F_TRANSLATION  # no TBI0
    assert reach(rig.smmu, 0xFFFE_0000_0001_0000) is Event.F_TRANSLATION


def arm64_cd2(pages):
    from softiommu.hardware.smmuv3.tables import Cd2

    return Cd2.of(TTB1=pages.root >> 4)


def test_a_disabled_half_and_e0pd_do_not_translate():
    rig = Rig()
    pages = rig.pages("arm64-4k-48-s1")
    mapped(pages, 0x1000, 0x100000)
    rig.stage1(pages, EPD0=1)
    assert reach(rig.smmu, 0x1000) is Event.F_TRANSLATION
    rig.stage1(pages, low=Cd1.of(TTB0=pages.root >> 4, E0PD0=1))
    rig.words(rig.cds, context(pages)[0], Cd1.of(TTB0=pages.root >> 4, E0PD0=1))
    rig.forget()
    assert reach(rig.smmu, 0x1000) is Event.F_TRANSLATION
    assert reach(rig.smmu, 0x1000, privileged=True) == 0x100000


@pytest.mark.parametrize(
    ("clear", "add", "fields", "want", "privileged", "event"),
    [
        (0, arm64.AP_READ_ONLY, {}, WRITE, False, Event.F_PERMISSION),
        (arm64.AP_USER, 0, {}, READ, False, Event.F_PERMISSION),
        (arm64.AP_USER, 0, {}, READ, True, None),
        (0, 0, {"PAN": 1}, READ, True, Event.F_PERMISSION),
        (0, arm64.XN, {}, EXECUTE, False, Event.F_PERMISSION),
        (0, 0, {"WXN": 1}, EXECUTE, False, Event.F_PERMISSION),
        (arm64.AF, 0, {}, READ, False, Event.F_ACCESS),
        (arm64.AF, arm64.AP_READ_ONLY, {}, WRITE, False, Event.F_ACCESS),
        (arm64.AF, 0, {"AFFD": 1}, READ, False, None),
        (arm64.AF, 0, {"HA": 1}, READ, False, None),
        (0, arm64.AP_READ_ONLY | arm64.DBM, {}, WRITE, False, Event.F_PERMISSION),
        (0, arm64.AP_READ_ONLY | arm64.DBM, {"HA": 1, "HD": 1}, WRITE, False, None),
    ],
)
def test_stage_1_rights_and_flags(clear, add, fields, want, privileged, event):
    rig = Rig()
    pages = rig.pages("arm64-4k-48-s1")
    mapped(pages, 0x1000, 0x100000)
    change(rig, pages, 0x1000, clear, add)
    rig.stage1(pages, **fields)
    got = reach(rig.smmu, 0x1000, want, privileged=privileged)
    assert got == (0x100000 if event is None else event)
    if fields.get("HA"):
        assert leaf(pages, 0x1000).pte & arm64.AF
    if fields.get("HD"):
        assert not leaf(pages, 0x1000).pte & arm64.AP_READ_ONLY


def test_a_cached_read_of_a_clean_page_does_not_let_a_write_skip_the_dirty_flag():
    rig = Rig()
    pages = rig.pages("arm64-4k-40-s2")
    mapped(pages, 0x1000, 0x100000)
    change(rig, pages, 0x1000, arm64.S2AP_WRITE, arm64.DBM)
    rig.stage2(pages, S2HA=1, S2HD=1)
    assert rig.smmu.translate(SID, 0x1000, READ).allowed == READ | EXECUTE
    assert not leaf(pages, 0x1000).pte & arm64.S2AP_WRITE
    assert reach(rig.smmu, 0x1000, WRITE) == 0x100000
    assert leaf(pages, 0x1000).pte & arm64.S2AP_WRITE


def test_an_output_past_the_size_and_a_table_outside_memory():
    rig = Rig()
    pages = rig.pages("arm64-4k-48-s1")
    mapped(pages, 0x1000, 1 << 40)
    rig.stage1(pages, IPS=2)
    assert reach(rig.smmu, 0x1000) is Event.F_ADDR_SIZE
    rig.memory.write_u64(pages.root, 1 << 39 | 3)
    rig.take_events()
    assert reach(rig.smmu, 0x1000) is Event.F_WALK_EABT
    _, how, iova, fetch = rig.event()
    assert (how.S2, how.CLASS, iova, fetch) == (0, Class.TT, 0x1000, 1 << 39)


def test_el2_has_one_half_without_asids():
    rig = Rig(EL2)
    pages = rig.pages("arm64-4k-48-s1")
    mapped(pages, 0x1000, 0x100000)
    change(rig, pages, 0x1000, arm64.AP_USER)
    rig.stage1(pages, ste1=Ste1.of(STRW=Strw.EL2))
    assert reach(rig.smmu, 0x1000) == 0x100000
    pages.unmap(0x1000, 0x1000)
    rig.op(Op.TLBI_NSNH_ALL)
    assert reach(rig.smmu, 0x1000) == 0x100000
    rig.op(Op.TLBI_EL2_VA, ASID=77, ADDR=1)
    assert reach(rig.smmu, 0x1000) is Event.F_TRANSLATION


# Two stages


def nest(rig, name1="arm64-4k-48-s1", name2="arm64-4k-40-s2", **fields):
    """A guest whose memory is shown as it is where it is, and moved by 32 MiB at 1 GiB."""
    pages1, pages2 = rig.pages(name1), rig.pages(name2)
    mapped(pages2, 0, 0, 32 << 20)
    mapped(pages2, 1 << 30, 32 << 20, 16 << 20)
    rig.nested(pages1, pages2, **fields)
    return pages1, pages2


@pytest.mark.parametrize("name1", STAGE1)
@pytest.mark.parametrize("name2", ["arm64-4k-40-s2", "arm64-16k-40-s2", "arm64-64k-48-s2"])
def test_nested_translation_is_stage_1_then_stage_2(name1, name2):
    rig = Rig()
    pages1, pages2 = nest(rig, name1, name2)
    granule = 1 << pages1.table.granule_lg2
    mapped(pages1, granule, (1 << 30) + granule, granule)
    ipa = walk(pages1.table, rig.memory, pages1.root, granule, READ).oa
    pa = walk(pages2.table, rig.memory, pages2.root, ipa, READ).oa
    assert reach(rig.smmu, granule) == pa == (32 << 20) + granule
    small = min(pages1.table.granule_lg2, pages2.table.granule_lg2)
    assert rig.smmu.translate(SID, granule, READ).lg2 >= small


def test_faults_of_two_stages_say_which_and_where():
    rig = Rig()
    pages1, pages2 = nest(rig)
    mapped(pages1, 0x1000, 2 << 30)
    assert reach(rig.smmu, 0x1008) is Event.F_TRANSLATION
    first, how, iova, ipa = rig.event()
    assert (first.TYPE, first.SID, first.SSV) == (Event.F_TRANSLATION, SID, 0)
    assert (how.S2, how.CLASS, how.RNW, how.STALL) == (1, Class.IN, 1, 0)
    assert (iova, ipa) == (0x1008, 2 << 30)
    assert reach(rig.smmu, 0x2000, WRITE) is Event.F_TRANSLATION
    _, how, _, ipa = rig.event()
    assert (how.S2, how.CLASS, how.RNW, ipa) == (0, Class.IN, 0, 0)
    pages2.unmap(pages1.root, 0x1000)
    rig.op(Op.TLBI_NSNH_ALL)
    assert reach(rig.smmu, 0x2000) is Event.F_TRANSLATION  # the large page went whole; the CD is cached
    _, how, _, ipa = rig.event()
    assert (how.S2, how.CLASS, ipa) == (1, Class.TT, pages1.root)
    rig.forget()
    assert reach(rig.smmu, 0x2000) is Event.F_TRANSLATION
    _, how, _, ipa = rig.event()
    assert (how.S2, how.CLASS, ipa) == (1, Class.CD, rig.cds & ~0xFFF)


def test_a_stage_1_flag_that_stage_2_does_not_let_set_is_a_table_write():
    rig = Rig()
    pages1, pages2 = nest(rig, cd={"HA": 1})
    mapped(pages1, 0x1000, 1 << 30)
    change(rig, pages1, 0x1000, arm64.AF)
    found = leaf(pages1, 0x1000)
    pages2.unmap(found.at, 0x1000)
    for at in range(0, 32 << 20, 2 << 20):
        pages2.unmap(at, 2 << 20)
        mapped(pages2, at, at, 2 << 20, READ)
    assert reach(rig.smmu, 0x1000) is Event.F_PERMISSION
    _, how, _, ipa = rig.event()
    assert (how.S2, how.CLASS, how.TTRNW, ipa) == (1, Class.TT, 0, found.at & ~0xFFF)


def test_a_nested_table_outside_memory_is_told_by_its_physical_address():
    rig = Rig()
    pages1, pages2 = nest(rig)
    mapped(pages2, 1 << 35, 1 << 36)
    rig.memory.write_u64(pages1.root, 1 << 35 | 3)
    assert reach(rig.smmu, 0) is Event.F_WALK_EABT
    _, how, _, fetch = rig.event()
    assert (how.S2, how.CLASS, fetch) == (0, Class.TT, 1 << 36)


def test_tables_of_stage_1_in_device_memory_are_a_fault_where_software_asks():
    rig = Rig()
    pages1, pages2 = nest(rig, S2PTW=1)
    mapped(pages1, 0x1000, 1 << 30)
    assert reach(rig.smmu, 0x1000) == 32 << 20
    first = leaf(pages2, 0)
    change(rig, pages2, 0, 0xF << 2, 1 << 2)  # Device-nGnRE
    rig.op(Op.TLBI_NH_ALL, VMID=VMID)
    assert reach(rig.smmu, 0x1000) is Event.F_PERMISSION
    _, how, _, ipa = rig.event()
    assert (how.S2, how.CLASS, how.TTRNW, ipa) == (1, Class.TT, 1, pages1.root)
    rig.forget()
    assert reach(rig.smmu, 0x1000) is Event.F_PERMISSION
    _, how, _, ipa = rig.event()
    assert (how.S2, how.CLASS, ipa) == (1, Class.CD, rig.cds)
    rig.nested(pages1, pages2)
    rig.forget()
    assert reach(rig.smmu, 0x1000) == 32 << 20
    rig.memory.write_u64(first.at, first.pte)
    rig.nested(pages1, pages2, S2PTW=1)
    rig.memory.write_u64(pages1.root, 0)
    rig.forget()
    assert reach(rig.smmu, 0x1000) is Event.F_TRANSLATION


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_nested_agrees_with_two_walks_by_hand(data):
    rig = Rig()
    pages1, pages2 = nest(rig)
    places = st.integers(0, 40).map(lambda n: (1 << 30) + 0x1000 * n)
    for number in range(8):
        mapped(pages1, 0x1000 * number, data.draw(places), prot=data.draw(st.sampled_from([READ, RW])))
    pages2.unmap(1 << 30, 16 << 20)
    for number in range(0, 40, 2):
        mapped(
            pages2, (1 << 30) + 0x1000 * number, (33 << 20) + 0x1000 * number, prot=data.draw(st.sampled_from([1, 3]))
        )
    for number in range(9):
        want = data.draw(st.sampled_from([READ, WRITE]))
        first = walk(pages1.table, rig.memory, pages1.root, 0x1000 * number, want)
        last = walk(pages2.table, rig.memory, pages2.root, first.oa, want) if first.status == OK else first
        got = reach(rig.smmu, 0x1000 * number, want)
        assert got == last.oa if last.status == OK else isinstance(got, Event)


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


def test_every_variant_of_the_format_is_tried():
    assert set(STAGE1 + STAGE2) == {name for name in formats.VARIANTS if name.startswith("arm64")}
    assert all(not formats.VARIANTS[name].option & HW_DIRTY for name in STAGE1)
