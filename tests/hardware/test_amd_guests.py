"""AMD IOMMU: guest tables of PASIDs, alone and over host tables."""

import pytest
from amd_rig import DOMAIN, SID, Rig, flags, pages_command
from hypothesis import given, settings, strategies as st

from softiommu.hardware.amd.events import BadRequest, Code, RequestEvent
from softiommu.hardware.amd.tables import Gcr3Entry
from softiommu.pagetable.engine import PageTable
from softiommu.pagetable.formats import VARIANTS, x86_64
from softiommu.pagetable.kinds import EXECUTE, OK, READ, WRITE
from softiommu.pagetable.nested import Stage
from softiommu.pagetable.walk import walk

RW = READ | WRITE


@pytest.fixture
def rig():
    return Rig()


def guest_rig(levels=4, glx=0, mode=0, pasid=0, **fields):
    """A rig whose device has a guest table for one PASID, with a mode over host pages of 4 MiB, 1:1."""
    rig = Rig()
    rig.guest = PageTable(rig.memory, VARIANTS[f"x86-64-{levels}level"])
    gcr3 = table = rig.memory.alloc(4096)
    for level in range(glx, 0, -1):
        below = rig.memory.alloc(4096)
        rig.memory.write_u64(table + 8 * (pasid >> 9 * level & 0x1FF), Gcr3Entry.of(V=1, ADDR=below >> 12))
        table = below
    rig.gcr3_leaf = table + 8 * (pasid & 0x1FF)
    rig.memory.write_u64(rig.gcr3_leaf, Gcr3Entry.of(V=1, ADDR=rig.guest.root >> 12))
    rig.fields = {"GV": 1, "GLX": glx, **fields}
    rig.modes = {"GuestPagingMode": levels - 4}
    if mode:
        rig.pages = PageTable(rig.memory, VARIANTS[f"amdv1-{mode}level"])
        every, rig.pages.sizes = rig.pages.sizes, 1 << 12
        rig.pages.map(0, 0, 4 << 20, RW)
        rig.pages.sizes = every
        rig.fields |= {"Mode": mode, "HostPageTableRoot": rig.pages.root >> 12}
    rig.gcr3 = gcr3
    rig.entry(rig.fields, q2=rig.modes, gcr3=gcr3)
    return rig


@pytest.mark.parametrize(
    ("levels", "glx", "pasid"), [(4, 0, 0), (4, 0, 511), (5, 1, 512), (4, 1, (1 << 18) - 1), (5, 2, (1 << 20) - 1)]
)
def test_a_pasid_has_tables_of_its_own(levels, glx, pasid):
    rig = guest_rig(levels, glx, pasid=pasid)
    rig.guest.map(0x10000, 0x50000, 0x2000, READ)
    assert rig.reach(0x11008, READ, pasid) == 0x51008
    low, high = rig.blocked(0x11008, WRITE, pasid)
    assert (flags(low), high) == ({"GN", "US", "PR", "PE", "RW"}, 0x11008)
    assert low.PASID19_16 << 16 | low.DOMAIN == pasid
    assert flags(rig.blocked(0x12000, READ, pasid)[0]) == {"GN", "US"}
    assert flags(rig.blocked(0x10000, READ, pasid ^ 1)[0]) == {"GN", "US"}
    width = 12 + 9 * levels
    assert flags(rig.blocked(1 << width - 1, READ, pasid)[0]) == {"GN", "US"}


def test_a_pasid_beyond_the_gcr3_table_faults():
    rig = guest_rig(glx=0)
    low, _ = rig.blocked(0x1000, READ, 512)
    assert (low.CODE, low.DOMAIN, low.PR) == (Code.IO_PAGE_FAULT, 512, 0)


def test_upper_half_addresses_are_canonical():
    rig = guest_rig(pasid=1)
    rig.guest.map((1 << 47) + 0x1000, 0x50000, 0x1000, RW)
    assert rig.reach((0x1FFFF << 47) + 0x1008, WRITE, 1) == 0x50008


