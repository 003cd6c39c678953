"""Nesting in software, over every model of IOMMU: DMA sees child and parent together, and nothing is left behind."""

from errno import EINVAL, ENOMEM, EOPNOTSUPP, EOVERFLOW

import pytest

from drivers.shadow_rig import ALL, GUEST_RAM, HOST, IOMMUS, RW, SID, Rig
from softiommu.abi import iommufd as abi
from softiommu.abi.generic_invalidation import InvalidateV1, InvalidateV2, Scope, Target
from softiommu.abi.software_nesting import HwptBound, TableFormat
from softiommu.drivers.driver import DomainFlags, Prot, Range
from softiommu.drivers.function import Function
from softiommu.drivers.shadow import domain as shadow_domain, walk as shadow_walk
from softiommu.errors import UapiError
from softiommu.hardware.iommu import PageRequest, ResponseCode
from softiommu.pagetable.engine import PageTable
from softiommu.pagetable.formats import VARIANTS
from softiommu.pagetable.formats.x86_64 import Pte
from softiommu.pagetable.kinds import READ, WRITE

PAGE, LARGE = 4096, 2 << 20
DATA = 0x100000
VTD_S1 = abi.HwptDataType.VTD_S1


@pytest.fixture(params=IOMMUS)
def rig(request):
    return Rig(IOMMUS[request.param])


def bound(rig, *mappings, **options):
    """A guest's table with mappings, and the domain of it, attached."""
    table = rig.table()
    for mapping in mappings:
        table.map(*mapping)
    domain = rig.bind(table, **options)
    rig.device.attach(domain, None)
    return table, domain


def test_dma_goes_through_the_guests_table_and_its_parents(rig):
    table, _ = bound(rig, (0x10000, 0x80000, 0x3000, READ | WRITE), (0x20000, 0x90000, PAGE, READ))
    assert [rig.reach(at) for at in (0x10000, 0x12008, 0x13000, 0x20000)] == [0x80000, 0x82008, None, 0x90000]
    assert rig.reach(0x10000, WRITE) == 0x80000
    assert rig.reach(0x20000, WRITE) is None
    assert table.translate(0x10000).oa == 0x80000


def test_an_attached_device_sees_what_is_mapped_after_its_invalidation_and_not_before(rig):
    table, domain = bound(rig)
    table.map(0x10000, 0x80000, 0x2000, READ | WRITE)
    assert rig.reach(0x10000) is None
    assert rig.invalidate(domain, (0x10000, 1, 0, 0)) == (0, 1)
    assert [rig.reach(0x10000), rig.reach(0x11000)] == [0x80000, None]
    assert rig.invalidate(domain, (0, ALL, 1, 0)) == (0, 1)
    assert rig.reach(0x11000) == 0x81000


def test_a_missing_invalidation_shows_the_stale_translation(rig):
    table, domain = bound(rig, (0x10000, 0x80000, 0x2000, READ | WRITE))
    table.unmap(0x10000, PAGE)
    table.map(0x10000, 0x90000, PAGE, READ)
    table.unmap(0x11000, PAGE)
    assert [rig.reach(0x10000, WRITE), rig.reach(0x11000)] == [0x80000, 0x81000]
    rig.invalidate(domain, (0x10000, 1, 0, 0))
    assert [rig.reach(0x10000), rig.reach(0x10000, WRITE), rig.reach(0x11000)] == [0x90000, None, 0x81000]
    rig.invalidate(domain, (0x11000, 1, 0, 0))
    assert rig.reach(0x11000) is None


def test_what_did_not_change_stays_while_a_range_is_read_again(rig):
    table, domain = bound(rig, (0x10000, 0x80000, 0x8000, READ | WRITE))
    table.map(0x18000, 0x90000, PAGE, READ)
    merged, dropped = rig.driver.work.merged, rig.driver.work.dropped
    rig.invalidate(domain, (0, ALL, 0, 0))
    assert (rig.driver.work.merged - merged, rig.driver.work.dropped - dropped) == (1, 0)
    assert rig.reach(0x18000) == 0x90000


def test_a_change_of_the_parent_reaches_the_shadow(rig):
    bound(rig, (0x10000, 0x80000, 0x4000, READ | WRITE))
    parent = rig.parent
    parent.unmap(0, GUEST_RAM)
    parent.flush()
    assert [rig.reach(0x10000 + n * PAGE) for n in range(4)] == [None] * 4
    parent.map(0, HOST, 0x80000, RW)
    assert rig.reach(0x10000) is None
    parent.map(0x80000, HOST + 0x200000, PAGE, RW)
    parent.map(0x81000, HOST + 0x300000, PAGE, Prot.READ)
    assert [rig.reach(0x10000 + n * PAGE) for n in range(4)] == [0x200000, 0x300000, None, None]
    assert [rig.reach(0x10000, WRITE), rig.reach(0x11000, WRITE)] == [0x200000, None]


