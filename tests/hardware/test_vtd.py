"""VT-d: what its tables say is what a request gets; what is cached stays until a command names it."""

import pytest
from hypothesis import given, settings, strategies as st

from softiommu.hardware.iommu import TranslationFaultError
from softiommu.hardware.vtd import model, presets, registers, tables
from softiommu.hardware.vtd.commands import Type
from softiommu.hardware.vtd.events import FaultHigh, FaultLow, Reason
from softiommu.memory.physical import PhysicalMemory
from softiommu.pagetable import formats
from softiommu.pagetable.engine import PageTable
from softiommu.pagetable.kinds import EXECUTE, READ, WRITE

SID, DID = 0x0120, 7
GCMD, RTADDR, FSTS, FECTL, FEDATA, FEADDR = 0x18, 0x20, 0x34, 0x38, 0x3C, 0x40
IQH, IQT, IQA, ICS, IECTL, IEDATA, IEADDR = 0x80, 0x88, 0x90, 0x9C, 0xA0, 0xA4, 0xA8


class Rig:
    """A unit with a queue, and tables written as a driver writes them."""

    def __init__(self, cap=presets.LEGACY.cap, ecap=presets.LEGACY.ecap, ttm=0):
        self.memory = PhysicalMemory(64 << 20)
        self.interrupts = []
        self.unit = model.Unit(self.memory, cap, ecap, interrupt=lambda *msi: self.interrupts.append(msi))
        self.root = self.memory.alloc(4096)
        self.queue = self.memory.alloc(4096)
        self.tail = 0
        self.step = 32 if ttm == 1 else 16
        self.unit.write(IQA, 8, self.queue | (ttm == 1) << 11)
        self.unit.write(RTADDR, 8, self.root | ttm << 10)
        self.command(registers.Gcmd.of(SRTP=1))
        self.command(registers.Gcmd.of(QIE=1))

    def command(self, bits):
        levels = int(self.unit.registers.GSTS) & (registers.Gcmd.TE.mask | registers.Gcmd.QIE.mask)
        self.unit.write(GCMD, 4, levels | bits)

    def on(self):
        self.command(registers.Gcmd.of(TE=1))
        assert self.unit.read(0x1C, 4) >> 31

    def submit(self, low, high=0):
        self.memory.write_u64(self.queue + self.tail, low)
        self.memory.write_u64(self.queue + self.tail + 8, high)
        self.tail = (self.tail + self.step) % 4096
        self.unit.write(IQT, 8, self.tail)

    def legacy(self, pages, **fields):
        contexts = self.memory.alloc(4096)
        self.memory.write_u64(self.root + 16 * (SID >> 8), contexts | 1)
        self.context = contexts + 16 * (SID & 255)
        low = tables.ContextLow.of(P=1, SSPTPTR=pages.root >> 12).replace(**fields)
        self.memory.write_u64(self.context, low)
        self.memory.write_u64(self.context + 8, tables.ContextHigh.of(AW=2, DID=DID))

    def scalable(self, entry, pasid=0, pdts=0):
        contexts, directory, leaf = (self.memory.alloc(4096) for _ in range(3))
        self.memory.write_u64(self.root + 16 * (SID >> 8) + 8 * (SID >> 7 & 1), contexts | 1)
        self.context = contexts + 32 * (SID & 0x7F)
        word = tables.ScalableContext0.of(P=1, PASIDE=1, PDTS=pdts, PASIDDIRPTR=directory >> 12)
        self.memory.write_u64(self.context, word)
        self.memory.write_u64(directory + 8 * (pasid >> 6), leaf | 1)
        self.entry = leaf + 64 * (pasid & 63)
        for number, value in enumerate(entry):
            self.memory.write_u64(self.entry + 8 * number, value)

    def fault(self):
        low, high = (self.unit.read(0x220 + 8 * n, 8) for n in range(2))
        return FaultLow(low), FaultHigh(high)


@pytest.fixture
def rig():
    made = Rig()
    made.pages = PageTable(made.memory, formats.VARIANTS["vtdss-48"])
    made.legacy(made.pages)
    made.on()
    return made


