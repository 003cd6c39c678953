"""An SMMUv3's translations: both stages, rights, flags, contexts, and what is cached under which tag."""

import pytest
from hypothesis import given, settings, strategies as st
from smmuv3_rig import ASID, RW, SID, VMID, Rig, change, context, leaf, mapped, nest, reach

from softiommu.hardware.smmuv3 import geometry
from softiommu.hardware.smmuv3.commands import Op
from softiommu.hardware.smmuv3.events import Class, Event
from softiommu.hardware.smmuv3.presets import FULL
from softiommu.hardware.smmuv3.tables import Cd1, Cd2, Config, Ste0, Ste1, Ste2, Ste3, Strw
from softiommu.pagetable import formats
from softiommu.pagetable.engine import PageTable
from softiommu.pagetable.formats import arm64
from softiommu.pagetable.kinds import EXECUTE, HW_DIRTY, OK, READ, WRITE
from softiommu.pagetable.walk import walk

STAGE1 = [name for name in arm64.VARIANTS if name.endswith("s1")]
STAGE2 = [name for name in arm64.VARIANTS if name.endswith("s2")]
EL2 = FULL._replace(idr0=FULL.idr0.replace(HYP=1))


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


@pytest.mark.parametrize(
    ("clear", "add", "fields", "want", "privileged", "event"),
    [
        (arm64.S2AP_WRITE, 0, {}, WRITE, False, Event.F_PERMISSION),
        (arm64.S2AP_READ, 0, {}, READ, False, Event.F_PERMISSION),
        (0, arm64.XN, {}, EXECUTE, False, Event.F_PERMISSION),
        (0, arm64.PXN, {}, EXECUTE, False, None),  # XN 01: only users execute
        (0, arm64.PXN, {}, EXECUTE, True, Event.F_PERMISSION),
        (0, arm64.XN | arm64.PXN, {}, EXECUTE, True, None),  # XN 11: only privileged
        (0, arm64.XN | arm64.PXN, {}, EXECUTE, False, Event.F_PERMISSION),
        (arm64.AF | arm64.S2AP_WRITE, 0, {}, WRITE, False, Event.F_ACCESS),
        (arm64.AF, 0, {"S2AFFD": 1}, READ, False, None),
        (arm64.AF, 0, {"S2HA": 1}, READ, False, None),
        (arm64.S2AP_WRITE, arm64.DBM, {"S2HD": 1}, WRITE, False, Event.F_PERMISSION),  # HD alone is none
        (arm64.S2AP_WRITE, arm64.DBM, {"S2HA": 1, "S2HD": 1}, WRITE, False, None),
    ],
)
def test_stage_2_rights_and_flags(clear, add, fields, want, privileged, event):
    rig = Rig()
    pages = rig.pages("arm64-4k-40-s2")
    mapped(pages, 0x1000, 0x100000)
    change(rig, pages, 0x1000, clear, add)
    rig.stage2(pages, **fields)
    got = reach(rig.smmu, 0x1000, want, privileged=privileged)
    assert got == (0x100000 if event is None else event)
    if event is not None:
        _, how, iova, ipa = rig.event()
        assert (how.S2, how.CLASS, iova, ipa) == (1, Class.IN, 0x1000, 0x1000)
        assert (how.PNU, how.IND, how.RNW) == (privileged, want == EXECUTE, want != WRITE)


CLEAN = {"clear": arm64.AF, "add": arm64.AP_READ_ONLY | arm64.DBM}


@pytest.mark.parametrize("second", [False, True], ids=["one stage", "nested"])
@pytest.mark.parametrize("want", [READ, WRITE])
def test_without_atomic_accesses_no_flag_can_be_set(second, want):
    rig = Rig(FULL._replace(atomics=False))
    if second:
        pages, _ = nest(rig, cd={"HA": 1, "HD": 1})
    else:
        pages = rig.pages("arm64-4k-48-s1")
        rig.stage1(pages, HA=1, HD=1)
    mapped(pages, 0x1000, 0x100000)
    assert reach(rig.smmu, 0x1000, want) == 0x100000  # every flag is set: nothing is to be done
    change(rig, pages, 0x1000, **CLEAN)
    rig.forget()
    before = leaf(pages, 0x1000)
    assert reach(rig.smmu, 0x1000, want) is Event.F_WALK_EABT
    first, how, iova, fetch = rig.event()
    assert (first.TYPE, how.S2, how.CLASS, iova, fetch) == (Event.F_WALK_EABT, 0, Class.TT, 0x1000, before.at)
    assert leaf(pages, 0x1000) == before


