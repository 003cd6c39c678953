"""The way of a request: everything that a model reads has its name, in order, and nothing else is told."""

import contextlib

import amd_rig
import pytest
import riscv_rig
import smmuv3_rig
import virtio_rig
import vtd_rig
from hypothesis import HealthCheck, given, settings, strategies as st

from softiommu.hardware.amd import way as amd
from softiommu.hardware.iommu import Request, TranslationFaultError
from softiommu.hardware.riscv import tables as riscv_tables, way as riscv
from softiommu.hardware.riscv.registers import DdtpMode
from softiommu.hardware.smmuv3 import way as smmuv3
from softiommu.hardware.smmuv3.tables import Cd0, L1Cd, S1Fmt, Ste0
from softiommu.hardware.trace import Access, Expect, Known, Raw, TracingMemory, follow, trace
from softiommu.hardware.virtio import way as virtio
from softiommu.hardware.virtio.commands import Map
from softiommu.hardware.virtio.presets import QEMU
from softiommu.hardware.vtd import registers, tables, way as vtd
from softiommu.memory.physical import Mmio
from softiommu.pagetable.kinds import READ, WRITE
from softiommu.words import Word, bit, bits

IOVA, PA = 0x12_3456_7000, 0x80_0000


@pytest.fixture(autouse=True)
def _traced(monkeypatch):
    for rig in (amd_rig, riscv_rig, smmuv3_rig, virtio_rig, vtd_rig):
        monkeypatch.setattr(rig, "PhysicalMemory", TracingMemory)


def follow_in(unit, memory, module, request):
    return trace(unit, memory, lambda what: module.way(unit, memory, what), request)


def names(way):
    """What was read, one name for the words of a structure."""
    found = []
    for step in way.steps:
        name = step.name.split(",")[0]
        if step.kind == "read" and (not found or found[-1] != name):
            found.append(name)
    return found


def unnamed(way):
    return [step for step in way.steps if step.name == "word"]


def levels(stage, *entries):
    return [f"{stage} {entry}" for entry in entries]


FIRST = levels("first-stage", "PML4E", "PDPE", "PDE", "PTE")
SECOND = levels("second-stage", "PML4E", "PDPE", "PDE", "PTE")


def spoil(memory, places, garbage):
    """Write numbers into the first words of some places."""
    for number, value in garbage:
        memory.write_u64(places[number % len(places)] + 8 * (number // len(places)), value)


def check(way):
    assert (way.fault is None) != (way.translation is None)
    assert unnamed(way) == []


#: Few bits, so that some of what is written is still a structure.
WORDS = st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 63).map(lambda bit: 1 << bit), st.integers(0, 0x4000))
GARBAGE = st.lists(st.tuples(st.integers(0, 40), WORDS), max_size=4)
fuzz = settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))


# Memory that notes


def test_accesses_are_noted_within_the_block_only_and_presence_is_asked_silently():
    memory = TracingMemory(1 << 20)
    memory.write_u64(0x1000, 5)
    with memory.noted() as accesses:
        assert memory.read_u64(0x1000) == 5
        memory.write_u64(0x1008, 7)
        assert memory.read(0x1000, 16) == (5).to_bytes(8, "little") + (7).to_bytes(8, "little")
        with memory.quiet():
            memory.read_u64(0x1000)
        assert memory.space.present[0x1000 >> memory.space.shift]
        assert memory.space.words[0x1008 >> 3] == 7
        assert memory.compare_exchange(0x1008, 7, 9)
    memory.read_u64(0x1000)
    assert accesses == [
        Access(False, 0x1000, 5),
        Access(True, 0x1008, 7),
        Access(False, 0x1000, 5),
        Access(False, 0x1008, 7),
        Access(False, 0x1008, 7),
        Access(False, 0x1008, 7),
        Access(True, 0x1008, 9),
    ]


def test_memory_behind_a_window_is_noted_once_a_word():
    memory = TracingMemory(1 << 21)
    memory.map_window(1 << 30, Mmio(lambda at, data: None, lambda at, n: b"\1" * n), 0, 4096)
    with memory.noted() as accesses:
        assert memory.space.words[(1 << 30) >> 3] == 0x0101010101010101
    assert accesses == [Access(False, 1 << 30, 0x0101010101010101)]


