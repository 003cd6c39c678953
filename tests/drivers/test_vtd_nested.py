"""Nesting on VT-d: a guest's first stage over the host's second stage, and what must be forgotten when one changes."""

from errno import E2BIG, EFAULT, EINVAL, EOPNOTSUPP, EOVERFLOW
from types import SimpleNamespace

import pytest
from hypothesis import given, settings, strategies as st

from drivers.vtd_guest import ALL, GPU, GUEST_RAM, HOST, RAM, RW, SID, VTD_S1, DeviceTlb, Rig
from softiommu.abi import iommufd as abi
from softiommu.abi.generic_invalidation import Hint, InvalidateV1, InvalidateV2, Outcome, Scope, Target
from softiommu.drivers.driver import DomainFlags, Prot
from softiommu.drivers.function import Function
from softiommu.drivers.vtd.driver import LINUX_6_12, VtdDriver
from softiommu.errors import UapiError
from softiommu.hardware.vtd.events import Reason
from softiommu.hardware.vtd.model import Unit
from softiommu.hardware.vtd.presets import FULL, QEMU
from softiommu.hardware.vtd.tables import Pasid0, Pasid1, Pasid2, Pgtt
from softiommu.memory.physical import PhysicalMemory
from softiommu.pagetable.kinds import READ, WRITE

SRE, EAFE, WPE = abi.VtdS1Flags.SRE, abi.VtdS1Flags.EAFE, abi.VtdS1Flags.WPE
NO_ATS = GPU._replace(ats=False, pri=False)
GPA = 0x200000


@pytest.fixture
def rig():
    return Rig(function=NO_ATS)


def errno_of(call, *args, **keys):
    with pytest.raises(UapiError) as caught:
        call(*args, **keys)
    return caught.value.errno


def entry(rig, pasid=None):
    at = rig.driver.routes.reserve(SID, pasid)
    return [word(rig.memory.read_u64(at + 8 * n)) for n, word in enumerate((Pasid0, Pasid1, Pasid2))]


# Attaching


@pytest.mark.parametrize("pasid", [None, 9])
@pytest.mark.parametrize("levels", [4, 5])
def test_a_device_goes_through_the_guests_table_and_then_the_hosts(rig, pasid, levels):
    table = rig.table(levels)
    nested = rig.nest(table, width=48 if levels == 4 else 57)
    rig.device.attach(nested, pasid)
    assert rig.reach(0x7000, pasid) is Reason.FIRST_NOT_PRESENT
    table.map(0x7000, GPA, 0x2000, RW.value)
    assert [rig.reach(at, pasid) for at in (0x7008, 0x8010)] == [GPA + 8, GPA + 0x1010]
    rig.device.detach(pasid)
    assert isinstance(rig.reach(0x7000, pasid), Reason)
    nested.free()


def test_the_pasid_entry_has_both_roots_and_the_options_of_both(rig):
    table = rig.table()
    rig.parent.enforce_cache_coherency()
    nested = rig.nest(table, flags=SRE | WPE | EAFE, width=57)
    rig.device.attach(nested, 3)
    how, tags, stage1 = entry(rig, 3)
    assert (how.P, how.PGTT, how.AW, how.SSPTPTR, how.SSADE) == (1, Pgtt.NESTED, 3, rig.parent.pages.root >> 12, 0)
    assert (tags.DID, tags.PWSNP, tags.PGSNP) == (nested.did, 1, int(rig.parent.cache_coherent))
    assert (stage1.FSPTPTR, stage1.FSPM, stage1.SRE, stage1.WPE, stage1.EAFE) == (table.root >> 12, 1, 1, 1, 1)
    assert nested.did != rig.parent.did


def test_write_protection_of_supervisors_comes_with_their_requests_only(rig):
    rig.device.attach(rig.nest(rig.table(), flags=WPE), None)
    assert (entry(rig)[2].SRE, entry(rig)[2].WPE) == (0, 0)


def test_coherency_that_the_parent_enforces_is_in_the_entry():
    rig = Rig(function=NO_ATS)
    empty = rig.device.alloc_paging(DomainFlags.NEST_PARENT, None)
    nested = rig.nest(rig.table(), parent=empty)
    rig.device.attach(nested, None)
    assert entry(rig)[1].PGSNP == 0
    assert empty.enforce_cache_coherency()
    assert entry(rig)[1].PGSNP == 1


