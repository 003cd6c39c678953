"""VT-d: what each invalidation forgets and what it leaves, by the queue and by registers; and queues that are wrong."""

import pytest
from hypothesis import given, settings, strategies as st
from vtd_rig import DID, SID, Bench, Device, reason

from softiommu.hardware.vtd import presets
from softiommu.hardware.vtd.caches import Shapes
from softiommu.hardware.vtd.commands import (
    LAYOUTS,
    Context,
    Iotlb0,
    PasidCache0,
    PasidIotlb0,
    Range,
    Type,
    Wait0,
    Wait1,
)
from softiommu.hardware.vtd.events import Reason
from softiommu.hardware.vtd.registers import (
    Ccmd,
    Fsts,
    IotlbCommand,
    Iqer,
    QueueErrorInfo,
    Registers,
    Ttm,
)
from softiommu.hardware.vtd.tables import Pasid1, Pgtt
from softiommu.memory.physical import Mmio
from softiommu.pagetable.kinds import READ, WRITE

RW = READ | WRITE
IOVA = 0x4000_0000
CCMD, IVA, IOTLB = 0x28, 0xF0, 0xF8


def cached():
    """Translations of PASIDs 0 (second stage), 1 (first stage), 2 (nested), 3 (first stage of another domain)."""
    bench = Bench()
    for number, (pgtt, did) in enumerate([(Pgtt.SECOND, DID), (Pgtt.FIRST, DID), (Pgtt.NESTED, DID), (Pgtt.FIRST, 9)]):
        bench.pasid(pgtt, number, did)
    bench.first.map(IOVA, 0x600000, 0x200000, RW)
    bench.second.map(IOVA, 0x600000, 0x200000, RW)
    bench.second.map(0, 0, 16 << 20, RW)
    for number in range(4):
        bench.unit.translate(SID, IOVA + 0x1234, WRITE, number or None)
    assert len(bench.unit.caches.iotlb.cache) == 4
    return bench


MIB2, AWAY = 0x20_0000, 0x60_0000


def in_pieces():
    """A large page of a guest's over small ones of the host's, of which two places are cached, by PASID 2."""
    bench = Bench()
    bench.pasid(Pgtt.NESTED, 2)
    bench.second.sizes = 1 << 12
    bench.second.map(0, 0, 16 << 20, RW)
    bench.first.map(IOVA, AWAY, MIB2, RW)
    for iova in (IOVA, IOVA + MIB2 - 1):
        assert bench.unit.translate(SID, iova, READ, 2).lg2 == 12
    bench.first.unmap(IOVA, MIB2)
    return bench


def test_a_large_page_that_is_cached_in_small_ones_needs_its_own_mask_to_be_forgotten():
    """Software must use the mask of the page that it changed (6.5.2.3): 0 is for 4 KiB, 9 for 2 MiB."""
    low = PasidIotlb0.of(TYPE=Type.PASID_IOTLB, G=3, DID=DID, PASID=2)
    bench = in_pieces()
    bench.submit((low, Range.of(ADDR=IOVA >> 12)))
    assert reason(bench.unit.translate, SID, IOVA, READ, 2) is not None
    assert bench.unit.translate(SID, IOVA + MIB2 - 1, READ, 2).pa == AWAY + MIB2 - 1
    bench.submit((low, Range.of(ADDR=IOVA >> 12, AM=9)))
    assert reason(bench.unit.translate, SID, IOVA + MIB2 - 1, READ, 2) is not None