# Scripts


class Pair(Word):
    VALID = bit(0)
    NEXT = bits(63, 12)


def test_what_is_not_expected_has_the_name_that_its_place_had_or_none():
    def script():
        yield Known("register", Pair(1))
        value = yield Expect(0x1000, "entry", Pair)
        yield Expect(value & ~1, "next", Pair)
        return None

    accesses = [
        Access(False, 0x9000, 4),
        Access(False, 0x1000, 0x2001),
        Access(True, 0x1000, 0x2003),
        Access(False, 0x2000, 1),
        Access(False, 0x1000, 0x2003),
    ]
    steps = list(follow(accesses, script()))
    assert [(step.kind, step.name, step.pa) for step in steps] == [
        ("held", "register", None),
        ("read", "word", 0x9000),
        ("read", "entry", 0x1000),
        ("stored", "entry", 0x1000),
        ("read", "next", 0x2000),
        ("read", "entry", 0x1000),
    ]
    assert steps[2].fields() == {"VALID": 1, "NEXT": 2}
    assert steps[3].fields() == {"VALID": 1, "NEXT": 2, "reserved": 2}


def test_a_script_that_expects_more_than_is_read_ends_with_what_was_read():
    def script():
        while True:
            yield Expect(0x1000, "entry", Pair)

    assert len(list(follow([Access(False, 0x1000, 0)] * 3, script()))) == 3


# VT-d


def test_the_way_through_a_legacy_unit():
    bench = vtd_rig.Bench(ttm=registers.Ttm.LEGACY)
    bench.second.map(IOVA, PA, 0x1000, 3)
    way = follow_in(bench.unit, bench.memory, vtd, Request(vtd_rig.SID, IOVA + 4, READ))
    assert way.translation.pa == PA + 4
    assert names(way) == ["root entry", "context entry", *SECOND]
    assert unnamed(way) == []
    assert way.steps[2].pa == bench.root_entry
    assert way.steps[-1].word.ADDR == PA >> 12


def test_the_way_through_both_stages_tells_what_each_entry_is_of():
    bench = vtd_rig.Bench()
    bench.pasid(tables.Pgtt.NESTED)
    bench.first.map(IOVA, 0x40_0000, 0x1000, 3)
    bench.second.map(0, 0, bench.memory.size, 3)
    way = follow_in(bench.unit, bench.memory, vtd, Request(vtd_rig.SID, IOVA, READ))
    assert way.translation.pa == 0x40_0000
    read = [name for name in names(way) if name in FIRST]
    assert list(dict.fromkeys(read)) == FIRST
    assert names(way)[:5] == [
        "scalable root entry",
        "scalable context entry",
        "PASID directory entry",
        "PASID entry",
        "second-stage PML4E",
    ]
    assert unnamed(way) == []
    # The second stage's flags are set by the walk: the first read shows the entry without, the store with them.
    (before, after, *_) = [step.word for step in way.steps if step.name == "second-stage PML4E"]
    assert (before.A, after.A) == (0, 1)


def test_the_way_of_a_request_that_is_blocked_ends_at_the_entry_that_blocks_it():
    bench = vtd_rig.Bench(ttm=registers.Ttm.LEGACY)
    way = follow_in(bench.unit, bench.memory, vtd, Request(vtd_rig.SID, IOVA, WRITE))
    assert way.translation is None
    assert isinstance(way.fault, TranslationFaultError)
    assert names(way) == ["root entry", "context entry", "second-stage PML4E"]
    bench.set(bench.context, 0)
    bench.unit.caches.forget_all()
    way = follow_in(bench.unit, bench.memory, vtd, Request(vtd_rig.SID, IOVA, WRITE))
    assert names(way) == ["root entry", "context entry"]


def test_a_unit_that_does_not_translate_and_an_interrupt_read_nothing():
    bench = vtd_rig.Bench()
    way = follow_in(bench.unit, bench.memory, vtd, Request(vtd_rig.SID, 0xFEE00000, WRITE))
    assert (way.steps, way.translation.pa) == ((), 0xFEE00000)
    bench.command()
    bench.write(registers.Registers.GCMD, 0)
    way = follow_in(bench.unit, bench.memory, vtd, Request(vtd_rig.SID, IOVA, WRITE))
    assert [step.kind for step in way.steps] == ["held"]
    assert way.translation.pa == IOVA


