"""A RISC-V IOMMU's translations: stages, rights, flags, interrupt files, caches, ATS and the debug interface."""

import pytest
from hypothesis import given, settings, strategies as st
from riscv_rig import GSCID, PSCID, SID, Rig, context, outcome, satp

from softiommu.hardware.iommu import Translation
from softiommu.hardware.riscv import tables
from softiommu.hardware.riscv.commands import Command, Iodir0, Iotinval0, Iotinval1
from softiommu.hardware.riscv.events import Cause, Ttyp
from softiommu.hardware.riscv.presets import FULL, SMALL
from softiommu.hardware.riscv.registers import Registers, TrReqCtl, TrResponse
from softiommu.memory.physical import PhysicalMemory
from softiommu.pagetable.formats.riscv import Pte
from softiommu.pagetable.kinds import EXECUTE, HW_DIRTY, OK, PRIVILEGED, READ, WRITE
from softiommu.pagetable.walk import walk

RW = READ | WRITE
RWX = RW | EXECUTE
PAGE_FAULT = {
    READ: Cause.READ_PAGE_FAULT,
    WRITE: Cause.WRITE_PAGE_FAULT,
    RW: Cause.WRITE_PAGE_FAULT,
    EXECUTE: Cause.INSTRUCTION_PAGE_FAULT,
    READ | EXECUTE: Cause.INSTRUCTION_PAGE_FAULT,
}


def leaf_of(pages, iova):
    (leaf,) = pages.leaves(iova, iova)
    return leaf


def change(rig, pages, iova, clear=0, **fields):
    """Change a leaf's fields behind the IOMMU's back."""
    leaf = leaf_of(pages, iova)
    rig.memory.write_u64(leaf.at, Pte(leaf.pte & ~clear).replace(**fields))


def one_stage(name="riscv-sv39", capabilities=FULL, **tc):
    rig = Rig(capabilities)
    rig.pages1 = rig.pages(name, HW_DIRTY if tc.get("SADE") else 0)
    rig.device(context(rig.pages1, **tc))
    return rig


def guest(name2="riscv-sv39x4", **tc):
    """A guest whose memory is shown from 0 up to 64 MiB where it is, and more at 1 GiB."""
    rig = Rig()
    rig.pages1, rig.pages2 = rig.pages("riscv-sv39"), rig.pages(name2)
    rig.pages2.map(0, 0, 64 << 20, RWX)
    rig.device(context(rig.pages1, rig.pages2, **tc))
    return rig


# Stages


@pytest.mark.parametrize("name", ["riscv-sv39", "riscv-sv48", "riscv-sv57"])
def test_a_first_stage_translates_sign_extended_addresses(name):
    rig = one_stage(name)
    width = rig.pages1.table.input_bits
    high = (1 << 64) - (1 << width - 1)
    rig.pages1.map(0x5000, 0x9000, 0x1000, RW)
    rig.pages1.map(high & (1 << width) - 1, 0xA000, 0x1000, RW)
    assert rig.pa(0x5008, WRITE) == 0x9008
    assert rig.pa(high | 8, WRITE) == 0xA008
    for iova in (1 << width - 1, 1 << width, high - 1, 1 << 63):
        assert rig.pa(iova) is Cause.READ_PAGE_FAULT
    assert [iova for _, iova, _ in rig.faults()] == [1 << width - 1, 1 << width, high - 1, 1 << 63]


@pytest.mark.parametrize("want", PAGE_FAULT)
def test_page_faults_are_of_the_access(want):
    rig = one_stage()
    assert rig.pa(0x5000, want) is PAGE_FAULT[want]
    ttyp = {READ: Ttyp.UNTRANSLATED_READ, WRITE: Ttyp.UNTRANSLATED_WRITE, RW: Ttyp.UNTRANSLATED_WRITE}
    (record, iova, iotval2), *_ = rig.faults()
    assert (record.CAUSE, record.TTYP, record.DID) == (PAGE_FAULT[want], ttyp.get(want, 1), SID)
    assert (iova, iotval2, record.PV, record.PRIV) == (0x5000, 0, 0, 0)


def test_rights_of_first_stage_leaves():
    rig = one_stage()
    rig.pages1.map(0x5000, 0x9000, 0x1000, READ)
    rig.pages1.map(0x6000, 0x9000, 0x1000, RWX | PRIVILEGED)
    assert rig.pa(0x5000, RW) is Cause.WRITE_PAGE_FAULT
    assert rig.pa(0x5000, EXECUTE) is Cause.INSTRUCTION_PAGE_FAULT
    assert rig.pa(0x6000) is Cause.READ_PAGE_FAULT, "U is clear"
    rig.submit(Command.IOTINVAL_VMA)
    change(rig, rig.pages1, 0x5000, R=0, X=1)
    assert rig.pa(0x5000, EXECUTE) == 0x9000
    assert rig.pa(0x5000, READ) is Cause.READ_PAGE_FAULT


