"""VT-d: every fault reason, each by structures that are wrong in one way; and what its record says."""

import pytest
from hypothesis import given, settings, strategies as st
from vtd_rig import DID, NOWHERE, SID, Bench, Device, reason, recorded

from softiommu.errors import ConfigError
from softiommu.hardware.iommu import PageRequest
from softiommu.hardware.vtd import presets, tables
from softiommu.hardware.vtd.events import AddressType, Reason, Unreported
from softiommu.hardware.vtd.registers import Fsts, Registers, Ttm
from softiommu.memory.physical import Mmio
from softiommu.pagetable.formats import vtdss, x86_64
from softiommu.pagetable.kinds import EXECUTE, READ, WRITE

IOVA, IPA, PA = 0x4000_7000, 0x3000_1000, 0x9000
RW = READ | WRITE
C0, C1, P0, P1, P2 = (
    *(tables.ScalableContext0, tables.ScalableContext1),
    *(tables.Pasid0, tables.Pasid1, tables.Pasid2),
)
FULL = presets.FULL


def legacy(unit=FULL):
    bench = Bench(unit, Ttm.LEGACY)
    bench.second.map(IOVA, PA, 0x1000, READ)
    return bench


def first(**stage1):
    bench = Bench()
    bench.pasid(tables.Pgtt.FIRST, **stage1)
    bench.first.map(IOVA, PA, 0x1000, READ)
    return bench


def second():
    bench = Bench()
    bench.pasid(tables.Pgtt.SECOND)
    bench.second.map(IOVA, PA, 0x1000, READ)
    return bench


def nested():
    """The first stage's tables lie where the second stage shows them, but for the one at the top."""
    bench = Bench()
    bench.pasid(tables.Pgtt.NESTED)
    bench.first.map(IOVA, IPA, 0x1000, RW)
    bench.second.map(IPA, PA, 0x1000, RW)
    for table in (bench.first.root, *bench.first._tables):
        bench.second.map(table, table, 0x1000, RW)
    return bench


def spoil(bench, at, **fields):
    bench.change(at[0], at[1], **fields)
    return bench


def words(bench, at, *values):
    bench.set(at, *values)
    return bench


def leaf(bench, pages, clear=0, put=0):
    """Change the bits of a table's first leaf."""
    found = next(pages.leaves(0, 1 << 48))
    bench.set(found.at, found.pte & ~clear | put)
    return bench


def in_window(bench, at, pointer, word, where=1 << 40):
    """A table entry in a window that can be read but not written."""
    table = pointer(bench)
    content = bench.memory.read(table, 4096)

    def refuse(offset, data):
        raise OSError

    bench.memory.map_window(where, Mmio(refuse, lambda offset, size: content[offset : offset + size]), 0, 4096)
    bench.change(at(bench), word[0], **{word[1]: where >> 12})
    return bench


def pasid_window(bench, field):
    word, offset = (P0, 0) if field == "SSPTPTR" else (P2, 16)
    table = bench.second.root if field == "SSPTPTR" else bench.first.root
    return in_window(bench, lambda b: b.entry + offset, lambda b: table, (word, field))


def no_coherence(bench):
    return spoil(bench, (bench.entry + 8, P1), PWSNP=0)


def unmapped(bench, address, prot=0):
    bench.second.unmap(address, 0x1000)
    if prot:
        bench.second.map(address, address, 0x1000, prot)
    return bench


def table_of(bench):
    return bench.leaf(bench.first).at & ~0xFFF