def test_requests_without_pasid_use_host_tables_or_pasid_0():
    rig = guest_rig()
    rig.guest.map(0x10000, 0x50000, 0x1000, RW)
    assert rig.reach(0x10000, READ) == 0x10000
    rig.entry({**rig.fields, "GIoV": 1}, gcr3=rig.gcr3)
    assert rig.reach(0x10000, READ) == 0x50000


def test_a_pasid_needs_guest_tables(rig):
    rig.host()
    low, _ = rig.blocked(0x1000, READ, 3)
    event = RequestEvent(int(low))
    assert (event.CODE, event.TYPE, event.DOMAIN, event.GN) == (Code.INVALID_DEVICE_REQUEST, BadRequest.PASID, 3, 1)
    off = guest_rig()
    off.control(GTEn=0)
    assert off.blocked(0x1000, READ, 0)[0].CODE == Code.INVALID_DEVICE_REQUEST


def test_users_do_not_reach_privileged_pages_nor_execute_what_is_not_code():
    rig = guest_rig(pasid=2)
    rig.guest.map(0x10000, 0x50000, 0x1000, RW)
    (leaf,) = rig.guest.leaves(0, 1 << 47)
    rig.memory.write_u64(leaf.at, leaf.pte & ~x86_64.US | 1 << 63)
    assert rig.reach(0x10000, WRITE, 2, privileged=True) == 0x50000
    assert flags(rig.blocked(0x10000, READ, 2)[0]) == {"GN", "US", "PR", "PE"}
    assert flags(rig.blocked(0x10000, EXECUTE, 2, privileged=True)[0]) == {"GN", "NX", "PR", "PE"}


def test_gcr3_entries_are_cached_until_upper_entries_of_the_pasid_are_invalidated():
    rig = guest_rig(pasid=1)
    rig.guest.map(0x10000, 0x50000, 0x1000, RW)
    rig.reach(0x10000, READ, 1)
    rig.memory.write_u64(rig.gcr3_leaf, 0)
    rig.submit(*pages_command(gn=1, pasid=1, pde=0))
    assert rig.reach(0x10000, READ, 1) == 0x50000
    rig.submit(*pages_command(gn=1, pasid=2))
    assert rig.reach(0x10000, READ, 1) == 0x50000
    rig.submit(*pages_command(gn=1, pasid=1))
    assert not rig.blocked(0x10000, READ, 1)[0].PR


def test_guest_invalidations_name_a_pasid_and_a_page():
    rig = guest_rig(pasid=1)
    rig.guest.map(0x10000, 0x50000, 0x1000, RW)
    rig.reach(0x10000, READ, 1)
    rig.guest.unmap(0x10000, 0x1000)
    rig.submit(*pages_command(0x11000, gn=1, pasid=1))
    rig.submit(*pages_command(0x10000, gn=1, pasid=2))
    rig.submit(*pages_command(0x10000))
    assert rig.reach(0x10000, READ, 1) == 0x50000
    rig.submit(*pages_command(0x10000, gn=1, pasid=1))
    assert not rig.blocked(0x10000, READ, 1)[0].PR


# Two stages


def test_a_large_page_that_is_cached_in_small_ones_is_forgotten_by_a_command_for_all_of_it():
    """A command names a range, and what is cached of it goes (2.4.3): pieces beside it stay."""
    rig = guest_rig(mode=4, pasid=1)
    iova, size = 0x4000_0000, 0x20_0000
    rig.guest.map(iova, size, size, RW)
    for place in (iova, iova + size - 0x1000):
        assert rig.iommu.translate(SID, place, READ, 1).lg2 == 12
    rig.guest.unmap(iova, size)
    rig.submit(*pages_command(iova, gn=1, pasid=1))
    assert not rig.blocked(iova, READ, 1)[0].PR
    assert rig.reach(iova + size - 0x1000, READ, 1) == 2 * size - 0x1000
    rig.submit(*pages_command(iova | (size >> 1) - 0x1000 | 1, gn=1, pasid=1))
    assert not rig.blocked(iova + size - 0x1000, READ, 1)[0].PR