def left(bench):
    """Which PASIDs still have a cached translation; -1 stands for second stages."""
    return sorted(page.tags[1] for entries in bench.unit.caches.iotlb.cache._sets for page in entries)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (Iotlb0.of(TYPE=Type.IOTLB, G=1), 0, []),
        (Iotlb0.of(TYPE=Type.IOTLB, G=2, DID=DID), 0, [3]),
        (Iotlb0.of(TYPE=Type.IOTLB, G=2, DID=9), 0, [-1, 1, 2]),
        (Iotlb0.of(TYPE=Type.IOTLB, G=3, DID=DID), Range.of(ADDR=IOVA >> 12), [1, 3]),
        (Iotlb0.of(TYPE=Type.IOTLB, G=3, DID=DID), Range.of(ADDR=IOVA + 0x200000 >> 12, AM=9), [-1, 1, 3]),
        (PasidIotlb0.of(TYPE=Type.PASID_IOTLB, G=2, DID=DID, PASID=1), 0, [-1, 2, 3]),
        (PasidIotlb0.of(TYPE=Type.PASID_IOTLB, G=2, DID=9, PASID=1), 0, [-1, 1, 2, 3]),
        (PasidIotlb0.of(TYPE=Type.PASID_IOTLB, G=3, DID=DID, PASID=2), Range.of(ADDR=IOVA >> 12), [-1, 1, 3]),
        (PasidIotlb0.of(TYPE=Type.PASID_IOTLB, G=3, DID=DID, PASID=2), Range.of(ADDR=1), [-1, 1, 2, 3]),
        (PasidCache0.of(TYPE=Type.PASID_CACHE, G=3), 0, [-1, 1, 2, 3]),
    ],
)
def test_a_command_forgets_the_translations_it_names(low, high, expected):
    bench = cached()
    bench.submit((low, high))
    assert left(bench) == expected


@pytest.mark.parametrize(
    ("low", "contexts", "pasids"),
    [
        (Context.of(TYPE=Type.CONTEXT, G=1), 0, 4),
        (Context.of(TYPE=Type.CONTEXT, G=2, DID=1), 0, 4),
        (Context.of(TYPE=Type.CONTEXT, G=3, SID=SID ^ 7, FM=3), 0, 4),
        (Context.of(TYPE=Type.CONTEXT, G=3, SID=SID ^ 7, FM=2), 1, 4),
        (PasidCache0.of(TYPE=Type.PASID_CACHE, G=3), 1, 0),
        (PasidCache0.of(TYPE=Type.PASID_CACHE, G=0, DID=DID), 1, 1),
        (PasidCache0.of(TYPE=Type.PASID_CACHE, G=1, DID=DID, PASID=2), 1, 3),
        (PasidCache0.of(TYPE=Type.PASID_CACHE, G=1, DID=9, PASID=2), 1, 4),
    ],
)
def test_contexts_and_pasids_are_forgotten_apart(low, contexts, pasids):
    bench = cached()
    bench.submit(low)
    assert (len(bench.unit.caches.contexts), len(bench.unit.caches.pasids)) == (contexts, pasids)


def by_registers(bench, offset, word):
    bench.unit.write(offset, 8, int(word))
    return type(word)(bench.unit.read(offset, 8))


def without_queue():
    bench = Bench(ttm=Ttm.LEGACY)
    bench.second.map(IOVA, 0x600000, 0x1000, RW)
    bench.unit.translate(SID, IOVA, READ)
    bench.write(Registers.GCMD, 1 << 31)
    return bench


@pytest.mark.parametrize(
    ("granularity", "fields", "remain"),
    [(1, {}, 0), (2, {"DID": DID}, 0), (2, {"DID": 1}, 1), (3, {"SID": SID ^ 1, "FM": 3}, 0), (3, {"SID": 1}, 1)],
)
def test_contexts_are_forgotten_by_register(granularity, fields, remain):
    bench = without_queue()
    assert by_registers(bench, CCMD, Ccmd.of(ICC=1, CIRG=granularity, **fields)).CAIG == granularity
    assert len(bench.unit.caches.legacy) == remain


