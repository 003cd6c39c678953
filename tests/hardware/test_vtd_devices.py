"""VT-d: flags in tables, device TLBs, page requests, interrupts: what devices cause and hear."""

import pytest
from hypothesis import given, settings, strategies as st
from vtd_rig import DID, SID, Bench, Device, reason, recorded

from softiommu.hardware.iommu import PageRequest, ResponseCode
from softiommu.hardware.vtd import presets, tables
from softiommu.hardware.vtd.commands import (
    DeviceTlb0,
    DeviceTlb1,
    Interrupt0,
    Iotlb0,
    PageGroupResponse0,
    PageGroupResponse1,
    PasidDeviceTlb0,
    PasidDeviceTlb1,
    Type,
    Wait0,
    Wait1,
)
from softiommu.hardware.vtd.events import AddressType, PageRequest0, PageRequest1, Reason
from softiommu.hardware.vtd.registers import Fsts, Irta, Prs, Registers, Ttm
from softiommu.hardware.vtd.tables import Irte0, Irte1, Pgtt, ScalableContext0
from softiommu.pagetable.formats import vtdss, x86_64
from softiommu.pagetable.kinds import EXECUTE, READ, WRITE

IOVA, IPA, PA = 0x4000_7000, 0x3000_1000, 0x9000
RW = READ | WRITE
FORGET = Iotlb0.of(TYPE=Type.IOTLB, G=1)


def staged(pgtt, **stage1):
    bench = Bench()
    bench.pasid(pgtt, **stage1)
    bench.first.map(IOVA, IPA if pgtt == Pgtt.NESTED else PA, 0x1000, RW)
    bench.second.map(IPA if pgtt == Pgtt.NESTED else IOVA, PA, 0x1000, RW)
    bench.second.map(0, 0, 4 << 20, RW)
    found = next(bench.first.leaves(IOVA, IOVA))
    bench.set(found.at, found.pte & ~(x86_64.A | x86_64.D))
    return bench


def flags(bench):
    """Accessed and dirty of the first stage's leaf, and of the second's."""
    one = next(bench.first.leaves(IOVA, IOVA)).pte
    two = [leaf.pte for leaf in bench.second.leaves(IPA, IOVA)][-1]
    return [bool(one & bit) for bit in (x86_64.A, x86_64.D)], [bool(two & bit) for bit in (vtdss.A, vtdss.D)]


# Flags


@pytest.mark.parametrize("pgtt", [Pgtt.FIRST, Pgtt.SECOND, Pgtt.NESTED])
def test_flags_tell_what_was_used(pgtt):
    bench = staged(pgtt)
    one, two = (int(pgtt != Pgtt.SECOND), int(pgtt != Pgtt.FIRST))
    assert flags(bench) == ([0, 0], [0, 0])
    assert bench.unit.translate(SID, IOVA, READ).pa == PA
    assert flags(bench) == ([one, 0], [two, 0])
    assert bench.unit.translate(SID, IOVA, WRITE).pa == PA
    assert flags(bench) == ([one, one], [two, two])


@pytest.mark.parametrize("pgtt", [Pgtt.FIRST, Pgtt.SECOND, Pgtt.NESTED])
def test_a_cleared_dirty_flag_is_set_again_after_its_flush_only(pgtt):
    bench = staged(pgtt)
    bench.unit.translate(SID, IOVA, WRITE)
    for pages, dirty in ((bench.first, x86_64.D), (bench.second, vtdss.D)):
        for leaf in list(pages.leaves(IPA, IOVA)):
            bench.set(leaf.at, leaf.pte & ~dirty)
    bench.unit.translate(SID, IOVA, WRITE)
    assert flags(bench)[0][1] == flags(bench)[1][1] == 0
    bench.submit(FORGET)
    bench.unit.translate(SID, IOVA, WRITE)
    assert (flags(bench)[0][1], flags(bench)[1][1]) == (pgtt != Pgtt.SECOND, pgtt != Pgtt.FIRST)


def test_extended_accessed_is_set_where_it_is_asked_for():
    for eafe in (0, 1):
        bench = staged(Pgtt.FIRST, EAFE=eafe)
        bench.unit.translate(SID, IOVA, READ)
        assert bool(next(bench.first.leaves(IOVA, IOVA)).pte & x86_64.EA) == bool(eafe)


def test_a_second_stage_without_ssade_leaves_its_flags():
    bench = staged(Pgtt.SECOND)
    bench.change(bench.entry, tables.Pasid0, SSADE=0)
    assert bench.unit.translate(SID, IOVA, WRITE).pa == PA
    assert flags(bench)[1] == [0, 0]