def blocked(unit, *args, **keys):
    with pytest.raises(TranslationFaultError) as caught:
        unit.translate(*args, **keys)
    return caught.value.reason


def test_without_translation_addresses_are_physical():
    assert Rig().unit.translate(SID, 0x1234, READ).pa == 0x1234


def test_a_mapped_address_is_translated_with_its_rights(rig):
    rig.pages.map(0x10000, 0x50000, 0x2000, READ)
    assert rig.unit.translate(SID, 0x11008, READ).pa == 0x51008
    assert blocked(rig.unit, SID, 0x10000, WRITE) is Reason.NO_WRITE
    assert blocked(rig.unit, SID, 0x12000, READ) is Reason.NO_READ
    assert blocked(rig.unit, SID, 1 << 48, READ) is Reason.ADDRESS_BEYOND_WIDTH


def test_a_stale_translation_stays_until_its_page_is_invalidated(rig):
    rig.pages.map(0x10000, 0x50000, 0x1000, READ | WRITE)
    assert rig.unit.translate(SID, 0x10000, WRITE).pa == 0x50000
    rig.pages.unmap(0x10000, 0x1000)
    assert rig.unit.translate(SID, 0x10000, WRITE).pa == 0x50000
    rig.submit(Type.IOTLB | 3 << 4 | (DID + 1) << 16, 0x10000)
    rig.submit(Type.IOTLB | 3 << 4 | DID << 16, 0x11000)
    assert rig.unit.translate(SID, 0x10000, WRITE).pa == 0x50000
    rig.submit(Type.IOTLB | 3 << 4 | DID << 16, 0x10000)
    assert blocked(rig.unit, SID, 0x10000, WRITE) is Reason.NO_WRITE


@pytest.mark.parametrize(
    ("low", "high"),
    [(1 << 4, 0), (2 << 4 | DID << 16, 0), (3 << 4 | DID << 16, 0x10004), (3 << 4 | DID << 16, 18)],
    ids=["global", "domain", "16 pages", "2**18 pages"],
)
def test_wider_invalidations_cover_the_page_too(rig, low, high):
    rig.pages.map(0x10000, 0x50000, 0x1000, READ)
    rig.unit.translate(SID, 0x10000, READ)
    rig.pages.unmap(0x10000, 0x1000)
    rig.submit(Type.IOTLB | low, high)
    assert blocked(rig.unit, SID, 0x10000, READ) is Reason.NO_READ


def test_a_changed_context_entry_is_seen_after_its_invalidation(rig):
    rig.pages.map(0x10000, 0x50000, 0x1000, READ)
    rig.unit.translate(SID, 0x10000, READ)
    rig.memory.write_u64(rig.context, 0)
    assert rig.unit.translate(SID, 0x10000, READ).pa == 0x50000
    rig.submit(Type.CONTEXT | 3 << 4 | (SID ^ 8) << 32)
    assert rig.unit.translate(SID, 0x10000, READ).pa == 0x50000
    rig.submit(Type.CONTEXT | 3 << 4 | SID << 32 | DID << 16)
    assert blocked(rig.unit, SID, 0x10000, READ) is Reason.CONTEXT_NOT_PRESENT


def test_function_bits_can_be_masked(rig):
    rig.pages.map(0x10000, 0x50000, 0x1000, READ)
    rig.unit.translate(SID, 0x10000, READ)
    rig.memory.write_u64(rig.context, 0)
    rig.submit(Type.CONTEXT | 3 << 4 | (SID ^ 5) << 32 | 3 << 48)
    assert blocked(rig.unit, SID, 0x10000, READ) is Reason.CONTEXT_NOT_PRESENT