@pytest.mark.parametrize("sum_bit", [0, 1])
def test_supervisors_use_user_pages_with_sum_only_and_never_execute_them(sum_bit):
    rig = Rig()
    pages = rig.pages("riscv-sv39")
    pages.map(0x5000, 0x9000, 0x1000, RWX)
    pages.map(0x6000, 0xA000, 0x1000, RWX | PRIVILEGED)
    rig.device(context(rig.processes(), PDTV=1))
    rig.process(3, (tables.ProcessTa.of(V=1, ENS=1, SUM=sum_bit, PSCID=1), satp(pages)))
    assert rig.pa(0x6000, RWX, 3, privileged=True) == 0xA000
    assert rig.pa(0x6000, READ, 3) is Cause.READ_PAGE_FAULT
    assert rig.pa(0x5000, RWX, 3) == 0x9000
    assert rig.pa(0x5000, EXECUTE, 3, privileged=True) is Cause.INSTRUCTION_PAGE_FAULT
    expected = 0x9000 if sum_bit else Cause.WRITE_PAGE_FAULT
    assert rig.pa(0x5000, RW, 3, privileged=True) == expected


@pytest.mark.parametrize(
    "fields",
    [{"V": 0}, {"R": 0}, {"A": 0}, {"D": 0}, {"PBMT": 3}, {"PPN": (1 << 44) - 1, "N": 1}],
    ids=str,
)
def test_each_wrong_leaf_is_a_page_fault(fields):
    rig = one_stage()
    rig.pages1.map(0x5000, 0x9000, 0x1000, RW)
    change(rig, rig.pages1, 0x5000, **fields)
    assert rig.pa(0x5000, WRITE) is Cause.WRITE_PAGE_FAULT


@pytest.mark.parametrize("bit", [*range(54, 61), 63])
def test_reserved_bits_and_napot_of_superpages_are_page_faults(bit):
    rig = one_stage(capabilities=FULL.replace(SVRSW60T59B=0))
    rig.pages1.map(0x200000, 0x400000, 0x200000, RW)
    rig.memory.write_u64(leaf_of(rig.pages1, 0x200000).at, leaf_of(rig.pages1, 0x200000).pte | 1 << bit)
    assert rig.pa(0x200000) is Cause.READ_PAGE_FAULT


def test_bits_60_and_59_are_softwares_with_svrsw60t59b():
    rig = one_stage()
    rig.pages1.map(0x5000, 0x9000, 0x1000, RW)
    rig.memory.write_u64(leaf_of(rig.pages1, 0x5000).at, leaf_of(rig.pages1, 0x5000).pte | 3 << 59)
    assert rig.pa(0x5000) == 0x9000


def test_svpbmt_is_reserved_where_it_is_not_there():
    for capabilities, expected in ((FULL, 0x9000), (FULL.replace(SVPBMT=0), Cause.READ_PAGE_FAULT)):
        rig = one_stage(capabilities=capabilities)
        rig.pages1.map(0x5000, 0x9000, 0x1000, RW)
        change(rig, rig.pages1, 0x5000, PBMT=1)
        assert rig.pa(0x5000) == expected


def test_a_table_outside_memory_is_an_access_fault():
    for want, cause in ((READ, 5), (WRITE, 7), (EXECUTE, 1)):
        rig = one_stage()
        rig.memory.write_u64(rig.pages1.root, 1 | 1 << 50)
        assert rig.pa(0, want) == cause
    rig = one_stage(capabilities=FULL.replace(PAS=30))
    rig.pages1.map(0, 1 << 30, 0x1000, READ)
    assert rig.pa(0) is Cause.READ_ACCESS_FAULT, "physical addresses end at PAS"


def test_64_kib_napot_leaves_take_their_low_pages_from_the_address():
    rig = one_stage()
    rig.pages1.map(0x10000, 0x30000, 0x10000, RW)
    assert leaf_of(rig.pages1, 0x10000).lg2 == 16
    assert rig.iommu.translate(SID, 0x1A123, WRITE) == Translation(0x3A123, 16, RW)


