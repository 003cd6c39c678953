"""Runs of invalidations at once do what the same commands do one by one, on any hardware."""

import pytest
from hypothesis import given, settings, strategies as st

from softiommu.hardware.cache import Entry
from softiommu.hardware.smmuv3 import queue
from softiommu.hardware.smmuv3.bulk import Bulk
from softiommu.hardware.smmuv3.commands import LAYOUTS, Address1, AtcInv0, AtcInv1, Op, Sync0, Va0
from softiommu.hardware.smmuv3.events import Event
from softiommu.hardware.smmuv3.model import Smmu
from softiommu.hardware.smmuv3.presets import FULL, QEMU
from softiommu.hardware.smmuv3.registers import CmdqCons, CommandError, Cr0, Gerror, QueueBase, Registers
from softiommu.hardware.smmuv3.streams import EVERY_ASID, EVERY_PRIVATE_ASID, GLOBALS, STAGE2_ONLY
from softiommu.hardware.smmuv3.tables import L1Cd
from softiommu.memory.physical import PhysicalMemory

LG2 = 5
UNITS = [
    FULL,
    QEMU,
    FULL._replace(idr0=FULL.idr0.replace(ASID16=0, VMID16=0), idr5=FULL.idr5.replace(DS=0)),
    FULL._replace(idr0=FULL.idr0.replace(S2P=0, VMID16=0)),
    FULL._replace(idr0=FULL.idr0.replace(S1P=0, ASID16=0, CD2L=0, HTTU=0), idr1=FULL.idr1.replace(SSIDSIZE=0)),
    FULL._replace(idr0=FULL.idr0.replace(HYP=1)),
]
OF_STREAMS = [Op.CFGI_CD, Op.CFGI_CD_ALL, Op.ATC_INV]
KINDS = [Op.TLBI_NH_VA, Op.TLBI_NH_VAA, Op.TLBI_NH_ASID, Op.TLBI_NH_ALL, Op.SYNC]
numbers = st.integers(0, 3)


@st.composite
def of_streams(draw, op):
    """What names a stream: its contexts, or what its device has."""
    fields = {"SID": draw(st.integers(0, 2))}
    if op != Op.CFGI_CD_ALL:
        fields["SSID"] = draw(numbers)
    high = draw(st.integers(0, 1)) if op == Op.CFGI_CD else 0
    if op == Op.ATC_INV:
        fields |= {"SSV": draw(st.integers(0, 1)), "GLOBAL": draw(st.integers(0, 1))}
        size = draw(st.sampled_from([0, 1, 9, 51, 52, 53]))
        high = int(AtcInv1.of(ADDR=draw(st.sampled_from([0, 5, (1 << 52) - 1])), SIZE=size))
    return int(LAYOUTS[op].low.of(OPCODE=op, **fields)), high


@st.composite
def commands(draw):
    """Mostly invalidations of the few tags and addresses that are cached, now and then anything."""
    if draw(st.integers(0, 19)) == 0:
        return draw(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)))
    op = draw(st.sampled_from([*KINDS, *KINDS, *OF_STREAMS, Op.TLBI_S12_VMALL, Op.TLBI_EL2_ALL]))
    if op in OF_STREAMS:
        return draw(of_streams(op))
    fields = {"OPCODE": op}
    if op in KINDS[:4]:
        fields["VMID"] = draw(numbers)
    if op in (Op.TLBI_NH_VA, Op.TLBI_NH_ASID):
        fields["ASID"] = draw(numbers)
    high = Address1(0)
    if op in KINDS[:2]:
        high = Address1.of(ADDR=draw(st.integers(0, 15)), LEAF=draw(numbers) & 1, TTL128=draw(st.integers(0, 15)) == 15)
        if draw(st.booleans()):
            high = high.replace(TG=draw(numbers), TTL=draw(numbers))
            fields |= {"NUM": draw(numbers), "SCALE": draw(st.sampled_from([0, 1, 20, 33]))}
    return int(Va0.of(**fields)), int(high)


entries = st.lists(
    st.tuples(
        st.sampled_from([0, 0, 0, 2]),
        numbers,
        st.sampled_from([0, 1, 2, EVERY_ASID, EVERY_PRIVATE_ASID, STAGE2_ONLY]),
        st.integers(0, 15),
        st.sampled_from([12, 12, 13, 16, 21]),
        st.sampled_from([0, 14, 21]),
    ),
    max_size=30,
)


