"""Page requests and stalled transactions, by each driver: to the device, and answers back."""

from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from softiommu.drivers.amd.driver import AmdDriver
from softiommu.drivers.driver import DomainFlags, PageFault, PageResponse, Prot
from softiommu.drivers.function import Function
from softiommu.drivers.riscv.driver import RiscvDriver
from softiommu.drivers.smmuv3.driver import SmmuDriver
from softiommu.drivers.vtd.driver import VtdDriver
from softiommu.hardware.amd.model import AmdIommu
from softiommu.hardware.iommu import PageRequest, ResponseCode, TranslationFaultError
from softiommu.hardware.riscv import presets as riscv
from softiommu.hardware.riscv.model import RiscvIommu
from softiommu.hardware.riscv.registers import RecordCsr, Registers as RiscvRegisters
from softiommu.hardware.smmuv3 import presets as smmuv3
from softiommu.hardware.smmuv3.model import Smmu
from softiommu.hardware.vtd import presets as vtd
from softiommu.hardware.vtd.model import Unit
from softiommu.memory.physical import PhysicalMemory
from softiommu.pagetable.kinds import EXECUTE, READ, WRITE

RAM, SID = 48 << 20, 0x20
SUCCESS, INVALID, FAILURE = ResponseCode.SUCCESS, ResponseCode.INVALID, ResponseCode.FAILURE
RW = Prot.READ | Prot.WRITE
SIDS = st.sampled_from([SID, SID + 1, 0, 0xFFFF])


class Endpoint:
    """A device TLB. `asks` is called when it is told to forget, `goes_on` when it is answered."""

    def __init__(self):
        self.responses, self.asks, self.goes_on = [], lambda: None, lambda: None

    def invalidate(self, pasid, first, last):
        self.asks()
        return True

    def page_response(self, pasid, group, code):
        self.responses.append((pasid, group, code))
        self.goes_on()


def build(make, hear):
    memory = PhysicalMemory(RAM)
    if make == "smmuv3":
        unit = Smmu(memory, smmuv3.FULL, wired=lambda wire: hear())
        return unit, SmmuDriver(memory, unit)
    if make == "vtd":
        unit = Unit(memory, vtd.FULL.cap, vtd.FULL.ecap, interrupt=lambda *_: hear())
        return unit, VtdDriver(memory, unit)
    if make == "amd":
        unit = AmdIommu(memory, interrupt=lambda *_: hear())
        return unit, AmdDriver(memory, unit)
    capabilities = riscv.FULL.replace(IGS=1) if make == "riscv-wired" else riscv.FULL
    unit = RiscvIommu(memory, capabilities, interrupt=lambda *_: hear(), wire=lambda vector, level: hear())
    return unit, RiscvDriver(memory, unit)


@pytest.fixture(params=["riscv", "riscv-wired", "smmuv3"])
def rig(request):
    """An IOMMU whose interrupts are served while `listens` is set, and a device that makes page requests."""
    found = SimpleNamespace(make=request.param, listens=True, endpoint=Endpoint(), faults=[])

    def hear():
        if found.listens and hasattr(found, "driver"):
            found.driver.service()

    found.unit, found.driver = build(request.param, hear)
    found.device = found.driver.device(Function("gpu", (SID,), pasid_bits=8, ats=True, pri=True))
    found.unit.connect(SID, found.endpoint)
    found.domain = found.device.alloc_paging(DomainFlags.PASID if request.param == "smmuv3" else DomainFlags.NONE, None)
    found.device.attach(found.domain, None)
    return found


every_make = pytest.mark.parametrize("rig", ["vtd", "amd", "riscv", "riscv-wired", "smmuv3"], indirect=True)


def asked(want=READ, group=3, last=True, pasid=None, **more):
    return PageRequest(SID, 0x10000, want, group, last, pasid, **more)


def test_a_device_makes_page_requests_where_it_and_the_hardware_can():
    assert build("riscv", print)[1].device(Function("gpu", (SID,), ats=True, pri=True)).features.page_faults
    for function in (Function("nic", (SID,), ats=True), Function("edu", (SID,)), Function("odd", (SID,), pri=True)):
        for make in ("riscv", "smmuv3"):
            assert not build(make, print)[1].device(function).features.page_faults
    memory = PhysicalMemory(RAM)
    unit = RiscvIommu(memory, riscv.FULL.replace(ATS=0, T2GPA=0))
    assert not RiscvDriver(memory, unit).device(Function("gpu", (SID,), ats=True, pri=True)).features.page_faults