def test_a_refused_write_leaves_no_dirty_flag():
    bench = staged(Pgtt.FIRST)
    leaf = next(bench.first.leaves(IOVA, IOVA))
    bench.set(leaf.at, leaf.pte & ~x86_64.RW)
    assert reason(bench.unit.translate, SID, IOVA, WRITE) is Reason.SCALABLE_NO_WRITE
    assert flags(bench)[0] == [0, 0]


# Device TLBs


def with_ats(pgtt=Pgtt.FIRST, **context):
    bench = staged(pgtt)
    bench.change(bench.context, ScalableContext0, DTE=1, **context)
    device = Device()
    bench.unit.connect(SID, device)
    return bench, device


def test_a_device_asks_for_translations_and_uses_them():
    bench, _ = with_ats()
    answer = bench.unit.ats_translate(SID, IOVA + 8, READ)
    assert (answer.pa, answer.allowed & RW) == (PA + 8, READ)  # a write would need the dirty flag first
    assert bench.unit.ats_translate(SID, IOVA, RW).allowed & RW == RW
    assert flags(bench)[0] == [1, 1]
    assert bench.unit.admit_translated(SID, PA, WRITE).pa == PA
    assert reason(bench.unit.admit_translated, SID, 0xFEE00000, WRITE) is Reason.SCALABLE_OUTPUT_IN_INTERRUPT_RANGE
    assert bench.record()[1].AT == AddressType.TRANSLATED


def test_a_translation_request_for_what_is_not_there_is_answered_without_a_fault():
    bench, _ = with_ats()
    assert bench.unit.ats_translate(SID, 0, READ).allowed == 0
    assert bench.unit.ats_translate(SID, 0xFEE01000, WRITE).allowed == 0
    leaf = next(bench.first.leaves(IOVA, IOVA))
    bench.set(leaf.at, leaf.pte & ~x86_64.RW)
    assert bench.unit.ats_translate(SID, IOVA, RW).allowed & RW == READ
    assert recorded(bench) is None
    bench.set(leaf.at, leaf.pte | 1 << 63)
    bench.submit(FORGET)
    assert reason(bench.unit.ats_translate, SID, IOVA, READ) is Reason.FIRST_RESERVED
    assert bench.record()[1].AT == AddressType.TRANSLATION


def test_a_device_without_leave_has_no_translations():
    bench = staged(Pgtt.FIRST)
    for call in (bench.unit.ats_translate, bench.unit.admit_translated):
        assert reason(call, SID, IOVA, READ) is Reason.DEVICE_TLB_NOT_ENABLED
    old = Bench(ttm=Ttm.LEGACY)
    old.second.map(IOVA, PA, 0x1000, RW)
    for call in (old.unit.ats_translate, old.unit.admit_translated):
        assert reason(call, SID, IOVA, READ) is Reason.REQUEST_BLOCKED_BY_TT
    old.change(old.context, tables.ContextLow, TT=1)
    old.unit.caches.forget_all()
    assert old.unit.ats_translate(SID, IOVA, RW)[:2] == (PA, 12)
    assert old.unit.admit_translated(SID, PA, READ).pa == PA
    off = Bench(ttm=Ttm.LEGACY)
    off.write(Registers.GCMD, 0)
    for call in (off.unit.ats_translate, off.unit.admit_translated):
        assert reason(call, SID, IOVA, READ) is Reason.REQUEST_BLOCKED_BY_TT


@pytest.mark.parametrize(
    ("sized", "page", "expected"),
    [
        (0, 0x7, (0x7000, 0x7FFF)),
        (1, 0x6, (0x6000, 0x7FFF)),
        (1, 0x3, (0x0, 0x7FFF)),
        (1, 0x1FF, (0x0, 0x3FFFFF)),
        (1, (1 << 51) - 1, (0, 2**64 - 1)),
        (1, (1 << 52) - 1, (0, 2**64 - 1)),
    ],
)
def test_a_device_tlb_command_says_its_range_by_a_run_of_ones(sized, page, expected):
    bench, device = with_ats()
    bench.submit(
        (DeviceTlb0.of(TYPE=Type.DEVICE_TLB, SID=SID), DeviceTlb1.of(S=sized, ADDR=page)),
        (
            PasidDeviceTlb0.of(TYPE=Type.PASID_DEVICE_TLB, SID=SID, PASID=5),
            PasidDeviceTlb1.of(S=sized, ADDR=page),
        ),
    )
    assert device.forgotten == [(None, *expected), (5, *expected)]