#: A reason, how to make the structures, and the request: (address, want, PASID, privileged).
CASES = [
    (Reason.ROOT_NOT_PRESENT, lambda: words(b := legacy(), b.root_entry, 0), {}),
    (Reason.CONTEXT_NOT_PRESENT, lambda: words(b := legacy(), b.context, 0), {}),
    (Reason.CONTEXT_INVALID, lambda: spoil(b := legacy(), (b.context, tables.ContextLow), TT=3), {}),
    (Reason.CONTEXT_INVALID, lambda: spoil(b := legacy(), (b.context + 8, tables.ContextHigh), AW=4), {}),
    (Reason.ADDRESS_BEYOND_WIDTH, legacy, {"iova": 1 << 48}),
    (Reason.NO_WRITE, legacy, {"want": WRITE}),
    (Reason.NO_READ, legacy, {"iova": 0}),
    (Reason.PAGING_ACCESS, lambda: words(b := legacy(), b.second.root, NOWHERE | 3), {}),
    (Reason.ROOT_ACCESS, lambda: Bench(ttm=Ttm.LEGACY, ram=1 << 20), {"root": 1 << 21}),
    (Reason.CONTEXT_ACCESS, lambda: words(b := legacy(), b.root_entry, NOWHERE | 1), {}),
    (Reason.ROOT_RESERVED, lambda: words(b := legacy(), b.root_entry + 8, 1), {}),
    (Reason.CONTEXT_RESERVED, lambda: words(b := legacy(), b.context + 8, 2 | 1 << 24), {}),
    (Reason.PAGING_RESERVED, lambda: words(b := legacy(), b.second.root, 3 | 1 << 7), {}),
    (Reason.OUTPUT_IN_INTERRUPT_RANGE, lambda: leaf(b := legacy(), b.second, 0xFFFFF000, 0xFEE00000), {}),
    (Reason.RTA_PASID, legacy, {"pasid": 1}),
    (Reason.RTA_INVALID, lambda: Bench(ttm=Ttm.RESERVED), {}),
    (Reason.RTA_INVALID, lambda: Bench(presets.LEGACY, Ttm.SCALABLE), {}),
    (Reason.RTA_ABORT, lambda: Bench(ttm=Ttm.ABORT), {}),
    (Reason.SCALABLE_ROOT_ACCESS, lambda: Bench(ram=1 << 20), {"root": 1 << 21}),
    (Reason.SCALABLE_ROOT_NOT_PRESENT, lambda: words(b := first(), b.root_entry, 0), {}),
    (Reason.SCALABLE_ROOT_RESERVED, lambda: words(b := first(), b.root_entry, b.contexts | 3), {}),
    (Reason.SCALABLE_CONTEXT_ACCESS, lambda: words(b := first(), b.root_entry, NOWHERE | 1), {}),
    (Reason.SCALABLE_CONTEXT_NOT_PRESENT, lambda: spoil(b := first(), (b.context, C0), P=0), {}),
    (Reason.SCALABLE_CONTEXT_RESERVED, lambda: words(b := first(), b.context + 24, 1), {}),
    (Reason.PASID_NOT_ENABLED, lambda: spoil(b := first(), (b.context, C0), PASIDE=0), {"pasid": 0}),
    (Reason.PASID_TOO_LARGE, first, {"pasid": 1 << 13}),
    (Reason.RID_PASID_TOO_LARGE, lambda: spoil(b := first(), (b.context + 8, C1), RID_PASID=1 << 13), {}),
    (Reason.PASID_DIRECTORY_ACCESS, lambda: spoil(b := first(), (b.context, C0), PASIDDIRPTR=NOWHERE >> 12), {}),
    (Reason.PASID_DIRECTORY_NOT_PRESENT, first, {"pasid": 64}),
    (Reason.PASID_DIRECTORY_RESERVED, lambda: words(b := first(), b.directory, b.pasids | 5), {}),
    (Reason.PASID_ENTRY_ACCESS, lambda: words(b := first(), b.directory, NOWHERE | 1), {}),
    (Reason.PASID_ENTRY_NOT_PRESENT, first, {"pasid": 63}),
    (Reason.PASID_ENTRY_RESERVED, lambda: words(b := first(), b.entry + 56, 1), {}),
    (Reason.PASID_ENTRY_INVALID, lambda: spoil(b := first(), (b.entry, P0), PGTT=0), {}),
    (Reason.PASID_ENTRY_INVALID, lambda: spoil(b := second(), (b.entry, P0), AW=0), {}),
    (Reason.PASID_ENTRY_INVALID, lambda: spoil(b := first(), (b.entry + 16, P2), FSPM=2), {}),
    (Reason.EXECUTE_REQUESTS_DISABLED, first, {"want": EXECUTE}),
    (Reason.SUPERVISOR_REQUESTS_DISABLED, first, {"privileged": True}),
    (Reason.FIRST_ACCESS, lambda: words(b := first(), b.first.root, NOWHERE | 7), {}),
    (Reason.FIRST_NOT_PRESENT, first, {"iova": 0}),
    (Reason.FIRST_RESERVED, lambda: words(b := first(), b.first.root, 7 | 1 << 7), {}),
    (Reason.FIRST_RESERVED, lambda: leaf(b := first(), b.first, put=1 << 63), {}),
    (Reason.FIRST_TOP_ACCESS, lambda: spoil(b := first(), (b.entry + 16, P2), FSPTPTR=NOWHERE >> 12), {}),
    (Reason.FIRST_TABLE_BEYOND_WIDTH, lambda: words(b := nested(), b.first.root, 1 << 49 | 7), {}),
    (Reason.FIRST_TOP_TABLE_READ, lambda: unmapped(b := nested(), b.first.root), {}),
    (Reason.FIRST_TABLE_READ, lambda: unmapped(b := nested(), table_of(b), WRITE), {}),
    (Reason.FIRST_TABLE_WRITE, lambda: leaf(unmapped(b := nested(), table_of(b), READ), b.first, x86_64.A), {}),
    (Reason.SECOND_ACCESS, lambda: words(b := second(), b.second.root, NOWHERE | 3), {}),
    (Reason.SECOND_NOT_PRESENT, second, {"iova": 0}),
    (Reason.SECOND_RESERVED, lambda: words(b := second(), b.second.root, 3 | 1 << 7), {}),
    (Reason.SECOND_TOP_ACCESS, lambda: spoil(b := second(), (b.entry, P0), SSPTPTR=NOWHERE >> 12), {}),
    (Reason.SECOND_FLAGS_NOT_SNOOPED, lambda: no_coherence(second()), {}),
    (Reason.SECOND_FLAGS_FAILED, lambda: pasid_window(second(), "SSPTPTR"), {}),
    (Reason.NOT_CANONICAL, first, {"iova": 1 << 47}),
    (Reason.USER, lambda: leaf(b := first(), b.first, x86_64.US), {}),
    (Reason.NO_EXECUTE, lambda: leaf(b := first(ERE=1, NXE=1), b.first, put=1 << 63), {"want": EXECUTE}),
    (Reason.BEYOND_WIDTH, second, {"iova": 1 << 48}),
    (Reason.GUEST_ADDRESS_BEYOND_WIDTH, lambda: leaf(b := nested(), b.first, put=1 << 49), {}),
    (Reason.SCALABLE_NO_WRITE, first, {"want": WRITE}),
    (Reason.SCALABLE_NO_WRITE, second, {"want": WRITE}),
    (Reason.SCALABLE_NO_READ, lambda: leaf(b := second(), b.second, vtdss.R, vtdss.W), {}),
    (Reason.SCALABLE_OUTPUT_IN_INTERRUPT_RANGE, lambda: leaf(b := first(), b.first, 0xFFFFF000, 0xFEE00000), {}),
    (Reason.FIRST_FLAGS_NOT_SNOOPED, lambda: leaf(no_coherence(b := first()), b.first, x86_64.A), {}),
    (
        Reason.FIRST_FLAGS_FAILED,
        lambda: words(b := first(), b.first.root, b.memory.read_u64(b.first.root) & ~32),
        {"w": 1},
    ),
]