def written(domain):
    """What was written since it was asked before."""
    found = []
    report = SimpleNamespace(record=lambda iova, length: found.append((iova, length)))
    domain.read_dirty(domain.aperture, report, clear=True)
    return found


def test_dirty_tracking_of_the_parent_is_in_the_entry_and_finds_what_goes_through_it():
    rig = Rig(function=NO_ATS, flags=DomainFlags.NEST_PARENT | DomainFlags.DIRTY_TRACKING)
    table = rig.table()
    table.map(0x7000, GPA, 0x1000, RW.value)
    rig.device.attach(rig.nest(table), None)
    rig.parent.set_dirty_tracking(True)
    assert entry(rig)[0].SSADE == 1
    assert rig.reach(0x7000, want=WRITE) == GPA
    assert written(rig.parent) == [(0, GUEST_RAM)]  # in two leaves: the guest's tables are written, too
    assert written(rig.parent) == []
    assert rig.reach(0x7000, want=WRITE) == GPA
    assert written(rig.parent) == [(GPA, 2 << 20)]
    assert errno_of(rig.device.attach, rig.nest(table), 5) == EINVAL  # as for a plain domain


def test_a_replacement_forgets_the_old_table(rig):
    one, two = rig.table(), rig.table()
    one.map(0x7000, GPA, 0x1000, RW.value)
    two.map(0x7000, GPA + 0x5000, 0x1000, RW.value)
    first, second = rig.nest(one), rig.nest(two)
    for pasid in (None, 4):
        rig.device.attach(first, pasid)
        assert rig.reach(0x7000, pasid) == GPA
    rig.device.attach(second, 4)
    assert [rig.reach(0x7000, pasid) for pasid in (None, 4)] == [GPA, GPA + 0x5000]
    rig.device.attach(rig.parent, None)
    assert rig.reach(GPA) == GPA
    rig.device.attach(first, None)
    assert rig.reach(0x7000) == GPA


def test_what_the_guest_may_is_what_both_stages_allow(rig):
    table = rig.table()
    table.map(0x7000, GPA, 0x1000, Prot.READ.value)
    table.map(0x8000, GUEST_RAM + 0x5000, 0x1000, RW.value)
    rig.device.attach(rig.nest(table), None)
    assert rig.reach(0x7000, want=READ) == GPA
    assert rig.reach(0x7000, want=WRITE) is Reason.SCALABLE_NO_WRITE
    assert rig.reach(0x8000) is Reason.SECOND_NOT_PRESENT


def test_a_root_outside_of_the_parent_is_a_fault_and_no_error(rig):
    nested = rig.device.alloc_nested(rig.parent, 0, rig.data(abi.HwptVtdS1(0, GUEST_RAM + 0x1000, 48).to_bytes()))
    rig.device.attach(nested, None)
    assert rig.reach(0x7000) is Reason.FIRST_TOP_TABLE_READ


@given(
    st.lists(st.tuples(st.integers(0, 511), st.integers(0, 2**64 - 1)), max_size=8),
    st.integers(0, 2**48 - 1).filter(lambda iova: iova >> 20 != 0xFEE),  # a write there is an interrupt
)
@settings(max_examples=60, deadline=None)
def test_a_table_of_garbage_never_leads_outside_of_the_parent(words, iova):
    rig = Rig(function=NO_ATS)
    root = rig.guest.alloc(4096)
    for number, word in words:
        rig.guest.write_u64(root + 8 * number, word)
    rig.guest.write_u64(root + 8 * (iova >> 39), root | 7)
    nested = rig.device.alloc_nested(rig.parent, 0, rig.data(abi.HwptVtdS1(0, root, 48).to_bytes()))
    rig.device.attach(nested, None)
    answer = rig.reach(iova, want=WRITE)
    assert isinstance(answer, Reason) or 0 <= answer < GUEST_RAM


@pytest.mark.parametrize("root", [1 << 51, (1 << 64) - 4096])
def test_a_root_beyond_every_address_is_a_fault(rig, root):
    nested = rig.device.alloc_nested(rig.parent, 0, rig.data(abi.HwptVtdS1(0, root, 57).to_bytes()))
    rig.device.attach(nested, 1)
    assert rig.reach(0x7000, 1) in (Reason.PASID_ENTRY_RESERVED, Reason.FIRST_TOP_TABLE_READ)