def test_guest_tables_lie_behind_host_tables():
    rig = guest_rig(mode=4, pasid=1)
    rig.guest.map(0x10000, 0x60000, 0x1000, RW)
    rig.pages.unmap(0x60000, 0x1000)
    low, high = rig.blocked(0x10008, WRITE, 1)
    assert (flags(low), low.DOMAIN, high) == ({"RW"}, DOMAIN, 0x60008)
    rig.pages.map(0x60000, 0x990000, 0x1000, RW)
    assert rig.reach(0x10008, WRITE, 1) == 0x990008
    (leaf,) = rig.guest.leaves(0, 1 << 47)
    assert leaf.pte & x86_64.D


def test_a_guest_table_that_the_host_does_not_map_is_a_fault_at_the_table():
    rig = guest_rig(mode=4, pasid=1)
    rig.guest.map(0x10000, 0x60000, 0x1000, RW)
    (leaf,) = rig.guest.leaves(0, 1 << 47)
    rig.pages.unmap(leaf.at & ~0xFFF, 0x1000)
    low, high = rig.blocked(0x10000, READ, 1)
    assert (flags(low), low.DOMAIN, high) == (set(), DOMAIN, leaf.at)


def test_a_host_invalidation_drops_what_two_stages_made():
    rig = guest_rig(mode=4, pasid=1)
    rig.guest.map(0x10000, 0x60000, 0x1000, RW)
    rig.reach(0x10000, READ, 1)
    rig.pages.unmap(0x60000, 0x1000)
    assert rig.reach(0x10000, READ, 1) == 0x60000
    rig.submit(*pages_command(0x60000))
    assert not rig.blocked(0x10000, READ, 1)[0].PR


def test_the_gcr3_table_may_be_a_guests():
    rig = guest_rig(mode=4, pasid=1)
    rig.guest.map(0x10000, 0x60000, 0x1000, RW)
    away = 1 << 30
    rig.pages.map(away, rig.gcr3, 0x1000, RW)
    rig.entry(rig.fields, gcr3=away)
    assert rig.blocked(0x10000, READ, 1)[0].CODE == Code.PAGE_TAB_HARDWARE_ERROR
    rig.control(GCR3TRPMode=1)
    assert rig.reach(0x10000, READ, 1) == 0x60000


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_two_stages_are_one_walk_after_the_other(data):
    rig = guest_rig(levels=data.draw(st.sampled_from([4, 5])), mode=data.draw(st.integers(4, 6)), pasid=3)
    sizes = st.sampled_from([0x1000, 0x2000, 0x200000])
    pages = st.integers(0, 1023).map(lambda n: n << 12)
    for _ in range(data.draw(st.integers(1, 4))):
        rig.guest.map(
            data.draw(pages), (64 << 20) + data.draw(pages), data.draw(sizes), data.draw(st.sampled_from([1, 3]))
        )
        rig.pages.map(
            (64 << 20) + data.draw(pages), data.draw(pages), data.draw(sizes), data.draw(st.sampled_from([1, 2, 3]))
        )
    second = Stage(rig.pages.table, rig.pages.root)
    for _ in range(4):
        iova, want = data.draw(pages) + data.draw(st.integers(0, 4095)), data.draw(st.sampled_from([READ, WRITE]))
        one = walk(rig.guest.table, rig.memory, rig.guest.root, iova, want)
        two = walk(second.table, rig.memory, second.root, one.oa, want)
        if one.status == OK and two.status == OK:
            assert rig.reach(iova, want, 3) == two.oa
        else:
            assert rig.blocked(iova, want, 3)[0].CODE == Code.IO_PAGE_FAULT