@pytest.mark.parametrize("connected", [True, False])
def test_a_device_that_does_not_answer_stops_the_queue_and_its_wait_is_given_up(connected):
    bench = Bench()
    if connected:
        bench.unit.connect(SID, Device(answers=False))
    status = bench.memory.alloc(4096)
    wait = Wait0.of(TYPE=Type.WAIT, SW=1, DATA=1), Wait1.of(ADDR=status >> 2)
    bench.submit((DeviceTlb0.of(TYPE=Type.DEVICE_TLB, SID=SID), 0), wait, FORGET)
    assert bench.read(Registers.FSTS) == Fsts.of(ITE=1)
    assert bench.read(Registers.IQER).ITESID == SID
    assert bench.memory.read_u32(status) == 0
    assert bench.read(Registers.IQH) == 2 * bench.step
    bench.write(Registers.FSTS, Fsts.of(ITE=1))
    assert bench.read(Registers.IQH) == 3 * bench.step


def test_a_device_that_rings_the_doorbell_while_it_is_told_finds_the_queue_busy():
    bench = Bench()
    told = []

    class Rude(Device):
        def invalidate(self, pasid, first, last):
            told.append(first)
            bench.write(Registers.IQT, bench.tail)
            return True

    bench.unit.connect(SID, Rude())
    bench.submit((DeviceTlb0.of(TYPE=Type.DEVICE_TLB, SID=SID), 0), FORGET)
    assert told == [0]
    assert bench.read(Registers.IQH) == bench.read(Registers.IQT)


# Page requests


def paged(**context):
    bench, device = with_ats(PRE=1, **context)
    bench.queue_of_pages = bench.memory.alloc(4096)
    bench.write(Registers.PQA, bench.queue_of_pages)
    bench.write(Registers.PEADDR, 0xFEE00000)
    bench.write(Registers.PEDATA, 0x51)
    bench.write(Registers.PECTL, 0)
    return bench, device


def asked(group=3, last=True, **more):
    return PageRequest(SID, IOVA, RW, group, last, **more)


def test_a_page_request_is_queued_and_answered_by_software():
    bench, device = paged()
    bench.unit.page_request(asked(pasid=9, privileged=True))
    low, high = (bench.memory.read_u64(bench.queue_of_pages + 8 * n) for n in range(2))
    assert low == PageRequest0.of(TYPE=1, PP=1, RID=SID, PASID=9, PM=1)
    assert high == PageRequest1.of(R=1, W=1, LPIG=1, PRGI=3, ADDR=IOVA >> 12)
    assert bench.read(Registers.PQT) == 32
    assert bench.read(Registers.PRS) == Prs.of(PPR=1)
    assert bench.interrupts == [(0xFEE00000, 0x51)]
    bench.unit.page_request(asked())
    assert len(bench.interrupts) == 1
    assert not bench.memory.read_u64(bench.queue_of_pages + 32) & PageRequest0.PP.mask
    answer = PageGroupResponse0.of(TYPE=Type.PAGE_GROUP_RESPONSE, PP=1, RID=SID, PASID=9, CODE=1)
    bench.submit(
        (answer, PageGroupResponse1.of(LPIG=1, PRGI=3)),
        (answer.replace(PP=0, PASID=0, CODE=0), PageGroupResponse1.of(LPIG=1, PRGI=4)),
        (answer.replace(CODE=7), PageGroupResponse1.of(LPIG=1, PRGI=5)),
    )
    assert device.responses == [
        (9, 3, ResponseCode.INVALID),
        (None, 4, ResponseCode.SUCCESS),
        (9, 5, ResponseCode.FAILURE),
    ]
    bench.write(Registers.PRS, Prs.of(PPR=1))
    bench.unit.page_request(asked())
    assert len(bench.interrupts) == 2


def test_a_full_queue_of_pages_overflows_and_devices_are_told_to_try_again():
    bench, device = paged()
    for group in range(130):
        bench.unit.page_request(asked(group, last=group % 2 == 1))
    assert bench.read(Registers.PQT) == 127 * 32
    assert bench.read(Registers.PRS) == Prs.of(PPR=1, PRO=1)
    assert device.responses == [(None, group, ResponseCode.SUCCESS) for group in (127, 129)]
    bench.write(Registers.PQH, 127 * 32)
    bench.unit.page_request(asked(1))
    assert bench.read(Registers.PQT) == 127 * 32  # nothing is queued until PRO is cleared
    bench.write(Registers.PRS, Prs.of(PRO=1))
    bench.unit.page_request(asked(2))
    assert bench.read(Registers.PQT) == 0