def test_hardware_sets_flags_with_sade_and_software_without():
    rig = one_stage()
    rig.pages1.map(0x5000, 0x9000, 0x1000, RW)
    change(rig, rig.pages1, 0x5000, A=0, D=0)
    assert rig.pa(0x5000) is Cause.READ_PAGE_FAULT
    change(rig, rig.pages1, 0x5000, A=1)
    assert rig.pa(0x5000) == 0x9000
    assert rig.pa(0x5000, WRITE) is Cause.WRITE_PAGE_FAULT, "the cached translation may not be written through"
    rig = one_stage(SADE=1)
    rig.pages1.map(0x5000, 0x9000, 0x1000, RW)
    change(rig, rig.pages1, 0x5000, A=0)
    assert rig.pa(0x5000) == 0x9000
    assert (Pte(leaf_of(rig.pages1, 0x5000).pte).A, Pte(leaf_of(rig.pages1, 0x5000).pte).D) == (1, 0)
    assert rig.pa(0x5000, WRITE) == 0x9000
    assert Pte(leaf_of(rig.pages1, 0x5000).pte).D == 1


@pytest.mark.parametrize("name", ["riscv-sv39x4", "riscv-sv48x4", "riscv-sv57x4"])
def test_a_second_stage_translates_guest_addresses_of_its_width(name):
    rig = Rig()
    pages = rig.pages(name)
    top = (1 << pages.table.input_bits) - 0x1000
    pages.map(top, 0x9000, 0x1000, RW)
    rig.device(context(None, pages))
    assert rig.pa(top | 8, WRITE) == 0x9008
    assert rig.pa(top + 0x1000) is Cause.READ_GUEST_PAGE_FAULT
    assert rig.pa(0x5678, WRITE) is Cause.WRITE_GUEST_PAGE_FAULT
    faults = rig.faults()
    assert [(iova, iotval2) for _, iova, iotval2 in faults] == [(top + 0x1000,) * 2, (0x5678, 0x5678)]
    change(rig, pages, top, U=0)
    rig.submit(Command.IOTINVAL_GVMA)
    assert rig.pa(top) is Cause.READ_GUEST_PAGE_FAULT, "the second stage is a user's"


def test_both_stages_translate_and_the_smaller_page_counts():
    rig = guest()
    rig.pages1.map(0x4000_0000, 0x20_0000, 0x20_0000, RW)
    assert rig.iommu.translate(SID, 0x4000_1234, WRITE) == Translation(0x20_1234, 21, RW)
    rig.pages1.map(0x8000_0000, 0x4000_0000, 0x20_0000, RW)
    rig.pages2.map(0x4000_5000, 0x9000, 0x1000, READ)
    assert rig.iommu.translate(SID, 0x8000_5678, READ) == Translation(0x9678, 12, READ)
    assert rig.pa(0x8000_5678, WRITE) is Cause.WRITE_GUEST_PAGE_FAULT
    assert rig.faults()[-1][1:] == (0x8000_5678, 0x4000_5678)


def test_a_command_for_any_page_of_a_large_leaf_drops_all_of_it_also_over_small_leaves():
    """As for SFENCE.VMA: an entry is named by every address that it translates."""
    rig = guest()
    iova, size = 0x8000_0000, 0x20_0000
    rig.pages2.sizes = 1 << 12
    rig.pages2.map(0x4000_0000, 0x80_0000, size, RW)
    rig.pages1.map(iova, 0x4000_0000, size, RW)
    places = [iova, iova + 0x5000, iova + size - 0x1000]
    for place in places:
        assert rig.iommu.translate(SID, place, READ) == Translation(0x80_0000 + place - iova, 12, RW)
    rig.pages1.unmap(iova, size)
    assert rig.pa(iova) == 0x80_0000
    vma(rig, GV=1, GSCID=GSCID, page=iova + 0x9000 >> 12)
    for place in places:
        assert rig.pa(place) is Cause.READ_PAGE_FAULT


def test_tables_that_the_second_stage_does_not_show_are_implicit_faults():
    rig = guest()
    rig.pages1.map(0x5000, 0x9000, 0x1000, RW)
    entry = rig.pages1.root
    rig.pages2.unmap(0, 64 << 20)
    rig.pages2.map(0x10_0000, 0x10_0000, 0x1000, RW)
    assert rig.pa(0x5000, WRITE) is Cause.WRITE_GUEST_PAGE_FAULT
    assert rig.faults()[-1][2] == entry | 1
    assert rig.pa(0x5000, EXECUTE) is Cause.INSTRUCTION_GUEST_PAGE_FAULT


