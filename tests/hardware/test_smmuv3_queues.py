"""An SMMUv3's registers, commands, events, page requests, stalls, ATS and interrupts."""

import pytest
from hypothesis import given, settings, strategies as st
from smmuv3_rig import LG2, SID, Rig, context, mapped, reach, second

from softiommu.hardware.iommu import PageRequest, ResponseCode, Translation
from softiommu.hardware.smmuv3 import registers
from softiommu.hardware.smmuv3.commands import LAYOUTS, Op, Resp
from softiommu.hardware.smmuv3.events import Event, Event0, Event1, Request0, Request1
from softiommu.hardware.smmuv3.faults import Response, SmmuFaultError
from softiommu.hardware.smmuv3.presets import FULL, QEMU
from softiommu.hardware.smmuv3.registers import CommandError, Cr0, IrqCtrl, QueueBase
from softiommu.hardware.smmuv3.signals import Wire
from softiommu.hardware.smmuv3.stalls import Outcome
from softiommu.hardware.smmuv3.tables import Config, Ste0, Ste1
from softiommu.pagetable.formats import arm64
from softiommu.pagetable.kinds import EXECUTE, READ, WRITE

RW = READ | WRITE
NOWHERE = 1 << 40


def less(**fields):
    return FULL._replace(idr0=FULL.idr0.replace(**fields))


def error(rig):
    """The active errors, and why the command queue stopped."""
    active = registers.Gerror(rig.get("GERROR") ^ rig.get("GERRORN"))
    return active, rig.get("CMDQ_CONS").ERR


def acknowledge(rig):
    rig.set("GERRORN", rig.get("GERROR"))


def done(rig):
    return rig.get("CMDQ_CONS").RD == rig.get("CMDQ_PROD").WR and not error(rig)[0]


# Registers


def test_registers_read_as_they_are_after_reset_and_take_what_they_may():
    rig = Rig(on=False)
    assert [rig.smmu.read(offset, 4) for offset in (0, 4, 0xC, 0x14)] == [
        int(word) for word in (FULL.idr0, FULL.idr1, FULL.idr3, FULL.idr5)
    ]
    assert rig.smmu.read(0x8000, 4) == 0
    rig.smmu.write(0x8020, 4, 1)
    assert rig.smmu.read(0x8020, 4) == 0
    rig.smmu.write(0, 4, 0)
    assert rig.get("IDR0") == FULL.idr0
    rig.set("CR0", Cr0.of(PRIQEN=1, VMW=3, CMDQEN=1))
    assert rig.get("CR0") == rig.get("CR0ACK") == Cr0.of(CMDQEN=1)  # PRIQEN needs SMMUEN
    rig.set("IRQ_CTRL", IrqCtrl.of(EVENTQ=1, GERROR=1))
    assert rig.get("IRQ_CTRLACK") == IrqCtrl.of(EVENTQ=1, GERROR=1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("STRTAB_BASE", 0x1000),
        ("STRTAB_BASE_CFG", 3),
        ("CR2", 0),
        ("CMDQ_BASE", 0x1000),
        ("CMDQ_CONS", 3),
        ("EVENTQ_BASE", 0x1000),
        ("EVENTQ_PROD", 3),
        ("PRIQ_BASE", 0x1000),
        ("PRIQ_PROD", 3),
        ("CR1", 0x555),
    ],
)
def test_what_is_in_use_does_not_change(name, value):
    rig = Rig()
    before = rig.get(name)
    rig.set(name, value)
    assert rig.get(name) == before
    rig.set("CR0", 0)
    rig.set(name, value)
    assert rig.get(name) == value


def test_registers_of_absent_features_are_zero():
    rig = Rig(less(PRI=0, MSI=0), on=False)
    for name in ("PRIQ_BASE", "PRIQ_PROD", "PRIQ_CONS", "PRIQ_IRQ_CFG2", "PRIQ_IRQ_CFG0", "EVENTQ_IRQ_CFG0"):
        rig.set(name, 0xFC)
        assert rig.get(name) == 0
    rig.set("IRQ_CTRL", 7)
    assert rig.get("IRQ_CTRLACK") == 5


# Commands