def test_a_page_of_tables_that_the_parent_takes_away_translates_nothing_until_it_is_back(rig):
    table = rig.table()
    table.map(0x10000, 0x80000, PAGE, READ | WRITE)
    rig.parent.unmap(0, GUEST_RAM)
    rig.parent.flush()
    for page in range(0, 0x100000, PAGE):
        rig.parent.map(page, HOST + page, PAGE, RW)
    rig.device.attach(rig.bind(table), None)
    lowest = table.translate(0x10000).at & -PAGE
    assert rig.reach(0x10000) == 0x80000
    rig.parent.unmap(lowest, PAGE)
    rig.parent.flush()
    assert rig.reach(0x10000) is None
    rig.parent.map(lowest, HOST + lowest, PAGE, RW)
    assert rig.reach(0x10000) == 0x80000


def test_a_large_leaf_over_scattered_pages_is_merged_page_by_page(rig):
    rig.parent.unmap(0, GUEST_RAM)
    rig.parent.flush()
    rig.parent.map(0, HOST, LARGE, RW)
    for page in range(0, 0x8000, PAGE):
        rig.parent.map(LARGE + page, HOST + LARGE + 0x8000 - page, PAGE, RW)
    bound(rig, (LARGE, LARGE, LARGE, READ | WRITE))
    assert [rig.reach(LARGE + n * PAGE) for n in (0, 1, 7, 8)] == [LARGE + n * PAGE for n in (8, 7, 1)] + [None]


def test_an_invalidation_of_a_page_forgets_a_large_leaf_whole(rig):
    table, domain = bound(rig, (LARGE, 0, LARGE, READ | WRITE))
    assert rig.reach(LARGE + 0x5000) == 0x5000
    table.unmap(LARGE, LARGE)
    rig.invalidate(domain, (LARGE + 0x8000, 1, 0, 0))
    assert [rig.reach(LARGE), rig.reach(LARGE + 0x5000)] == [None, None]


def test_a_new_large_leaf_shows_where_it_was_invalidated(rig):
    table, domain = bound(rig, (LARGE, 0x100000, PAGE, READ), (LARGE + PAGE, 0x102000, PAGE, READ))
    for page in range(2):
        table.unmap(LARGE + page * PAGE, PAGE)
    table.map(LARGE, LARGE, LARGE, READ | WRITE)
    rig.invalidate(domain, (LARGE, 1, 0, 0))
    assert [rig.reach(LARGE), rig.reach(LARGE + PAGE)] == [LARGE, 0x102000]
    rig.invalidate(domain, (LARGE, 512, 0, 0))
    assert [rig.reach(LARGE), rig.reach(LARGE + PAGE), rig.reach(2 * LARGE - 1)] == [LARGE, LARGE + PAGE, 2 * LARGE - 1]


def test_flags_are_set_ahead_and_only_where_the_parent_may_be_written(rig):
    table = rig.table()
    table.map(0x10000, 0x80000, PAGE, READ | WRITE)
    at = table.translate(0x10000).at
    rig.guest.write_u64(at, rig.guest.read_u64(at) & ~(Pte.A.mask | Pte.D.mask))
    rig.parent.unmap(0, GUEST_RAM)
    rig.parent.flush()
    rig.parent.map(0, HOST, GUEST_RAM, Prot.READ)
    domain = rig.bind(table)
    rig.device.attach(domain, None)
    assert rig.reach(0x10000) is None
    rig.parent.unmap(0, GUEST_RAM)
    rig.parent.flush()
    rig.parent.map(0, HOST, GUEST_RAM, RW)
    assert rig.reach(0x10000, WRITE) == 0x80000
    assert Pte(rig.guest.read_u64(at)).A
    assert Pte(rig.guest.read_u64(at)).D


def test_two_children_of_one_parent_and_the_parent_itself_are_apart(rig):
    _, domain = bound(rig, (0x10000, 0x80000, PAGE, READ))
    other = rig.table()
    other.map(0x10000, 0x90000, PAGE, READ)
    second = rig.bind(other)
    rig.device.attach(second, None)
    assert rig.reach(0x10000) == 0x90000
    rig.device.attach(rig.parent, None)
    assert rig.reach(0x10000) == 0x10000
    rig.device.attach(domain, None)
    assert rig.reach(0x10000) == 0x80000


