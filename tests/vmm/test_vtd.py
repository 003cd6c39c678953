"""A guest on a virtual VT-d: what its entries and invalidations say is what its devices' DMA meets."""

import pytest

from softiommu.hardware.vtd.commands import PageGroupResponse0, PageGroupResponse1, Type, Wait0, Wait1
from softiommu.hardware.vtd.events import PageRequest0, PageRequest1
from softiommu.hardware.vtd.registers import Fsts, Iqer, Irta, PagePointer, Prs, QueueErrorInfo, Registers, Ttm
from softiommu.hardware.vtd.tables import Irte0, MessageData, RemappableAddress, TranslationType
from softiommu.pagetable.kinds import READ
from softiommu.vmm import offers
from vmm.vtd_vm import (
    EDU,
    IOVA,
    RW,
    TEST,
    Vm,
    forget_context,
    forget_domain,
    forget_pages,
    forget_pasid,
)

BLOCKED, UNTOUCHED = bytes(8), b"untouchd"


@pytest.fixture
def vm():
    made = Vm()
    yield made
    made.close()


def a_guest(vm, sid=TEST, pasid=None, did=1):
    """A table with one page, in use."""
    pages, old, new = vm.table(), vm.ram.page(b"old page"), vm.ram.page(b"new page")
    pages.map(IOVA, old, 4096, RW)
    if sid not in vm.guest.directories:
        vm.guest.context(sid)
    vm.guest.first(sid, pages, did, pasid)
    return pages, old, new


def move(pages, new):
    pages.unmap(IOVA, 4096)
    pages.map(IOVA, new, 4096, RW)


def test_before_translation_is_on_addresses_are_physical(vm):
    at = vm.ram.page(b"physical")
    vm.edu.copy(at, vm.result)
    assert vm.ram.read(vm.result, 8) == b"physical"


def test_a_device_reads_by_guest_addresses(vm):
    a_guest(vm), a_guest(vm, EDU)
    vm.guest.boot()
    assert vm.read_by_test(IOVA) == vm.read_by_edu(IOVA) == b"old page"
    assert vm.read_by_test(IOVA + 4096) == vm.read_by_edu(IOVA + 4096) == BLOCKED
    assert vm.notes == []


def test_translation_can_be_turned_off_again(vm):
    _, old, _ = a_guest(vm, EDU)
    vm.guest.boot()
    vm.edu.copy(old, vm.result)
    assert vm.ram.read(vm.result, 8) == BLOCKED
    vm.guest.command(TE=0)
    vm.edu.copy(old, vm.result)
    assert vm.ram.read(vm.result, 8) == b"old page"


def test_an_entry_counts_when_it_is_invalidated(vm):
    vm.guest.boot()
    assert vm.read_by_test(IOVA) == UNTOUCHED
    a_guest(vm)
    assert vm.read_by_test(IOVA) == UNTOUCHED
    assert vm.guest.submit(forget_context(TEST))
    assert vm.read_by_test(IOVA) == b"old page"
    vm.guest.absent(TEST)
    assert vm.read_by_test(IOVA) == b"old page"
    assert vm.guest.submit(forget_pasid(1))
    assert vm.read_by_test(IOVA) == UNTOUCHED


@pytest.mark.parametrize(
    "right",
    [forget_pages(1, iova=IOVA, leaf=1), forget_pages(1, iova=IOVA + 4096, am=1), forget_pages(1), forget_domain(1)],
    ids=str,
)
def test_a_missing_invalidation_shows_the_old_page_and_a_right_one_the_new(vm, right):
    pages, _, new = a_guest(vm)
    vm.guest.boot()
    assert vm.read_by_test(IOVA) == b"old page"
    move(pages, new)
    wrong = forget_pages(2, iova=IOVA), forget_pages(1, 3, IOVA), forget_pages(1, iova=IOVA + 4096), forget_domain(2)
    assert vm.guest.submit(*wrong)
    assert vm.read_by_test(IOVA) == b"old page"
    assert vm.guest.submit(right)
    assert vm.read_by_test(IOVA) == b"new page"


def test_a_batch_is_one_call_for_each_table(vm, monkeypatch):
    a_guest(vm), a_guest(vm, pasid=3, did=2)
    vm.guest.boot()
    calls = []
    backend, call = vm.iommufd.backend, vm.iommufd.backend.call
    monkeypatch.setattr(backend, "call", lambda name, cmd, struct: (calls.append(name), call(name, cmd, struct))[1])
    pages = [forget_pages(1 + number % 2, 3 * (number % 2), IOVA + 4096 * number) for number in range(100)]
    assert vm.guest.submit(*pages)
    assert calls == ["HWPT_INVALIDATE"] * 2