@fuzz
@given(st.sampled_from(list(registers.Ttm)), GARBAGE)
def test_structures_of_any_content_have_a_way_that_ends_where_vtd_ends(ttm, garbage):
    def made():
        bench = vtd_rig.Bench(ttm=ttm)
        bench.second.map(IOVA, PA, 0x1000, 3)
        bench.first.map(IOVA, PA, 0x1000, 3)
        places = (bench.root_entry, bench.context, bench.directory, bench.pasids, bench.first.root, bench.second.root)
        spoil(bench.memory, places, garbage)
        return bench

    bench, twin = made(), made()
    way = follow_in(bench.unit, bench.memory, vtd, Request(vtd_rig.SID, IOVA, READ))
    check(way)
    with twin.memory.noted() as accesses, contextlib.suppress(TranslationFaultError):
        twin.unit.translate(vtd_rig.SID, IOVA, READ)
    # Faults of this hardware are recorded in registers: all that is read has a name.
    assert [step.pa for step in way.steps if step.pa is not None] == [access.pa for access in accesses]


# RISC-V


def riscv_levels(stage, top):
    return [f"{stage} entry of level {level}" for level in range(top, -1, -1)]


def test_the_way_through_a_riscv_process():
    rig = riscv_rig.Rig()
    first = rig.pages("riscv-sv39")
    first.map(IOVA, PA, 0x1000, 3)
    rig.device(riscv_rig.context(int(rig.processes()), PDTV=1))
    rig.process(0x12345, (riscv_tables.ProcessTa.of(V=1, PSCID=3), riscv_rig.satp(first)))
    way = follow_in(rig.iommu, rig.memory, riscv, Request(riscv_rig.SID, IOVA, READ, 0x12345))
    assert way.fault is None
    assert names(way) == [
        "device directory entry of level 2",
        "device directory entry of level 1",
        "device context",
        "process directory entry of level 2",
        "process directory entry of level 1",
        "process context",
        *riscv_levels("first-stage", 2),
    ]
    assert unnamed(way) == []


def test_the_way_to_an_interrupt_file_behind_two_stages():
    rig = riscv_rig.Rig()
    first, second = rig.pages("riscv-sv39"), rig.pages("riscv-sv39x4")
    file = 0x2_8000_0000
    first.map(IOVA, file, 0x1000, 3)
    second.map(0, 0, rig.memory.size, 3)
    table = rig.memory.alloc(4096)
    rig.memory.write_u64(table, riscv_tables.MsiPte.of(V=1, M=3, PPN=0x123))
    msi = (riscv_tables.Msiptp.of(MODE=1, PPN=table >> 12), 0, file >> 12)
    rig.device(riscv_rig.context(first, second, msi=msi))
    way = follow_in(rig.iommu, rig.memory, riscv, Request(riscv_rig.SID, IOVA + 8, WRITE))
    assert way.translation.pa == 0x123008
    assert names(way)[-1] == "MSI page table entry"
    assert {*riscv_levels("first-stage", 2), *riscv_levels("second-stage", 2)[:2]} <= set(names(way))
    assert unnamed(way) == []


def test_the_ways_of_modes_without_a_directory():
    rig = riscv_rig.Rig(mode=DdtpMode.BARE)
    way = follow_in(rig.iommu, rig.memory, riscv, Request(riscv_rig.SID, IOVA, READ))
    assert ([step.name for step in way.steps], way.translation.pa) == (["ddtp"], IOVA)
    rig = riscv_rig.Rig(mode=DdtpMode.OFF)
    way = follow_in(rig.iommu, rig.memory, riscv, Request(riscv_rig.SID, IOVA, READ))
    assert [step.name for step in way.steps] == ["ddtp"]
    assert way.fault is not None


# SMMUv3


def arm_levels(stage, first):
    return [f"{stage} entry of level {level}" for level in range(first, 4)]