def test_a_shadow_is_empty_while_nothing_is_attached(rig):
    table, domain = bound(rig, (0x10000, 0x80000, 0x10000, READ))
    assert rig.driver.work.merged == 16
    rig.device.detach(None)
    assert rig.driver.work.dropped == 16
    assert not rig.parent.index
    assert rig.invalidate(domain, (0, ALL, 0, 0)) == (0, 1)
    table.unmap(0x10000, PAGE)
    rig.device.attach(domain, None)
    assert [rig.reach(0x10000), rig.reach(0x11000)] == [None, 0x81000]


def test_nothing_is_left_of_shadows_and_parents(rig):
    rig.parent.unmap(0, GUEST_RAM)
    rig.parent.flush()
    given = []
    for _ in range(3):
        parent = rig.device.alloc_paging(DomainFlags.NEST_PARENT, None)
        parent.map(0, HOST, GUEST_RAM, RW)
        table = rig.table()
        table.map(0x10000, 0x80000, 0x10000, READ | WRITE)
        table.map(1 << 40, 0x80000, 0x10000, READ | WRITE)
        domain = rig.bind(table, parent=parent)
        mapped = rig.device.alloc_mapped(parent, DomainFlags.NONE)
        mapped.map(0x1000, 0x2000, 0x1000, RW)
        for target in (domain, mapped):
            rig.device.attach(target, None)
        rig.device.attach(domain, None)
        parent.unmap(0x80000, 0x1000)
        parent.flush()
        rig.device.detach(None)
        for gone in (domain, mapped, parent):
            gone.free()
        table.destroy()
        assert (len(parent.index.meeting(0, ALL)), rig.guest.given) == (0, 0)
        given.append(rig.memory.given)
    # The first attach made what routes the device, and stays.
    assert len(set(given)) == 1


# What the program says


def refused(call):
    with pytest.raises(UapiError) as caught:
        call()
    return caught.value.errno, caught.value.why


def attach(domain, rig):
    return refused(lambda: rig.device.attach(domain, None))


def test_a_guest_that_promises_nothing_is_refused_at_attach_with_the_reason(rig):
    domain = rig.bind(rig.table(), flags=0)
    errno, why = attach(domain, rig)
    assert errno == EINVAL
    assert why == (
        "a shadow hears of new mappings only by invalidations, and the guest does not promise them (CACHING_MODE), "
        "nor are the device's faults recoverable"
    )
    assert not domain.routes


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (1, "SRE: a shadow cannot tell supervisor requests from others"),
        (2, "EAFE: a shadow sets no extended accessed flags"),
        (4, "a shadow hears of new mappings only by invalidations"),
    ],
)
def test_vtds_own_data_is_refused_where_a_shadow_cannot_do_it(flags, why):
    rig = Rig()
    config = abi.HwptVtdS1(flags, rig.table().root, 48)
    domain = rig.device.alloc_nested(rig.parent, 0, rig.data(config, VTD_S1))
    assert attach(domain, rig)[0] == EINVAL
    assert attach(domain, rig)[1].startswith(why)


def test_an_iommu_with_fewer_addresses_or_larger_pages_than_the_guest_is_refused():
    narrow = Rig('model = "vtd"\nunit = "vtd-39"')
    why = "the guest's addresses go to 0x7fffffffffff, those of the IOMMU only to 0x7fffffffff"
    assert attach(narrow.bind(narrow.table()), narrow) == (EINVAL, why)
    narrow.device.attach(narrow.bind(narrow.table(), width=39), None)
    coarse = Rig('model = "smmuv3"\nidr5 = { GRAN4K = 0, GRAN16K = 0, DS = 0 }', whole=False)
    why = "the IOMMU's smallest page of 0x10000 bytes is larger than the guest's"
    assert attach(coarse.bind(coarse.table()), coarse) == (EINVAL, why)


@pytest.mark.parametrize(
    ("config", "errno", "why"),
    [
        (HwptBound(2, 0x1000, 48), EOPNOTSUPP, "flags 0x2 of a bound table"),
        (HwptBound(1, 0x1008, 48), EINVAL, "no table of 0x1000 bytes begins at 0x1008"),
        (HwptBound(1, 1 << 60, 48), EINVAL, "no table of 0x1000 bytes begins at 0x1000000000000000"),
        (HwptBound(1, 0x1000, 58), EINVAL, "no table of format X86_64 has addresses of 58 bits"),
        (HwptBound(1, 0x1000, 12), EINVAL, "no table of format X86_64 has addresses of 12 bits"),
        (HwptBound(1, 0x1000, ALL >> 32), EINVAL, "no table of format X86_64"),
        (
            HwptBound(1, 0x1000, 24, TableFormat.ARM64_4K),
            EINVAL,
            "no table of format ARM64_4K has",
        ),
        (HwptBound(1, 0x1000, 48, 7), EINVAL, "there is no table format 7"),
    ],
)
def test_data_that_describes_no_table_is_refused(config, errno, why):
    rig = Rig()
    found = refused(lambda: rig.device.alloc_nested(rig.parent, 0, rig.data(config)))
    assert found[0] == errno
    assert found[1].startswith(why)