# What is refused


@pytest.mark.parametrize(
    ("config", "length", "data_type", "errno"),
    [
        (abi.HwptVtdS1(8, 0x1000, 48), 24, VTD_S1, EOPNOTSUPP),
        (abi.HwptVtdS1(1 << 63, 0x1000, 48), 24, VTD_S1, EOPNOTSUPP),
        (abi.HwptVtdS1(0, 0x1000, 48, 1), 24, VTD_S1, EOPNOTSUPP),
        (abi.HwptVtdS1(0, 0x1800, 48), 24, VTD_S1, EINVAL),
        (abi.HwptVtdS1(0, 0x1000, 48), 23, VTD_S1, EINVAL),
        (abi.HwptVtdS1(0, 0x1000, 48), 32, VTD_S1, EINVAL),
        (abi.HwptVtdS1(0, 0x1000, 48), 24, abi.HwptDataType.ARM_SMMUV3, EOPNOTSUPP),
    ],
)
def test_wrong_data_makes_no_domain(rig, config, length, data_type, errno):
    free = len(rig.driver._dids)
    data = rig.data(config.to_bytes().ljust(length, b"\0")[:length], data_type)
    assert errno_of(rig.device.alloc_nested, rig.parent, 0, data) == errno
    assert (len(rig.driver._dids), rig.parent.children) == (free, [])


def test_data_outside_of_memory_is_a_fault(rig):
    data = rig.data(bytes(24))
    data.uptr = 8
    assert errno_of(rig.device.alloc_nested, rig.parent, 0, data) == EFAULT


@pytest.mark.parametrize("width", [0, 39, 47, 49, 52, 58, 64, 2**32 - 1])
def test_a_width_that_the_hardware_has_not_is_refused_when_attached(rig, width):
    assert errno_of(rig.device.attach, rig.nest(rig.table(), width=width), None) == EINVAL


@pytest.mark.parametrize(
    ("missing", "flags", "width"), [("SRS", SRE, 48), ("EAFS", EAFE, 48), ("FS5LP", 0, 57)], ids=str
)
def test_options_that_the_hardware_has_not_are_refused_when_attached(missing, flags, width):
    word = "cap" if missing == "FS5LP" else "ecap"
    rig = Rig(FULL._replace(**{word: getattr(FULL, word).replace(**{missing: 0})}), NO_ATS)
    rig.device.attach(rig.parent, None)
    assert errno_of(rig.device.attach, rig.nest(rig.table(), flags=flags, width=width), None) == EINVAL
    assert rig.reach(GPA) == GPA  # the old route stays
    rig.device.attach(rig.nest(rig.table()), None)
    assert rig.reach(GPA) is Reason.FIRST_NOT_PRESENT


def test_parents_are_second_stages_of_this_unit_that_were_made_for_it(rig):
    data = rig.data(abi.HwptVtdS1(0, 0x1000, 48).to_bytes())
    device, other = rig.device, Rig(function=NO_ATS)
    for parent in (
        device.alloc_paging(DomainFlags.NONE, None),
        device.alloc_paging(DomainFlags.DIRTY_TRACKING, None),
        other.parent,
    ):
        assert errno_of(device.alloc_nested, parent, 0, data) == EINVAL
    assert errno_of(device.alloc_nested, rig.parent, 1, data) == EOPNOTSUPP
    assert device.alloc_nested(rig.parent, 8, data).parent is rig.parent
    assert errno_of(device.attach, other.nest(other.table()), None) == EINVAL


@pytest.mark.parametrize("scalable", [True, False])
def test_a_unit_without_nesting_makes_neither_parents_nor_nested_domains(scalable):
    memory = PhysicalMemory(RAM)
    unit = QEMU["vtd-sm"] if scalable else FULL
    driver = VtdDriver(memory, Unit(memory, *unit), scalable=scalable)
    device = driver.device(Function("gpu", (SID,)))
    assert not device.features.nesting
    assert errno_of(device.alloc_paging, DomainFlags.NEST_PARENT, None) == EOPNOTSUPP
    parent = device.alloc_paging(DomainFlags.NONE, None)
    assert errno_of(device.alloc_nested, parent, 0, None) == EOPNOTSUPP