def test_requests_come_to_the_device_and_answers_go_back(rig):
    rig.device.attach(rig.domain, 5)
    rig.device.on_fault = rig.faults.append
    rig.unit.page_request(asked(READ | EXECUTE, last=False, pasid=5, privileged=True))
    rig.unit.page_request(asked(WRITE, pasid=5))
    assert rig.faults == [PageFault(5, 3, False, 1 | 4 | 8, 0x10000), PageFault(5, 3, True, 2, 0x10000)]
    assert rig.endpoint.responses == []
    for response, code in (
        (PageResponse.SUCCESS, SUCCESS),
        (PageResponse.INVALID, INVALID),
        (PageResponse.FAILURE, FAILURE),
    ):
        rig.device.page_response(rig.faults, response)
        assert rig.endpoint.responses.pop() == (5, 3, code)
    rig.unit.page_request(asked(group=511))
    rig.device.page_response(rig.faults[2:], PageResponse.SUCCESS)
    assert rig.endpoint.responses == [(None, 511, SUCCESS)]


def test_what_nobody_hears_is_invalid_once_for_a_group(rig):
    for last in (False, False, True):
        rig.unit.page_request(asked(last=last))
    assert rig.endpoint.responses == [(None, 3, INVALID)]


@every_make
@pytest.mark.parametrize("privileged", [False, True])
@pytest.mark.parametrize("heard", [False, True])
def test_that_a_pasids_requests_stop_is_no_fault(rig, heard, privileged):
    rig.device.on_fault = rig.faults.append if heard else None
    rig.unit.page_request(asked(0, pasid=5, privileged=privileged))
    assert rig.faults == rig.endpoint.responses == []
    rig.device.on_fault = rig.faults.append
    rig.unit.page_request(asked(0, group=4))  # without a PASID it is a request like others
    assert [fault.group for fault in rig.faults] == [4]


@every_make
def test_a_request_without_a_right_that_is_not_the_last_is_no_stop_marker(rig):
    rig.device.on_fault = rig.faults.append
    rig.unit.page_request(asked(0, last=False, pasid=5))
    rig.unit.page_request(asked(READ, pasid=5))
    assert [(fault.last, fault.perm) for fault in rig.faults] == [(False, 0), (True, 1)]


@every_make
def test_a_stop_marker_that_finds_no_room_has_no_answer_either(rig):
    rig.listens, rig.device.on_fault = False, rig.faults.append
    while not rig.endpoint.responses:
        rig.unit.page_request(asked(group=1))
    (answer,) = rig.endpoint.responses
    assert answer == (None, 1, SUCCESS)
    rig.unit.page_request(asked(0, pasid=5))
    assert rig.endpoint.responses == [answer]
    rig.driver.service()
    assert {fault.group for fault in rig.faults} == {1}


@every_make
def test_a_device_that_asks_for_the_next_page_when_it_is_answered_is_answered_again(rig):
    groups = iter(range(4, 9))

    def ask():
        for group in groups:
            rig.unit.page_request(asked(group=group))
            return

    rig.endpoint.goes_on = ask
    rig.unit.page_request(asked())
    assert rig.endpoint.responses == [(None, group, INVALID) for group in range(3, 9)]


@every_make
def test_a_device_that_asks_while_it_forgets_is_answered(rig):
    groups = iter(range(9))
    rig.endpoint.asks = lambda: rig.unit.page_request(asked(group=next(groups)))
    for number in range(3):
        rig.domain.map(0x10000, 0x800000, 0x1000, RW)
        rig.domain.unmap(0x10000, 0x1000)
        rig.domain.flush()
        assert rig.endpoint.responses[number:] == [(None, number, INVALID)]


def test_a_full_queue_answers_by_itself_and_runs_again(rig):
    rig.listens, rig.device.on_fault = False, rig.faults.append
    room = 256 if rig.make == "smmuv3" else 255
    for number in range(room):
        rig.unit.page_request(asked(group=number))
    assert rig.endpoint.responses == []
    rig.unit.page_request(asked(last=False, group=300))
    assert rig.endpoint.responses == []
    rig.unit.page_request(asked(group=300, pasid=5))
    assert rig.endpoint.responses == [(5, 300, SUCCESS)]
    rig.driver.service()
    assert [fault.group for fault in rig.faults] == list(range(room))
    rig.listens = True
    rig.unit.page_request(asked(group=301))
    assert rig.faults[-1].group == 301
    assert len(rig.faults) == room + 1