def _name(value):
    return value.name if isinstance(value, Reason) else ""


@pytest.mark.parametrize(("expected", "make", "request_"), CASES, ids=_name)
def test_each_reason_has_structures_that_cause_it(expected, make, request_):
    bench, asked = make(), {"iova": IOVA, "want": READ, "pasid": None, "privileged": False, **request_}
    if asked.pop("w", None):  # the flag of the top entry is not set, and cannot be
        pasid_window(bench, "FSPTPTR")
    if "root" in asked:
        bench.write(Registers.RTADDR, asked.pop("root") | bench.unit.table_mode << 10)
        bench.command(SRTP=1)
    assert reason(bench.unit.translate, SID, **asked) is expected
    low, high = bench.record()
    assert (high.F, high.FR, high.SID, low.FI) == (1, expected, SID, asked["iova"] >> 12)
    assert (high.PP, high.PV) == ((0, 0) if asked["pasid"] is None else (1, asked["pasid"]))
    assert (high.T, high.T2, high.AT) == (int(not asked["want"] & WRITE), 0, AddressType.UNTRANSLATED)


#: Reasons of interrupts and of devices' own requests have tests elsewhere.
ELSEWHERE = {
    *(Reason.INTERRUPT_RESERVED, Reason.INTERRUPT_INDEX, Reason.IRTE_NOT_PRESENT, Reason.IRTE_ACCESS),
    *(Reason.IRTE_RESERVED, Reason.COMPATIBILITY_BLOCKED, Reason.INTERRUPT_SOURCE, Reason.REQUEST_BLOCKED_BY_TT),
    *(Reason.DEVICE_TLB_NOT_ENABLED, Reason.RTA_PAGE_REQUEST, Reason.PAGE_REQUESTS_NOT_ENABLED),
    Reason.SCALABLE_CONTEXT_INVALID,
}