@pytest.mark.parametrize("case", ["legacy", "pre", "pasid", "root"])
def test_a_page_request_that_may_not_be_is_a_fault_and_is_answered(case):
    expected = {
        "legacy": Reason.RTA_PAGE_REQUEST,
        "pre": Reason.PAGE_REQUESTS_NOT_ENABLED,
        "pasid": Reason.PASID_TOO_LARGE,
        "root": Reason.SCALABLE_ROOT_NOT_PRESENT,
    }[case]
    bench, device = paged() if case != "legacy" else (Bench(ttm=Ttm.LEGACY), Device())
    bench.unit.connect(SID, device)
    if case == "pre":
        bench.change(bench.context, ScalableContext0, PRE=0)
    if case == "root":
        bench.set(bench.root_entry, 0)
    pasid = 1 << 19 if case == "pasid" else None
    bench.unit.page_request(asked(pasid=pasid))
    bench.unit.page_request(asked(last=False, pasid=pasid))
    assert recorded(bench) is expected
    assert (bench.record()[1].T, bench.record()[1].T2) == (0, 1)
    assert device.responses == [(pasid, 3, ResponseCode.INVALID)]
    assert bench.read(Registers.PQT) == 0


def test_a_queue_of_pages_in_no_memory_overflows():
    bench, device = paged()
    bench.write(Registers.PQA, 1 << 45)
    bench.unit.page_request(asked())
    assert bench.read(Registers.PRS).PRO == 1
    assert device.responses == [(None, 3, ResponseCode.SUCCESS)]


# Interrupts

IRTE = Irte0.of(P=1, V=0x44, DST=3 << 8, DLM=1, DM=1, RH=1, TM=1)


def remapping(wide=0, unit=presets.FULL):
    bench = Bench(unit, Ttm.LEGACY)
    bench.table = bench.memory.alloc(4096)
    bench.write(Registers.IRTA, Irta.of(S=7, EIME=wide, IRTA=bench.table >> 12))
    bench.command(SIRTP=1)
    bench.command(IRE=1)
    bench.set(bench.table + 16 * 5, IRTE, Irte1.of(SID=SID, SVT=1))
    return bench


def handle(index, shv=0):
    return 0xFEE00010 | (index & 0x7FFF) << 5 | index >> 15 << 2 | shv << 3


def test_an_interrupt_is_remapped():
    bench = remapping()
    assert bench.unit.remap(SID, handle(5), 0) == (0xFEE0300C, 0xC144)
    assert bench.unit.remap(SID, handle(3, 1), 2) == (0xFEE0300C, 0xC144)
    wide = remapping(wide=1)
    wide.set(wide.table + 16 * 5, IRTE.replace(DST=0x12345678))
    assert wide.unit.remap(SID, handle(5), 0).address == 0x12345600_FEE7800C
    off = Bench()
    assert off.unit.remap(SID, 0xFEE00000, 0x31) == (0xFEE00000, 0x31)


@pytest.mark.parametrize(
    ("expected", "index", "shv_data", "low", "high"),
    [
        (Reason.INTERRUPT_RESERVED, 0, (0, 1 << 16), {}, {}),
        (Reason.INTERRUPT_INDEX, 256, (0, 0), {}, {}),
        (Reason.INTERRUPT_INDEX, 300, (1, 65), {}, {}),
        (Reason.IRTE_NOT_PRESENT, 6, (0, 0), {}, {}),
        (Reason.IRTE_RESERVED, 5, (0, 0), {"IM": 1}, {}),
        (Reason.IRTE_RESERVED, 5, (0, 0), {"DST": 1}, {}),
        (Reason.IRTE_RESERVED, 5, (0, 0), {}, {"SVT": 3}),
        (Reason.INTERRUPT_SOURCE, 5, (0, 0), {}, {"SID": SID ^ 1}),
        (Reason.INTERRUPT_SOURCE, 5, (0, 0), {}, {"SID": 0x0203, "SVT": 2}),
        (None, 5, (0, 0), {}, {"SID": SID ^ 7, "SQ": 3}),
        (None, 5, (0, 0), {}, {"SID": 0x0001, "SVT": 2}),
        (None, 5, (0, 0), {}, {"SID": 0, "SVT": 0}),
    ],
)
def test_each_wrong_interrupt_has_its_reason(expected, index, shv_data, low, high):
    bench = remapping()
    bench.set(bench.table + 16 * 5, IRTE.replace(**low), Irte1.of(SID=SID, SVT=1).replace(**high))
    shv, data = shv_data
    assert reason(bench.unit.remap, SID, handle(index, shv), data) is expected
    assert recorded(bench) is expected
    if expected not in (None, Reason.INTERRUPT_RESERVED):
        assert int(bench.record()[0]) >> 48 == index + shv * data
    if index == 5 and expected is not None:
        quiet = remapping()
        quiet.set(quiet.table + 16 * 5, IRTE.replace(**low, FPD=1), Irte1.of(SID=SID, SVT=1).replace(**high))
        assert reason(quiet.unit.remap, SID, handle(index), 0) is expected
        assert recorded(quiet) is None


