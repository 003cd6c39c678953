"""An SMMUv3 and devices with TLBs of their own: translation requests, translated transactions, page requests."""

import pytest
from smmuv3_rig import NOWHERE, RW, SID, Device, Rig, acknowledge, context, done, error, mapped, second

from softiommu.hardware.iommu import PageRequest, ResponseCode, Translation
from softiommu.hardware.smmuv3 import registers
from softiommu.hardware.smmuv3.commands import Op, Resp
from softiommu.hardware.smmuv3.events import Event, Event0, Request0, Request1
from softiommu.hardware.smmuv3.faults import Response, SmmuFaultError
from softiommu.hardware.smmuv3.registers import CommandError, IrqCtrl, QueueBase
from softiommu.hardware.smmuv3.signals import Wire
from softiommu.hardware.smmuv3.tables import Config, Ste0, Ste1
from softiommu.pagetable.formats import arm64
from softiommu.pagetable.kinds import EXECUTE, READ, WRITE

# ATS and PRI


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