def test_no_reason_is_forgotten():
    assert {case[0] for case in CASES} | ELSEWHERE == set(Reason)


def test_bits_of_what_the_hardware_has_not_are_wrong():
    plain = presets.SCALABLE
    bench = Bench(plain)
    bench.set(bench.entry + 8, tables.Pasid1.of(DID=DID))
    for at, word, field, expected in (
        (bench.context, C0, "DTE", Reason.SCALABLE_CONTEXT_INVALID),
        (bench.context, C0, "PRE", Reason.SCALABLE_CONTEXT_INVALID),
        (bench.entry, P0, "SSADE", Reason.PASID_ENTRY_RESERVED),
        (bench.entry + 8, P1, "PWSNP", Reason.PASID_ENTRY_RESERVED),
        (bench.entry + 16, P2, "EAFE", Reason.PASID_ENTRY_RESERVED),
    ):
        bench.change(bench.entry, P0, SSADE=0)
        bench.change(at, word, **{field: 1})
        assert reason(bench.unit.translate, SID, 0, READ) is expected
        bench.change(at, word, **{field: 0})
        bench.unit.caches.forget_all()


def test_host_addresses_end_where_the_host_says():
    bench = Bench(host_bits=39)
    bench.first.map(0, 1 << 39, 0x1000, READ)
    assert reason(bench.unit.translate, SID, 0, READ) is Reason.FIRST_RESERVED
    bench.set(bench.root_entry, 1 << 39 | 1)
    bench.unit.caches.forget_all()
    assert reason(bench.unit.translate, SID, 0, READ) is Reason.SCALABLE_ROOT_RESERVED


@pytest.mark.parametrize("place", ["context", "directory", "entry"])
def test_fpd_blocks_without_a_record(place):
    bench = first()
    bench.set(getattr(bench, place), bench.memory.read_u64(getattr(bench, place)) | 2)
    assert reason(bench.unit.translate, SID, 0, READ) is Reason.FIRST_NOT_PRESENT
    assert recorded(bench) is None
    assert bench.read(Registers.FSTS) == 0


def test_records_fill_and_overflow_in_order_and_the_first_is_the_oldest():
    bench = first()
    for number in range(9):
        reason(bench.unit.translate, SID, 0x1000 * number, READ)
    assert [bench.record(n)[0].FI for n in range(8)] == list(range(8))
    status = bench.read(Registers.FSTS)
    assert (status.PPF, status.PFO, status.FRI) == (1, 1, 0)
    for number in (0, 1):
        bench.unit.write(16 * bench.unit.registers.CAP.FRO + 16 * number + 12, 4, 1 << 31)
    assert bench.read(Registers.FSTS).FRI == 2
    reason(bench.unit.translate, SID, 0x99000, READ)
    assert bench.record(0)[1].F == 0  # dropped while PFO is set
    bench.write(Registers.FSTS, Fsts.of(PFO=1))
    reason(bench.unit.translate, SID, 0xAA000, READ)
    assert bench.record(0)[0].FI == 0xAA
    assert bench.read(Registers.FSTS).FRI == 2