def test_a_parent_has_no_mapping_for_reading_only(rig):
    """Erratum 772415, which the kernel's driver takes every unit to have."""
    assert errno_of(rig.parent.map, 32 << 20, HOST, 0x1000, Prot.READ) == EINVAL
    plain = rig.device.alloc_paging(DomainFlags.DIRTY_TRACKING, None)
    plain.map(32 << 20, HOST, 0x1000, Prot.READ)


def test_the_kernel_6_12_nests_too():
    memory = PhysicalMemory(RAM)
    device = VtdDriver(memory, Unit(memory, *FULL), LINUX_6_12).device(GPU)
    assert device.features.nesting
    assert not device.alloc_paging(DomainFlags.NEST_PARENT, None).first


def test_ids_are_given_back(rig):
    free = sorted(rig.driver._dids)
    domains = [rig.nest(rig.table()) for _ in range(3)]
    for domain in domains:
        domain.free()
    assert (sorted(rig.driver._dids), rig.parent.children) == (free, [])


# Invalidation


def mapped(rig, pasids=(None,), pages=4):
    """A nested domain whose pages from 0x10000 on are cached."""
    table = rig.table()
    table.map(0x10000, GPA, pages << 12, RW.value)
    nested = rig.nest(table)
    for pasid in pasids:
        rig.device.attach(nested, pasid)
        for number in range(pages):
            assert rig.reach(0x10000 + (number << 12), pasid) == GPA + (number << 12)
    table.unmap(0x10000, pages << 12)
    return nested


def stale(rig, pasid=None, pages=4):
    """Which of these pages are still cached."""
    return [number for number in range(pages) if not isinstance(rig.reach(0x10000 + (number << 12), pasid), Reason)]


def test_what_is_not_invalidated_stays(rig):
    nested = mapped(rig, (None, 6))
    assert stale(rig) == [0, 1, 2, 3]
    assert rig.invalidate(nested, (0x11000, 1)) == (0, 1)
    assert (stale(rig), stale(rig, 6)) == ([0, 2, 3], [0, 2, 3])
    assert rig.invalidate(nested, (0x12000, 2, 1)) == (0, 1)
    assert stale(rig) == [0]
    assert rig.invalidate(nested, (0, ALL)) == (0, 1)
    assert (stale(rig), stale(rig, 6)) == ([], [])


def test_a_range_up_to_the_last_address_and_one_without_pages(rig):
    nested = mapped(rig)
    assert rig.invalidate(nested, (0x10000, 0)) == (0, 1)
    assert stale(rig) == [0, 1, 2, 3]
    assert rig.invalidate(nested, (0x10000, ALL - 1)) == (0, 1)
    assert stale(rig) == []


@pytest.mark.parametrize(
    ("fields", "left"),
    [({"PSI": 0}, []), ({"MAMV": 0}, [0, 3]), ({"MAMV": 1}, [0, 3]), ({"MAMV": 18}, [0, 3])],
    ids=str,
)
def test_what_the_hardware_cannot_name_goes_with_all_of_the_pasid(fields, left):
    rig = Rig(FULL._replace(cap=FULL.cap.replace(**fields)), NO_ATS)
    nested = mapped(rig, (5,))
    assert rig.invalidate(nested, (0x11000, 1), (0x12000, 1)) == (0, 2)
    assert stale(rig, 5) == left
    assert rig.invalidate(nested, (0x10000, 3)) == (0, 1)  # in a block of four
    assert stale(rig, 5) == []


@pytest.mark.parametrize(
    ("wrong", "errno"),
    [
        ((0x12000, 1, 2), EOPNOTSUPP),
        ((0x12000, 1, 1 << 31), EOPNOTSUPP),
        ((0x12000, 1, 0, 1), EOPNOTSUPP),
        ((0x12001, 1), EINVAL),
        ((0x12000, ALL), EINVAL),
    ],
)
def test_entries_before_a_wrong_one_are_done_and_counted(rig, wrong, errno):
    nested = mapped(rig)
    assert rig.invalidate(nested, (0x10000, 1), (0x11000, 1), wrong, (0x13000, 1)) == (errno, 2)
    assert stale(rig) == [2, 3]