def test_flags_in_tables_that_may_not_be_written_are_implicit_write_faults():
    rig = guest(SADE=1)
    rig.pages1.map(0x5000, 0x9000, 0x1000, RW)
    change(rig, rig.pages1, 0x5000, A=0)
    at = leaf_of(rig.pages1, 0x5000).at
    page = at & ~0xFFF
    rig.pages2.unmap(0, 64 << 20)
    for gpa in {rig.pages1.root, *rig.pages1._tables} - {page}:
        rig.pages2.map(gpa, gpa, 0x1000, RW)
    rig.pages2.map(page, page, 0x1000, READ)
    assert rig.pa(0x5000, READ) is Cause.READ_GUEST_PAGE_FAULT
    assert rig.faults()[-1][2] == at | 3


def test_gade_lets_hardware_set_the_flags_of_the_second_stage():
    for gade in (0, 1):
        rig = guest(GADE=gade)
        rig.pages2.map(1 << 30, 0x9000, 0x1000, RW)
        rig.pages1.map(0x5000, 1 << 30, 0x1000, RW)
        change(rig, rig.pages2, 1 << 30, A=0, D=0)
        assert rig.pa(0x5000, WRITE) == (0x9000 if gade else Cause.WRITE_GUEST_PAGE_FAULT)
        pte = Pte(leaf_of(rig.pages2, 1 << 30).pte)
        assert (pte.A, pte.D) == (gade, gade)


@given(data=st.data())
@settings(max_examples=120, deadline=None)
def test_two_stages_are_one_walk_after_another(data):
    """Composing: the first stage's walk by hand, then the second's of what it gives."""
    rig = guest(data.draw(st.sampled_from(["riscv-sv39x4", "riscv-sv48x4", "riscv-sv57x4"])))
    places = st.sampled_from([0x4000_0000, 0x4000_5000, 0x4020_0000, 0x8000_0000])
    for pages in (rig.pages1, rig.pages2):
        for _ in range(data.draw(st.integers(0, 3))):
            size = data.draw(st.sampled_from([0x1000, 0x2000, 0x10000, 0x20_0000]))
            pages.map(data.draw(places), data.draw(places), size, data.draw(st.sampled_from([READ, RW, RWX, READ])))
    want = data.draw(st.sampled_from([READ, WRITE, RW, EXECUTE]))
    iova = data.draw(places) + data.draw(st.sampled_from([0, 0x1008, 0x6000, 0x1_F000]))
    inner = walk(rig.pages1.table, rig.memory, rig.pages1.root, iova, want)
    expected = PAGE_FAULT[want]
    if inner.status == OK:
        outer = walk(rig.pages2.table, rig.memory, rig.pages2.root, inner.oa, want)
        expected = outer.oa if outer.status == OK else Cause(PAGE_FAULT[want] + 8)
    for _ in range(2):  # walked, then cached
        assert rig.pa(iova, want) == expected


# Interrupt files

FILES = 0x2800_0000


def with_files(mask=0x3, **more):
    rig = Rig(**more)
    rig.pages2 = rig.pages("riscv-sv39x4")
    rig.pages2.map(FILES & -1 << 21, 0x60_0000, 0x20_0000, RW)
    rig.msi = rig.memory.alloc(4096)
    msiptp = tables.Msiptp.of(PPN=rig.msi >> 12, MODE=tables.MsiMode.FLAT)
    rig.at = rig.device(context(None, rig.pages2, msi=(msiptp, mask, FILES >> 12 & ~mask)))
    return rig


def test_an_interrupt_file_is_found_in_the_msi_page_table():
    rig = with_files()
    rig.memory.write_u64(rig.msi + 16 * 2, tables.MsiPte.of(V=1, M=3, PPN=0x777))
    assert rig.pa(FILES + 0x2004, WRITE) == 0x77_7004
    assert rig.pa(FILES + 0x2004, EXECUTE) is Cause.INSTRUCTION_ACCESS_FAULT
    assert rig.pa(FILES + 0x1000, WRITE) is Cause.MSI_PTE_NOT_VALID
    assert rig.iommu.translate(SID, FILES + 0x5000, WRITE) == Translation(0x60_5000, 12, RW), (
        "no superpage around files"
    )
    assert rig.iommu.translate(SID, (FILES & -1 << 21) + 0x10_0000, READ).lg2 == 12