def test_an_invalidation_that_the_host_refuses_is_made_by_attaching_anew(vm, monkeypatch):
    pages, _, new = a_guest(vm)
    vm.guest.boot()
    assert vm.read_by_test(IOVA) == b"old page"
    move(pages, new)
    held = vm.unit.passed[TEST].passed.held[None]

    def refuse(data_type, entries):
        raise OSError(5, "it does not work")

    monkeypatch.setattr(held.hwpt, "invalidate", refuse)
    assert vm.guest.submit(forget_pages(1, iova=IOVA))
    assert vm.read_by_test(IOVA) == b"new page"
    assert "it does not work" in vm.notes[0]


def test_each_pasid_has_its_table(vm):
    a_guest(vm)
    vm.guest.boot()
    second = vm.table()
    second.map(IOVA, vm.ram.page(b"of PASID"), 4096, RW)
    vm.guest.first(TEST, second, 2, 70)
    assert vm.guest.submit(forget_pasid(2, 70))
    assert (vm.read_by_test(IOVA), vm.read_by_test(IOVA, 70)) == (b"old page", b"of PASID")
    assert vm.read_by_test(IOVA, 71) == UNTOUCHED
    vm.guest.absent(TEST, 70)
    assert vm.guest.submit(forget_pasid(2, 70))
    assert (vm.read_by_test(IOVA), vm.read_by_test(IOVA, 70)) == (b"old page", UNTOUCHED)


def test_pasids_are_found_when_translation_is_turned_on(vm):
    a_guest(vm), a_guest(vm, pasid=5, did=2), a_guest(vm, pasid=1000, did=3)
    vm.guest.boot()
    assert vm.read_by_test(IOVA, 5) == vm.read_by_test(IOVA, 1000) == b"old page"


def test_pass_through_uses_physical_addresses(vm):
    _, old, _ = a_guest(vm, EDU)
    vm.guest.pass_through(EDU, 1)
    vm.guest.boot()
    vm.edu.copy(old, vm.result)
    assert vm.ram.read(vm.result, 8) == b"old page"


def test_legacy_mode_passes_through_and_has_no_second_stage(vm):
    at = vm.ram.page(b"physical")
    table = vm.table("vtdss-48")
    table.map(IOVA, at, 4096, RW)
    for kind, blocked in ((TranslationType.PASS_THROUGH, False), (TranslationType.UNTRANSLATED, True)):
        vm.guest.legacy(EDU, table, 1, 2, TT=kind)
        vm.guest.boot(Ttm.LEGACY)
        vm.ram.write(vm.result, UNTOUCHED)
        vm.edu.copy(vm.blank, vm.result)
        assert (vm.ram.read(vm.result, 8) == UNTOUCHED) == blocked
        assert vm.read_by_edu(IOVA) == UNTOUCHED


@pytest.mark.parametrize("mode", [Ttm.ABORT, Ttm.RESERVED])
def test_a_root_table_of_no_mode_blocks(vm, mode):
    vm.guest.legacy(EDU, vm.table("vtdss-48"), 1, 2, TT=TranslationType.PASS_THROUGH)
    vm.guest.boot(mode)
    vm.ram.write(vm.result, UNTOUCHED)
    vm.edu.copy(vm.blank, vm.result)
    assert vm.ram.read(vm.result, 8) == UNTOUCHED


def test_the_guests_interrupts_are_remapped(vm):
    table = vm.ram.page()
    vm.ram.write_u64(table + 16 * 3, Irte0.of(P=1, V=0x41))
    vm.guest.write(Registers.IRTA, Irta.of(S=7, IRTA=table >> 12))
    vm.guest.command(SIRTP=1)
    vm.guest.command(IRE=1)
    asked = RemappableAddress.of(FEE=0xFEE, FORMAT=1, HANDLE_LOW=3)
    assert MessageData(vm.unit.remap(TEST, int(asked), 0).data).VECTOR == 0x41


def test_what_the_vmm_emulates_is_translated_by_the_same_unit(vm):
    _, old, _ = a_guest(vm, 0x30)
    vm.guest.boot()
    assert vm.unit.translate(0x30, IOVA, READ).pa == old


def test_a_wait_interrupts(vm):
    vm.guest.boot()
    vm.guest.write(Registers.IEDATA, 0x31)
    vm.guest.write(Registers.IEADDR, 0xFEE01000)
    assert vm.guest.submit((Wait0.of(TYPE=Type.WAIT, IF=1), Wait1(0)))
    assert vm.interrupts == [(0xFEE01000, 0x31)]


