"""The ATS/PRI test device: its copies, its device TLB, and its page requests, alone and behind a VT-d unit."""

import pytest
import riscv_rig
from vtd_rig import SID, Bench

from softiommu.hardware.ats import DeviceTlb
from softiommu.hardware.bus import Port
from softiommu.hardware.cache import Shape
from softiommu.hardware.devices.pcitest import PciTest
from softiommu.hardware.iommu import Request, ResponseCode, Translation, TranslationFaultError
from softiommu.hardware.pci_config import ExtendedId
from softiommu.hardware.riscv import events as riscv_events
from softiommu.hardware.riscv.commands import Ats0, Command, Inval, Prgr
from softiommu.hardware.vtd import tables
from softiommu.hardware.vtd.commands import PageGroupResponse0, PageGroupResponse1, Type
from softiommu.hardware.vtd.events import PageRequest0, PageRequest1, Reason
from softiommu.hardware.vtd.registers import Registers
from softiommu.memory.physical import PhysicalMemory
from softiommu.pagetable.kinds import READ, WRITE

ADDRESS, COMMAND, PASID = 0x0, 0x8, 0x10
FROM_MEMORY, TO_MEMORY = 3, 1
RW = READ | WRITE


class Fake:
    """An IOMMU with ATS: pages by (pasid, number); it keeps what it is asked."""

    def __init__(self):
        self.pages, self.asked, self.requests, self.refused = {}, [], [], set()
        self.answer = None

    def read(self, offset, width):
        return offset + width

    def write(self, offset, width, value):
        self.asked.append((offset, width, value))

    def connect(self, sid, endpoint):
        self.sid, self.endpoint = sid, endpoint

    def translate(self, sid, iova, want, pasid=None, privileged=False):
        found = self.pages.get((pasid, iova >> 12))
        if found is None or want & ~found[1]:
            raise TranslationFaultError(Reason.NO_READ, Request(sid, iova, want, pasid))
        return Translation(found[0] | iova & 0xFFF, 12, found[1])

    def ats_translate(self, sid, iova, want, pasid=None, privileged=False):
        self.asked.append((iova, want, pasid))
        pa, allowed = self.pages.get((pasid, iova >> 12), (0, 0))
        return Translation(pa | iova & 0xFFF, 12, allowed)

    def admit_translated(self, sid, pa, want, pasid=None):
        if pa >> 12 in self.refused:
            raise TranslationFaultError(Reason.DEVICE_TLB_NOT_ENABLED, Request(sid, pa, want, pasid))
        return Translation(pa, 64, RW)

    def page_request(self, request):
        self.requests.append(request)
        if self.answer is not None:
            self.endpoint.page_response(request.pasid, request.group, self.answer)


class Rig:
    def __init__(self, memory, iommu, sid=SID, ats=True):
        self.memory, self.iommu = memory, iommu
        self.device = PciTest(Port(memory, sid, iommu), iommu if ats else None, pasid_bits=20)
        self.function = self.device.function
        self.function.write_config(4, 2, 6)

    def enable(self, ats=True, pri=True, pasid=True, allocation=1):
        config, find = self.function.write_config, self.function.find_capability
        config(find(ExtendedId.PASID) + 6, 2, int(pasid))
        config(find(ExtendedId.PRI) + 12, 4, allocation)
        config(find(ExtendedId.PRI) + 4, 2, int(pri))
        config(find(ExtendedId.ATS) + 6, 2, ats << 15)

    def pri_status(self):
        return self.function.read_config(self.function.find_capability(ExtendedId.PRI) + 6, 2)

    def copy(self, iova, command, pasid=None):
        write = self.function.write_bar
        write(0, ADDRESS, 4, iova & 0xFFFFFFFF)
        write(0, ADDRESS + 4, 4, iova >> 32)
        write(0, PASID, 4, 0 if pasid is None else 1 << 31 | pasid)
        write(0, COMMAND, 4, command)
        return self.busy

    @property
    def busy(self):
        return bool(self.function.read_bar(0, COMMAND, 4) & 1)


