"""AMD IOMMU: page requests of devices, in the PPR log or answered at once."""

import pytest
from amd_rig import SID, Device, Rig, answer
from hypothesis import given, settings, strategies as st

from softiommu.hardware.amd.events import Code, DeviceEvent, PprRecord
from softiommu.hardware.amd.registers import Registers, Status
from softiommu.hardware.amd.tables import Dte2
from softiommu.hardware.iommu import PageRequest, ResponseCode
from softiommu.pagetable.kinds import EXECUTE, READ, WRITE

REQUEST = PageRequest(SID, 0x7000, READ, group=0x1FF, last=True, pasid=0x98765)


@pytest.fixture
def rig():
    made = Rig(PprAutoRspEn=1)
    made.entry({"PPR": 1})
    made.device = Device()
    made.iommu.connect(SID, made.device)
    return made


def logged(rig, number=0):
    low, high = (rig.memory.read_u64(rig.requests + 16 * number + 8 * n) for n in range(2))
    return PprRecord(low), high


@pytest.mark.parametrize(
    ("want", "privileged", "set_flags"),
    [
        (READ, False, {"READ", "USER"}),
        (READ | WRITE, True, {"READ", "WRITE"}),
        (READ | EXECUTE, False, {"READ", "EXEC", "USER"}),
    ],
)
def test_a_request_is_logged_with_what_it_wants(rig, want, privileged, set_flags):
    rig.iommu.page_request(REQUEST._replace(want=want, privileged=privileged))
    low, high = logged(rig)
    assert (low.CODE, low.DeviceID, low.TAG, low.LAST, low.GN, high) == (1, SID, 0x1FF, 1, 1, 0x7000)
    assert low.PASID19_16 << 16 | low.PASID15_0 == 0x98765
    assert {name for name in ("READ", "WRITE", "EXEC", "USER", "RESERVED_BIT") if getattr(low, name)} == set_flags
    assert rig.status.PprInt
    assert rig.device.responses == []


def test_a_request_without_pasid_is_no_guests(rig):
    rig.iommu.page_request(REQUEST._replace(pasid=None, last=False))
    assert (logged(rig)[0].GN, logged(rig)[0].LAST) == (0, 0)


def test_a_device_that_may_not_ask_is_an_event_and_a_failure(rig):
    rig.entry({"PPR": 0})
    rig.iommu.page_request(REQUEST)
    low, high = rig.event()
    record = PprRecord(int(low))
    assert (low.CODE, record.DeviceID, record.TAG, record.READ, high) == (
        Code.INVALID_PPR_REQUEST,
        SID,
        0x1FF,
        0,
        0x7000,
    )
    assert rig.device.responses == [(0x98765, 0x1FF, ResponseCode.FAILURE)]
    rig.iommu.page_request(REQUEST._replace(last=False))
    assert len(rig.device.responses) == 1


def test_requests_that_are_off_fail(rig):
    rig.control(PPREn=0)
    rig.iommu.page_request(REQUEST)
    assert rig.device.responses == [(0x98765, 0x1FF, ResponseCode.FAILURE)]


@pytest.mark.parametrize("answers", [0, 1])
def test_a_full_log_stops_and_the_rest_is_lost_or_answered(rig, answers):
    rig.control(PprAutoRspEn=answers, PprIntEn=1)
    for group in range(256):
        rig.iommu.page_request(REQUEST._replace(group=group))
    assert (rig.status.PprOverflow, rig.status.PprLogRun) == (1, 0)
    assert rig.levels == [True]
    assert rig.device.responses == [(0x98765, 255, ResponseCode.SUCCESS)] * answers
    rig.set(Registers.PPR_HEAD, 255 * 16)
    rig.set(Registers.STATUS, Status.of(PprOverflow=1, PprInt=1))
    rig.control(PprLogEn=0)
    rig.control(PprAutoRspEn=answers)
    rig.iommu.page_request(REQUEST._replace(group=7))
    assert logged(rig, 255)[0].TAG == 7
    assert rig.iommu.read(Registers.PPR_TAIL.offset, 8) == 0


def test_requests_can_be_answered_always(rig):
    rig.control(PprAutoRspEn=1, PprAutoRspAon=1)
    rig.iommu.page_request(REQUEST)
    assert logged(rig)[0].TAG == 0x1FF
    assert rig.device.responses == [(0x98765, 0x1FF, ResponseCode.SUCCESS)]


WORDS = st.integers(0, (1 << 64) - 1)


@settings(max_examples=150, deadline=None)
@given(st.booleans(), WORDS, st.lists(WORDS, min_size=4, max_size=4), st.integers(0, 0xFFFF))
def test_garbage_in_an_interrupt_table_is_an_event_or_a_message(long, entry, table, data):
    rig = Rig(ram=1 << 20, GAEn=int(long))
    at = rig.memory.alloc(4096)
    near = entry & ~Dte2.IntTableRoot.mask & ~Dte2.RESERVED | (at if entry & 1 << 6 else entry & Dte2.IntTableRoot.mask)
    rig.memory.write(at, b"".join(word.to_bytes(8, "little") for word in table))
    rig.entry({"TV": 0}, q2={name: getattr(Dte2(near), name) for name in Dte2.FIELDS})
    found = answer(rig.iommu.remap_interrupt, SID, 0xFEE00000, data)
    if isinstance(found, Code):
        assert all(DeviceEvent(record.low).CODE == found for record in rig.take_events())
    else:
        address, message = found
        assert address & 0xFFF0_0000 == 0xFEE0_0000
        assert message >> 16 == 0


@settings(max_examples=100, deadline=None)
@given(WORDS, st.integers(0, 7), st.integers(0, 1 << 16), st.booleans(), st.one_of(st.none(), st.integers(0, 1 << 20)))
def test_any_page_request_is_logged_or_answered_but_a_stop_marker(iova, want, group, last, pasid):
    rig = Rig(ram=1 << 20)
    device = Device()
    rig.iommu.connect(SID, device)
    marks = pasid is not None and want & (READ | WRITE) == 0
    for bit, answers in ((1, 0), (0, int(last and not marks))):
        rig.entry({"PPR": bit})
        before = rig.iommu.read(Registers.PPR_TAIL.offset, 8)
        rig.iommu.page_request(PageRequest(SID, iova, want, group, last, pasid))
        assert rig.iommu.read(Registers.PPR_TAIL.offset, 8) - before == 16 * bit
        assert len(device.responses) == answers
