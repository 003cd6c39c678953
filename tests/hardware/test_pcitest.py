"""The ATS/PRI test device: its copies, its device TLB, and its page requests, alone and behind a VT-d unit."""

import pytest
from pcitest_driver import FROM_MEMORY, TO_MEMORY, Rig
from vtd_rig import SID, Bench

from softiommu.hardware.ats import DeviceTlb
from softiommu.hardware.cache import Shape
from softiommu.hardware.iommu import Request, ResponseCode, Translation, TranslationFaultError
from softiommu.hardware.pci_config import ExtendedId
from softiommu.hardware.vtd import tables
from softiommu.hardware.vtd.commands import PageGroupResponse0, PageGroupResponse1, Type
from softiommu.hardware.vtd.events import PageRequest0, PageRequest1, Reason
from softiommu.hardware.vtd.registers import Registers
from softiommu.memory.physical import PhysicalMemory
from softiommu.pagetable.kinds import READ, WRITE

COMMAND = 0x8
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


@pytest.fixture
def rig():
    made = Rig(PhysicalMemory(16 << 20), Fake(), SID)
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
    rig = Rig(PhysicalMemory(1 << 20), None, SID, ats=False)
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
    made.rig = Rig(made.memory, made.unit, SID)
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