@pytest.mark.parametrize(
    ("word0", "cause"),
    [
        (0, 262),
        (1 | 1 << 1 | 1 << 7, 264),
        (1 | 0 << 1, 263),
        (1 | 2 << 1, 263),
        (1 | 3 << 1 | 1 << 63, 263),
        (1 | 3 << 1 | 1 << 3, 263),
        (1 | 3 << 1 | 1 << 9, 263),
        (1 | 3 << 1 | 1 << 54, 263),
        (1 | 3 << 1 | 1 << 62, 263),
        (1 | 1 << 1 | 1 << 3, 263),
        (1 | 1 << 1 | 1 << 54, 263),
    ],
)
def test_each_wrong_msi_entry_has_its_cause(word0, cause):
    rig = with_files()
    rig.memory.write_u64(rig.msi, word0)
    if cause == 264:
        rig.memory.write_u64(rig.msi, word0 | (1 << 52))
        got = outcome(lambda: rig.iommu.store(SID, FILES, (5).to_bytes(4, "little")))
    else:
        got = rig.pa(FILES, WRITE)
    assert got == cause
    assert rig.faults()[-1][0].CAUSE == cause


def test_an_msi_table_outside_memory_and_an_absent_kind_of_entry():
    rig = with_files(capabilities=FULL.replace(MSI_MRIF=0, AMO_MRIF=0))
    rig.memory.write_u64(rig.msi, 1 | 1 << 1)
    assert rig.pa(FILES, WRITE) is Cause.MSI_PTE_MISCONFIGURED
    rig.memory.write_u64(rig.at + 32, tables.Msiptp.of(PPN=1 << 40, MODE=1))
    rig.submit(Command.IODIR_INVAL_DDT)
    assert rig.pa(FILES, WRITE) is Cause.MSI_PTE_LOAD_ACCESS_FAULT


def test_an_interrupt_file_in_memory_collects_interrupts_and_sends_notices():
    rig = with_files()
    file = rig.memory.alloc(4096)
    rig.memory.write_u64(rig.msi, tables.MrifPte0.of(V=1, M=1, ADDR=file >> 9))
    rig.memory.write_u64(rig.msi + 8, tables.MrifPte1.of(N_LOW=5, N_HIGH=1, NPPN=0x28000))
    rig.memory.write_u64(file + 16 + 8, 1 << 3)
    rig.iommu.store(SID, FILES, (66).to_bytes(4, "little"))
    assert (rig.memory.read_u64(file + 16), rig.interrupts) == (1 << 2, [])
    rig.iommu.store(SID, FILES + 4, (67).to_bytes(4, "big"))
    assert (rig.memory.read_u64(file + 16), rig.interrupts) == (3 << 2, [(0x2800_0000, 0x405)])
    for offset, data in ((0, (2048).to_bytes(4, "little")), (8, bytes([1, 0, 0, 0])), (0, bytes(4)), (0, b"\1\0")):
        rig.iommu.store(SID, FILES + offset, data)
    assert not any(rig.memory.read_u64(file + 16 * n) for n in (0, *range(2, 32)))
    assert rig.pa(FILES, WRITE) is Cause.TRANSACTION_TYPE_DISALLOWED
    rig.iommu.store(SID, FILES + 0x5000, b"data")
    assert rig.memory.read(0x60_5000, 4) == b"data"


# Caches


def vma(rig, page=None, napot=False, **fields):
    low = Iotinval0.of(COMMAND=Command.IOTINVAL_VMA, AV=int(page is not None), **fields)
    return rig.submit(low, Iotinval1.of(PAGE=page or 0, S=int(napot)))


def gvma(rig, page=None, **fields):
    low = Iotinval0.of(COMMAND=Command.IOTINVAL_GVMA, AV=int(page is not None), **fields)
    return rig.submit(low, Iotinval1.of(PAGE=page or 0))


def stale(rig, iova=0x5000):
    """Whether a translation that memory has no longer is still there."""
    return isinstance(rig.pa(iova), int) and not isinstance(rig.pa(iova), Cause)


@pytest.fixture
def cached():
    rig = one_stage()
    rig.pages1.map(0x5000, 0x9000, 0x1000, RW)
    assert rig.pa(0x5000) == 0x9000
    rig.pages1.unmap(0x5000, 0x1000)
    return rig


@pytest.mark.parametrize(
    "fields",
    [
        {"PSCV": 1, "PSCID": PSCID + 1},
        {"GV": 1, "GSCID": GSCID},
        {"page": 6},
        {"page": 4 | 1, "PSCV": 1, "PSCID": 5},
        {"page": 0b1001, "napot": True},
    ],
    ids=str,
)
def test_a_command_that_names_something_else_leaves_a_stale_translation(cached, fields):
    assert vma(cached, **fields) == 0
    assert gvma(cached) == 0
    assert cached.submit(Command.IODIR_INVAL_DDT) == 0
    assert stale(cached)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"PSCV": 1, "PSCID": PSCID},
        {"page": 5},
        {"page": 5, "PSCV": 1, "PSCID": PSCID},
        {"page": 0b0011, "napot": True},
        {"page": (1 << 52) - 1, "napot": True},
    ],
    ids=str,
)
def test_a_command_that_names_a_translation_drops_it(cached, fields):
    assert vma(cached, **fields) == 0
    assert not stale(cached)