def test_unknown_data_flags_and_parents_are_refused():
    rig, other = Rig(), Rig()
    good = HwptBound(1, 0x1000, 48)
    assert refused(lambda: rig.device.alloc_nested(rig.parent, 0, rig.data(good, 77)))[0] == EINVAL
    assert refused(lambda: rig.device.alloc_nested(rig.parent, 2, rig.data(good)))[0] == EOPNOTSUPP
    assert refused(lambda: rig.device.alloc_nested(other.parent, 0, rig.data(good)))[0] == EINVAL
    plain = rig.device.alloc_paging(DomainFlags.NONE, None)
    assert refused(lambda: rig.device.alloc_nested(plain, 0, rig.data(good)))[0] == EINVAL
    assert refused(lambda: rig.device.alloc_mapped(plain, DomainFlags.NONE))[0] == EINVAL
    both = DomainFlags.NEST_PARENT | DomainFlags.DIRTY_TRACKING
    assert refused(lambda: rig.device.alloc_paging(both, None))[0] == EOPNOTSUPP
    assert refused(lambda: rig.device.alloc_mapped(rig.parent, both))[0] == EOPNOTSUPP
    bad = abi.HwptVtdS1(8, 0x1000, 48)
    assert refused(lambda: rig.device.alloc_nested(rig.parent, 0, rig.data(bad, VTD_S1)))[0] == EOPNOTSUPP


def test_entries_are_checked_in_order_and_those_before_a_wrong_one_are_done():
    rig = Rig()
    table, domain = bound(rig)
    table.map(0x10000, 0x80000, 0x3000, READ)
    assert rig.invalidate(domain, (0x10000, 1, 0, 0), (0x11000, 1, 2, 0), (0x12000, 1, 0, 0)) == (EOPNOTSUPP, 1)
    assert [rig.reach(0x10000), rig.reach(0x11000), rig.reach(0x12000)] == [0x80000, None, None]
    assert rig.invalidate(domain, (0x11000, 1, 0, 1)) == (EOPNOTSUPP, 0)
    assert rig.invalidate(domain, (0x11008, 1, 0, 0)) == (EINVAL, 0)
    assert rig.invalidate(domain, (0x1000, ALL, 0, 0)) == (EINVAL, 0)
    assert rig.invalidate(domain, (0x11000, 0, 0, 0)) == (0, 1)
    assert rig.reach(0x11000) is None
    assert rig.ask(domain, 1, bytes(24), 1) == (EINVAL, 0)
    assert rig.invalidate(domain, (ALL & -PAGE, ALL >> 1, 0, 0), (0x11000, ALL >> 12, 0, 0)) == (0, 2)
    assert [rig.reach(0x11000), rig.reach(0x12000)] == [0x81000, 0x82000]


def test_the_generic_form_is_taken_beside_vtds():
    rig = Rig()
    table, domain = bound(rig)
    table.map(0x10000, 0x80000, 0x3000, READ)
    one = InvalidateV1(Scope.RANGE_NO_PASID, 12, Target.LEAF, 0, 0, 0, 0x10000, 1)
    assert rig.invalidate_generic(domain, one) == (0, 1)
    assert [rig.reach(0x10000), rig.reach(0x11000)] == [0x80000, None]
    config = InvalidateV1(Scope.DOMAIN, 0, Target.CONFIG)
    other_pasid = InvalidateV1(Scope.PASID, 0, Target.LEAF, 0, 5)
    assert rig.invalidate_generic(domain, config, other_pasid) == (0, 2)
    assert rig.reach(0x11000) is None
    assert rig.invalidate_generic(domain, InvalidateV1(Scope.DOMAIN, 0, Target.LEAF | Target.TABLES)) == (0, 1)
    assert rig.reach(0x11000) == 0x81000
    named = InvalidateV2(scope=Scope.DOMAIN, targets=Target.LEAF, valid=2, device=5)
    assert rig.invalidate_generic(domain, named) == (EINVAL, 0)
    beyond = InvalidateV1(Scope.RANGE, 12, Target.LEAF, 0, 0, 0, ALL & -PAGE, 2)
    assert rig.invalidate_generic(domain, beyond) == (EOVERFLOW, 0)


