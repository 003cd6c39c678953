"""An SMMUv3's registers, commands, events, page requests, stalls, ATS and interrupts."""

import pytest
from hypothesis import given, settings, strategies as st
from smmuv3_rig import LG2, NOWHERE, SID, Device, Rig, acknowledge, done, error, mapped, reach

from softiommu.hardware.iommu import PageRequest
from softiommu.hardware.smmuv3 import registers
from softiommu.hardware.smmuv3.commands import LAYOUTS, Op
from softiommu.hardware.smmuv3.events import Event, Event0, Event1
from softiommu.hardware.smmuv3.faults import Response, SmmuFaultError
from softiommu.hardware.smmuv3.presets import FULL, QEMU
from softiommu.hardware.smmuv3.registers import CommandError, Cr0, IrqCtrl, QueueBase
from softiommu.hardware.smmuv3.signals import Wire
from softiommu.hardware.smmuv3.stalls import Outcome
from softiommu.hardware.smmuv3.tables import Config, Ste0
from softiommu.pagetable.kinds import READ, WRITE


def less(**fields):
    return FULL._replace(idr0=FULL.idr0.replace(**fields))


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