@pytest.mark.parametrize(
    ("granularity", "did", "where", "remain"),
    [(1, 0, 0, 0), (2, DID, 0, 0), (2, 1, 0, 1), (3, DID, IOVA, 0), (3, DID, IOVA + 0x1000, 1), (3, DID, IOVA | 6, 0)],
)
def test_translations_are_forgotten_by_register(granularity, did, where, remain):
    bench = without_queue()
    bench.unit.write(IVA, 8, where)
    done = by_registers(bench, IOTLB, IotlbCommand.of(IVT=1, IIRG=granularity, DID=did))
    assert (done.IVT, done.IAIG) == (0, granularity)
    assert len(bench.unit.caches.iotlb.cache) == remain


def test_a_wrong_command_by_register_does_nothing_and_says_so():
    bench = without_queue()
    bench.unit.write(IVA, 8, 63)
    for granularity in (0, 3):
        assert by_registers(bench, IOTLB, IotlbCommand.of(IVT=1, IIRG=granularity, DID=DID)).IAIG == 0
    assert by_registers(bench, CCMD, Ccmd.of(ICC=1)) == Ccmd.of()
    bench.command(QIE=1)
    assert by_registers(bench, CCMD, Ccmd.of(ICC=1, CIRG=1)).CAIG == 0
    assert by_registers(bench, IOTLB, IotlbCommand.of(IVT=1, IIRG=1)).IAIG == 0
    assert (len(bench.unit.caches.legacy), len(bench.unit.caches.iotlb.cache)) == (1, 1)


@pytest.mark.parametrize("esrtps", [0, 1])
def test_a_new_root_table_forgets_where_the_hardware_says_so(esrtps):
    full = presets.FULL
    bench = Bench(full._replace(cap=full.cap.replace(ESRTPS=esrtps)), Ttm.LEGACY)
    bench.second.map(IOVA, 0x600000, 0x1000, RW)
    bench.unit.translate(SID, IOVA, READ)
    bench.command(SRTP=1)
    assert len(bench.unit.caches.iotlb.cache) == len(bench.unit.caches.legacy) == 1 - esrtps


LINKED = [
    (Pgtt.SECOND, Iotlb0.of(TYPE=Type.IOTLB, G=3, DID=DID), Range.of(ADDR=IOVA + 0x1000 >> 12), True),
    (Pgtt.SECOND, Iotlb0.of(TYPE=Type.IOTLB, G=3, DID=DID), Range.of(ADDR=IOVA + 0x1000 >> 12, IH=1), False),
    (Pgtt.SECOND, Iotlb0.of(TYPE=Type.IOTLB, G=3, DID=DID), Range.of(ADDR=IOVA + (1 << 39) >> 12), False),
    (Pgtt.SECOND, Iotlb0.of(TYPE=Type.IOTLB, G=2, DID=DID), 0, True),
    (Pgtt.SECOND, Iotlb0.of(TYPE=Type.IOTLB, G=2, DID=1), 0, False),
    (Pgtt.FIRST, PasidIotlb0.of(TYPE=Type.PASID_IOTLB, G=3, DID=DID), Range.of(ADDR=IOVA >> 12), True),
    (Pgtt.FIRST, PasidIotlb0.of(TYPE=Type.PASID_IOTLB, G=3, DID=DID), Range.of(ADDR=IOVA >> 12, IH=1), False),
    (Pgtt.FIRST, PasidIotlb0.of(TYPE=Type.PASID_IOTLB, G=2, DID=DID, PASID=1), 0, False),
]


@pytest.mark.parametrize(("pgtt", "low", "high", "forgotten"), LINKED)
def test_a_link_to_a_table_stays_until_a_command_names_it_and_more_than_leaves(pgtt, low, high, forgotten):
    bench = Bench()
    bench.pasid(pgtt)
    pages = bench.first if pgtt == Pgtt.FIRST else bench.second
    pages.map(IOVA, 0x600000, 0x3000, RW)
    assert bench.unit.translate(SID, IOVA, READ).pa == 0x600000
    assert len(bench.unit.caches.links) == 3
    bench.set(pages.root, 0)  # every table is gone
    assert bench.unit.translate(SID, IOVA + 0x2000, READ).pa == 0x602000
    bench.submit((low, high))
    assert (reason(bench.unit.translate, SID, IOVA + 0x1000, READ) is not None) == forgotten


