"""One device with a TLB of its own behind each IOMMU: it keeps what it is told, until it is told to forget it."""

import amd_rig
import pytest
import riscv_rig
import smmuv3_rig
import vtd_rig
from pcitest_driver import FROM_MEMORY, TO_MEMORY, Rig

from softiommu.hardware.amd.commands import Iotlb0, Opcode, PprResponse0, PprResponse1
from softiommu.hardware.amd.events import PprRecord
from softiommu.hardware.iommu import Translation
from softiommu.hardware.riscv import commands as riscv, events as riscv_events
from softiommu.hardware.smmuv3 import events as smmuv3_events
from softiommu.hardware.smmuv3.commands import Op, Resp
from softiommu.hardware.smmuv3.tables import Ste1
from softiommu.hardware.vtd import events as vtd_events
from softiommu.hardware.vtd.commands import (
    DeviceTlb0,
    Iotlb0 as VtdIotlb0,
    PageGroupResponse0,
    PageGroupResponse1,
    Type,
)
from softiommu.hardware.vtd.registers import Registers
from softiommu.hardware.vtd.tables import Pgtt, ScalableContext0
from softiommu.memory.physical import PhysicalMemory
from softiommu.pagetable.kinds import READ, WRITE

IOVA, OTHER, PA = 0x10000, 0x20000, 0x1000000
RW = READ | WRITE


class Vtd(vtd_rig.Bench):
    sid = vtd_rig.SID

    def __init__(self):
        super().__init__()
        self.change(self.context, ScalableContext0, DTE=1, PRE=1)
        self.pasid(Pgtt.SECOND)
        self.iommu, self.pages, self.requests = self.unit, self.second, self.memory.alloc(4096)
        self.write(Registers.PQA, self.requests)

    def forget(self):
        self.submit(VtdIotlb0.of(TYPE=Type.IOTLB, G=1))

    def forget_in_device(self, iova):
        self.submit((DeviceTlb0.of(TYPE=Type.DEVICE_TLB, SID=self.sid), iova))

    def asked(self):
        word = vtd_events.PageRequest1(self.memory.read_u64(self.requests + 8))
        return word.ADDR << 12, word.PRGI

    def answer(self, group):
        low = PageGroupResponse0.of(TYPE=Type.PAGE_GROUP_RESPONSE, RID=self.sid)
        self.submit((low, PageGroupResponse1.of(PRGI=group)))


class Riscv(riscv_rig.Rig):
    sid = riscv_rig.SID

    def __init__(self):
        super().__init__()
        self.pages = self.pages("riscv-sv39x4")
        self.device(riscv_rig.context(second=self.pages, EN_ATS=1, EN_PRI=1))

    def to_device(self, command, word):
        self.submit(riscv.Ats0.of(COMMAND=command, RID=self.sid & 0xFFFF, DSV=1, DSEG=self.sid >> 16), word)

    def forget(self):
        self.submit(riscv.Command.IOTINVAL_GVMA)

    def forget_in_device(self, iova):
        self.to_device(riscv.Command.ATS_INVAL, riscv.Inval.of(PAGE=iova >> 12))

    def asked(self):
        word = riscv_events.PageRequest1(self.memory.read_u64(self.queues[2] + 8))
        return word.PAGE << 12, word.PRGI

    def answer(self, group):
        self.to_device(riscv.Command.ATS_PRGR, riscv.Prgr.of(PRGI=group))


class Smmuv3(smmuv3_rig.Rig):
    sid = smmuv3_rig.SID

    def __init__(self):
        super().__init__()
        self.iommu, self.pages = self.smmu, self.pages("arm64-4k-48-s1")
        self.stage1(self.pages, ste1=Ste1.of(EATS=1))

    def forget_in_device(self, iova):
        self.op(Op.ATC_INV, SID=self.sid, ADDR=iova >> 12)

    def asked(self):
        word = smmuv3_events.Request1(self.memory.read_u64(self.requests + 8))
        return word.ADDR << 12, word.PRGINDEX

    def answer(self, group):
        self.op(Op.PRI_RESP, SID=self.sid, PRGINDEX=group, RESP=Resp.SUCCESS)