@pytest.mark.parametrize("op", [op for op in Op if "EL2" not in op.name])
def test_every_command_is_taken_and_its_reserved_bits_are_not(op):
    rig = Rig()
    rig.op(op)
    assert done(rig)
    layout = LAYOUTS[op]
    for low, high in ((layout.low.RESERVED, 0), (0, layout.high.RESERVED)):
        for number in range(64):
            if (low | high) >> number & 1:
                rig = Rig()
                rig.command(int(op) | low & 1 << number, high & 1 << number)
                assert error(rig)[1] is CommandError.ILL, f"{op.name} bit {number}"


@pytest.mark.parametrize(
    ("identity", "op", "fields"),
    [
        (less(S1P=0, ASID16=0, CD2L=0)._replace(idr1=FULL.idr1.replace(SSIDSIZE=0)), Op.TLBI_NH_ALL, {}),
        (less(S1P=0, ASID16=0, CD2L=0)._replace(idr1=FULL.idr1.replace(SSIDSIZE=0)), Op.CFGI_CD, {}),
        (less(S2P=0, VMID16=0), Op.TLBI_S2_IPA, {}),
        (less(S2P=0, VMID16=0), Op.TLBI_S12_VMALL, {}),
        (FULL, Op.TLBI_EL2_ALL, {}),
        (less(ATS=0, PRI=0), Op.ATC_INV, {}),
        (less(PRI=0), Op.PRI_RESP, {}),
        (less(STALL_MODEL=1), Op.RESUME, {}),
        (less(STALL_MODEL=1), Op.STALL_TERM, {}),
        (less(ASID16=0), Op.TLBI_NH_ASID, {"ASID": 0x100}),
        (less(VMID16=0), Op.TLBI_NH_ALL, {"VMID": 0x100}),
        (FULL._replace(idr3=FULL.idr3.replace(RIL=0)), Op.TLBI_NH_VA, {"TG": 1, "NUM": 1}),
        (FULL, Op.TLBI_NH_VA, {"TG": 1}),
        (FULL._replace(idr5=FULL.idr5.replace(DS=0)), Op.TLBI_NH_VA, {"TG": 2, "TTL": 1}),
        (FULL, Op.TLBI_NH_VA, {"NUM": 1}),
        (FULL, Op.TLBI_NH_VA, {"TTL": 1}),
        (FULL, Op.PRI_RESP, {"RESP": 3}),
        (FULL, Op.SYNC, {"CS": 3}),
        (FULL, Op.ATC_INV, {"SIZE": 53}),
    ],
)
def test_commands_that_are_illegal_stop_the_queue(identity, op, fields):
    rig = Rig(identity)
    rig.op(op, **fields)
    active, why = error(rig)
    assert (active.CMDQ_ERR, why) == (1, CommandError.ILL)
    assert rig.get("CMDQ_CONS").RD == 0


def test_the_queue_goes_on_when_the_error_is_acknowledged():
    rig = Rig()
    rig.command(0xFF)
    rig.op(Op.SYNC)
    assert rig.get("CMDQ_CONS").RD == 0
    rig.words(rig.commands, int(Op.SYNC), 0)
    assert rig.get("CMDQ_CONS").RD == 0
    acknowledge(rig)
    assert done(rig)


def test_a_queue_outside_memory_aborts():
    rig = Rig(on=False)
    rig.set("CMDQ_BASE", QueueBase.of(LOG2SIZE=4, ADDR=NOWHERE >> 5))
    rig.on()
    rig.set("CMDQ_PROD", 1)
    assert error(rig)[1] is CommandError.ABT


def test_the_queue_wraps_and_a_pointer_beyond_it_ends():
    rig = Rig()
    for _ in range(3 << LG2):
        rig.op(Op.SYNC)
    assert done(rig)
    for slot in range(1 << LG2):
        rig.words(rig.commands + 16 * slot, int(Op.SYNC), 0)
    rig.set("CMDQ_PROD", 0xFFFFF)
    assert rig.get("CMDQ_CONS").RD == (2 << LG2) - 1
    assert not error(rig)[0]