@pytest.mark.parametrize(
    ("variant", "width", "format"),
    [
        ("x86-64-5level", 57, TableFormat.X86_64),
        ("x86-64-4level", 33, TableFormat.X86_64),
        ("vtdss-39", 39, TableFormat.VTD_SECOND_STAGE),
        ("vtdss-48", 48, TableFormat.VTD_SECOND_STAGE),
        ("amdv1-3level", 39, TableFormat.AMD_V1),
        ("arm64-4k-48-s1", 48, TableFormat.ARM64_4K),
        ("arm64-4k-39-s1", 39, TableFormat.ARM64_4K),
        ("arm64-16k-47-s1", 47, TableFormat.ARM64_16K),
        ("arm64-64k-48-s1", 48, TableFormat.ARM64_64K),
        ("riscv-sv39", 39, TableFormat.RISCV),
        ("riscv-sv48", 48, TableFormat.RISCV),
    ],
)
def test_tables_of_every_make_are_shadowed_on_an_iommu_of_another(variant, width, format):
    rig = Rig(IOMMUS["virtio"])
    table = rig.table(variant)
    table.map(0x10000, 0x80000, 0x20000, READ | WRITE)
    table.map(0x200000, 0, LARGE, READ)
    domain = rig.bind(table, width=width, format=format)
    rig.device.attach(domain, None)
    assert [rig.rights(at) for at in (0x10000, 0x2F000, 0x30000)] == [(0x80000, 3), (0x9F000, 3), (None, 0)]
    assert [rig.rights(at) for at in (0x200000, 0x3FF000)] == [(0, 1), (0x1FF000, 1)]
    table.unmap(0x10000, 0x20000)
    rig.invalidate(domain, (0x10000, 0x20, 0, 0))
    assert [rig.reach(at) for at in (0x10000, 0x2F000, 0x200000)] == [None, None, 0]


@pytest.mark.parametrize(
    ("format", "variant"),
    [
        (TableFormat.ARM64_4K, "arm64-4k-39-s1"),
        (TableFormat.ARM64_4K, "arm64-4k-48-s1"),
        (TableFormat.ARM64_16K, "arm64-16k-47-s1"),
        (TableFormat.ARM64_16K, "arm64-16k-48-s1"),
    ],
)
def test_an_arm_table_of_any_width_is_the_variant_of_that_width(format, variant):
    rig = Rig()
    config = HwptBound(1, 0, VARIANTS[variant].input_bits, format)
    assert rig.device.alloc_nested(rig.parent, 0, rig.data(config)).binding.table == VARIANTS[variant]
    narrow = rig.device.alloc_nested(rig.parent, 0, rig.data(HwptBound(1, 0, 30, format))).binding
    assert (narrow.table.input_bits, narrow.window.last) == (30, (1 << 30) - 1)
    table = PageTable(rig.guest, narrow.table)
    table.map(1 << 29, 0x80000, 16 * PAGE, READ)
    rig.device.attach(rig.bind(table, width=30, format=format), None)
    assert [rig.reach((1 << 29) + at) for at in (0, 15 * PAGE, 16 * PAGE)] == [0x80000, 0x80000 + 15 * PAGE, None]


def test_what_the_iommu_keeps_for_itself_is_cut_out_of_a_leaf():
    rig = Rig(IOMMUS["vtd"])
    rig.parent.map(0x80000000, 0x80000000, 0x80000000, RW)
    bound(rig, (0xC0000000, 0xC0000000, 1 << 30, READ | WRITE))
    assert rig.reach(0xFEDFF000) == 0xFEDFF000 - HOST
    assert rig.reach(0xFEF00000) == 0xFEF00000 - HOST
    shadow = rig.driver.bound[(rig.device.group, None)].out
    assert [shadow.iova_to_pa(at) for at in (0xFEDFF000, 0xFEE00000, 0xFEEFF000)] == [0xFEDFF000, None, None]


def test_tables_without_end_are_refused_and_translate_nothing(monkeypatch):
    monkeypatch.setattr(shadow_walk, "MOST_TABLES", 64)
    monkeypatch.setattr(shadow_domain, "MOST_LEAVES", 600)
    rig = Rig()
    table = rig.table()
    for number in range(512):
        rig.guest.write_u64(table.root + 8 * number, table.root | 7)
    domain = rig.bind(table)
    assert attach(domain, rig)[0] == ENOMEM
    assert not domain.routes
    assert not rig.parent.index
    for number in range(512):
        rig.guest.write_u64(table.root + 8 * number, 0)
    table.map(0x10000, 0x80000, PAGE, READ)
    rig.device.attach(domain, None)
    for number in range(1, 9):
        rig.guest.write_u64(table.root + 8 * number, table.root | 7)
    assert rig.invalidate(domain, (0, ALL, 0, 0)) == (ENOMEM, 0)
    assert rig.reach(0x10000) is None
    for number in range(1, 9):
        rig.guest.write_u64(table.root + 8 * number, 0)
    assert rig.invalidate(domain, (0, ALL, 0, 0)) == (0, 1)
    assert rig.reach(0x10000) == 0x80000