class Amd(amd_rig.Rig):
    sid = amd_rig.SID

    def __init__(self):
        super().__init__()
        self.pages = self.host(PPR=1)
        self.entry({"Mode": 4, "HostPageTableRoot": self.pages.root >> 12, "PPR": 1}, q1={"I": 1})

    def forget(self):
        self.submit(*amd_rig.pages_command())

    def forget_in_device(self, iova):
        self.submit(Iotlb0.of(OPCODE=Opcode.INVALIDATE_IOTLB_PAGES, DeviceID=self.sid), iova)

    def asked(self):
        low, high = (self.memory.read_u64(self.requests + 8 * n) for n in range(2))
        return high, PprRecord(low).TAG

    def answer(self, group):
        low = PprResponse0.of(OPCODE=Opcode.COMPLETE_PPR_REQUEST, DeviceID=self.sid)
        self.submit(low, PprResponse1.of(Tag=group))


@pytest.fixture(params=[Vtd, Riscv, Smmuv3, Amd], ids=lambda made: made.__name__)
def side(request):
    made = request.param()
    made.pages.map(IOVA, PA, 0x1000, RW)
    made.memory.write(PA, b"m" * 4096)
    made.card = Rig(made.memory, made.iommu, made.sid)
    made.card.enable()
    return made


def test_a_device_keeps_a_translation_until_its_own_tlb_is_invalidated(side):
    assert not side.card.copy(IOVA, FROM_MEMORY)
    assert side.card.device.buffer == b"m" * 4096
    side.memory.write(PA + 0x1000, b"n" * 4096)
    side.pages.unmap(IOVA, 0x1000)
    side.pages.map(IOVA, PA + 0x1000, 0x1000, RW)
    side.forget()
    side.card.copy(IOVA, FROM_MEMORY)
    assert side.card.device.buffer == b"m" * 4096
    side.forget_in_device(OTHER)
    side.card.copy(IOVA, FROM_MEMORY)
    assert side.card.device.buffer == b"m" * 4096
    side.forget_in_device(IOVA)
    side.card.copy(IOVA, FROM_MEMORY)
    assert side.card.device.buffer == b"n" * 4096


def test_a_page_that_misses_is_asked_for_and_used_when_software_has_answered(side):
    assert side.card.copy(OTHER, TO_MEMORY)
    iova, group = side.asked()
    assert iova == OTHER
    side.pages.map(OTHER, PA + 0x2000, 0x1000, RW)
    side.forget()
    side.card.device.buffer[:] = b"d" * 4096
    side.answer(group)
    assert not side.card.busy
    assert side.memory.read(PA + 0x2000, 4096) == b"d" * 4096
    assert side.card.pri_status() == 0


class Everywhere:
    """An IOMMU that has every address where it is."""

    def connect(self, sid, endpoint):
        """It forgets nothing."""

    def ats_translate(self, sid, iova, want, pasid=None, privileged=False):
        return Translation(iova, 12, RW)

    def admit_translated(self, sid, pa, want, pasid=None):
        return Translation(pa, 64, RW)


@pytest.mark.parametrize(
    ("pasid", "first", "left"),
    [(5, IOVA, {None, 6}), (7, IOVA, {None, 5, 6}), (None, IOVA, set()), (None, OTHER, {None, 5, 6})],
)
def test_an_invalidation_names_a_pasid_or_reaches_all(pasid, first, left):
    card = Rig(PhysicalMemory(4 << 20), Everywhere(), 0x20)
    card.enable()
    for each in (None, 5, 6):
        assert not card.copy(IOVA, FROM_MEMORY, each)
    assert card.device.tlb.invalidate(pasid, first, first + 0xFFF)
    kept = card.device.tlb.tlb.cache.items()
    assert {None if page.tags[0] < 0 else page.tags[0] for page, _ in kept} == left