class Device:
    """It does not answer for PASID 3."""

    def __init__(self):
        self.told = []

    def invalidate(self, pasid, first, last):
        self.told.append((pasid, first, last))
        return pasid != 3


class Rig:
    """An SMMU with a full command queue, something in its TLB, contexts, and two devices with PASIDs."""

    def __init__(self, unit, given, cached):
        self.memory = PhysicalMemory(1 << 20)
        self.smmu = Smmu(self.memory, unit)
        base = self.memory.alloc(4096)
        for number, command in enumerate(given):
            for word in (0, 1):
                self.memory.write_u64(base + 16 * number + 8 * word, command[word])
        for world, vmid, asid, page, lg2, leaf in cached:
            iova = page << 12
            entry = Entry(0, 7, asid in GLOBALS, leaf)
            self.smmu.tlb.iotlb.fill((world, vmid, asid, 0), iova, lg2, entry)
            self.smmu.tlb._widest = 21
        self.devices = [Device(), Device()]
        for sid, device in enumerate(self.devices):
            self.smmu.connect(sid, device)
            self.smmu.ats._pasids[sid] = {1, 2}
            for ssid in range(4):
                self.smmu.configuration.contexts.put((sid, ssid), Event.C_BAD_CD)
            self.smmu.configuration.context_directories.put((sid, 0), L1Cd(0))
        self.smmu.write(Registers.CMDQ_BASE.offset, 8, QueueBase.of(LOG2SIZE=LG2, ADDR=base >> 5))
        self.smmu.write(Registers.CR0.offset, 4, Cr0.of(SMMUEN=1, CMDQEN=1))

    def run(self, count):
        """Where the queue stopped and why, and what is still cached."""
        self.smmu.write(Registers.CMDQ_PROD.offset, 4, count)
        for _ in range(count):
            cons = CmdqCons(self.smmu.read(Registers.CMDQ_CONS.offset, 4))
            if cons.ERR != CommandError.ATC_INV_SYNC:
                break
            self.smmu.write(Registers.GERRORN.offset, 4, Gerror(self.smmu.read(Registers.GERROR.offset, 4)))
        contexts = sorted(key for key, _ in self.smmu.configuration.contexts.items())
        directories = sorted(key for key, _ in self.smmu.configuration.context_directories.items())
        told = [device.told for device in self.devices]
        return cons, sorted(self.smmu.tlb.iotlb.cache.items()), contexts, directories, told


@settings(max_examples=300)
@given(st.sampled_from(UNITS), st.lists(commands(), min_size=1, max_size=1 << LG2), entries, st.integers(1, 6))
def test_a_run_does_what_its_commands_do(unit, given, cached, least):
    results = []
    for length in (least, 1 << 30):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(queue, "_LONG", length)
            results.append(Rig(unit, given, cached).run(len(given)))
    assert results[0] == results[1]


def test_long_queues_go_in_runs(monkeypatch):
    runs = []
    run = Bulk.run

    def seen(*arguments):
        runs.append(run(*arguments))
        return runs[-1]

    monkeypatch.setattr(Bulk, "run", seen)
    page = (int(Va0.of(OPCODE=Op.TLBI_NH_VA)), 0)
    sync = (int(Sync0.of(OPCODE=Op.SYNC)), 0)
    assert Rig(FULL, [page, sync] * 16, []).run(32)[0] == 32
    assert runs == [(32, True)]
    assert Rig(FULL, [page] * 31 + [(0, 0)], []).run(32)[0] == CmdqCons.of(RD=31, ERR=CommandError.ILL)
    assert runs[1:] == [(31, True)]


def test_a_sync_behind_devices_is_looked_at_by_itself():
    """It may have to tell that one did not answer."""
    atc = (int(AtcInv0.of(OPCODE=Op.ATC_INV, SID=0, SSV=1, SSID=3)), 0)
    page, sync = (int(Va0.of(OPCODE=Op.TLBI_NH_VA)), 0), (int(Sync0.of(OPCODE=Op.SYNC)), 0)
    rig = Rig(FULL, [page] * 16 + [sync] + [atc] * 14 + [sync], [])
    rig.smmu.write(Registers.CMDQ_PROD.offset, 4, 32)
    cons = CmdqCons(rig.smmu.read(Registers.CMDQ_CONS.offset, 4))
    assert cons == CmdqCons.of(RD=31, ERR=CommandError.ATC_INV_SYNC)
    assert rig.devices[0].told == [(3, 0, 4095)] * 14