def test_without_memory_for_the_shadow_nothing_is_attached():
    rig = Rig()
    table = rig.table()
    for number in range(64):
        table.map(number << 30, 0x80000, PAGE, READ)
    domain = rig.bind(table)
    taken = []
    while True:
        try:
            taken.append(rig.memory.alloc(PAGE))
        except MemoryError:
            break
    for pa in taken[:8]:
        rig.memory.free(pa)
    assert attach(domain, rig)[0] == ENOMEM
    assert not rig.parent.index
    for pa in taken[8:]:
        rig.memory.free(pa)
    rig.device.attach(domain, None)
    assert rig.reach(63 << 30) == 0x80000


def test_a_parent_that_cannot_reach_every_shadow_is_not_changed():
    rig = Rig(whole=False)
    rig.parent.map(0, HOST, LARGE, RW)
    table = rig.table()
    for number in range(64):
        table.map(number << 30, LARGE, PAGE, READ)
    domain = rig.bind(table)
    rig.device.attach(domain, None)
    taken = []
    while True:
        try:
            taken.append(rig.memory.alloc(PAGE))
        except MemoryError:
            break
    for pa in taken[:8]:
        rig.memory.free(pa)
    assert refused(lambda: rig.parent.map(LARGE, HOST + LARGE, PAGE, RW))[0] == ENOMEM
    assert rig.parent.iova_to_pa(LARGE) is None
    assert [rig.reach(number << 30) for number in range(64)] == [None] * 64
    for pa in taken[8:]:
        rig.memory.free(pa)
    rig.parent.map(LARGE, HOST + LARGE, PAGE, RW)
    assert [rig.reach(number << 30) for number in range(64)] == [LARGE] * 64


# A child that the program fills


def test_a_mapped_child_is_merged_at_each_change(rig):
    child = rig.device.alloc_mapped(rig.parent, DomainFlags.NONE)
    rig.device.attach(child, None)
    child.map(0x2000, 0x1000, PAGE, RW)
    child.map(0x10000, 0x8000, 0x4000, Prot.READ)
    assert [rig.rights(at) for at in (0x2000, 0x10000, 0x13000)] == [(0x1000, 3), (0x8000, 1), (0xB000, 1)]
    assert child.iova_to_pa(0x12345) == 0xA345
    assert child.unmap(0x11000, 0x2000) == 0x2000
    child.flush()
    assert [rig.reach(at) for at in (0x10000, 0x11000, 0x12000, 0x13000)] == [0x8000, None, None, 0xB000]
    assert child.iova_to_pa(0x11000) is None
    rig.parent.unmap(0, GUEST_RAM)
    rig.parent.flush()
    assert rig.reach(0x10000) is None
    rig.parent.map(0x8000, HOST + 0x3000, PAGE, RW)
    assert [rig.rights(0x10000), rig.rights(0x13000)] == [(0x3000, 1), (None, 0)]
    assert child.unmap(0, 1 << 30) == 0x1000 + 0x2000


def test_children_nest_on_children(rig):
    middle = rig.device.alloc_mapped(rig.parent, DomainFlags.NEST_PARENT)
    middle.map(0, 0x100000, 0x100000, RW)
    table = rig.table()
    table.map(0x10000, 0x5000, PAGE, READ | WRITE)
    # The table lies at 0 of the guest's RAM, which the middle shows from 0x100000 on.
    inner = rig.device.alloc_mapped(middle, DomainFlags.NONE)
    inner.map(0x7000, 0x6000, PAGE, RW)
    rig.device.attach(inner, None)
    assert rig.reach(0x7000) == 0x106000
    middle.unmap(0, 0x100000)
    middle.flush()
    assert rig.reach(0x7000) is None
    middle.map(0, 0, 0x100000, Prot.READ)
    assert rig.rights(0x7000) == (0x6000, 1)
    middle.unmap(0, 0x100000)
    middle.flush()
    middle.map(0, 0, 0x100000, RW)
    bound_to_it = rig.bind(table, parent=middle)
    rig.device.attach(bound_to_it, None)
    assert rig.rights(0x10000) == (0x5000, 3)
    rig.parent.unmap(0, GUEST_RAM)
    rig.parent.flush()
    assert rig.reach(0x10000) is None
    rig.parent.map(0, HOST, GUEST_RAM, RW)
    assert rig.rights(0x10000) == (0x5000, 3)
    rig.device.detach(None)
    for gone in (bound_to_it, inner, middle):
        gone.free()
    assert not rig.parent.index