def test_a_link_gives_no_right_that_it_has_not():
    bench = Bench()
    bench.first.map(IOVA, 0x600000, 0x2000, RW)
    bench.set(bench.first.root, bench.memory.read_u64(bench.first.root) & ~2)
    for page in (0, 0x1000):  # the second walk goes on from the cached link
        assert bench.unit.translate(SID, IOVA + page, READ).pa == 0x600000 + page
        assert reason(bench.unit.translate, SID, IOVA + page, WRITE) is Reason.SCALABLE_NO_WRITE


def test_a_link_is_cached_when_its_flag_is_set():
    bench = Bench()
    bench.first.map(IOVA, 0x600000, 0x1000, RW)
    bench.set(bench.first.root, bench.memory.read_u64(bench.first.root) & ~32)
    bench.change(bench.entry + 8, Pasid1, PWSNP=0)
    for _ in range(2):
        assert reason(bench.unit.translate, SID, IOVA, READ) is Reason.FIRST_FLAGS_NOT_SNOOPED
    assert len(bench.unit.caches.links) == 0
    bench.change(bench.entry + 8, Pasid1, PWSNP=1)
    bench.unit.caches.forget_all()
    assert bench.unit.translate(SID, IOVA, READ).pa == 0x600000
    assert bench.memory.read_u64(bench.first.root) & 32


def test_links_lead_through_memory_of_every_kind():
    bench = Bench()
    bench.first.map(IOVA, 0x600000, 0x2000, RW)
    top = bench.memory.read_u64(bench.first.root) & ~0xFFF
    table = bytearray(bench.memory.read(top, 4096))

    def write(offset, data):
        table[offset : offset + len(data)] = data

    bench.memory.map_window(1 << 41, Mmio(write, lambda offset, size: bytes(table[offset : offset + size])), 0, 4096)
    bench.set(bench.first.root, 1 << 41 | 7)
    assert [bench.unit.translate(SID, IOVA + n, READ).pa for n in (0, 0x1000)] == [0x600000, 0x601000]
    bench.submit(Iotlb0.of(TYPE=Type.IOTLB, G=1))
    bench.set(bench.first.root, 1 << 42 | 7)
    assert reason(bench.unit.translate, SID, IOVA, READ) is Reason.FIRST_ACCESS


def test_large_leaves_are_reached_by_cached_links():
    bench = Bench()
    bench.pasid(Pgtt.SECOND)
    bench.second.map(IOVA, 0x800000, 0x400000, RW)
    assert [bench.unit.translate(SID, IOVA + n * 0x200000, READ)[:2] for n in range(2)] == [
        (0x800000, 21),
        (0xA00000, 21),
    ]
    assert bench.unit.caches.links.counters.hits == 2


def test_a_walk_that_leaves_what_kernels_index_starts_again_at_the_root():
    bench = Bench()
    bench.first.map(IOVA, 0x600000, 0x1000, RW)
    link = bench.memory.read_u64(bench.first.root)
    for address in (1 << 40, 3 << 40):  # within the arena and beyond
        bench.set(bench.first.root, link & 0xFFF | address)
        bench.unit.caches.forget_all()
        for _ in range(2):
            assert reason(bench.unit.translate, SID, IOVA, READ) is Reason.FIRST_ACCESS