def test_global_translations_stay_when_their_pscid_is_named():
    rig = one_stage()
    rig.pages1.map(0x5000, 0x9000, 0x1000, RW)
    change(rig, rig.pages1, 0x5000, G=1)
    assert rig.pa(0x5000) == 0x9000
    rig.pages1.unmap(0x5000, 0x1000)
    vma(rig, PSCV=1, PSCID=PSCID)
    assert stale(rig)
    vma(rig, page=5)
    assert not stale(rig)


def test_each_stage_of_a_guest_is_forgotten_by_its_own_command():
    rig = guest()
    rig.pages1.map(0x5000, 1 << 30, 0x1000, RW)
    rig.pages2.map(1 << 30, 0x9000, 0x1000, RW)
    assert rig.pa(0x5000) == 0x9000
    rig.pages2.unmap(1 << 30, 0x1000)
    for miss in ({"GV": 1, "GSCID": GSCID + 1}, {"GV": 1, "GSCID": GSCID, "page": 5}):
        gvma(rig, **miss)
        vma(rig)
        assert stale(rig)
    gvma(rig, GV=1, GSCID=GSCID, page=1 << 18)
    assert rig.pa(0x5000) is Cause.READ_GUEST_PAGE_FAULT
    rig.pages2.map(1 << 30, 0x9000, 0x1000, RW)
    rig.pages1.unmap(0x5000, 0x1000)
    gvma(rig)
    assert stale(rig)
    vma(rig, GV=1, GSCID=GSCID, PSCV=1, PSCID=PSCID)
    assert rig.pa(0x5000) is Cause.READ_PAGE_FAULT


def test_contexts_are_forgotten_by_iodir_only():
    rig = one_stage()
    at = rig.device(context())
    assert rig.pa(0x77) == 0x77
    rig.memory.write_u64(at, 0)
    vma(rig), gvma(rig)
    rig.submit(Iodir0.of(COMMAND=Command.IODIR_INVAL_DDT, DV=1, DID=SID ^ 1))
    assert rig.pa(0x77) == 0x77
    rig.submit(Iodir0.of(COMMAND=Command.IODIR_INVAL_DDT, DV=1, DID=SID))
    assert rig.pa(0x77) is Cause.DDT_NOT_VALID
    rig.memory.write_u64(at, 1)
    assert rig.pa(0x77) == 0x77, "what is not valid is not cached"


def test_process_contexts_are_forgotten_alone_or_with_their_device():
    rig = Rig()
    rig.device(context(rig.processes(), PDTV=1))
    at = [rig.process(pid, (1, 0)) for pid in (3, 4)]
    for forget in (
        Iodir0.of(COMMAND=Command.IODIR_INVAL_PDT, DV=1, DID=SID, PID=3),
        Iodir0.of(COMMAND=Command.IODIR_INVAL_DDT, DV=1, DID=SID),
    ):
        assert [rig.pa(7, pasid=pid) for pid in (3, 4)] == [7, 7]
        for place in at:
            rig.memory.write_u64(place, 0)
        rig.submit(forget)
        whole = forget.COMMAND == Command.IODIR_INVAL_DDT
        assert [rig.pa(7, pasid=pid) for pid in (3, 4)] == [266, 266 if whole else 7]
        rig.submit(Command.IODIR_INVAL_DDT)
        for place in at:
            rig.memory.write_u64(place, 1)


def test_privileges_do_not_share_cached_rights():
    rig = Rig()
    pages = rig.pages("riscv-sv39")
    pages.map(0x5000, 0x9000, 0x1000, RW)
    rig.device(context(rig.processes(), PDTV=1))
    rig.process(3, (tables.ProcessTa.of(V=1, ENS=1, PSCID=1), satp(pages)))
    rig.process(4, (tables.ProcessTa.of(V=1, ENS=1, SUM=1, PSCID=1), satp(pages)))
    assert rig.pa(0x5000, pasid=4, privileged=True) == 0x9000
    assert rig.pa(0x5000, pasid=3) == 0x9000
    assert rig.pa(0x5000, pasid=3, privileged=True) is Cause.READ_PAGE_FAULT


# ATS