def test_sync_signals_by_message_wire_and_event():
    rig = Rig()
    where = rig.memory.alloc(4096)
    rig.op(Op.SYNC)
    assert rig.wires == []
    rig.op(Op.SYNC, CS=1, MSIADDR=where >> 2, MSIDATA=0xABCD)
    assert (rig.memory.read_u32(where), rig.wires) == (0xABCD, [Wire.CMD_SYNC])
    rig.op(Op.SYNC, CS=1, MSIADDR=NOWHERE >> 2, MSIDATA=7)
    assert rig.interrupts == [(NOWHERE, 7)]
    rig.op(Op.SYNC, CS=2)
    assert rig.wires[-1] is Wire.SEV


def test_a_message_that_nobody_takes_is_a_global_error():
    rig = Rig()
    rig.smmu.signals._interrupt = None
    rig.op(Op.SYNC, CS=1, MSIADDR=NOWHERE >> 2)
    assert error(rig)[0] == registers.Gerror.of(MSI_CMDQ_ABT=1)
    acknowledge(rig)
    rig.set("GERROR_IRQ_CFG0", NOWHERE)
    rig.set("IRQ_CTRL", IrqCtrl.of(GERROR=1))
    rig.op(Op.SYNC, CS=1, MSIADDR=NOWHERE >> 2)
    assert error(rig)[0] == registers.Gerror.of(MSI_CMDQ_ABT=1, MSI_GERROR_ABT=1)


@pytest.mark.parametrize(("first", "span", "dropped"), [(0x20, 1, True), (0x22, 0, True), (0x20, 0, False)])
def test_a_range_of_streams_is_aligned(first, span, dropped):
    rig = Rig()
    rig.ste(Ste0.of(V=1, CONFIG=Config.BYPASS))
    assert reach(rig.smmu, 0x10) == 0x10
    rig.ste(Ste0.of(V=1))
    rig.op(Op.CFGI_STE_RANGE, SID=first, RANGE=span)
    assert reach(rig.smmu, 0x10) == (Event.SILENT if dropped else 0x10)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_whatever_the_queue_holds_it_stops_or_is_done(data):
    rig = Rig(data.draw(st.sampled_from([FULL, QEMU, FULL._replace(idr0=FULL.idr0.replace(HYP=1))])))
    rig.smmu.connect(SID, Device())
    known = st.builds(lambda op, rest: int(op) | rest & ~0xFF, st.sampled_from(Op), st.integers(0, 2**64 - 1))
    for number in range(1 << LG2):
        low = data.draw(st.one_of(known, st.integers(0, 2**64 - 1)))
        mask = LAYOUTS[Op(low & 0xFF)].high.RESERVED if low & 0xFF in Op._value2member_map_ else 0
        low &= ~LAYOUTS[Op(low & 0xFF)].low.RESERVED if low & 0xFF in Op._value2member_map_ else low
        rig.words(rig.commands + 16 * number, low, data.draw(st.integers(0, 2**64 - 1)) & ~mask)
    rig.set("CMDQ_PROD", 1 << LG2)
    for _ in range(2 << LG2):
        if done(rig):
            break
        assert error(rig)[0].CMDQ_ERR or error(rig)[0]
        rig.words(rig.commands + 16 * (rig.get("CMDQ_CONS").RD & 15), int(Op.SYNC), 0)
        acknowledge(rig)
    assert done(rig)


@settings(max_examples=100, deadline=None)
@given(
    writes=st.lists(
        st.tuples(
            st.sampled_from([slot.offset for slot in registers.Registers.SLOTS]),
            st.sampled_from([4, 8]),
            st.integers(0, 2**64 - 1).map(lambda value: value & 0x1FFFF_FFFF | (value & 0xFF) << 5),
        ),
        max_size=30,
    )
)
def test_whatever_software_writes_the_hardware_goes_on(writes):
    rig = Rig()
    for offset, width, value in writes:
        rig.smmu.write(offset, width, value & (1 << 8 * width) - 1)
        rig.smmu.read(offset, width)
    assert isinstance(reach(rig.smmu, 0x1000), int)
    rig.smmu.page_request(PageRequest(SID, 0x1000, READ, 1, True))


# Events


def test_a_full_event_queue_overflows_once_and_keeps_what_it_has():
    rig = Rig()
    for number in range(20):
        reach(rig.smmu, number, sid=100)
    prod = rig.get("EVENTQ_PROD")
    assert (prod.WR, prod.OVFLG) == (16, 1)
    assert len(rig.take_events()) == 16
    reach(rig.smmu, 0, sid=100)
    assert (len(rig.take_events()), rig.get("EVENTQ_PROD").OVFLG) == (1, 1)


