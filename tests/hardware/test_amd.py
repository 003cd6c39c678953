"""AMD IOMMU: what its tables say is what a request gets; what is cached stays until a command names it."""

import pytest
from amd_rig import DOMAIN, SID, Rig, answer, flags, pages_command
from hypothesis import given, settings, strategies as st

from softiommu.hardware.amd.commands import Opcode
from softiommu.hardware.amd.events import BadRequest, Code, DeviceEvent, HardwareError, RequestEvent
from softiommu.hardware.amd.presets import FULL
from softiommu.hardware.amd.registers import Efr, Efr2, Registers, SegmentBase
from softiommu.hardware.amd.tables import Dte, Dte0, Had
from softiommu.hardware.iommu import TranslationFaultError
from softiommu.pagetable.formats import amdv1
from softiommu.pagetable.kinds import EXECUTE, OK, READ, WRITE

RW = READ | WRITE


@pytest.fixture
def rig():
    return Rig()


# The device table


def test_without_the_iommu_or_a_valid_entry_addresses_are_physical():
    off = Rig(IommuEn=0)
    assert off.reach(0x1234, READ) == 0x1234
    assert Rig().reach(0x1234, WRITE) == 0x1234


def test_a_valid_entry_without_translation_blocks(rig):
    rig.entry({"TV": 0})
    low, high = rig.blocked(0x5008, WRITE)
    assert (low.CODE, flags(low), low.DOMAIN, high) == (Code.IO_PAGE_FAULT, {"RW"}, DOMAIN, 0x5008)