@pytest.mark.parametrize("cm", [0, 1])
@pytest.mark.parametrize("pgtt", [None, Pgtt.FIRST, Pgtt.SECOND])
def test_only_in_caching_mode_is_it_remembered_that_nothing_is_there(cm, pgtt):
    full = presets.FULL
    bench = Bench(full._replace(cap=full.cap.replace(CM=cm)), Ttm.SCALABLE if pgtt else Ttm.LEGACY)
    if pgtt:
        bench.pasid(pgtt)
    nothing = reason(bench.unit.translate, SID, IOVA, READ)
    for pages in (bench.first, bench.second):
        pages.map(IOVA, 0x600000, 0x1000, READ)
    assert reason(bench.unit.translate, SID, IOVA, READ) is (nothing if cm else None)
    assert reason(bench.unit.translate, SID, IOVA + 0x1000, READ) is nothing
    bench.submit(Iotlb0.of(TYPE=Type.IOTLB, G=2, DID=DID))
    assert bench.unit.translate(SID, IOVA, READ).pa == 0x600000
    assert reason(bench.unit.translate, SID, IOVA, WRITE) in (Reason.NO_WRITE, Reason.SCALABLE_NO_WRITE)
    assert bench.unit.translate(SID, IOVA, READ).pa == 0x600000


# Queues that are wrong

WAIT = Wait0.of(TYPE=Type.WAIT, SW=1)


@pytest.mark.parametrize(
    ("info", "low", "high"),
    [
        (QueueErrorInfo.TYPE, 0, 0),
        (QueueErrorInfo.TYPE, 0xA, 0),
        (QueueErrorInfo.TYPE, Type.WAIT | 1 << 9, 0),
        (QueueErrorInfo.RESERVED, Context.of(TYPE=Type.CONTEXT), 0),
        (QueueErrorInfo.RESERVED, Context.of(TYPE=Type.CONTEXT, G=1), 1),
        (QueueErrorInfo.RESERVED, Iotlb0.of(TYPE=Type.IOTLB), 0),
        (QueueErrorInfo.RESERVED, Iotlb0.of(TYPE=Type.IOTLB, G=3), 63),
        (QueueErrorInfo.RESERVED, PasidIotlb0.of(TYPE=Type.PASID_IOTLB, G=1), 0),
        (QueueErrorInfo.RESERVED, PasidIotlb0.of(TYPE=Type.PASID_IOTLB, G=3), 63),
        (QueueErrorInfo.RESERVED, PasidCache0.of(TYPE=Type.PASID_CACHE, G=2), 0),
        (QueueErrorInfo.RESERVED, WAIT | 1 << 8, 0),
        (QueueErrorInfo.FETCH, WAIT, Wait1.of(ADDR=1 << 43)),
    ],
)
def test_a_wrong_descriptor_says_why(info, low, high):
    bench = Bench()
    bench.submit((low, high))
    assert bench.read(Registers.IQER) == Iqer.of(IQEI=info)
    assert (bench.read(Registers.FSTS).IQE, bench.read(Registers.IQH)) == (1, 0)
    bench.set(bench.queue, Iotlb0.of(TYPE=Type.IOTLB, G=1), 0)
    bench.write(Registers.FSTS, Fsts.of(IQE=1))
    assert bench.read(Registers.IQH) == bench.step


@pytest.mark.parametrize("name", ["DT", "IR", "PRS", "SMTS"])
def test_a_descriptor_of_what_the_hardware_has_not_is_of_no_type(name):
    bench = Bench(presets.QEMU["vtd-noir"], Ttm.LEGACY)
    kinds = {"DT": Type.DEVICE_TLB, "IR": Type.INTERRUPT, "PRS": Type.PAGE_GROUP_RESPONSE, "SMTS": Type.PASID_CACHE}
    bench.submit(int(kinds[name]))
    assert bench.read(Registers.IQER).IQEI == QueueErrorInfo.TYPE


def test_words_that_a_long_descriptor_does_not_use_are_reserved():
    bench = Bench()
    bench.set(bench.queue, Context.of(TYPE=Type.CONTEXT, G=1), 0, 0, 1)
    bench.write(Registers.IQT, 32)
    assert bench.read(Registers.IQER).IQEI == QueueErrorInfo.RESERVED