def test_structures_that_are_not_there_have_reasons_of_their_own(rig):
    assert blocked(rig.unit, 0x0220, 0, READ) is Reason.ROOT_NOT_PRESENT
    assert blocked(rig.unit, SID ^ 1, 0, READ) is Reason.CONTEXT_NOT_PRESENT
    assert blocked(rig.unit, SID, 0, READ, pasid=3) is Reason.RTA_PASID
    rig.memory.write_u64(rig.root + 16 * 3, 1 | 1 << 50)
    assert blocked(rig.unit, 0x0300, 0, READ) is Reason.CONTEXT_ACCESS
    rig.memory.write_u64(rig.root + 16 * 4, 3)
    assert blocked(rig.unit, 0x0400, 0, READ) is Reason.ROOT_RESERVED


@pytest.mark.parametrize(
    ("low", "high", "reason"),
    [
        ({"TT": 3}, {}, Reason.CONTEXT_INVALID),
        ({}, {"AW": 3}, Reason.CONTEXT_INVALID),
        ({}, {"AW": 0}, Reason.CONTEXT_INVALID),
        ({"SSPTPTR": 1 << 40}, {}, Reason.CONTEXT_RESERVED),
        ({"SSPTPTR": 1 << 39}, {}, Reason.CONTEXT_INVALID),
    ],
)
def test_a_wrong_context_entry_blocks(rig, low, high, reason):
    rig.memory.write_u64(rig.context, tables.ContextLow(rig.memory.read_u64(rig.context)).replace(**low))
    rig.memory.write_u64(rig.context + 8, tables.ContextHigh(rig.memory.read_u64(rig.context + 8)).replace(**high))
    assert blocked(rig.unit, SID, 0x1000, READ) is reason


def test_pass_through_and_interrupts_are_not_translated(rig):
    rig.memory.write_u64(rig.context, tables.ContextLow.of(P=1, TT=2))
    assert rig.unit.translate(SID, 0x1234, READ).pa == 0x1234
    assert rig.unit.translate(0x999, 0xFEE01000, WRITE).pa == 0xFEE01000


def test_output_in_the_interrupt_range_is_blocked(rig):
    rig.pages.map(0x10000, 0xFEE00000, 0x1000, READ)
    assert blocked(rig.unit, SID, 0x10000, READ) is Reason.OUTPUT_IN_INTERRUPT_RANGE


def test_a_fault_is_recorded_told_and_cleared(rig):
    rig.unit.write(FEDATA, 4, 0x31)
    rig.unit.write(FEADDR, 4, 0xFEE00000)
    rig.unit.write(FECTL, 4, 0)
    blocked(rig.unit, SID, 0x7123, WRITE)
    low, high = rig.fault()
    assert (low.FI, high.SID, high.FR, high.T, high.F, high.PP) == (7, SID, Reason.NO_WRITE, 0, 1, 0)
    assert rig.unit.read(FSTS, 4) == 2
    assert rig.interrupts == [(0xFEE00000, 0x31)]
    blocked(rig.unit, SID, 0x8000, READ)
    assert len(rig.interrupts) == 1
    rig.unit.write(0x22C, 4, 1 << 31)
    assert registers.Fsts(rig.unit.read(FSTS, 4)).FRI == 1
    rig.unit.write(0x23C, 4, 1 << 31)
    assert rig.unit.read(FSTS, 4) == 0


def test_a_fault_without_a_free_register_overflows(rig):
    for number in range(5):
        blocked(rig.unit, SID, number << 12, READ)
    assert registers.Fsts(rig.unit.read(FSTS, 4)).PFO == 1
    rig.unit.write(FSTS, 4, 1)
    assert registers.Fsts(rig.unit.read(FSTS, 4)).PFO == 0


def test_a_masked_event_waits(rig):
    blocked(rig.unit, SID, 0x7000, READ)
    assert rig.interrupts == []
    assert rig.unit.read(FECTL, 4) == 3 << 30
    rig.unit.write(FECTL, 4, 0)
    assert len(rig.interrupts) == 1
    assert rig.unit.read(FECTL, 4) == 0


def test_fpd_blocks_without_a_record(rig):
    rig.memory.write_u64(rig.context, rig.memory.read_u64(rig.context) | 2)
    assert blocked(rig.unit, SID, 0x7000, READ) is Reason.NO_READ
    assert rig.unit.read(FSTS, 4) == 0