def test_a_table_in_no_memory_is_an_access_error():
    bench = remapping()
    bench.write(Registers.IRTA, Irta.of(S=7, IRTA=1 << 33))
    bench.command(SIRTP=1)
    assert reason(bench.unit.remap, SID, handle(1), 0) is Reason.IRTE_ACCESS


def test_interrupts_in_the_old_format_pass_where_software_lets_them():
    bench = remapping()
    assert reason(bench.unit.remap, SID, 0xFEE00000, 0x31) is Reason.COMPATIBILITY_BLOCKED
    bench.command(CFI=1)
    assert bench.unit.remap(SID, 0xFEE00000, 0x31) == (0xFEE00000, 0x31)
    bench.write(Registers.IRTA, Irta.of(EIME=1))
    bench.command(SIRTP=1)
    assert reason(bench.unit.remap, SID, 0xFEE00000, 0x31) is Reason.COMPATIBILITY_BLOCKED


@pytest.mark.parametrize(
    ("command", "forgotten"),
    [
        (Interrupt0.of(TYPE=Type.INTERRUPT), True),
        (Interrupt0.of(TYPE=Type.INTERRUPT, G=1, IIDX=5), True),
        (Interrupt0.of(TYPE=Type.INTERRUPT, G=1, IIDX=4, IM=1), True),
        (Interrupt0.of(TYPE=Type.INTERRUPT, G=1, IIDX=4), False),
        (Interrupt0.of(TYPE=Type.INTERRUPT, G=1, IIDX=6, IM=1), False),
        (FORGET, False),
    ],
)
def test_a_cached_entry_stays_until_a_command_names_it(command, forgotten):
    bench = remapping()
    bench.unit.remap(SID, handle(5), 0)
    bench.set(bench.table + 16 * 5, IRTE.replace(V=0x55), Irte1.of(SID=SID, SVT=1))
    assert bench.unit.remap(SID, handle(5), 0).data & 0xFF == 0x44
    bench.submit(command)
    assert bench.unit.remap(SID, handle(5), 0).data & 0xFF == (0x55 if forgotten else 0x44)


@pytest.mark.parametrize("esirtps", [0, 1])
def test_a_new_table_forgets_entries_where_the_hardware_says_so(esirtps):
    full = presets.FULL
    bench = remapping(unit=full._replace(cap=full.cap.replace(ESIRTPS=esirtps)))
    bench.unit.remap(SID, handle(5), 0)
    bench.set(bench.table + 16 * 5, IRTE.replace(V=0x55))
    bench.command(SIRTP=1)
    assert bench.unit.remap(SID, handle(5), 0).data & 0xFF == (0x55 if esirtps else 0x44)


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_any_message_and_any_entry_end(data):
    bench = remapping(wide=data.draw(st.integers(0, 1)))
    words = st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 0xFFFF).map(lambda low: low | 1))
    bench.set(bench.table, *data.draw(st.lists(words, min_size=2, max_size=8)))
    for _ in range(3):
        address = data.draw(st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 3).map(handle)))
        outcome = reason(
            bench.unit.remap, data.draw(st.integers(0, 0xFFFF)), address, data.draw(st.integers(0, 2**32 - 1))
        )
        assert outcome is None or 0x20 <= outcome <= 0x26


def test_execution_is_allowed_as_the_leaf_says():
    bench = staged(Pgtt.FIRST, ERE=1, NXE=1)
    assert bench.unit.translate(SID, IOVA, EXECUTE).pa == PA
    assert DID == bench.unit.caches.pasids.get((SID, 0)).did