def test_arrays_of_another_kind(rig):
    nested = mapped(rig)
    good = abi.HwptVtdS1Invalidate(0x10000, 1).to_bytes()
    assert rig.ask(nested, 1, good, 1) == (EINVAL, 0)
    assert rig.ask(nested, 0xDEADBEEF, b"", 0, 24) == (EINVAL, 0)
    assert rig.ask(nested, 0, b"", 0, 24) == (0, 0)
    assert rig.ask(nested, 0, good, 1, 20) == (EINVAL, 0)
    assert rig.ask(nested, 0, good + bytes(8) + good + b"\1" + bytes(7), 2) == (E2BIG, 1)
    assert stale(rig) == [1, 2, 3]


@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_any_entries_are_carried_out_up_to_the_first_wrong_one(data):
    rig = Rig(function=NO_ATS)
    nested = mapped(rig)
    rights = st.tuples(st.integers(0, 2**20).map(lambda page: page << 12), st.integers(0, ALL - 1), st.integers(0, 1))
    good = data.draw(st.lists(rights, max_size=5))
    wrong = data.draw(
        st.tuples(*[st.integers(0, ALL)] * 2, *[st.integers(0, 2**32 - 1)] * 2).filter(
            lambda entry: entry[0] & 0xFFF or entry[2] > 1 or entry[3] or (entry[1] == ALL and entry[0])
        )
    )
    errno, handled = rig.invalidate(nested, *good, wrong, (0, ALL))
    assert errno == (EOPNOTSUPP if wrong[2] > 1 or wrong[3] else EINVAL)
    assert handled == len(good)
    left = stale(rig)
    named = {page for at, count, _ in good for page in range(4) if at >> 12 <= page + 16 < (at >> 12) + count}
    assert not named & set(left)
    assert good or left == [0, 1, 2, 3]


def test_a_change_of_the_parent_reaches_what_went_through_it(rig):
    table = rig.table()
    table.map(0x10000, GPA, 0x2000, RW.value)
    rig.device.attach(rig.nest(table), None)
    rig.device.attach(rig.nest(table), 2)
    assert [rig.reach(0x10000, pasid) for pasid in (None, 2)] == [GPA, GPA]
    rig.parent.unmap(GPA, 2 << 20)
    assert rig.reach(0x10000) == GPA  # until the flush
    rig.parent.flush()
    assert [rig.reach(0x10000, pasid) for pasid in (None, 2)] == [Reason.SECOND_NOT_PRESENT] * 2


def test_in_caching_mode_what_is_new_must_be_told_too():
    rig = Rig(FULL._replace(cap=FULL.cap.replace(CM=1)), NO_ATS)
    table = rig.table()
    nested = rig.nest(table)
    rig.device.attach(nested, None)
    assert rig.reach(0x10000) is Reason.FIRST_NOT_PRESENT
    table.map(0x10000, GPA, 0x1000, RW.value)
    assert rig.reach(0x10000) is Reason.FIRST_NOT_PRESENT
    assert rig.invalidate(nested, (0x10000, 1)) == (0, 1)
    assert rig.reach(0x10000) == GPA
    # The host tells of its own: a guest's table leads where there is something now.
    table.map(0x20000, 8 << 20, 0x1000, RW.value)
    assert rig.reach(0x20000) is Reason.SECOND_NOT_PRESENT
    rig.parent.map(8 << 20, HOST + GPA, 0x1000, RW)
    assert rig.reach(0x20000) == GPA


# Device TLBs


def test_a_device_tlb_is_emptied_with_the_guests_invalidation():
    rig = Rig()
    tlb, table = DeviceTlb(rig.unit), rig.table()
    table.map(0x10000, GPA, 0x2000, RW.value)
    nested = rig.nest(table)
    for pasid in (None, 3):
        rig.device.attach(nested, pasid)
        assert tlb.read(0x10000, pasid) == GPA
        tlb.read(0x11000, pasid)
    table.unmap(0x10000, 0x2000)
    assert rig.invalidate(nested, (0x10000, 1)) == (0, 1)
    assert [tlb.read(at, pasid) for pasid in (None, 3) for at in (0x10000, 0x11000)] == [None, GPA + 0x1000] * 2
    assert rig.invalidate(nested, (0, ALL)) == (0, 1)
    assert [tlb.read(0x11000, pasid) for pasid in (None, 3)] == [None, None]