def test_ats_grants_what_is_there_and_says_nothing_of_the_rest():
    rig = one_stage(EN_ATS=1)
    rig.pages1.map(0x5000, 0x9000, 0x1000, READ)
    rig.pages1.map(0x6000, 0xA000, 0x1000, RWX)
    assert rig.iommu.ats_translate(SID, 0x5123, RWX) == Translation(0x9123, 12, READ)
    assert rig.iommu.ats_translate(SID, 0x6000, RWX) == Translation(0xA000, 12, RWX)
    assert rig.iommu.ats_translate(SID, 0x6000, READ).allowed == RW, "it may be written, since it is dirty"
    assert rig.iommu.ats_translate(SID, 0x7000, RW).allowed == 0
    change(rig, rig.pages1, 0x6000, D=0)
    vma(rig)
    assert rig.iommu.ats_translate(SID, 0x6000, RW).allowed == 0, "a write would be a page fault"
    assert rig.iommu.ats_translate(SID, 0x6000, READ).allowed == READ
    change(rig, rig.pages1, 0x6000, R=0, W=0)
    vma(rig)
    assert rig.iommu.ats_translate(SID, 0x6000, RWX).allowed == 0, "nothing is for execution alone"
    assert rig.faults() == []


def test_ats_sets_the_dirty_flag_of_a_page_that_it_grants():
    rig = one_stage(EN_ATS=1, SADE=1)
    rig.pages1.map(0x5000, 0x9000, 0x1000, RW)
    assert rig.iommu.ats_translate(SID, 0x5000, READ).allowed == READ
    assert Pte(leaf_of(rig.pages1, 0x5000).pte).D == 0
    assert rig.iommu.ats_translate(SID, 0x5000, RW).allowed == RW
    assert Pte(leaf_of(rig.pages1, 0x5000).pte).D == 1


def test_ats_aborts_are_recorded():
    rig = one_stage()
    assert outcome(lambda: rig.iommu.ats_translate(SID, 0x5000, RW)) is Cause.TRANSACTION_TYPE_DISALLOWED
    assert outcome(lambda: rig.iommu.admit_translated(SID, 0x5000, RW)) is Cause.TRANSACTION_TYPE_DISALLOWED
    rig.device(context(rig.pages1, EN_ATS=1))
    rig.submit(Command.IODIR_INVAL_DDT)
    rig.memory.write_u64(rig.pages1.root, 1 | 1 << 50)
    assert outcome(lambda: rig.iommu.ats_translate(SID, 0x5000, RWX)) is Cause.READ_ACCESS_FAULT
    assert [record.TTYP for record, _, _ in rig.faults()] == [8, Ttyp.TRANSLATED_WRITE, 8]


def test_translated_requests_are_physical_or_guest_physical_with_t2gpa():
    rig = guest(EN_ATS=1)
    rig.pages1.map(0x5000, 1 << 30, 0x1000, RW)
    rig.pages2.map(1 << 30, 0x9000, 0x1000, RW)
    assert rig.iommu.ats_translate(SID, 0x5000, RW).pa == 0x9000
    assert rig.iommu.admit_translated(SID, 0x9123, RW).pa == 0x9123
    rig.device(context(rig.pages1, rig.pages2, EN_ATS=1, T2GPA=1))
    rig.submit(Command.IODIR_INVAL_DDT)
    assert rig.iommu.ats_translate(SID, 0x5000, RW) == Translation(1 << 30, 12, RW)
    assert rig.iommu.admit_translated(SID, (1 << 30) + 5, RW).pa == 0x9005
    blocked = outcome(lambda: rig.iommu.admit_translated(SID, 2 << 30, EXECUTE))
    assert blocked is Cause.INSTRUCTION_GUEST_PAGE_FAULT
    assert rig.faults()[-1][0].TTYP == Ttyp.TRANSLATED_EXECUTE


# Debug


def debug(rig, iova, **control):
    rig.write(Registers.TR_REQ_IOVA.offset, 8, iova)
    rig.write(Registers.TR_REQ_CTL.offset, 8, TrReqCtl.of(GO=1, DID=SID, **control))
    assert TrReqCtl(rig.read(Registers.TR_REQ_CTL.offset, 8)).GO == 0
    return TrResponse(rig.read(Registers.TR_RESPONSE.offset, 8))