@pytest.fixture
def rig():
    made = Rig(PhysicalMemory(16 << 20), Fake())
    made.memory.write(0x5000, b"m" * 8192)
    return made


def test_it_is_found_as_the_test_programs_find_it(rig):
    assert rig.function.read_config(0, 4) == 0x11E91234
    assert rig.function.read_config(8, 4) == 0x00FF0002
    rig.function.write_config(0x10, 4, 0xFFFFFFFF)
    assert rig.function.read_config(0x10, 4) == 0xFFFFF004
    assert {id for id in ExtendedId if rig.function.find_capability(id)} == set(ExtendedId)


def test_it_copies_its_buffer_both_ways(rig):
    rig.iommu.pages = {(None, 0x10): (0x5000, RW), (None, 0x20): (0x7000, RW)}
    assert not rig.copy(0x10000, FROM_MEMORY)
    assert not rig.copy(0x20000, TO_MEMORY)
    assert rig.memory.read(0x7000, 4096) == b"m" * 4096
    assert rig.iommu.asked == []
    assert not rig.copy(0x30000, FROM_MEMORY)
    assert rig.device.buffer == b"m" * 4096


def test_without_ats_there_is_no_capability_for_it():
    rig = Rig(PhysicalMemory(1 << 20), None, ats=False)
    assert [rig.function.find_capability(id) for id in (ExtendedId.ATS, ExtendedId.PRI)] == [None, None]
    assert not rig.copy(0x5000, FROM_MEMORY)
    assert not rig.copy(0x5000, FROM_MEMORY, pasid=1)


def test_translations_are_kept_until_they_are_invalidated(rig):
    rig.enable()
    rig.iommu.pages = {(None, 0x10): (0x5000, READ), (9, 0x10): (0x6000, RW)}
    for _ in range(2):
        rig.copy(0x10000, FROM_MEMORY)
        rig.copy(0x10000, FROM_MEMORY, pasid=9)
    assert rig.iommu.asked == [(0x10000, READ, None), (0x10000, READ, 9)]
    rig.iommu.pages[None, 0x10] = (0x8000, READ)
    rig.memory.write(0x8000, b"n" * 4096)
    assert rig.iommu.endpoint.invalidate(9, 0, 0xFFFF)
    assert rig.iommu.endpoint.invalidate(9, 0x10000, 0x10FFF)
    rig.copy(0x10000, FROM_MEMORY)
    assert rig.device.buffer[:1] == b"m"
    rig.iommu.endpoint.invalidate(None, 0x10800, 0x10800)
    rig.copy(0x10000, FROM_MEMORY)
    rig.copy(0x10000, FROM_MEMORY, pasid=9)
    assert rig.device.buffer[:1] == b"m"
    assert rig.iommu.asked[2:] == [(0x10000, READ, None), (0x10000, READ, 9)]


def test_turning_ats_off_forgets_translations(rig):
    rig.iommu.pages = {(None, 0x10): (0x5000, RW)}
    for _ in range(2):
        rig.enable()
        rig.copy(0x10000, FROM_MEMORY)
        rig.enable(ats=False)
        rig.copy(0x10000, FROM_MEMORY)
    rig.enable()
    rig.copy(0x10000, FROM_MEMORY)
    rig.function.reset()
    assert rig.function.port.iommu is rig.iommu
    assert len(rig.iommu.asked) == 3


def test_a_translation_without_the_right_is_asked_for_again(rig):
    rig.enable(pri=False)
    rig.iommu.pages = {(None, 0x10): (0x5000, READ)}
    rig.copy(0x10000, FROM_MEMORY)
    rig.device.buffer[:] = b"d" * 4096
    rig.copy(0x10000, TO_MEMORY)
    assert rig.memory.read(0x5000, 1) == b"m"
    rig.iommu.pages = {(None, 0x10): (0x5000, RW)}
    rig.copy(0x10000, TO_MEMORY)
    assert rig.memory.read(0x5000, 1) == b"d"
    assert [want for _, want, _ in rig.iommu.asked] == [READ, WRITE, WRITE]