def test_a_blocked_device_is_answered_by_the_hardware():
    unit, driver = build("riscv", lambda: None)
    endpoint = Endpoint()
    unit.connect(SID, endpoint)
    device = driver.device(Function("gpu", (SID,), ats=True, pri=True))
    unit.page_request(asked())
    assert endpoint.responses == [(None, 3, FAILURE)]
    device.attach(device.alloc_paging(DomainFlags.NONE, None), None)
    unit.write(RiscvRegisters.PQCSR.offset, 4, RecordCsr(0))
    unit.page_request(asked())
    assert endpoint.responses[1:] == [(None, 3, FAILURE)]


class Held:
    """An SMMU that holds a device's transactions; it is heard when `hear` is called."""

    def __init__(self, stall_model, **function):
        memory = PhysicalMemory(RAM)
        identity = smmuv3.FULL._replace(idr0=smmuv3.FULL.idr0.replace(STALL_MODEL=stall_model))
        if stall_model == 1:
            identity = identity._replace(idr5=identity.idr5.replace(STALL_MAX=0))
        self.unit = Smmu(memory, identity)
        self.driver = SmmuDriver(memory, self.unit)
        self.device = self.driver.device(Function("soc", (SID,), pasid_bits=8, **function))
        self.faults, self.again = [], []
        self.unit.listen(SID, self.again.append)
        self.domain = self.device.alloc_paging(DomainFlags.PASID, None)
        self.device.attach(self.domain, None)

    def send(self, iova=0x1234, want=READ, pasid=None):
        """Whether a transaction is held; None: it goes through."""
        try:
            self.unit.translate(SID, iova, want, pasid)
        except TranslationFaultError as fault:
            return fault.waits
        return None


@pytest.mark.parametrize(
    ("model", "function", "holds"),
    [
        (0, {"stalls": True}, True),
        (0, {}, False),
        (1, {"stalls": True}, False),
        (2, {}, True),
        (0, {"stalls": True, "ats": True, "pri": True}, False),
    ],
)
def test_who_is_held(model, function, holds):
    rig = Held(model, **function)
    assert rig.device.features.page_faults == (holds or "pri" in function)
    assert rig.send() is holds


@pytest.mark.parametrize("code", PageResponse)
def test_a_held_transaction_is_a_fault_and_is_resumed(code):
    rig = Held(0, stalls=True)
    rig.device.on_fault = rig.faults.append
    rig.device.attach(rig.domain, 5)
    assert rig.send(0x1234, WRITE, 5)
    assert rig.driver.faults.take() == []
    (fault,) = rig.faults
    assert fault == PageFault(5, fault.group, True, 2, 0x1000)
    assert rig.again == []
    rig.domain.map(0x1000, 0x800000, 0x1000, RW)
    rig.device.page_response(rig.faults, code)
    assert rig.again == [code is PageResponse.SUCCESS]
    assert rig.send(0x1234, WRITE, 5) is None


def test_what_is_refused_at_once_is_told_as_blocked():
    rig = Held(0, stalls=True)
    rig.device.on_fault = lambda fault: rig.device.page_response([fault], PageResponse.INVALID)
    assert rig.send()
    (blocked,) = rig.driver.faults.take()
    assert (blocked.sid, blocked.iova, rig.again) == (SID, 0x1234, [False])


def test_all_that_is_held_is_told_though_the_queue_was_full():
    rig = Held(0, stalls=True)
    rig.device.on_fault = rig.faults.append
    for number in range(200):  # events that are lost but for those there is room for
        rig.unit.page_request(asked(group=number))
        with pytest.raises(TranslationFaultError):
            rig.unit.translate(0x1234567, 0, READ)
    assert all(rig.send(number << 12) for number in range(16))
    assert rig.send(0x80000) is False  # there is no name left for it
    assert len(rig.driver.faults.take()) == 128
    assert [fault.addr for fault in rig.faults] == [number << 12 for number in range(16)]


def test_what_is_held_when_the_device_leaves_is_aborted():
    rig = Held(0, stalls=True)
    rig.device.attach(rig.domain, 5)
    rig.device.on_fault = rig.faults.append
    assert rig.send()
    rig.device.detach(5)
    assert rig.again == []
    rig.device.detach(None)
    assert rig.again == [False]
    rig.driver.faults.take()
    rig.device.page_response(rig.faults, PageResponse.SUCCESS)
    assert rig.again == [False]


@every_make
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, 2**16 - 1), st.integers(0, 7), st.integers(0, 511), st.booleans()), max_size=9)
)
def test_whatever_is_asked_for_the_driver_goes_on(rig, requests):
    rig.device.on_fault = rig.faults.append
    for sid, want, group, last in requests:
        rig.unit.page_request(PageRequest(sid, want << 40, want, group, last, 5 if group & 1 else None))
    rig.faults.clear()
    rig.unit.page_request(asked(group=77))
    assert [fault.group for fault in rig.faults] == [77]