def test_the_debug_interface_tells_page_size_and_memory_type():
    rig = one_stage()
    for iova, pa, size in ((0x5000, 0x9000, 0x1000), (0x10000, 0x30000, 0x10000), (0x20_0000, 0x40_0000, 0x20_0000)):
        rig.pages1.map(iova, pa, size, READ)
    change(rig, rig.pages1, 0x5000, PBMT=2)
    assert debug(rig, 0x5000, NW=1) == TrResponse.of(PPN=9, PBMT=2)
    assert debug(rig, 0x1A000, NW=1) == TrResponse.of(PPN=0x30 | 0b0111, S=1)
    assert debug(rig, 0x20_0000, NW=1) == TrResponse.of(PPN=0x400 | 0xFF, S=1)
    assert debug(rig, 0x5000) == TrResponse.of(FAULT=1), "without NW it asks to write, too"
    assert debug(rig, 0x5000, NW=1, EXE=1).FAULT
    assert debug(rig, 0x5000, NW=1, PV=1, PID=3).FAULT


def test_without_dbg_there_is_no_debug_interface():
    rig = Rig(SMALL)
    rig.write(Registers.TR_REQ_IOVA.offset, 8, 0x5000)
    rig.write(Registers.TR_REQ_CTL.offset, 8, 1)
    assert [rig.read(offset, 8) for offset in (0x258, 0x260, 0x268)] == [0, 0, 0]


def test_a_model_is_made_with_memory_alone():
    rig = Rig()
    assert type(rig.iommu)(PhysicalMemory(1 << 20)).read(0, 8) & 0xFF == 0x10


# Links to tables


def behind(rig, pages, iova):
    """Lead an address to an empty table, behind the IOMMU's back: what is cached of the way there still works."""
    rig.memory.write_u64(pages.root + 8 * (iova >> 30), 1 | rig.memory.alloc(4096) >> 2)


@pytest.mark.parametrize("nl", [0, 1])
@pytest.mark.parametrize("av", [0, 1])
def test_links_to_first_stage_tables_stay_when_leaves_are_named(nl, av):
    rig = one_stage()
    rig.pages1.map(0x5000, 0x9000, 0x2000, RW)
    assert rig.pa(0x5000) == 0x9000
    behind(rig, rig.pages1, 0x5000)
    where = {"page": 5} if av else {}
    assert vma(rig, PSCV=1, PSCID=PSCID + 1, NL=nl, **where) == 0
    assert gvma(rig, NL=nl) == 0
    assert rig.pa(0x6000) == 0xA000, "another space's"
    assert vma(rig, PSCV=1, PSCID=PSCID, NL=nl, **where) == 0
    assert rig.pa(0x5000) == (0x9000 if av and not nl else Cause.READ_PAGE_FAULT)


@pytest.mark.parametrize("nl", [0, 1])
@pytest.mark.parametrize("av", [0, 1])
def test_links_to_second_stage_tables_stay_when_leaves_are_named(nl, av):
    rig = Rig()
    pages = rig.pages("riscv-sv39x4")
    pages.map(0x5000, 0x9000, 0x2000, RW)
    rig.device(context(None, pages))
    assert rig.pa(0x5000) == 0x9000
    behind(rig, pages, 0x5000)
    where = {"page": 5} if av else {}
    assert vma(rig, GV=1, GSCID=GSCID, NL=nl, **where) == 0
    assert gvma(rig, GV=1, GSCID=GSCID + 1, NL=nl, **where) == 0
    assert rig.pa(0x6000) == 0xA000, "another guest's"
    assert gvma(rig, GV=1, GSCID=GSCID, NL=nl, **where) == 0
    assert rig.pa(0x5000) == (0x9000 if av and not nl else Cause.READ_GUEST_PAGE_FAULT)


def test_links_below_a_global_entry_are_global():
    rig = one_stage()
    rig.pages1.map(0x5000, 0x9000, 0x2000, RW)
    rig.memory.write_u64(rig.pages1.root, rig.memory.read_u64(rig.pages1.root) | 1 << 5)
    assert rig.pa(0x5000) == 0x9000
    behind(rig, rig.pages1, 0x5000)
    vma(rig, PSCV=1, PSCID=PSCID)
    assert rig.pa(0x6000) == 0xA000
    vma(rig)
    assert rig.pa(0x6000) is Cause.READ_PAGE_FAULT


def test_links_of_sign_extended_addresses_are_named_as_they_are_asked_for():
    rig = one_stage()
    high = (1 << 64) - (1 << 30)
    rig.pages1.map(high & (1 << 39) - 1, 0x9000, 0x1000, RW)
    assert rig.pa(high) == 0x9000
    rig.memory.write_u64(rig.pages1.root + 8 * 511, 1 | rig.memory.alloc(4096) >> 2)
    vma(rig, page=(high >> 12), NL=1)
    assert rig.pa(high) is Cause.READ_PAGE_FAULT