def test_events_are_signalled_when_the_queue_gets_its_first():
    rig = Rig()
    where = rig.memory.alloc(4096)
    rig.set("EVENTQ_IRQ_CFG0", where)
    rig.set("EVENTQ_IRQ_CFG1", 0x55)
    rig.set("IRQ_CTRL", IrqCtrl.of(EVENTQ=1))
    rig.set("EVENTQ_IRQ_CFG1", 0x66)  # in use
    for _ in range(2):
        reach(rig.smmu, 0, sid=100)
    assert (rig.wires, rig.memory.read_u32(where)) == ([Wire.EVENTQ], 0x55)
    rig.take_events()
    reach(rig.smmu, 0, sid=100)
    assert rig.wires == [Wire.EVENTQ] * 2


def test_an_event_queue_outside_memory_is_a_global_error():
    rig = Rig(on=False)
    rig.set("EVENTQ_BASE", QueueBase.of(LOG2SIZE=4, ADDR=NOWHERE >> 5))
    rig.on()
    reach(rig.smmu, 0, sid=100)
    assert error(rig)[0] == registers.Gerror.of(EVENTQ_ABT=1)
    assert rig.get("EVENTQ_PROD") == 0


def test_bad_streams_are_recorded_only_where_software_asks():
    rig = Rig(on=False)
    rig.set("CR2", 0)
    rig.on()
    assert reach(rig.smmu, 0, sid=100) is Event.C_BAD_STREAMID
    assert rig.take_events() == []


@pytest.mark.parametrize("pasid", [None, 3])
def test_records_have_the_fields_of_their_type(pasid):
    rig = Rig()
    pages = rig.pages("arm64-4k-48-s1")
    mapped(pages, 0x1000, 0x100000)
    rig.stage1(pages, cdmax=2, s1dss=2, ssid=pasid or 0)
    assert reach(rig.smmu, 0x12345678, WRITE, pasid=pasid, privileged=True) is Event.F_TRANSLATION
    first, how, iova, ipa = rig.event()
    assert first == Event0.of(TYPE=0x10, SID=SID, SSV=int(pasid is not None), SSID=pasid or 0)
    assert how == Event1.of(PNU=1, CLASS=2)
    assert (iova, ipa) == (0x12345678, 0)


# Stalls


def stalled(rig, iova=0x1000):
    with pytest.raises(SmmuFaultError) as caught:
        rig.smmu.translate(SID, iova, WRITE)
    assert caught.value.response is Response.STALL
    return caught.value.stag


def test_a_stalled_transaction_waits_for_its_resume():
    rig = Rig()
    pages = rig.pages("arm64-4k-48-s1")
    rig.stage1(pages, S=1, R=0)
    stag = stalled(rig)
    first, how, _, _ = rig.event()
    assert (first.TYPE, how.STALL, how.STAG) == (Event.F_TRANSLATION, 1, stag)
    rig.op(Op.RESUME, SID=SID + 1, STAG=stag, AC=1)
    rig.op(Op.RESUME, SID=SID, STAG=stag + 1, AC=1)
    assert rig.resumed == []
    mapped(pages, 0x1000, 0x100000)
    rig.op(Op.RESUME, SID=SID, STAG=stag, AC=1)
    ((resumed, request, outcome),) = rig.resumed
    assert (resumed, request.iova, outcome) == (stag, 0x1000, Outcome.RETRY)
    assert reach(rig.smmu, request.iova, request.want) == 0x100000
    assert rig.smmu.stalls.waiting == {}


@pytest.mark.parametrize(
    ("term_model", "ab", "outcome"), [(0, 0, Outcome.RAZ_WI), (0, 1, Outcome.ABORT), (1, 0, Outcome.ABORT)]
)
def test_a_stalled_transaction_can_be_terminated(term_model, ab, outcome):
    rig = Rig(less(TERM_MODEL=term_model))
    rig.stage1(rig.pages("arm64-4k-48-s1"), S=1)
    rig.op(Op.RESUME, SID=SID, STAG=stalled(rig), AB=ab)
    assert rig.resumed[0][2] is outcome