def test_without_atomic_accesses_stage_2_sets_no_flag_either():
    rig = Rig(FULL._replace(atomics=False))
    pages = rig.pages("arm64-4k-40-s2")
    mapped(pages, 0x1000, 0x100000)
    change(rig, pages, 0x1000, arm64.AF)
    rig.stage2(pages, S2HA=1)
    assert reach(rig.smmu, 0x1000) is Event.F_WALK_EABT
    assert not leaf(pages, 0x1000).pte & arm64.AF


def test_limits_of_tables_hold_unless_had_ignores_them():
    rig = Rig()
    pages = rig.pages("arm64-4k-48-s1")
    mapped(pages, 0x1000, 0x100000)
    rig.memory.write_u64(pages.root, rig.memory.read_u64(pages.root) | arm64.AP_TABLE_READ_ONLY)
    rig.stage1(pages)
    assert reach(rig.smmu, 0x1000, WRITE) is Event.F_PERMISSION
    rig.words(rig.cds + 8, Cd1.of(TTB0=pages.root >> 4, HAD0=1))
    rig.forget()
    assert reach(rig.smmu, 0x1000, WRITE) == 0x100000


def test_small_tables_and_stage_2_from_level_minus_1():
    rig = Rig()
    small = PageTable(rig.memory, geometry.stage1(12, 16, 48, 0))
    mapped(small, 0xF000, 0x100000)
    rig.stage1(small)
    assert reach(rig.smmu, 0xF123) == 0x100123
    assert reach(rig.smmu, 0x10000) is Event.F_TRANSLATION
    high = PageTable(rig.memory, geometry.stage2(12, 52, 52, arm64.DS, 0, 1))
    assert high.table.top == 4
    mapped(high, 1 << 51, 0x200000)
    root = Ste3.of(S2TTB=high.root >> 4, S2DS=1, S2SL0_2=1)
    tags = Ste2.of(S2T0SZ=12, S2PS=6, S2AA64=1, S2VMID=1, S2R=1)
    rig.ste(Ste0.of(V=1, CONFIG=Config.S2), 0, tags, root)
    rig.forget()
    assert reach(rig.smmu, (1 << 51) + 8) == 0x200008


def test_address_spaces_are_told_apart_by_vmid_and_asid():
    rig = Rig()
    tables = [rig.pages("arm64-4k-48-s1") for _ in range(3)]
    for number, pages in enumerate(tables):
        mapped(pages, 0x1000, 0x100000 * (number + 1))
    # Two substreams with ASIDs of their own, and a stream with another VMID.
    rig.stage1(tables[0], cdmax=1, ssid=0)
    rig.cd(*context(tables[1], ASID=ASID + 1), ssid=1)
    other = rig.memory.alloc(4096)
    rig.words(other, *context(tables[2]))
    rig.ste(Ste0.of(V=1, CONFIG=Config.S1, S1CONTEXTPTR=other >> 6), 0, Ste2.of(S2VMID=VMID + 1), sid=SID + 1)
    for _ in range(2):
        found = [reach(rig.smmu, 0x1000, sid=SID, pasid=ssid) for ssid in (0, 1)]
        assert [*found, reach(rig.smmu, 0x1000, sid=SID + 1)] == [0x100000, 0x200000, 0x300000]
    for pages in tables:
        pages.unmap(0x1000, 0x1000)
    rig.op(Op.TLBI_NH_ASID, VMID=VMID, ASID=ASID)
    found = [reach(rig.smmu, 0x1000, sid=SID, pasid=ssid) for ssid in (0, 1)]
    assert [*found, reach(rig.smmu, 0x1000, sid=SID + 1)] == [Event.F_TRANSLATION, 0x200000, 0x300000]


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


def test_every_variant_of_the_format_is_tried():
    assert set(STAGE1 + STAGE2) == {name for name in formats.VARIANTS if name.startswith("arm64")}
    assert all(not formats.VARIANTS[name].option & HW_DIRTY for name in STAGE1)