@pytest.mark.parametrize(
    ("unit", "iqa", "tail", "info"),
    [
        (presets.FULL, 0, 4096, QueueErrorInfo.TAIL),
        (presets.FULL, 1 << 11, 16, QueueErrorInfo.TAIL_MISALIGNED),
        (presets.QEMU["vtd"], 1 << 11, 32, QueueErrorInfo.WIDTH),
        (presets.FULL, 1 << 45, 16, QueueErrorInfo.FETCH),
    ],
)
def test_a_wrong_queue_says_why(unit, iqa, tail, info):
    bench = Bench(unit, Ttm.LEGACY)
    bench.write(Registers.IQA, iqa or bench.queue)
    bench.write(Registers.IQT, tail)
    assert bench.read(Registers.IQER).IQEI == info


def test_a_queue_under_no_known_table_mode_is_wrong():
    bench = Bench(ttm=Ttm.RESERVED)
    bench.submit(Context.of(TYPE=Type.CONTEXT, G=1))
    assert bench.read(Registers.IQER).IQEI == QueueErrorInfo.TTM


def test_a_queue_that_is_off_starts_at_its_beginning():
    bench = Bench(ttm=Ttm.LEGACY)
    bench.submit(Context.of(TYPE=Type.CONTEXT, G=1))
    assert bench.read(Registers.IQH) == 16
    bench.write(Registers.GCMD, 0)
    assert bench.read(Registers.IQH) == 0


def test_drain_and_fence_are_taken_where_they_exist():
    for unit, wrong in ((presets.FULL, 0), (presets.SCALABLE, 1)):
        bench = Bench(unit)
        status = bench.memory.alloc(4096)
        bench.submit((WAIT.replace(PD=1, FN=1, DATA=7), Wait1.of(ADDR=status >> 2)))
        assert (bench.memory.read_u32(status) == 7, bench.read(Registers.FSTS).IQE) == (not wrong, wrong)


def test_a_cache_holds_what_its_shape_says():
    shapes = Shapes(iotlb=Shapes().iotlb._replace(sets=1, ways=2))
    bench = Bench(ttm=Ttm.LEGACY, shapes=shapes)
    bench.second.map(IOVA, 0x600000, 0x4000, RW)
    for page in range(4):
        bench.unit.translate(SID, IOVA + 0x1000 * page, READ)
    counters = bench.unit.caches.iotlb.cache.counters
    assert (len(bench.unit.caches.iotlb.cache), counters.fills, counters.evictions) == (2, 4, 2)


@given(
    words=st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.booleans()), max_size=8),
    scalable=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_any_bytes_in_the_queue_end_with_an_empty_queue_or_an_error(words, scalable):
    bench = Bench(ttm=Ttm.SCALABLE if scalable else Ttm.LEGACY)
    bench.unit.connect(SID, Device())
    named = {int(kind): low for kind, (low, _, _) in LAYOUTS.items()}
    for low, high, clean in words:
        kind = low & 0xF
        if clean and kind in named:
            low, high = low & ~named[kind].RESERVED, high & 0x7F
        bench.submit((low, high))
    status = bench.read(Registers.FSTS)
    assert (bench.read(Registers.IQH) == bench.read(Registers.IQT)) != bool(status.IQE) or status.ITE


@given(
    accesses=st.lists(st.tuples(st.integers(0, 0x2C0), st.sampled_from([4, 8]), st.integers(0, 2**64 - 1)), max_size=20)
)
@settings(max_examples=200, deadline=None)
def test_any_access_to_registers_ends(accesses):
    bench = Bench()
    for offset, width, value in accesses:
        bench.unit.write(offset & ~3, width, value)
        assert 0 <= bench.unit.read(offset & ~3, width) < 1 << 8 * width
    assert bench.unit.registers.CAP == presets.FULL.cap