def test_all_of_a_stream_are_terminated_and_all_when_translation_ends():
    rig = Rig()
    rig.stage2(rig.pages("arm64-4k-40-s2"), S2S=1)
    for number in range(3):
        assert stalled(rig, 0x1000 * number) == number
    rig.op(Op.STALL_TERM, SID=SID + 1)
    assert rig.resumed == []
    rig.op(Op.STALL_TERM, SID=SID)
    assert [outcome for _, _, outcome in rig.resumed] == [Outcome.ABORT] * 3
    assert stalled(rig) == 0
    rig.set("CR0", 0)
    assert len(rig.resumed) == 4


def test_records_of_stalls_wait_for_room_and_stags_are_few():
    rig = Rig()
    rig.stage1(rig.pages("arm64-4k-48-s1"), S=1)
    for _ in range(14):
        reach(rig.smmu, 0, sid=100)
    stags = [stalled(rig) for _ in range(17)]
    assert stags == [*range(16), None]
    assert rig.get("EVENTQ_PROD").OVFLG == 0
    taken = rig.take_events()
    assert len(taken) == 16
    later = [Event1(words[1]).STAG for words in rig.take_events()]
    assert later == list(range(2, 16))


# ATS and PRI


class Device:
    """A device's side: what it heard, and whether it answers."""

    def __init__(self, answers=True):
        self.answers, self.invalidated, self.responses = answers, [], []

    def invalidate(self, pasid, first, last):
        self.invalidated.append((pasid, first, last))
        return self.answers

    def page_response(self, pasid, group, code):
        self.responses.append((pasid, group, code))


def ats_rig(eats=1, **fields):
    rig = Rig()
    rig.pages1 = rig.pages("arm64-4k-48-s1")
    mapped(rig.pages1, 0x1000, 0x100000)
    rig.stage1(rig.pages1, ste1=Ste1.of(EATS=eats), **fields)
    return rig


def refused(ask, *request):
    with pytest.raises(SmmuFaultError) as caught:
        ask(*request)
    return caught.value.reason, caught.value.response


def test_a_translation_request_tells_what_is_allowed():
    rig = ats_rig()
    assert rig.smmu.ats_translate(SID, 0x1008, RW) == Translation(0x100008, 12, RW)
    assert rig.smmu.ats_translate(SID, 0x1008, READ | EXECUTE).allowed == RW | EXECUTE
    assert rig.smmu.ats_translate(SID, 0x2000, RW).allowed == 0
    assert rig.take_events() == []
    mapped(rig.pages1, 0x3000, 0x300000, prot=READ)
    assert rig.smmu.ats_translate(SID, 0x3000, RW).allowed & RW == READ
    assert rig.smmu.admit_translated(SID, 0x100000, WRITE).pa == 0x100000
    assert refused(rig.smmu.admit_translated, SID, 1 << 52, WRITE)[0] is Event.SILENT
    (leaf,) = rig.pages1.leaves(0x3000, 0x3000)
    rig.memory.write_u64(leaf.at, leaf.pte & ~arm64.AP_USER)  # only execution is left to users
    rig.op(Op.TLBI_NSNH_ALL)
    assert rig.smmu.ats_translate(SID, 0x3000, RW | EXECUTE).allowed == 0


def test_a_translation_request_sets_the_dirty_flag_only_for_writes():
    rig = ats_rig(HA=1, HD=1)
    (leaf,) = rig.pages1.leaves(0x1000, 0x1000)
    rig.memory.write_u64(leaf.at, leaf.pte | arm64.DBM | arm64.AP_READ_ONLY)
    assert rig.smmu.ats_translate(SID, 0x1000, READ).allowed & RW == READ
    assert rig.memory.read_u64(leaf.at) & arm64.AP_READ_ONLY
    assert rig.smmu.ats_translate(SID, 0x1000, RW).allowed & RW == RW
    assert not rig.memory.read_u64(leaf.at) & arm64.AP_READ_ONLY