@pytest.mark.parametrize(
    ("descriptor", "info"),
    [((0xF, 0), QueueErrorInfo.TYPE), ((5 | 1 << 8, 0), QueueErrorInfo.RESERVED), ((7, 1), QueueErrorInfo.RESERVED)],
)
def test_a_wrong_descriptor_stops_the_queue(vm, descriptor, info):
    vm.guest.boot()
    assert not vm.guest.submit(descriptor)
    assert vm.status() == Fsts.IQE.mask
    assert Iqer(vm.guest.read(Registers.IQER)).IQEI == info


def test_a_page_request_reaches_the_guest_and_its_answer_the_device(vm):
    pages, old, _ = a_guest(vm)
    vm.guest.context(TEST, DTE=1, PRE=1)
    vm.guest.boot()
    vm.guest.write(Registers.PEADDR, 0xFEE02000)
    pages.unmap(IOVA, 4096)
    vm.test.run(IOVA, 3)
    assert vm.test.busy
    vm.unit.service()
    assert vm.interrupts == [(0xFEE02000, 0)]
    assert vm.guest.read(Registers.PRS) == Prs.of(PPR=1)
    low, high = (vm.ram.read_u64(vm.guest.requests + at) for at in (0, 8))
    asked, where = PageRequest0(low), PageRequest1(high)
    assert (asked.RID, asked.PP, where.ADDR << 12, where.R, where.LPIG) == (TEST, 0, IOVA, 1, 1)
    vm.guest.write(Registers.PQH, PagePointer.of(OFFSET=1))
    pages.map(IOVA, old, 4096, RW)
    answer = PageGroupResponse0.of(TYPE=Type.PAGE_GROUP_RESPONSE, RID=TEST)
    assert vm.guest.submit((answer, PageGroupResponse1.of(LPIG=1, PRGI=where.PRGI)))
    assert not vm.test.busy
    assert vm.notes == []


def test_page_requests_that_the_guest_does_not_take_are_answered(vm):
    pages, _, _ = a_guest(vm)
    vm.guest.context(TEST, DTE=1, PRE=1)
    vm.guest.boot()
    for number in range(127):  # all but one entry of the queue
        vm.unit.page_request(vm.unit.passed[TEST].request(fault(number)))
    pages.unmap(IOVA, 4096)
    vm.test.run(IOVA, 3)
    vm.unit.service()
    assert not vm.test.busy
    assert vm.guest.read(Registers.PRS).PRO


def fault(number):
    from softiommu.abi.iommufd import PgfaultPerm
    from softiommu.api import Fault

    return Fault(0, 9, number, True, PgfaultPerm.READ, 0x1000, 1000 + number)


def test_what_the_host_refuses_is_noted_and_blocked(vm):
    pages, _, _ = a_guest(vm, EDU)
    vm.guest.context(EDU, DTE=1, PRE=1)  # the device makes no page requests
    vm.guest.first(EDU, pages, 1)
    vm.guest.boot()
    assert vm.read_by_edu(IOVA) == UNTOUCHED
    (note,) = vm.notes
    assert "stream 0x10 is blocked" in note


def test_a_device_that_is_taken_away_is_blocked(vm):
    a_guest(vm)
    vm.guest.boot()
    vm.unit.unplug(TEST)
    assert vm.read_by_test(IOVA) == UNTOUCHED
    assert vm.guest.submit(forget_context())
    vm.unit.plug(TEST, vm.test_device)
    assert vm.read_by_test(IOVA) == b"old page"


def test_a_full_pasid_table_makes_the_vmm_attach_no_more_than_it_offered(monkeypatch):
    """65,536 entries are present: each page of the directory's leaves is the same."""
    monkeypatch.setattr(offers, "PASIDS_LG2", 4)
    vm = Vm()
    directory, pages = vm.ram.alloc(8192), vm.table()
    pages.map(IOVA, vm.ram.page(b"old page"), 4096, RW)
    vm.guest.directories[TEST] = directory
    vm.guest.context(TEST, PDTS=3)
    for pasid in range(64):
        vm.guest.first(TEST, pages, 1, pasid)
    for number in range(1024):
        vm.ram.write_u64(directory + 8 * number, vm.ram.read_u64(directory))
    vm.guest.boot()
    assert vm.guest.submit(forget_context())
    assert len(vm.unit.passed[TEST].passed.held) == 16
    assert [vm.read_by_test(IOVA, pasid) for pasid in (None, 15, 16)] == [b"old page", b"old page", UNTOUCHED]
    assert vm.guest.submit(forget_pasid(1, 20))
    assert len(vm.unit.passed[TEST].passed.held) == 16
    assert vm.notes == []
    vm.close()