def test_the_way_through_both_stages_of_an_smmu():
    rig = smmuv3_rig.Rig()
    one, two = rig.pages("arm64-4k-48-s1"), rig.pages("arm64-4k-48-s2")
    smmuv3_rig.mapped(one, IOVA, PA)
    smmuv3_rig.mapped(two, 0, 0, rig.memory.size)
    rig.nested(one, two)
    way = follow_in(rig.smmu, rig.memory, smmuv3, Request(smmuv3_rig.SID, IOVA + 8, READ))
    assert way.translation.pa == PA + 8
    found = names(way)
    assert found[0] == "STE"
    assert found[1].startswith("stage 2")
    assert "CD" in found
    assert [name for name in dict.fromkeys(found) if name.startswith("stage 1")] == arm_levels("stage 1", 0)
    assert unnamed(way) == []


def test_the_way_to_a_substream_in_a_table_of_two_levels():
    rig = smmuv3_rig.Rig()
    one = rig.pages("arm64-4k-48-s1")
    smmuv3_rig.mapped(one, IOVA, PA)
    rig.stage1(one, cdmax=8, ssid=3)
    directory = rig.memory.alloc(4096)
    rig.memory.write_u64(directory + 8, L1Cd.of(V=1, L2PTR=rig.cds >> 12))
    ste = Ste0.of(V=1, CONFIG=5, S1FMT=S1Fmt.LEAVES_4K, S1CONTEXTPTR=directory >> 6, S1CDMAX=8)
    rig.memory.write_u64(rig.strtab + 64 * smmuv3_rig.SID, ste)
    way = follow_in(rig.smmu, rig.memory, smmuv3, Request(smmuv3_rig.SID, IOVA, READ, 67))
    assert way.translation.pa == PA
    assert names(way) == ["STE", "level-1 context descriptor", "CD", *arm_levels("stage 1", 0)]
    assert unnamed(way) == []
    (cd,) = [step.word for step in way.steps if isinstance(step.word, Cd0)]
    assert cd.ASID == smmuv3_rig.ASID


def test_a_blocked_transaction_s_way_has_nothing_of_the_event_queue():
    rig = smmuv3_rig.Rig()
    one = rig.pages("arm64-4k-48-s1")
    rig.stage1(one)
    way = follow_in(rig.smmu, rig.memory, smmuv3, Request(smmuv3_rig.SID, IOVA, READ))
    assert way.fault is not None
    assert names(way) == ["STE", "CD", "stage 1 entry of level 0"]
    assert [step for step in way.steps if step.kind == "stored"] == []
    assert len(rig.take_events()) == 1


# AMD


def test_the_way_through_amd_s_guest_and_host_tables():
    rig = amd_rig.Rig()
    host = rig.host()
    host.map(0, 0, rig.memory.size, 3)
    guest = amd_rig.PageTable(rig.memory, amd_rig.VARIANTS["x86-64-4level"])
    guest.map(IOVA, PA, 0x1000, 3)
    gcr3 = rig.memory.alloc(4096)
    rig.memory.write_u64(gcr3 + 8 * 5, guest.root | 1)
    rig.entry({"Mode": 4, "HostPageTableRoot": host.root >> 12, "GV": 1}, gcr3=gcr3)
    way = follow_in(rig.iommu, rig.memory, amd, Request(amd_rig.SID, IOVA + 8, READ, 5))
    assert way.fault is None
    assert way.translation.pa == PA + 8
    found = names(way)
    assert found[:2] == ["device table entry", "GCR3 table entry of level 1"]
    assert [name for name in dict.fromkeys(found) if name.startswith("guest")] == levels(
        "guest", "PML4E", "PDPE", "PDE", "PTE"
    )
    assert unnamed(way) == []


def test_the_way_through_amd_s_host_tables_ends_where_nothing_is_mapped():
    rig = amd_rig.Rig()
    rig.host()
    way = follow_in(rig.iommu, rig.memory, amd, Request(amd_rig.SID, IOVA, READ))
    assert names(way) == ["device table entry", "host entry of level 4"]
    assert way.fault is not None


# Garbage