def test_what_may_not_ask_is_unsupported_and_told():
    rig = ats_rig(eats=0)
    forbidden = (Event.F_TRANSL_FORBIDDEN, Response.ABORT)
    assert refused(rig.smmu.ats_translate, SID, 0x1000, READ) == (Event.F_BAD_ATS_TREQ, Response.UNSUPPORTED)
    assert rig.event()[0].TYPE == Event.F_BAD_ATS_TREQ
    assert refused(rig.smmu.admit_translated, SID, 0x1000, READ) == forbidden
    assert rig.event()[0].TYPE == Event.F_TRANSL_FORBIDDEN
    rig.on(ATSCHK=0)
    assert rig.smmu.admit_translated(SID, 0x5000, READ).pa == 0x5000
    rig.on(SMMUEN=0)
    assert refused(rig.smmu.ats_translate, SID, 0x1000, READ) == (Event.F_BAD_ATS_TREQ, Response.UNSUPPORTED)
    assert refused(rig.smmu.admit_translated, SID, 0x1000, READ) == forbidden


def test_streams_that_abort_or_are_bad():
    rig = ats_rig()
    rig.ste(Ste0.of(V=1))
    assert refused(rig.smmu.ats_translate, SID, 0, READ) == (Event.SILENT, Response.UNSUPPORTED)
    assert refused(rig.smmu.admit_translated, SID, 0, READ) == (Event.SILENT, Response.ABORT)
    assert rig.take_events() == []
    rig.ste(0)
    rig.forget()
    assert refused(rig.smmu.ats_translate, SID, 0, READ) == (Event.C_BAD_STE, Response.COMPLETER_ABORT)
    assert rig.event()[0].TYPE == Event.C_BAD_STE
    rig.set("CR0", 0)
    rig.set("CR2", 0)
    rig.on()
    assert refused(rig.smmu.ats_translate, SID, 0, READ) == (Event.C_BAD_STE, Response.COMPLETER_ABORT)
    assert refused(rig.smmu.admit_translated, SID, 0, READ) == (Event.C_BAD_STE, Response.ABORT)
    assert rig.take_events() == []


def test_split_ats_gives_the_intermediate_address_and_translates_it_later():
    rig = Rig()
    pages1, pages2 = rig.pages("arm64-4k-48-s1"), rig.pages("arm64-4k-40-s2")
    mapped(pages2, 0, 0, 32 << 20)
    mapped(pages2, 1 << 30, 0x1000000, 0x2000, READ)
    mapped(pages1, 0x1000, 1 << 30)
    rig.cd(*context(pages1))
    rig.ste(Ste0.of(V=1, CONFIG=Config.NEST, S1CONTEXTPTR=rig.cds >> 6), Ste1.of(EATS=2), *second(pages2))
    found = rig.smmu.ats_translate(SID, 0x1000, RW)
    assert (found.pa, found.allowed & RW) == (1 << 30, READ)
    assert rig.smmu.admit_translated(SID, 1 << 30, READ).pa == 0x1000000
    assert refused(rig.smmu.admit_translated, SID, 1 << 30, WRITE)[0] is Event.F_PERMISSION
    assert refused(rig.smmu.admit_translated, SID, 2 << 30, READ)[0] is Event.F_TRANSLATION
    assert [Event0(words[0]).SSV for words in rig.take_events()] == [0, 0]
    rig.on(ATSCHK=0)
    assert refused(rig.smmu.ats_translate, SID, 0x1000, READ)[0] is Event.F_BAD_ATS_TREQ


def test_bypassed_substreams_translate_to_themselves():
    rig = ats_rig(cdmax=1, s1dss=1)
    assert rig.smmu.ats_translate(SID, 0x7000, RW) == Translation(0x7000, 52, RW)


def test_device_tlbs_hear_of_invalidations_and_a_silent_one_stops_the_sync():
    rig = ats_rig(cdmax=1)
    device = Device()
    rig.smmu.connect(SID, device)
    rig.smmu.ats_translate(SID, 0x1000, READ, 0)
    rig.op(Op.ATC_INV, SID=SID, ADDR=0x5, SIZE=2)
    rig.op(Op.ATC_INV, SID=SID, SSV=1, SSID=1, GLOBAL=1, SIZE=52)
    rig.op(Op.ATC_INV, SID=SID + 1, SIZE=52)
    assert device.invalidated == [(None, 0x4000, 0x7FFF), (0, 0, 2**64 - 1), (1, 0, 2**64 - 1)]
    device.answers = False
    rig.op(Op.ATC_INV, SID=SID, SIZE=52)
    assert done(rig)
    rig.op(Op.SYNC)
    assert error(rig) == (registers.Gerror.of(CMDQ_ERR=1), CommandError.ATC_INV_SYNC)
    acknowledge(rig)
    assert done(rig)