def test_a_translated_request_that_is_refused_moves_nothing(rig):
    rig.enable(pri=False)
    rig.iommu.pages = {(None, 0x10): (0x5000, RW)}
    rig.iommu.refused = {5}
    assert not rig.copy(0x10000, FROM_MEMORY)
    assert not any(rig.device.buffer)


def test_a_page_that_misses_is_asked_for_and_waited_for(rig):
    rig.enable()
    rig.iommu.pages = {(7, 0x10): (0x5000, RW)}
    assert rig.copy(0x10800, FROM_MEMORY, pasid=7)
    (request,) = rig.iommu.requests
    assert (request.sid, request.iova, request.want, request.last, request.pasid) == (SID, 0x11000, READ, True, 7)
    rig.function.write_bar(0, COMMAND, 4, 0)
    assert rig.busy
    rig.iommu.pages[7, 0x11] = (0x6000, RW)
    rig.iommu.endpoint.page_response(7, request.group, ResponseCode.SUCCESS)
    assert not rig.busy
    assert rig.device.buffer == b"m" * 4096


@pytest.mark.parametrize(("code", "status"), [(ResponseCode.INVALID, 0), (ResponseCode.FAILURE, 1)])
@pytest.mark.parametrize("at_once", [False, True])
def test_an_answer_that_is_no_ends_the_transfer(rig, code, status, at_once):
    rig.enable()
    rig.iommu.answer = code if at_once else None
    assert rig.copy(0x10000, TO_MEMORY) is not at_once
    if not at_once:
        rig.iommu.endpoint.page_response(None, rig.iommu.requests[0].group, code)
    assert not rig.busy
    assert len(rig.iommu.requests) == 1
    assert rig.pri_status() == status


def test_an_iommu_that_says_yes_without_a_page_is_not_asked_for_ever(rig):
    rig.enable()
    rig.iommu.answer = ResponseCode.SUCCESS
    assert not rig.copy(0x10000, FROM_MEMORY)
    assert [request.group for request in rig.iommu.requests] == list(range(16))


def test_answers_that_nobody_waits_for_are_noted(rig):
    rig.enable()
    rig.iommu.endpoint.page_response(None, 3, ResponseCode.SUCCESS)
    assert rig.pri_status() == 2
    at = rig.function.find_capability(ExtendedId.PRI)
    rig.function.write_config(at + 6, 2, 2)
    assert rig.pri_status() == 0
    rig.function.write_config(at + 4, 2, 2)
    assert (rig.function.read_config(at + 4, 2), rig.pri_status()) == (0, 0x100)


@pytest.mark.parametrize("off", [{"ats": False}, {"pri": False}, {"allocation": 0}])
def test_nothing_is_asked_for_without_the_right_to(rig, off):
    rig.enable(**off)
    assert not rig.copy(0x10000, FROM_MEMORY)
    assert rig.iommu.requests == []


def test_a_reset_forgets_a_transfer_that_waits(rig):
    rig.enable()
    assert rig.copy(0x10000, FROM_MEMORY)
    rig.function.reset()
    rig.function.write_config(4, 2, 6)
    assert not rig.busy
    rig.iommu.pages = {(None, 0x10): (0x5000, RW)}
    rig.iommu.endpoint.page_response(None, 0, ResponseCode.SUCCESS)
    assert not any(rig.device.buffer)


def test_a_device_tlb_shows_the_iommu_s_registers(rig):
    tlb = DeviceTlb(rig.function, rig.iommu, shape=Shape(1, 1))
    tlb.write(8, 4, 5)
    assert (tlb.read(8, 4), rig.iommu.asked) == (12, [(8, 4, 5)])


# Behind a VT-d unit


@pytest.fixture
def bench():
    made = Bench()
    made.change(made.context, tables.ScalableContext0, DTE=1, PRE=1)
    made.pasid(tables.Pgtt.FIRST, 5, did=3)
    made.first.map(0x10000, 0x1000000, 0x1000, RW)
    made.memory.write(0x1000000, b"m" * 4096)
    made.rig = Rig(made.memory, made.unit)
    made.rig.enable()
    return made