def test_a_wait_stores_its_word_after_what_came_before(rig):
    status = rig.memory.alloc(4096)
    rig.unit.write(IEADDR, 4, 0xFEE00000)
    rig.unit.write(IEDATA, 4, 0x41)
    rig.unit.write(IECTL, 4, 0)
    rig.submit(Type.WAIT | 1 << 4 | 1 << 5 | 0xABCD << 32, status)
    assert rig.memory.read_u64(status) == 0xABCD
    assert (rig.unit.read(IQH, 8), rig.unit.read(ICS, 4)) == (16, 1)
    assert rig.interrupts == [(0xFEE00000, 0x41)]


@pytest.mark.parametrize(
    "low", [0, 0xF, Type.IOTLB, Type.CONTEXT | 1 << 60, Type.PASID_IOTLB | 1 << 4, 0x10 | Type.WAIT << 12]
)
def test_a_wrong_descriptor_stops_the_queue_on_itself(rig, low):
    rig.submit(low)
    assert registers.Fsts(rig.unit.read(FSTS, 4)).IQE == 1
    assert rig.unit.read(IQH, 8) == 0
    rig.memory.write_u64(rig.queue, Type.IOTLB | 1 << 4)
    rig.unit.write(FSTS, 4, registers.Fsts.IQE.mask)
    assert rig.unit.read(IQH, 8) == 16


@given(words=st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=8))
@settings(max_examples=150, deadline=None)
def test_any_bytes_in_the_queue_end_with_an_empty_queue_or_an_error(words):
    rig = Rig()
    for low, high in zip(words[::2], words[1::2], strict=False):
        rig.submit(low & ~0xF | low % 10, high)
    done = rig.unit.read(IQH, 8) == rig.unit.read(IQT, 8)
    assert done != bool(registers.Fsts(rig.unit.read(FSTS, 4)).IQE)


# Scalable mode


def scalable_rig():
    made = Rig(*presets.SCALABLE, ttm=1)
    made.first = PageTable(made.memory, formats.VARIANTS["x86-64-4level"])
    made.second = PageTable(made.memory, formats.VARIANTS["vtdss-48"])
    made.on()
    return made


def pasid_entry(rig, pgtt, **stage1):
    how = tables.Pasid0.of(P=1, AW=2, PGTT=pgtt, SSPTPTR=rig.second.root >> 12)
    return how, tables.Pasid1.of(DID=DID), tables.Pasid2.of(FSPTPTR=rig.first.root >> 12).replace(**stage1)


def test_each_kind_of_pasid_entry_translates_by_its_tables():
    rig = scalable_rig()
    iova, ipa = 0x4000_7000, 0x3000_1000
    rig.first.map(iova, ipa, 0x1000, READ | WRITE)
    rig.second.map(ipa, 0x9000, 0x1000, READ | WRITE)
    rig.second.map(iova, 0x5000, 0x1000, READ)
    # The guest's tables lie in memory that the second stage shows at the same addresses.
    rig.second.map(0, 0, 4 << 20, READ | WRITE)
    expected = {1: ipa + 8, 2: 0x5008, 3: 0x9008, 4: iova + 8}
    for pgtt, pa in expected.items():
        rig.scalable(pasid_entry(rig, pgtt))
        rig.submit(Type.CONTEXT | 1 << 4)
        rig.submit(Type.PASID_CACHE | 3 << 4)
        rig.submit(Type.IOTLB | 1 << 4)
        assert rig.unit.translate(SID, iova + 8, READ).pa == pa