@pytest.mark.parametrize(
    ("answer", "code"),
    [(Resp.DENY, ResponseCode.FAILURE), (Resp.FAIL, ResponseCode.INVALID), (Resp.SUCCESS, ResponseCode.SUCCESS)],
)
def test_page_requests_are_queued_and_answered(answer, code):
    rig = ats_rig()
    device = Device()
    rig.smmu.connect(SID, device)
    rig.smmu.page_request(PageRequest(SID, 0x5123, WRITE, 7, True, pasid=3, privileged=True))
    low, high = (rig.memory.read_u64(rig.requests + 8 * n) for n in range(2))
    assert low == Request0.of(SID=SID, SSID=3, SSV=1, PRIV=1, W=1, LAST=1)
    assert high == Request1.of(PRGINDEX=7, ADDR=5)
    rig.op(Op.PRI_RESP, SID=SID, SSV=1, SSID=3, PRGINDEX=7, RESP=answer)
    assert device.responses == [(3, 7, code)]


def test_a_full_queue_of_page_requests_answers_by_itself_until_it_is_acknowledged():
    rig = ats_rig()
    rig.ste(Ste0.of(V=1, CONFIG=Config.BYPASS), Ste1.of(PPAR=1))
    rig.forget()
    device = Device()
    rig.smmu.connect(SID, device)
    for number in range(16):
        rig.smmu.page_request(PageRequest(SID, 0x1000 * number, READ, number, False))
    rig.smmu.page_request(PageRequest(SID, 0, READ, 20, False))
    assert device.responses == []
    rig.smmu.page_request(PageRequest(SID, 0, READ, 20, True, pasid=4))
    assert device.responses == [(4, 20, ResponseCode.SUCCESS)]
    prod = rig.get("PRIQ_PROD")
    assert (prod.WR, prod.OVFLG) == (16, 1)
    rig.set("PRIQ_CONS", 16)
    rig.smmu.page_request(PageRequest(SID, 0, READ, 21, True))
    assert device.responses[1:] == [(None, 21, ResponseCode.SUCCESS)]
    rig.smmu.page_request(PageRequest(SID, 0, 0, 22, True, pasid=4))  # a stop marker
    rig.ste(0)
    rig.forget()
    rig.smmu.page_request(PageRequest(SID, 0, READ, 23, True, pasid=4))
    assert device.responses[2:] == [(None, 23, ResponseCode.FAILURE)]
    rig.set("PRIQ_CONS", registers.Cons.of(RD=16, OVACKFLG=1))
    rig.smmu.page_request(PageRequest(SID, 0, READ, 24, True))
    assert rig.get("PRIQ_PROD").WR == 17


def test_page_requests_that_nobody_can_take_fail():
    rig = ats_rig()
    device = Device()
    rig.smmu.connect(SID, device)
    rig.on(PRIQEN=0)
    rig.set("PRIQ_BASE", QueueBase.of(LOG2SIZE=4, ADDR=NOWHERE >> 5))
    rig.smmu.page_request(PageRequest(SID, 0, READ, 1, True, pasid=4))
    rig.on()
    rig.smmu.page_request(PageRequest(SID, 0, READ, 2, True, pasid=4))
    assert error(rig)[0] == registers.Gerror.of(PRIQ_ABT=1)
    assert device.responses == [(None, 1, ResponseCode.FAILURE), (None, 2, ResponseCode.FAILURE)]


def test_the_last_request_of_a_group_can_interrupt():
    rig = ats_rig()
    rig.set("PRIQ_IRQ_CFG2", registers.IrqCfg2.of(LO=1))
    rig.set("IRQ_CTRL", IrqCtrl.of(PRIQ=1))
    for last in (False, False, True):
        rig.smmu.page_request(PageRequest(SID, 0, READ, 1, last))
    assert rig.wires == [Wire.PRIQ]