@fuzz
@given(GARBAGE, st.sampled_from((None, 0x12345)))
def test_structures_of_any_content_have_a_way_that_ends_where_riscv_ends(garbage, pasid):
    rig = riscv_rig.Rig()
    first, second = rig.pages("riscv-sv39"), rig.pages("riscv-sv39x4")
    first.map(IOVA, PA, 0x1000, 3)
    second.map(0, 0, rig.memory.size, 3)
    device = rig.device(riscv_rig.context(int(rig.processes()), second, PDTV=1, DPE=1))
    process = rig.process(0x12345, (riscv_tables.ProcessTa.of(V=1, PSCID=3), riscv_rig.satp(first)))
    spoil(rig.memory, (device, process, rig.root, rig.pdt, first.root, second.root), garbage)
    check(follow_in(rig.iommu, rig.memory, riscv, Request(riscv_rig.SID, IOVA, READ, pasid)))


@fuzz
@given(GARBAGE, st.sampled_from((None, 3)))
def test_structures_of_any_content_have_a_way_that_ends_where_an_smmu_ends(garbage, ssid):
    rig = smmuv3_rig.Rig()
    one, two = rig.pages("arm64-4k-48-s1"), rig.pages("arm64-4k-48-s2")
    smmuv3_rig.mapped(one, IOVA, PA)
    smmuv3_rig.mapped(two, 0, 0, rig.memory.size)
    rig.nested(one, two, cdmax=8)
    places = (rig.strtab + 64 * smmuv3_rig.SID, rig.cds, rig.cds + 64 * 3, one.root, two.root)
    spoil(rig.memory, places, garbage)
    check(follow_in(rig.smmu, rig.memory, smmuv3, Request(smmuv3_rig.SID, IOVA, READ, ssid)))


@fuzz
@given(GARBAGE, st.sampled_from((None, 0, 5)))
def test_structures_of_any_content_have_a_way_that_ends_where_amd_ends(garbage, pasid):
    rig = amd_rig.Rig()
    host = rig.host()
    host.map(0, 0, rig.memory.size, 3)
    guest = amd_rig.PageTable(rig.memory, amd_rig.VARIANTS["x86-64-4level"])
    guest.map(IOVA, PA, 0x1000, 3)
    gcr3 = rig.memory.alloc(4096)
    for number in (0, 5):
        rig.memory.write_u64(gcr3 + 8 * number, guest.root | 1)
    rig.entry({"Mode": 4, "HostPageTableRoot": host.root >> 12, "GV": 1, "GIoV": 1}, gcr3=gcr3)
    spoil(rig.memory, (rig.table + 32 * amd_rig.SID, gcr3, guest.root, host.root), garbage)
    check(follow_in(rig.iommu, rig.memory, amd, Request(amd_rig.SID, IOVA, READ, pasid)))


# virtio


def test_the_way_through_a_virtio_iommu_is_a_domain_and_a_mapping():
    rig = virtio_rig.Rig(QEMU)
    rig.attach(3, 0x20)
    rig.map(3, 0x1000, 0x2FFF, PA, READ=1)
    way = follow_in(rig.unit, rig.memory, virtio, Request(0x20, 0x2004, READ))
    assert way.translation.pa == PA + 0x1004
    endpoint, mapping = (step.word for step in way.steps)
    assert (endpoint.DOMAIN, endpoint.ENDPOINT) == (3, 0x20)
    assert isinstance(mapping, Map)
    assert (mapping.VIRT_START, mapping.VIRT_END, mapping.READ, mapping.WRITE) == (0x1000, 0x2FFF, 1, 0)
    way = follow_in(rig.unit, rig.memory, virtio, Request(0x20, 0x9000, READ))
    assert ([step.name for step in way.steps], way.fault is None) == (["endpoint"], False)
    way = follow_in(rig.unit, rig.memory, virtio, Request(0x28, 0x9000, READ))
    assert ([step.name for step in way.steps], way.translation.pa) == (["bypass"], 0x9000)
    way = follow_in(rig.unit, rig.memory, virtio, Request(0x20, 0xFEE00000, WRITE))
    assert [step.name for step in way.steps] == ["reserved range"]


def test_a_word_without_names_shows_its_bits():
    assert Raw(0x1234).BITS == 0x1234