def test_a_parents_cut_leaf_leaves_the_rest_in_the_shadows():
    rig = Rig(whole=False)
    rig.parent.map(0, HOST, LARGE, RW)
    child = rig.device.alloc_mapped(rig.parent, DomainFlags.NONE)
    child.map(LARGE, 0, LARGE, RW)
    rig.device.attach(child, None)
    assert rig.parent.unmap(0x1000, PAGE) == LARGE
    rig.parent.flush()
    assert [rig.reach(LARGE), rig.reach(2 * LARGE - PAGE)] == [None, None]
    small = Rig(whole=False)
    small.parent.map(PAGE, HOST + PAGE, 0x8000, RW)
    child = small.device.alloc_mapped(small.parent, DomainFlags.NONE)
    child.map(LARGE, 0, LARGE, RW)
    small.device.attach(child, None)
    assert small.parent.unmap(0x3000, 2 * PAGE) == 2 * PAGE
    small.parent.flush()
    assert [small.reach(LARGE + n * PAGE) for n in (1, 2, 3, 4, 5, 8)] == [
        PAGE,
        2 * PAGE,
        None,
        None,
        5 * PAGE,
        8 * PAGE,
    ]


# Writes


class Pages:
    """A report: pages of the guest's memory."""

    def __init__(self):
        self.seen = set()

    def record(self, iova, length):
        self.seen |= set(range(iova & -PAGE, iova + length, PAGE))


def written(rig, first=DATA, last=GUEST_RAM - 1, clear=True):
    """Pages that were written, and are read: those of data."""
    report = Pages()
    rig.parent.read_dirty(Range(first, last), report, clear)
    return sorted(page for page in report.seen if first <= page <= last)


def tracked(iommu):
    rig = Rig(iommu, whole=False)
    rig.parent = rig.device.alloc_paging(DomainFlags.NEST_PARENT | DomainFlags.DIRTY_TRACKING, None)
    for page in range(0, GUEST_RAM, PAGE):
        rig.parent.map(page, HOST + page, PAGE, RW)
    return rig


@pytest.mark.parametrize("iommu", [IOMMUS["smmuv3"], IOMMUS["amd"], IOMMUS["riscv"], 'model = "vtd"\nunit = "full"'])
def test_a_parent_sees_what_was_written_through_its_shadows(iommu):
    rig = tracked(iommu)
    early, late = rig.table(), rig.table()
    early.map(0x10000, DATA, 4 * PAGE, READ | WRITE)
    late.map(0x10000, DATA + 8 * PAGE, PAGE, READ | WRITE)
    first = rig.bind(early)
    rig.device.attach(first, None)
    # As the manager does it: from a clean state.
    rig.parent.read_dirty(Range(0, ALL), None, True)
    rig.parent.set_dirty_tracking(True)
    second = rig.bind(late)
    middle = rig.device.alloc_mapped(rig.parent, DomainFlags.NEST_PARENT)
    inner = rig.device.alloc_mapped(middle, DomainFlags.NONE)
    middle.map(0x50000, DATA + 12 * PAGE, 2 * PAGE, RW)
    inner.map(0x90000, 0x50000, 2 * PAGE, RW)
    assert written(rig) == []
    rig.reach(0x11000, WRITE)
    rig.reach(0x12000)
    assert written(rig, clear=False) == [DATA + PAGE]
    assert written(rig, DATA, DATA + PAGE - 1) == []
    assert written(rig) == [DATA + PAGE]
    assert written(rig) == []
    rig.reach(0x11000, WRITE)
    rig.reach(0x13000, WRITE)
    # What the guest unmaps was written nevertheless; what the host takes away, is nobody's any more.
    early.unmap(0x11000, PAGE)
    rig.invalidate(first, (0x11000, 1, 0, 0))
    rig.parent.unmap(DATA + 3 * PAGE, PAGE)
    rig.parent.flush()
    assert written(rig, clear=False) == [DATA + PAGE]
    rig.device.attach(second, None)
    rig.reach(0x10000, WRITE)
    rig.device.attach(inner, None)
    rig.reach(0x91000, WRITE)
    assert written(rig) == [DATA + PAGE, DATA + 8 * PAGE, DATA + 13 * PAGE]
    rig.parent.set_dirty_tracking(False)
    rig.device.detach(None)
    for gone in (first, second, inner, middle, rig.parent):
        gone.free()


def test_flags_that_are_set_in_a_guests_table_are_writes():
    rig = tracked('model = "vtd"\nunit = "full"')
    table = rig.table()
    table.map(0x10000, DATA, PAGE, READ | WRITE)
    at = table.translate(0x10000).at
    rig.guest.write_u64(at, rig.guest.read_u64(at) & ~Pte.D.mask)
    rig.parent.set_dirty_tracking(True)
    rig.device.attach(rig.bind(table), None)
    assert written(rig, 0) == [at & -PAGE]