def test_a_pasid_has_its_own_translations_and_flushes():
    rig = scalable_rig()
    rig.first.map(0x7000, 0x1000, 0x1000, READ | WRITE)
    rig.scalable(pasid_entry(rig, 1), pasid=5)
    assert rig.unit.translate(SID, 0x7000, WRITE, pasid=5).pa == 0x1000
    assert blocked(rig.unit, SID, 0x7000, READ, pasid=6) is Reason.PASID_ENTRY_NOT_PRESENT
    assert blocked(rig.unit, SID, 0x7000, READ, pasid=64) is Reason.PASID_DIRECTORY_NOT_PRESENT
    assert blocked(rig.unit, SID, 0x7000, READ, pasid=1 << 13) is Reason.PASID_TOO_LARGE
    rig.first.unmap(0x7000, 0x1000)
    rig.submit(Type.PASID_IOTLB | 2 << 4 | DID << 16 | 4 << 32)
    assert rig.unit.translate(SID, 0x7000, WRITE, pasid=5).pa == 0x1000
    rig.submit(Type.PASID_IOTLB | 3 << 4 | DID << 16 | 5 << 32, 0x7000)
    assert blocked(rig.unit, SID, 0x7000, WRITE, pasid=5) is Reason.FIRST_NOT_PRESENT
    _, high = rig.fault()
    assert (high.PP, high.PV) == (1, 6)


def test_first_stage_rights_and_shape():
    rig = scalable_rig()
    rig.first.map(0x7000, 0x1000, 0x1000, READ)
    rig.scalable(pasid_entry(rig, 1))
    assert blocked(rig.unit, SID, 0x7000, WRITE) is Reason.SCALABLE_NO_WRITE
    assert blocked(rig.unit, SID, 1 << 47, READ) is Reason.NOT_CANONICAL
    assert blocked(rig.unit, SID, 0x7000, EXECUTE) is Reason.EXECUTE_REQUESTS_DISABLED
    (leaf,) = rig.first.leaves(0, 1 << 40)
    rig.memory.write_u64(leaf.at, leaf.pte & ~4)
    rig.submit(Type.IOTLB | 1 << 4)
    assert blocked(rig.unit, SID, 0x7000, READ) is Reason.USER


@pytest.mark.parametrize(
    ("word", "bits", "reason"),
    [
        (0, 1 << 10, Reason.PASID_ENTRY_RESERVED),
        (3, 1, Reason.PASID_ENTRY_RESERVED),
        (0, 7 << 6, Reason.PASID_ENTRY_INVALID),
        (2, 1 << 2, Reason.PASID_ENTRY_INVALID),
    ],
)
def test_a_wrong_pasid_entry_blocks(word, bits, reason):
    rig = scalable_rig()
    rig.scalable(pasid_entry(rig, 1))
    rig.memory.write_u64(rig.entry + 8 * word, rig.memory.read_u64(rig.entry + 8 * word) | bits)
    assert blocked(rig.unit, SID, 0, READ) is reason


def test_a_mode_that_is_not_there_blocks_everything():
    assert blocked(_started(Rig(ttm=1)).unit, SID, 0, READ) is Reason.RTA_INVALID
    assert blocked(_started(Rig(*presets.SCALABLE, ttm=3)).unit, SID, 0, READ) is Reason.RTA_ABORT


def _started(rig):
    rig.on()
    return rig


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_whatever_the_tables_hold_a_request_ends(data):
    """Hostile structures: random words that lead back into this memory."""
    scalable = data.draw(st.booleans())
    rig = scalable_rig() if scalable else _started(Rig())
    pages = [rig.memory.alloc(4096) for _ in range(4)]
    targets = st.sampled_from([*pages, rig.root])
    for page in [rig.root, *pages]:
        for number in data.draw(st.lists(st.integers(0, 511), max_size=12)):
            word = (
                data.draw(targets)
                | data.draw(st.integers(0, 0xFFF))
                | data.draw(st.sampled_from([0, 1 << 63, 1 << 52]))
            )
            rig.memory.write_u64(page + 8 * number, word)
    for sid in data.draw(st.lists(st.integers(0, 0x1FF), min_size=1, max_size=4)):
        pasid = data.draw(st.one_of(st.none(), st.integers(0, 200))) if scalable else None
        assert outcome(rig.unit, sid, data.draw(st.integers(0, 2**49)), data.draw(st.integers(1, 3)), pasid)


def outcome(unit, *request):
    """The reason of the fault, or the rights that were found."""
    try:
        return unit.translate(*request).allowed
    except TranslationFaultError as fault:
        return Reason(fault.reason)