def test_a_second_error_is_no_second_event_until_software_has_seen_the_first():
    bench = first()
    bench.write(Registers.FECTL, 0)
    reason(bench.unit.translate, SID, 0, READ)
    bench.submit(0xF)
    assert len(bench.interrupts) == 1
    bench.unit.write(16 * bench.unit.registers.CAP.FRO + 12, 4, 1 << 31)
    bench.write(Registers.FSTS, Fsts.of(IQE=1))
    assert len(bench.interrupts) == 2  # the descriptor is still wrong
    bench.set(bench.queue, 1 | 1 << 4)
    bench.write(Registers.FSTS, Fsts.of(IQE=1))
    assert bench.read(Registers.FSTS) == 0


def test_what_a_masked_event_waited_for_is_gone_when_software_has_seen_it():
    bench = first()
    reason(bench.unit.translate, SID, 0, READ)
    assert bench.read(Registers.FECTL).IP == 1
    bench.unit.write(16 * bench.unit.registers.CAP.FRO + 12, 4, 1 << 31)
    assert bench.read(Registers.FECTL).IP == 0
    bench.write(Registers.FECTL, 0)
    assert bench.interrupts == []


def test_privilege_and_execution_are_recorded():
    bench = first(SRE=1, ERE=1)
    reason(bench.unit.translate, SID, 0, EXECUTE, 0, True)
    _, high = bench.record()
    assert (high.PP, high.PRIV, high.EXE, high.T) == (1, 1, 1, 1)


def test_requests_without_pasid_are_privileged_where_the_context_says_so():
    bench = first(SRE=1)
    leaf(bench, bench.first, x86_64.US)
    assert reason(bench.unit.translate, SID, IOVA, READ) is Reason.USER
    bench.change(bench.context + 8, C1, RID_PRIV=1)
    bench.unit.caches.forget_all()
    assert bench.unit.translate(SID, IOVA, READ).pa == PA


@pytest.mark.parametrize("scalable", [False, True])
def test_addresses_that_pass_through_end_where_the_hardware_ends(scalable):
    bench = Bench(presets.SCALABLE, Ttm.SCALABLE if scalable else Ttm.LEGACY)
    if scalable:
        bench.pasid(tables.Pgtt.PASS_THROUGH)
        bench.set(bench.entry, tables.Pasid0.of(P=1, PGTT=4), 0)
    else:
        bench.change(bench.context, tables.ContextLow, TT=2)
    assert bench.unit.translate(SID, (1 << 48) - 1, WRITE).pa == (1 << 48) - 1
    beyond = Reason.BEYOND_WIDTH if scalable else Reason.ADDRESS_BEYOND_WIDTH
    assert reason(bench.unit.translate, SID, 1 << 48, WRITE) is beyond


@pytest.mark.parametrize("zlr", [0, 1])
def test_a_read_of_no_bytes_needs_the_read_right_unless_the_hardware_knows_it(zlr):
    bench = legacy(presets.FULL._replace(cap=presets.FULL.cap.replace(ZLR=zlr)))
    leaf(bench, bench.second, vtdss.R, vtdss.W)
    assert reason(bench.unit.translate, SID, IOVA, 0) is (None if zlr else Reason.NO_READ)
    assert reason(bench.unit.translate, SID, 0, 0) is Reason.NO_READ