def test_a_device_tlb_is_emptied_when_the_parent_or_the_route_changes():
    rig = Rig()
    tlb, table = DeviceTlb(rig.unit), rig.table()
    table.map(0x10000, GPA, 0x1000, RW.value)
    rig.device.attach(rig.nest(table), 3)
    assert tlb.read(0x10000, 3) == GPA
    rig.parent.unmap(GPA, 2 << 20)
    rig.parent.flush()
    assert tlb.held == {}
    rig.parent.map(GPA, HOST + GPA, 2 << 20, RW)
    assert tlb.read(0x10000, 3) == GPA
    rig.device.attach(rig.nest(rig.table()), 3)
    assert tlb.held == {}


def test_a_device_that_does_not_answer_is_told_of_in_version_2():
    rig = Rig()
    tlb = DeviceTlb(rig.unit, answers=False)
    nested = rig.nest(rig.table())
    rig.device.attach(nested, 3)
    request = InvalidateV2(scope=Scope.DOMAIN, targets=Target.DEVICE_TLB)
    assert rig.invalidate_generic(nested, request) == (0, 1)
    assert InvalidateV2.from_bytes(rig.caller.read(0x10_0000_0000, 56)).out_fault == Outcome.DEVICE_TIMEOUT
    tlb.answers = True
    assert rig.invalidate_generic(nested, request) == (0, 1)
    assert InvalidateV2.from_bytes(rig.caller.read(0x10_0000_0000, 56)).out_fault == Outcome.NONE
    assert rig.invalidate(nested, (0, ALL)) == (0, 1)


# The generic form


def test_a_scope_is_kept_to(rig):
    everything = {"targets": Target.LEAF | Target.TABLES}
    page = {"addr": 0x11000, "count": 1, "granule_lg2": 12, "targets": Target.LEAF}
    nested = mapped(rig, (None, 6, 7))
    assert rig.invalidate_generic(nested, InvalidateV1(scope=Scope.RANGE, pasid=6, **page)) == (0, 1)
    assert [stale(rig, pasid) for pasid in (None, 6, 7)] == [[0, 1, 2, 3], [0, 2, 3], [0, 1, 2, 3]]
    assert rig.invalidate_generic(nested, InvalidateV1(scope=Scope.RANGE_NO_PASID, **page)) == (0, 1)
    assert [stale(rig, pasid) for pasid in (None, 7)] == [[0, 2, 3], [0, 1, 2, 3]]
    assert rig.invalidate_generic(nested, InvalidateV1(scope=Scope.RANGE_ALL_PASIDS, **page)) == (0, 1)
    assert stale(rig, 7) == [0, 2, 3]
    assert rig.invalidate_generic(nested, InvalidateV1(scope=Scope.PASID, pasid=6, **everything)) == (0, 1)
    assert [stale(rig, pasid) for pasid in (None, 6, 7)] == [[0, 2, 3], [], [0, 2, 3]]
    assert rig.invalidate_generic(nested, InvalidateV1(scope=Scope.NO_PASID, **everything)) == (0, 1)
    assert [stale(rig, pasid) for pasid in (None, 7)] == [[], [0, 2, 3]]
    drain = Hint.DRAIN_READS | Hint.DRAIN_WRITES | Hint.GLOBAL
    assert rig.invalidate_generic(nested, InvalidateV1(scope=Scope.DOMAIN, hints=drain, **everything)) == (0, 1)
    assert stale(rig, 7) == []


def test_a_pasid_that_has_no_route_has_nothing_to_forget(rig):
    nested = mapped(rig)
    assert rig.invalidate_generic(nested, InvalidateV1(scope=Scope.PASID, pasid=99, targets=15)) == (0, 1)
    assert stale(rig) == [0, 1, 2, 3]