@pytest.mark.parametrize(("ir", "iw"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_mode_0_passes_what_the_entry_allows(rig, ir, iw):
    rig.entry({"IR": ir, "IW": iw})
    for want, allowed in ((READ, ir), (WRITE, iw)):
        if allowed:
            assert rig.reach(0x1234, want) == 0x1234
        else:
            assert flags(rig.blocked(0x1234, want)[0]) - {"RW"} == {"PR", "PE"}


@pytest.mark.parametrize(("bit", "word"), [(2, 0), (6, 0), (63, 0), (42, 1)], ids=["q0.2", "q0.6", "q0.63", "q1.42"])
def test_reserved_bits_of_an_entry_are_illegal(rig, bit, word):
    rig.entry()
    at = rig.table + 32 * SID + 8 * word
    rig.memory.write_u64(at, rig.memory.read_u64(at) | 1 << bit)
    low, high = rig.blocked(0x1238, READ)
    assert (low.CODE, flags(low), high) == (Code.ILLEGAL_DEV_TABLE_ENTRY, {"RZ"}, 0x1238)


@pytest.mark.parametrize(
    "fields",
    [{"Mode": 7}, {"HAD": Had.RESERVED}, {"GV": 1, "GLX": 3}],
    ids=["mode", "had", "glx"],
)
def test_levels_that_there_are_not_are_illegal(rig, fields):
    rig.entry(fields)
    low, _ = rig.blocked(0x1000, READ)
    assert (low.CODE, flags(low)) == (Code.ILLEGAL_DEV_TABLE_ENTRY, set())


def test_fields_of_absent_features_are_reserved():
    plain = Rig(Efr.of(IASup=1))
    for fields in ({"GV": 1}, {"HAD": Had.ACCESSED}, {"PPR": 1}, {"GIoV": 1}, {"Mode": 5}):
        plain.entry(fields)
        low, _ = plain.blocked(0x1000, READ)
        assert (low.CODE, low.RZ) == (Code.ILLEGAL_DEV_TABLE_ENTRY, int("Mode" not in fields))


def test_a_device_beyond_the_table_is_illegal(rig):
    low, _ = rig.blocked(0x1000, READ, sid=0x800)
    assert (low.CODE, low.RZ) == (Code.ILLEGAL_DEV_TABLE_ENTRY, 0)


def test_a_table_outside_memory_is_a_hardware_error(rig):
    rig.set(Registers.DEVTAB_BASE, 1 << 50 | 15)
    low, high = rig.blocked(0x1000, READ)
    assert (low.CODE, low.TYPE) == (Code.DEV_TAB_HARDWARE_ERROR, HardwareError.MASTER_ABORT)
    assert high == (1 << 50) + 32 * SID


def test_segments_take_the_high_bits_of_the_device():
    rig = Rig(DevTblSegEn=2)
    rig.entry({"IR": 0, "IW": 0}, sid=3)
    segment = rig.memory.alloc(4096)
    rig.iommu.write(Registers.SEGMENT_BASE.at(1), 8, SegmentBase.of(SIZE=0, BASE=segment >> 12))
    rig.memory.write(segment + 32 * 3, Dte(Dte0.of(V=1, TV=1, IR=1)).to_bytes())
    assert rig.reach(0x1000, READ, sid=0x8003) == 0x1000
    assert flags(rig.blocked(0x1000, WRITE, sid=0x8003)[0]) == {"PR", "PE", "RW"}
    assert rig.blocked(0x1000, READ, sid=0x0003)[0].PE
    assert rig.blocked(0x1000, READ, sid=0x8080)[0].CODE == Code.ILLEGAL_DEV_TABLE_ENTRY


def test_a_changed_entry_is_seen_after_its_invalidation(rig):
    rig.entry()
    assert rig.reach(0x1000, READ) == 0x1000
    rig.memory.write_u64(rig.table + 32 * SID, Dte0.of(V=1))
    assert rig.reach(0x1000, READ) == 0x1000
    rig.submit(Opcode.INVALIDATE_DEVTAB_ENTRY << 60 | SID ^ 1)
    assert rig.reach(0x1000, READ) == 0x1000
    rig.submit(Opcode.INVALIDATE_DEVTAB_ENTRY << 60 | SID)
    assert rig.blocked(0x1000, READ)[0].CODE == Code.IO_PAGE_FAULT


# Host tables


@pytest.mark.parametrize("levels", range(1, 7))
def test_a_host_table_of_any_mode_translates(rig, levels):
    pages = rig.host(levels)
    top = 1 << min(12 + 9 * levels, 64)
    pages.map(top - 0x1000, 0x50000, 0x1000, READ)
    assert rig.reach(top - 0x1000 + 0x123, READ) == 0x50123
    low, high = rig.blocked(top - 8, WRITE)
    assert (flags(low), low.DOMAIN, high) == ({"PR", "PE", "RW"}, DOMAIN, top - 8)
    assert flags(rig.blocked(0, READ)[0]) == set()
    if levels < 6:
        assert flags(rig.blocked(top, READ)[0]) == set()


@pytest.mark.parametrize("lg2", range(12, 48))
def test_every_power_of_two_is_a_page_size(rig, lg2):
    pages = rig.host(5)
    assert pages.map(1 << 48, 1 << lg2, 1 << lg2, RW) == (OK, 1 << lg2)
    found = rig.iommu.translate(SID, (1 << 48) + (1 << lg2) - 1, WRITE)
    assert (found.pa, found.lg2) == ((2 << lg2) - 1, lg2)


def host_entry(**fields):
    return amdv1.Pte.of(**{"PR": 1, "IR": 1, "IW": 1, **fields})


def test_links_may_skip_levels_where_the_address_is_zero(rig):
    root, leaves = (rig.memory.alloc(4096) for _ in range(2))
    rig.entry({"Mode": 4, "HostPageTableRoot": root >> 12})
    rig.memory.write_u64(root, host_entry(NEXT_LEVEL=1, ADDR=leaves >> 12))
    rig.memory.write_u64(leaves + 8, host_entry(ADDR=0x77))
    assert rig.reach(0x1234, READ) == 0x77234
    assert flags(rig.blocked(0x201000, READ)[0]) == {"PR"}


@pytest.mark.parametrize(
    "fields",
    [{"NEXT_LEVEL": 4}, {"NEXT_LEVEL": 6}, {"NEXT_LEVEL": 3, "FC": 1}, {"NEXT_LEVEL": 7, "ADDR": 0}],
)
def test_malformed_entries_are_told_as_such(rig, fields):
    root = rig.memory.alloc(4096)
    rig.entry({"Mode": 4, "HostPageTableRoot": root >> 12})
    rig.memory.write_u64(root, host_entry(**fields))
    assert flags(rig.blocked(0x1000, READ)[0]) == {"PR", "RZ"}


def test_rights_are_those_of_every_level_and_of_the_entry(rig):
    root, table = (rig.memory.alloc(4096) for _ in range(2))
    rig.entry({"Mode": 2, "HostPageTableRoot": root >> 12})
    rig.memory.write_u64(root, host_entry(NEXT_LEVEL=1, ADDR=table >> 12, IW=0))
    rig.memory.write_u64(table, host_entry(ADDR=0x77))
    assert rig.iommu.translate(SID, 0, READ).allowed == READ | EXECUTE
    assert flags(rig.blocked(0, WRITE)[0]) == {"PR", "PE", "RW"}
    rig.entry({"Mode": 2, "HostPageTableRoot": root >> 12, "IR": 0})
    assert flags(rig.blocked(0, READ)[0]) == {"PR", "PE"}


def test_a_page_table_outside_memory_is_a_hardware_error(rig):
    rig.entry({"Mode": 4, "HostPageTableRoot": 1 << 38})
    low, high = rig.blocked(1 << 39, WRITE)
    assert (low.CODE, flags(low), low.TYPE) == (Code.PAGE_TAB_HARDWARE_ERROR, {"RW"}, HardwareError.MASTER_ABORT)
    assert (low.DOMAIN, high) == (DOMAIN, (1 << 50) + 8 & ~15)


@pytest.mark.parametrize(
    ("had", "read", "written"), [(0, 0, 0), (1, amdv1.A, amdv1.A), (3, amdv1.A, amdv1.A | amdv1.D)]
)
def test_flags_are_set_as_the_entry_asks(rig, had, read, written):
    pages = rig.host(4, HAD=had)
    pages.map(0x1000, 0x50000, 0x1000, RW)

    def seen():
        (leaf,) = pages.leaves(0, 1 << 47)
        return leaf.pte & (amdv1.A | amdv1.D)

    rig.reach(0x1000, READ)
    assert seen() == read
    rig.reach(0x1000, WRITE)
    assert seen() == written


# Invalidation


def test_a_stale_translation_stays_until_its_page_is_invalidated(rig):
    pages = rig.host()
    pages.map(0x10000, 0x50000, 0x1000, RW)
    assert rig.reach(0x10000, WRITE) == 0x50000
    pages.unmap(0x10000, 0x1000)
    for window in (0x11000, 0xC000 | 1 << 12 | 1, 0x18000 | 1):
        rig.submit(*pages_command(window))
    rig.submit(*pages_command(domain=DOMAIN + 1))
    rig.submit(*pages_command(gn=1))
    rig.submit(Opcode.INVALIDATE_DEVTAB_ENTRY << 60 | SID)
    assert rig.reach(0x10000, WRITE) == 0x50000
    rig.submit(*pages_command(0x10000))
    assert not rig.blocked(0x10000, WRITE)[0].PR


def test_links_to_tables_stay_until_upper_entries_are_invalidated(rig):
    pages = rig.host()
    pages.map(0x10000, 0x50000, 0x2000, RW)
    rig.reach(0x10000, READ)
    (leaf,) = [leaf for leaf in pages.leaves(0, 1 << 47) if leaf.iova == 0x10000]
    moved = rig.memory.alloc(4096)
    rig.memory.write_u64(moved + (leaf.at & 0xFFF), leaf.pte ^ 0x50000 ^ 0x90000)
    at = pages.translate(1 << 21).at  # the entry beside the link
    rig.memory.write_u64(at - 8, rig.memory.read_u64(at - 8) & 0xFFF | 3 << 61 | moved)
    rig.submit(*pages_command(pde=0))
    assert rig.reach(0x10000, READ) == 0x50000
    rig.submit(*pages_command(0x200000))
    rig.submit(*pages_command(0x10000, pde=0))
    assert rig.reach(0x10000, READ) == 0x50000
    rig.submit(*pages_command(0x10000))
    assert rig.reach(0x10000, READ) == 0x90000


@pytest.mark.parametrize(
    "command",
    [
        pages_command(0x10000 | 1),
        pages_command(0x13000 | 1),
        pages_command(0x17000 | 1),
        pages_command(),
        (Opcode.INVALIDATE_IOMMU_ALL << 60, 0),
    ],
    ids=["2 pages", "8 pages", "16 pages", "domain", "all"],
)
def test_wider_invalidations_cover_the_page_too(rig, command):
    pages = rig.host()
    pages.map(0x10000, 0x50000, 0x1000, RW)
    rig.reach(0x10000, READ)
    pages.unmap(0x10000, 0x1000)
    rig.submit(*command)
    assert not rig.blocked(0x10000, READ)[0].PR


def test_devices_of_a_domain_share_translations_and_their_own_rights(rig):
    pages = rig.host()
    pages.map(0x10000, 0x50000, 0x1000, RW)
    rig.entry({"Mode": 4, "HostPageTableRoot": pages.root >> 12, "IW": 0}, sid=SID + 1)
    rig.reach(0x10000, WRITE)
    misses = rig.iommu.iotlb.cache.counters.misses
    assert rig.reach(0x10000, READ, sid=SID + 1) == 0x50000
    assert rig.iommu.iotlb.cache.counters.misses == misses
    assert rig.blocked(0x10000, WRITE, sid=SID + 1)[0].PE


# Ranges


def test_the_exclusion_range_is_for_those_who_may_or_for_all(rig):
    rig.host()
    rig.set(Registers.EXCL_LIMIT, 0x5000)
    rig.set(Registers.EXCL_BASE, 0x4000 | 1)
    assert not rig.blocked(0x4000, READ)[0].PR
    rig.set(Registers.EXCL_BASE, 0x4000 | 3)
    assert [rig.reach(iova, WRITE) for iova in (0x4000, 0x5FFF)] == [0x4000, 0x5FFF]
    for outside in (0x3FFF, 0x6000):
        rig.blocked(outside, READ)
    rig.set(Registers.EXCL_BASE, 0x4000 | 1)
    rig.entry({"TV": 0}, {"EX": 1})
    assert rig.reach(0x4000, READ) == 0x4000


@pytest.mark.parametrize(
    ("iova", "fields", "want", "kind"),
    [
        (0xFD_FC00_0000, {}, WRITE, BadRequest.PORT_IO),
        (0xFD_FC00_0000, {"IoCtl": 1}, WRITE, None),
        (0xFD_F910_0000, {}, WRITE, BadRequest.SYSTEM_MANAGEMENT_WRITE),
        (0xFD_F910_0000, {"SysMgt": 1}, READ, BadRequest.SYSTEM_MANAGEMENT_READ),
        (0xFD_F910_0000, {"SysMgt": 1}, WRITE, None),
        (0xFD_FC00_0000, {"IoCtl": 2}, WRITE, None),
        (0xFD_FC00_0000, {"IoCtl": 3}, READ, BadRequest.PORT_IO),
        (0xFD_F910_0000, {"SysMgt": 2}, WRITE, BadRequest.SYSTEM_MANAGEMENT_WRITE),
        (0xFD_F910_0000, {"SysMgt": 3}, READ, None),
    ],
)
def test_ranges_of_hypertransport_obey_the_entry(rig, iova, fields, want, kind):
    rig.entry(q1=fields)
    if kind is None:
        assert rig.reach(iova, want) == iova
    else:
        event = RequestEvent(int(rig.blocked(iova, want)[0]))
        assert (event.CODE, event.TYPE, event.TR) == (Code.INVALID_DEVICE_REQUEST, kind, 0)


def test_hardware_may_know_no_such_ranges():
    rig = Rig(efr2=Efr2.of(HTRangeIgnore=1))
    rig.entry()
    for iova in (0xFD_FC00_0000, 0xFD_F910_0000):
        assert rig.reach(iova, READ) == iova


def test_interrupts_are_not_translated(rig):
    rig.entry({"TV": 0})
    assert rig.reach(0xFEE01000, WRITE) == 0xFEE01000
    rig.entry({"TV": 0}, q2={"IV": 1, "IntCtl": 0})
    event = RequestEvent(int(rig.blocked(0xFEE01000, WRITE)[0]))
    assert (event.CODE, event.TYPE) == (Code.INVALID_DEVICE_REQUEST, BadRequest.INTERRUPT)
    rig.entry({"TV": 0}, q2={"IV": 1, "IntCtl": 3})
    assert flags(rig.blocked(0xFEE01000, WRITE)[0]) == {"I", "RW"}


# Suppression, and garbage


def test_page_faults_can_be_kept_from_the_log(rig):
    rig.entry({"TV": 0}, {"SA": 1})
    for _ in range(2):
        with pytest.raises(TranslationFaultError):
            rig.iommu.translate(SID, 0, READ)
    assert rig.take_events() == []
    rig.entry({"TV": 0}, {"SE": 1})
    for count in (1, 0):
        with pytest.raises(TranslationFaultError):
            rig.iommu.translate(SID, 0, READ)
        assert len(rig.take_events()) == count


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_garbage_in_an_entry_and_its_tables_is_an_event_or_a_translation(data):
    rig = Rig(FULL.efr if data.draw(st.booleans()) else Efr.of(HATS=2), ram=1 << 20)
    words = st.integers(0, (1 << 64) - 1)
    near = st.builds(lambda word, page: word & ~0xFFFFFFFFFF000 | page << 12, words, st.integers(0, 300))
    entry = [data.draw(st.one_of(words, near)) for _ in range(4)]
    if data.draw(st.booleans()):  # no reserved bits, and valid
        entry[0] = entry[0] & ~Dte0.RESERVED | 3
        entry[1] &= ~(1 << 42)
    rig.memory.write(rig.table + 32 * SID, b"".join(word.to_bytes(8, "little") for word in entry))
    for page in range(40, 52):
        for slot in (0, 1, 511):
            rig.memory.write_u64(page << 12 | slot << 3, data.draw(near) if slot == 1 else data.draw(near) | 1)
    for _ in range(3):
        iova = data.draw(st.one_of(words, st.sampled_from([0, 0x1000, 0xFEE00000, 0x1FF000])))
        pasid = data.draw(st.one_of(st.none(), st.integers(0, (1 << 20) - 1)))
        want = data.draw(st.integers(0, 7))
        privileged = data.draw(st.booleans())
        found = answer(rig.iommu.translate, SID, iova, want, pasid, privileged)
        assert isinstance(found, Code) or found.pa >> 64 == 0
        assert all(DeviceEvent(record.low).CODE == found for record in rig.take_events())
        assert answer(rig.iommu.ats_translate, SID, iova, want, pasid) is not Code.IO_PAGE_FAULT
        rig.take_events()


class ReadOnly:
    """Memory that is gone when it is written."""

    def __init__(self):
        self.words = bytearray(4096)

    def read(self, offset, length):
        return bytes(self.words[offset : offset + length])

    def write(self, offset, data):
        raise OSError("gone")


def test_flags_that_cannot_be_set_are_a_hardware_error(rig):
    table = ReadOnly()
    rig.memory.map_window(1 << 40, table, 0, 4096)
    table.words[8:16] = int(host_entry(ADDR=0x77)).to_bytes(8, "little")
    rig.entry({"Mode": 1, "HostPageTableRoot": 1 << 28})
    assert rig.reach(0x1234, READ) == 0x77234
    rig.submit(*pages_command())
    rig.entry({"Mode": 1, "HostPageTableRoot": 1 << 28, "HAD": 3})
    low, high = rig.blocked(0x1234, READ)
    assert (low.CODE, high) == (Code.PAGE_TAB_HARDWARE_ERROR, (1 << 40) + 8 & ~15)