def test_protected_memory_is_for_remapped_requests_only():
    bench = Bench(FULL._replace(cap=FULL.cap.replace(PLMR=1, PHMR=1)), Ttm.LEGACY)
    bench.second.map(0x200000, 0x200000, 0x1000, READ)
    bench.write(Registers.PLMBASE, 0x200000)
    bench.write(Registers.PLMLIMIT, 0x3FFFFF)
    bench.write(Registers.PHMBASE, 1 << 33)
    bench.write(Registers.PHMLIMIT, 1 << 33)
    bench.write(Registers.PMEN, 1 << 31)
    assert bench.read(Registers.PMEN).PRS == 1
    assert bench.unit.translate(SID, 0x200000, READ).pa == 0x200000
    bench.write(Registers.GCMD, 0)
    for address in (0x200000, 0x3FFFFF, 1 << 33):
        assert reason(bench.unit.translate, SID, address, READ) is Unreported.PROTECTED_MEMORY
    assert bench.unit.translate(SID, 0x1FFFFF, READ).lg2 == 21
    assert recorded(bench) is None
    bench.write(Registers.PMEN, 0)
    assert bench.unit.translate(SID, 0x200000, READ).lg2 == 64


@pytest.mark.parametrize(
    ("register", "fields", "rule"),
    [
        ("cap", {"SAGAW": 0}, "SAGAW"),
        ("cap", {"SAGAW": 1}, "SAGAW"),
        ("cap", {"MGAW": 57}, "MGAW"),
        ("cap", {"SSLPS": 2}, "SSLPS"),
        ("cap", {"FRO": 0xF}, "a place of their own"),
        ("cap", {"FRO": 2}, "a place of their own"),
        ("ecap", {"SMTS": 0}, "scalable mode"),
        ("ecap", {"SSTS": 0}, "both stages"),
        ("ecap", {"QI": 0}, "invalidation queue"),
        ("ecap", {"DT": 0}, "PRS"),
        ("ecap", {"PASID": 0}, "PSS"),
        ("ecap", {"IR": 0}, "EIM"),
    ],
)
def test_a_unit_that_cannot_be_is_refused_with_the_rule(register, fields, rule):
    word = getattr(FULL, register).replace(**fields)
    with pytest.raises(ConfigError, match=rule):
        presets.check(*FULL._replace(**{register: word}))


def test_every_preset_can_be():
    for preset in (*presets.QEMU.values(), presets.FULL, presets.LEGACY, presets.SCALABLE):
        assert presets.broken_rule(*preset) is None


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_whatever_the_structures_hold_every_request_ends(data):
    """Random words everywhere, with pointers that lead back: loops, self references, reserved bits, nowhere."""
    scalable = data.draw(st.booleans())
    bench = Bench(ttm=Ttm.SCALABLE if scalable else Ttm.LEGACY)
    if scalable:
        bench.pasid(data.draw(st.sampled_from(list(tables.Pgtt))), **data.draw(stage1_bits))
    bench.unit.connect(SID, Device())
    pages = [bench.root, bench.contexts, bench.directory, bench.pasids, bench.first.root, bench.second.root]
    targets = st.sampled_from([*pages, NOWHERE, 0, 1 << 51])
    noise = st.one_of(st.integers(0, 0xFFF), st.sampled_from([1, 3, 7, 0x83, 0x187]))
    for page in data.draw(st.lists(st.sampled_from(pages), max_size=6)):
        number = data.draw(st.one_of(st.integers(0, 7), st.integers(0, 511)))
        high = data.draw(st.sampled_from([0, 0, 1 << 63, 1 << 52]))
        bench.set(page + 8 * number, data.draw(targets) | data.draw(noise) | high)
    for _ in range(data.draw(st.integers(1, 4))):
        asked = data.draw(requests)
        for call in (bench.unit.translate, bench.unit.ats_translate):
            found = reason(call, SID, *asked)
            assert found is None or found in Reason
        assert reason(bench.unit.admit_translated, SID, *asked[:3]) in (None, *Reason)
        bench.unit.page_request(PageRequest(SID, asked[0], asked[1], 1, True, *asked[2:]))


stage1_bits = st.fixed_dictionaries({name: st.integers(0, 1) for name in ("SRE", "ERE", "WPE", "NXE", "SMEP", "EAFE")})
requests = st.tuples(
    st.one_of(st.integers(0, 1 << 22), st.integers(0, 2**64 - 1)),
    st.integers(0, 7),
    st.one_of(st.none(), st.integers(0, 200), st.just(2**20 - 1)),
    st.booleans(),
)