def test_a_target_is_kept_to():
    rig = Rig()
    tlb, table = DeviceTlb(rig.unit), rig.table()
    table.map(0x10000, GPA, 0x1000, RW.value)
    nested = rig.nest(table)
    rig.device.attach(nested, 3)
    assert (tlb.read(0x10000, 3), rig.reach(0x10000, 3)) == (GPA, GPA)
    table.unmap(0x10000, 0x1000)
    page = {"addr": 0x10000, "count": 1, "granule_lg2": 12, "scope": Scope.RANGE, "pasid": 3}
    assert rig.invalidate_generic(nested, InvalidateV1(**page, targets=Target.LEAF)) == (0, 1)
    assert (tlb.read(0x10000, 3), rig.reach(0x10000, 3)) == (GPA, Reason.FIRST_NOT_PRESENT)
    assert rig.invalidate_generic(nested, InvalidateV1(**page, targets=Target.DEVICE_TLB)) == (0, 1)
    assert tlb.read(0x10000, 3) is None


def test_configuration_is_forgotten_on_its_own(rig):
    nested = mapped(rig, (None, 6))

    def routes():
        return {key for key in ((SID, 0), (SID, 6)) if rig.unit.caches.pasids.get(key) is not None}

    assert routes() == {(SID, 0), (SID, 6)}
    request = InvalidateV1(scope=Scope.PASID, pasid=6, targets=Target.CONFIG)
    assert rig.invalidate_generic(nested, request) == (0, 1)
    assert routes() == {(SID, 0)}
    assert rig.invalidate_generic(nested, InvalidateV1(scope=Scope.DOMAIN, targets=Target.CONFIG)) == (0, 1)
    assert routes() == set()
    assert stale(rig) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("fields", "errno"),
    [
        ({"valid": 2, "device": 0x20}, EINVAL),
        ({"targets": 16}, EOPNOTSUPP),
        ({"addr": 0x1000}, EINVAL),
        ({"scope": Scope.RANGE_NO_PASID, "addr": 2**64 - 4096, "count": 2, "granule_lg2": 12}, EOVERFLOW),
    ],
)
def test_generic_entries_before_a_wrong_one_are_done_and_counted(rig, fields, errno):
    nested = mapped(rig)
    good = {"scope": Scope.RANGE_NO_PASID, "addr": 0x12000, "count": 2, "granule_lg2": 12, "targets": Target.LEAF}
    wrong = InvalidateV2(**{"scope": Scope.DOMAIN, "targets": Target.LEAF} | fields)
    assert rig.invalidate_generic(nested, InvalidateV2(**good), wrong, InvalidateV2(**good)) == (errno, 1)
    assert stale(rig) == [0, 1]


@given(
    first=st.integers(0, 40),
    count=st.integers(1, 40),
    leaf=st.booleans(),
    version=st.sampled_from([InvalidateV1, InvalidateV2]),
    everything=st.booleans(),
    lg2=st.sampled_from([12, 13, 14]),
)
@settings(max_examples=40, deadline=None)
def test_a_generic_request_forgets_what_vtds_own_entry_does(first, count, leaf, version, everything, lg2):
    """Same caches before, both forms, same caches afterwards: in the unit and in the device."""
    first = first >> lg2 - 12 << lg2 - 12
    targets = Target.LEAF | Target.DEVICE_TLB | (0 if leaf else Target.TABLES)
    where = {"addr": first << 12, "count": count, "granule_lg2": lg2, "scope": Scope.RANGE_ALL_PASIDS}
    generic = version(targets=targets, **({"scope": Scope.DOMAIN} if everything else where))
    vendor = (0, ALL, int(leaf)) if everything else (first << 12, count << lg2 - 12, int(leaf))
    outcomes = []
    for form in ("vendor", "generic"):
        rig = Rig()
        tlb, table = DeviceTlb(rig.unit), rig.table()
        table.map(0, GPA, 64 << 12, RW.value)
        nested = rig.nest(table)
        for pasid in (None, 6):
            rig.device.attach(nested, pasid)
            for page in range(0, 64, 3):
                assert rig.reach(page << 12, pasid) == tlb.read(page << 12, pasid)
        if form == "vendor":
            assert rig.invalidate(nested, vendor) == (0, 1)
        else:
            assert rig.invalidate_generic(nested, generic) == (0, 1)
        kept = []
        rig.unit.caches.iotlb.drop(lambda page, entry, kept=kept: kept.append(page))  # and drop none
        outcomes.append((sorted(kept), sorted(tlb.held, key=repr)))
    assert outcomes[0] == outcomes[1]