@pytest.mark.parametrize("pasid", [None, 5])
def test_vtd_answers_translations_and_admits_what_they_give(bench, pasid):
    assert not bench.rig.copy(0x10000, FROM_MEMORY, pasid)
    assert bench.rig.device.buffer == b"m" * 4096
    assert not bench.record()[1].F
    bench.change(bench.context, tables.ScalableContext0, DTE=0)
    bench.submit(Type.CONTEXT | 1 << 4, Type.PASID_CACHE | 3 << 4)
    assert not bench.rig.copy(0x10000, TO_MEMORY, pasid)
    assert bench.record()[1].F


def test_vtd_queues_a_page_request_and_software_answers_it(bench):
    queue = bench.memory.alloc(4096)
    bench.write(Registers.PQA, queue)
    assert bench.rig.copy(0x20000, TO_MEMORY, pasid=5)
    low, high = (bench.memory.read_u64(queue + 8 * n) for n in range(2))
    assert (PageRequest0(low).RID, PageRequest0(low).PASID, PageRequest1(high).ADDR) == (SID, 5, 0x20)
    bench.first.map(0x20000, 0x1002000, 0x1000, RW)
    bench.rig.device.buffer[:] = b"d" * 4096
    answer = PageGroupResponse0.of(TYPE=Type.PAGE_GROUP_RESPONSE, PP=1, RID=SID, PASID=5)
    bench.submit((answer, PageGroupResponse1.of(PRGI=PageRequest1(high).PRGI)))
    assert not bench.rig.busy
    assert bench.memory.read(0x1002000, 4096) == b"d" * 4096


# Behind a RISC-V IOMMU


@pytest.fixture
def riscv():
    made = riscv_rig.Rig()
    made.pages = made.pages("riscv-sv39x4")
    made.device(riscv_rig.context(second=made.pages, EN_ATS=1, EN_PRI=1))
    made.pages.map(0x10000, 0x1000000, 0x1000, RW)
    made.memory.write(0x1000000, b"m" * 4096)
    made.rig = Rig(made.memory, made.iommu, riscv_rig.SID)
    made.rig.enable()
    return made


def to_device(command, **fields):
    sid = riscv_rig.SID
    return Ats0.of(COMMAND=command, RID=sid & 0xFFFF, DSV=1, DSEG=sid >> 16, **fields)


def test_riscv_invalidates_what_the_device_keeps(riscv):
    assert not riscv.rig.copy(0x10000, FROM_MEMORY)
    assert riscv.rig.device.buffer == b"m" * 4096
    riscv.memory.write(0x1001000, b"n" * 4096)
    riscv.pages.unmap(0x10000, 0x1000)
    riscv.pages.map(0x10000, 0x1001000, 0x1000, RW)
    riscv.submit(Command.IOTINVAL_GVMA)
    riscv.rig.copy(0x10000, FROM_MEMORY)
    assert riscv.rig.device.buffer == b"m" * 4096
    riscv.submit(to_device(Command.ATS_INVAL), Inval.of(PAGE=0x10))
    riscv.rig.copy(0x10000, FROM_MEMORY)
    assert riscv.rig.device.buffer == b"n" * 4096
    assert riscv.faults() == []


def test_riscv_queues_a_page_request_and_software_answers_it(riscv):
    assert riscv.rig.copy(0x20000, TO_MEMORY)
    request = riscv_events.PageRequest1(riscv.memory.read_u64(riscv.queues[2] + 8))
    assert (request.W, request.L, request.PAGE) == (1, 1, 0x20)
    riscv.pages.map(0x20000, 0x1002000, 0x1000, RW)
    riscv.rig.device.buffer[:] = b"d" * 4096
    riscv.submit(to_device(Command.ATS_PRGR), Prgr.of(PRGI=request.PRGI))
    assert not riscv.rig.busy
    assert riscv.memory.read(0x1002000, 4096) == b"d" * 4096