# Recoverable faults, and both kinds of nesting in one tree


def full(mixed=False):
    return Rig('model = "vtd"\nunit = "full"', Function("gpu", (SID,), pasid_bits=10, ats=True, pri=True), mixed)


def test_a_device_whose_faults_are_recoverable_needs_no_promise():
    rig = full()
    table = rig.table()
    domain = rig.bind(table, flags=0)
    rig.device.attach(domain, None)
    heard = []
    rig.device.on_fault = heard.append
    assert rig.unit.ats_translate(SID, 0x10000, READ, None).allowed == 0
    table.map(0x10000, 0x80000, PAGE, READ | WRITE)
    gpu = Endpoint()
    rig.unit.connect(SID, gpu)
    for address, group in ((0x10000, 5), (0x20000, 6)):
        rig.unit.page_request(PageRequest(SID, address, READ | WRITE, group, True))
        rig.vendor.service()
    assert gpu.answers == [(5, ResponseCode.SUCCESS)]
    assert rig.rights(0x10000) == (0x80000, 3)
    assert [(fault.addr, fault.group, fault.last) for fault in heard] == [(0x20000, 6, True)]


def test_the_same_shadow_serves_a_device_and_its_pasids():
    rig = full()
    table = rig.table()
    table.map(0x10000, 0x80000, PAGE, READ | WRITE)
    domain = rig.device.alloc_nested(rig.parent, 8, rig.data(HwptBound(1, table.root, 48)))
    for pasid in (5, None, 6):
        rig.device.attach(domain, pasid)
    assert [rig.unit.translate(SID, 0x10000, READ, pasid).pa - HOST for pasid in (None, 5, 6)] == [0x80000] * 3
    for pasid in (None, 5):
        rig.device.detach(pasid)
    table.map(0x11000, 0x90000, PAGE, READ)
    only_five = InvalidateV1(Scope.PASID, 0, Target.LEAF, 0, 5)
    only_six = InvalidateV1(Scope.PASID, 0, Target.LEAF, 0, 6)
    assert rig.invalidate_generic(domain, only_five) == (0, 1)
    assert domain.out.iova_to_pa(0x11000) is None
    assert rig.invalidate_generic(domain, only_six) == (0, 1)
    assert rig.unit.translate(SID, 0x11000, READ, 6).pa - HOST == 0x90000
    rig.device.detach(6)
    assert not rig.parent.index


def test_shadows_are_as_coherent_as_their_parents():
    rig = Rig('model = "vtd"\nunit = "vtd-sc"', whole=False)
    assert rig.parent.enforce_cache_coherency()
    rig.parent.map(0, HOST, GUEST_RAM, RW)
    children = [rig.device.alloc_mapped(rig.parent, flags) for flags in (DomainFlags.NONE, DomainFlags.NEST_PARENT)]
    assert [child.cache_coherent for child in children] == [True, True]
    assert rig.parent.enforce_cache_coherency()
    late = Rig('model = "vtd"\nunit = "vtd-sc"', whole=False)
    child = late.device.alloc_mapped(late.parent, DomainFlags.NONE)
    child.map(0x1000, 0x2000, PAGE, RW)
    assert not late.parent.enforce_cache_coherency()


def test_hardware_and_software_nesting_hang_on_one_parent():
    rig = full(mixed=True)
    table = rig.table()
    table.map(0x10000, 0x80000, PAGE, READ | WRITE)
    config = abi.HwptVtdS1(0, table.root, 48)
    hardware = rig.device.alloc_nested(rig.parent, 0, rig.data(config, VTD_S1))
    software = rig.bind(table)
    mapped = rig.device.alloc_mapped(rig.parent, DomainFlags.NEST_PARENT)
    mapped.map(0, 0, GUEST_RAM, RW)
    over = rig.device.alloc_nested(mapped, 0, rig.data(config, VTD_S1))
    for domain in (hardware, software, over):
        rig.device.attach(domain, None)
        assert rig.reach(0x10000) == 0x80000
        rig.parent.unmap(0, GUEST_RAM)
        rig.parent.flush()
        assert rig.reach(0x10000) is None
        rig.parent.map(0, HOST, GUEST_RAM, RW)
        assert rig.reach(0x10000) == 0x80000
    rig.device.detach(None)
    for gone in (over, hardware, software, mapped, rig.parent):
        gone.free()


class Endpoint:
    """A device as the unit knows it: it has no TLB, and keeps the answers to its page requests."""

    def __init__(self):
        self.answers = []

    def invalidate(self, pasid, first, last):
        return True

    def page_response(self, pasid, group, code):
        self.answers.append((group, code))
