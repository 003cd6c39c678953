"""Formats: what their entries say, by the tables in the manuals."""

import pytest
from hypothesis import given, settings, strategies as st

from softiommu.memory.physical import PhysicalMemory
from softiommu.pagetable import formats
from softiommu.pagetable.engine import PageTable
from softiommu.pagetable.formats import amdv1, arm64, riscv, vtdss, x86_64
from softiommu.pagetable.kinds import (
    BAD,
    EMPTY,
    EXECUTE,
    FORBIDDEN,
    GLOBAL,
    HW_ACCESSED,
    HW_DIRTY,
    LEAF,
    NOT_MAPPED,
    OK,
    PRIVILEGED,
    READ,
    RIGHTS,
    TABLE,
    WRITE,
)
from softiommu.pagetable.walk import signed, walk

RAM = 1 << 20
NONE, ALL = 0, -1


def both(t, pte, every=ALL, some=NONE):
    """Rights of users and of privileged accesses."""
    told = formats.rights(t, signed(pte), every, some)
    return told & RIGHTS, told >> 3 & RIGHTS


@pytest.mark.parametrize("name", sorted(formats.VARIANTS))
@given(data=st.data())
@settings(max_examples=40)
def test_a_leaf_and_a_link_are_loaded_as_they_were_made(name, data):
    t = formats.VARIANTS[name]
    lg2 = data.draw(st.sampled_from([n for n in range(64) if formats.sizes(t) >> n & 1]))
    level = min((lg2 - t.granule_lg2) // t.bits, t.leaf_top)
    oa = data.draw(st.integers(0, (1 << t.output_bits - lg2) - 1)) << lg2
    prot = data.draw(st.sampled_from([READ, READ | WRITE]))
    leaf = formats.leaf(t, level, oa, lg2, prot)
    assert formats.load(t, level, leaf) == (LEAF, oa, lg2, 0)
    assert formats.rights(t, leaf, ALL, NONE) & (READ | WRITE) == prot
    assert -(1 << 63) <= leaf < 1 << 63
    if t.top:
        level = data.draw(st.integers(1, t.top))
        table = data.draw(st.integers(0, (1 << t.output_bits - t.granule_lg2) - 1)) << t.granule_lg2
        assert formats.load(t, level, formats.link(t, level, table)) == (TABLE, table, 0, level - 1)
    assert formats.load(t, 0, 0)[0] == EMPTY


@pytest.mark.parametrize("name", sorted(formats.VARIANTS))
@given(pte=st.integers(-(1 << 63), (1 << 63) - 1), want=st.integers(0, 63))
@settings(max_examples=60)
def test_any_entry_is_told_within_the_rules_of_a_walk(name, pte, want):
    """Whatever memory holds: kinds are known, leaves are aligned and have a size, links lead strictly down."""
    t = formats.VARIANTS[name]
    for level in range(t.top + 1):
        kind, oa, lg2, below = formats.load(t, level, pte)
        assert kind in (EMPTY, TABLE, LEAF, BAD)
        if kind == TABLE:
            assert 0 <= below < level
        if kind == LEAF:
            assert t.granule_lg2 + t.bits * level <= lg2 <= 60
            assert oa % (1 << lg2) == 0
            assert level <= t.leaf_top
        if kind in (TABLE, LEAF):
            used = formats.used(t, kind, pte, want)
            assert formats.used(t, kind, used, want) == used, "a second access has nothing more to set"
            assert formats.load(t, level, used) == (kind, oa, lg2, below)


@pytest.mark.parametrize("module", formats.MODULES, ids=lambda module: module.__name__.rpartition(".")[2])
def test_dirty_is_what_a_write_leaves_and_clean_takes_away(module):
    name, t = next(iter(module.VARIANTS.items()))
    t = t._replace(option=t.option | HW_ACCESSED | HW_DIRTY)
    leaf = formats.clean(t, formats.leaf(t, 0, 0x10000, t.granule_lg2, READ | WRITE))
    assert not formats.dirty(t, leaf), name
    written = formats.used(t, LEAF, leaf, WRITE)
    assert formats.dirty(t, written)
    assert formats.clean(t, formats.used(t, LEAF, leaf, READ)) == formats.clean(t, written)


def test_reserved_bits_are_bad():
    t = x86_64.VARIANTS["x86-64-4level"]
    assert x86_64.load(t, 1, x86_64.P | x86_64.PS | 1 << 13)[0] == BAD
    assert x86_64.load(t, 1, x86_64.P | x86_64.PS | x86_64.PAT_LARGE)[0] == LEAF
    assert x86_64.load(t, 3, x86_64.P | x86_64.PS)[0] == BAD
    assert x86_64.load(t, 0, x86_64.P | -1 << 63)[0] == LEAF
    assert x86_64.load(t._replace(option=0), 0, x86_64.P | -1 << 63)[0] == BAD, "XD is reserved without NXE"
    v = vtdss.VARIANTS["vtdss-48"]
    assert vtdss.load(v, 1, vtdss.R | vtdss.PS | 1 << 12)[0] == BAD
    assert vtdss.load(v, 3, vtdss.R | vtdss.PS)[0] == BAD
    assert vtdss.load(v, 0, vtdss.R | vtdss.SNP)[0] == LEAF
    assert vtdss.load(v._replace(option=vtdss.NO_SNOOP_CONTROL), 0, vtdss.R | vtdss.SNP)[0] == BAD
    a = amdv1.VARIANTS["amdv1-6level"]
    assert amdv1.load(a, 0, amdv1.PR | 1 << 52)[0] == BAD
    assert amdv1.load(a, 5, amdv1.PR)[0] == BAD, "level 6 has no leaves"
    assert amdv1.load(a, 2, amdv1.PR | 3 << 9)[0] == BAD, "a link leads down"
    assert amdv1.load(a, 2, amdv1.PR | 2 << 9 | amdv1.FC)[0] == BAD


@pytest.mark.parametrize(
    ("level", "pte"),
    [
        (0, riscv.V | riscv.W),
        (0, riscv.V | riscv.R | 1 << 54),
        (0, riscv.V | riscv.R | 1 << 60),
        (0, riscv.V | riscv.R | 3 << 61),
        (0, riscv.V | riscv.R | riscv.N | 1 << 10),
        (1, riscv.V | riscv.R | riscv.N | 1 << 13),
        (1, riscv.V | riscv.R | 1 << 10),
        (1, riscv.V | riscv.U),
        (1, riscv.V | riscv.A),
        (1, riscv.V | riscv.D),
        (1, riscv.V | 1 << 61),
        (1, riscv.V | riscv.N),
        (0, riscv.V),
    ],
)
def test_the_checks_of_the_risc_v_algorithm_fail(level, pte):
    assert riscv.load(riscv.VARIANTS["riscv-sv39"], level, pte)[0] == BAD


def test_page_based_memory_types_need_svpbmt():
    t, pte = riscv.VARIANTS["riscv-sv39"], riscv.V | riscv.R | 1 << 61
    assert riscv.load(t, 0, pte)[0] == LEAF
    assert riscv.load(t._replace(option=riscv.NO_PBMT), 0, pte)[0] == BAD


def test_skipped_levels_need_zero_bits():
    memory = PhysicalMemory(RAM)
    table = amdv1.VARIANTS["amdv1-4level"]
    root, leaf = memory.alloc(4096), memory.alloc(4096)
    memory.write_u64(root, leaf | amdv1.PR | amdv1.IR | amdv1.IW | 1 << amdv1.NEXT_LEVEL_LOW)
    memory.write_u64(leaf + 8 * 3, amdv1.leaf(table, 0, 0x7000, 12, READ))
    assert walk(table, memory, root, 0x3123).oa == 0x7123
    assert walk(table, memory, root, 0x3123 | 1 << 21).status == NOT_MAPPED
    assert walk(table, memory, root, 0x3123 | 1 << 30).status == NOT_MAPPED


def test_every_power_of_two_is_a_leaf_of_the_amd_format():
    assert formats.sizes(amdv1.VARIANTS["amdv1-4level"]) == (1 << 48) - (1 << 12)
    assert formats.sizes(amdv1.VARIANTS["amdv1-6level"]) == (1 << 52) - (1 << 12)
    # Examples of the specification: address bits 8 KiB 0, 64 KiB 0111, 4 MiB nine ones.
    for lg2, ones in ((13, 0), (16, 0b111), (22, 0x1FF)):
        level = (lg2 - 12) // 9
        assert amdv1.leaf(amdv1.VARIANTS["amdv1-4level"], level, 0, lg2, READ) & amdv1.ADDR == ones << 12


def test_leaves_of_arm_have_the_sizes_of_the_manual():
    def lg2s(name):
        return [n for n in range(64) if arm64.sizes(arm64.VARIANTS[name]) >> n & 1]

    assert lg2s("arm64-4k-48-s1") == [12, 16, 21, 25, 30, 34]
    assert lg2s("arm64-16k-47-s1") == [14, 21, 25, 30]
    assert lg2s("arm64-64k-48-s1") == [16, 21, 29, 34]
    assert lg2s("arm64-64k-52-s1") == [16, 21, 29, 34, 42, 47]
    assert lg2s("arm64-4k-52-s1") == [12, 16, 21, 25, 30, 34, 39, 43]


def test_roots_of_arm_have_the_levels_of_the_manual():
    """Start level and concatenation of 8.1.5: a 40-bit stage 2 is two tables of level 1, or 16 of level 2 with 16K."""
    shapes = {name: (t.top, t.top_bits) for name, t in arm64.VARIANTS.items()}
    assert shapes["arm64-4k-48-s1"] == (3, 9)
    assert shapes["arm64-4k-40-s2"] == (2, 10)
    assert shapes["arm64-16k-48-s1"] == (3, 1)
    assert shapes["arm64-16k-40-s2"] == (1, 15)
    assert shapes["arm64-64k-52-s1"] == (2, 10)
    assert shapes["arm64-4k-52-s1"] == (4, 4)


@pytest.mark.parametrize("name", ["arm64-64k-52-s1", "arm64-4k-52-s1"])
def test_addresses_of_52_bits_have_their_high_bits_below(name):
    t = arm64.VARIANTS[name]
    high = arm64.leaf(t, 0, 0xF << 48, t.granule_lg2, READ) & ~arm64.leaf(t, 0, 0, t.granule_lg2, READ)
    assert high == (0xF << 12 if t.granule_lg2 == 16 else 3 << 48 | 3 << 8)


def test_rights_of_x86_tables_are_those_of_all_levels():
    t = x86_64.VARIANTS["x86-64-4level"]
    p, rw, us, xd = x86_64.P, x86_64.RW, x86_64.US, -1 << 63
    rwx = READ | WRITE | EXECUTE
    assert both(t, p | rw | us) == (rwx, rwx)
    assert both(t, p | rw) == (0, rwx)
    assert both(t, p | us) == (READ | EXECUTE, READ | EXECUTE)
    assert both(t, p | rw | us, every=us) == (READ | EXECUTE, READ | EXECUTE)
    assert both(t, p | rw | us, every=rw) == (0, rwx)
    assert both(t, p | us | rw, some=xd) == both(t, p | us | rw | xd) == (READ | WRITE, READ | WRITE)
    lax = t._replace(option=t.option & ~x86_64.WPE)
    assert both(lax, p | us) == (READ | EXECUTE, rwx), "privileged writes need RW only with WPE"
    smep = t._replace(option=t.option | x86_64.SMEP)
    assert both(smep, p | rw | us) == (rwx, READ | WRITE)
    assert both(smep, p | rw) == (0, rwx)
    assert formats.rights(t, p | x86_64.G, ALL, NONE) & GLOBAL


def test_rights_of_risc_v_leaves_depend_on_u_and_sum():
    t, x4 = riscv.VARIANTS["riscv-sv39"], riscv.VARIANTS["riscv-sv39x4"]
    rwx, everything = READ | WRITE | EXECUTE, riscv.V | riscv.RWX
    assert both(t, everything) == (0, rwx)
    assert both(t, everything | riscv.U) == (rwx, 0)
    assert both(t._replace(option=riscv.SUM), everything | riscv.U) == (rwx, READ | WRITE)
    assert both(x4, everything) == (0, 0), "the second stage is always a user's"
    assert both(x4, everything | riscv.U) == (rwx, rwx)
    assert formats.rights(t, riscv.V | riscv.R, ALL, riscv.G) & GLOBAL
    assert not formats.rights(x4, riscv.V | riscv.R | riscv.U | riscv.G, ALL, NONE) & GLOBAL


def test_rights_of_arm_stage_1_are_the_leafs_less_the_limits_of_tables():
    t = arm64.VARIANTS["arm64-4k-48-s1"]
    user, read_only, ro, rwx = arm64.AP_USER, arm64.AP_READ_ONLY, READ | EXECUTE, READ | WRITE | EXECUTE
    assert both(t, user) == (rwx, READ | WRITE), "what users write is not executed by privileged accesses"
    assert both(t, 0) == (EXECUTE, rwx)
    assert both(t, user | read_only) == (ro, ro)
    assert both(t, user | arm64.XN | arm64.PXN | read_only) == (READ, READ)
    assert both(t, user, some=arm64.AP_TABLE_NO_USER) == (EXECUTE, rwx)
    assert both(t, user, some=arm64.AP_TABLE_READ_ONLY) == (ro, ro)
    assert both(t, user | read_only, some=arm64.XN_TABLE | arm64.PXN_TABLE) == (READ, READ)
    free = t._replace(option=arm64.NO_HIERARCHY)
    assert both(free, user, some=arm64.AP_TABLE_READ_ONLY | arm64.XN_TABLE) == (rwx, READ | WRITE)
    assert both(t._replace(option=arm64.PAN), user | read_only) == (ro, EXECUTE)
    assert both(t._replace(option=arm64.WXN), 0) == (EXECUTE, READ | WRITE)
    assert both(t._replace(option=arm64.WXN), user) == (READ | WRITE, READ | WRITE)
    el2 = t._replace(option=arm64.ONE_LEVEL)
    assert both(el2, arm64.PXN) == (rwx, rwx)
    assert both(el2, arm64.XN) == (READ | WRITE, READ | WRITE)
    assert formats.rights(t, 0, ALL, NONE) & GLOBAL
    assert not formats.rights(t, arm64.NG, ALL, NONE) & GLOBAL


@pytest.mark.parametrize(("xn", "user", "privileged"), [(0, 1, 1), (1, 1, 0), (2, 0, 0), (3, 0, 1)])
def test_execution_at_arm_stage_2_is_by_two_bits_with_xnx(xn, user, privileged):
    t = arm64.VARIANTS["arm64-4k-48-s2"]
    pte = arm64.S2AP_READ | xn << 53
    told = both(t._replace(option=t.option | arm64.XNX), pte)
    assert [bool(allowed & EXECUTE) for allowed in told] == [bool(user), bool(privileged)]
    plain = both(t, pte)
    assert [bool(allowed & EXECUTE) for allowed in plain] == [xn < 2] * 2


def test_a_page_with_the_dirty_modifier_can_be_written_only_where_hardware_marks_it():
    for name, t in arm64.VARIANTS.items():
        marks = t._replace(option=t.option | HW_ACCESSED | HW_DIRTY)
        clean = formats.clean(marks, formats.leaf(marks, 0, 0, t.granule_lg2, READ | WRITE))
        assert both(marks, clean)[0] & WRITE, name
        assert not both(t, clean)[0] & WRITE, name


def test_a_table_takes_rights_from_what_is_below_it():
    memory = PhysicalMemory(RAM)
    pages = PageTable(memory, vtdss.VARIANTS["vtdss-39"])
    pages.map(0x1000, 0x5000, 0x1000, READ | WRITE)
    assert walk(pages.table, memory, pages.root, 0x1000, WRITE).status == OK
    memory.write_u64(pages.root, memory.read_u64(pages.root) & ~vtdss.W)
    found = walk(pages.table, memory, pages.root, 0x1000, WRITE)
    assert (found.status, found.oa, found.allowed & (READ | WRITE)) == (FORBIDDEN, 0x5000, READ)


def test_pages_mapped_for_privileged_accesses_are_closed_to_users():
    for name in ("x86-64-4level", "riscv-sv48", "arm64-4k-48-s1"):
        pages = PageTable(PhysicalMemory(RAM), formats.VARIANTS[name])
        pages.map(0x1000, 0x5000, 0x1000, READ | WRITE | PRIVILEGED)
        assert pages.translate(0x1000, READ).status == FORBIDDEN
        assert pages.translate(0x1000, WRITE | PRIVILEGED).status == OK
