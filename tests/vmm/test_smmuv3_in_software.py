"""A virtual SMMUv3 over a VT-d whose nesting is done in software: for devices that ask again for what was not there."""

import pytest

from drivers.smmuv3_guest import cfgi_cd, tlbi_all, tlbi_asid, tlbi_range, tlbi_va
from softiommu.hardware.smmuv3.commands import Address1, Op, Va0
from softiommu.hardware.smmuv3.events import Event, Event0, Event1
from softiommu.hardware.smmuv3.registers import CommandError, Cr0, Registers
from softiommu.hardware.smmuv3.tables import Config
from softiommu.vmm import offers
from vmm.smmuv3_vm import EDU, IOVA, RW, TEST, forget_stream
from vmm.software_vm import SmmuVm

BLOCKED, UNTOUCHED = bytes(8), b"untouchd"


@pytest.fixture
def vm():
    made = SmmuVm()
    yield made
    made.close()


def a_guest(vm, ssid=0, asid=5, **fields):
    pages, old, new = vm.table(), vm.ram.page(b"old page"), vm.ram.page(b"new page")
    pages.map(IOVA, old, 4096, RW)
    if TEST not in vm.guest.contexts:
        vm.guest.stream(TEST, EATS=0, **fields)
    vm.guest.use(TEST, pages, asid, ssid)
    return pages, old, new


def move(pages, new):
    pages.unmap(IOVA, 4096)
    pages.map(IOVA, new, 4096, RW)


@pytest.mark.parametrize("right", [tlbi_va(IOVA, 5), tlbi_range(IOVA - 4096, 2, 5), tlbi_asid(5), tlbi_all()], ids=str)
def test_a_missing_invalidation_shows_the_old_page_and_a_right_one_the_new(vm, right):
    pages, _, new = a_guest(vm)
    vm.guest.boot()
    assert vm.read_by_test(IOVA) == b"old page"
    move(pages, new)
    assert vm.guest.submit(tlbi_va(IOVA + 4096, 5), tlbi_asid(6)) == 0
    assert vm.read_by_test(IOVA) == b"old page"
    assert vm.guest.submit(right) == 0
    assert vm.read_by_test(IOVA) == b"new page"
    assert vm.notes == []


def test_what_is_mapped_is_found_without_an_invalidation(vm):
    pages, old, _ = a_guest(vm)
    vm.guest.boot()
    assert vm.read_by_test(IOVA + 4096) == BLOCKED
    pages.map(IOVA + 4096, old, 4096, RW)
    assert vm.read_by_test(IOVA + 4096) == b"old page"


def test_what_is_not_mapped_is_an_event(vm):
    a_guest(vm), a_guest(vm, 3, 7)
    vm.guest.boot()
    for pasid in (None, 3):
        assert vm.read_by_test(IOVA + 8192, pasid) == BLOCKED
        record = vm.guest.records()[0]
        first = Event0(record[0])
        assert (first.TYPE, first.SID, record[2]) == (Event.F_TRANSLATION, TEST, IOVA + 8192)
        assert (first.SSV, first.SSID) == (int(pasid is not None), pasid or 0)
        assert Event1(record[1]).RNW


def test_each_pasid_has_its_context(vm):
    a_guest(vm), a_guest(vm, ssid=2, asid=7)
    vm.guest.boot()
    assert vm.read_by_test(IOVA, 2) == b"old page"
    assert vm.read_by_test(IOVA, 3) == UNTOUCHED
    vm.guest.use(TEST, None, 0, 2)
    assert vm.guest.submit(cfgi_cd(TEST, 2)) == 0
    assert (vm.read_by_test(IOVA), vm.read_by_test(IOVA, 2)) == (b"old page", UNTOUCHED)


def test_bypass_and_abort(vm):
    _, old, _ = a_guest(vm, CONFIG=Config.BYPASS)
    vm.guest.boot()
    vm.test.run(old, 3)
    vm.test.run(vm.result, 1)
    assert vm.ram.read(vm.result, 8) == b"old page"
    vm.guest.stream(TEST, CONFIG=Config.ABORT)
    assert vm.guest.submit(forget_stream(TEST)) == 0
    vm.ram.write(vm.result, UNTOUCHED)
    vm.test.run(vm.result, 1)
    assert vm.ram.read(vm.result, 8) == UNTOUCHED
    vm.guest.write(Registers.CR0, Cr0.of(CMDQEN=1))
    vm.test.run(vm.result, 1)
    assert vm.ram.read(vm.result, 8) == b"old page"


def test_a_device_that_does_not_ask_again_is_refused(vm):
    vm.guest.stream(EDU, EATS=0)
    vm.guest.use(EDU, vm.table(), 5)
    vm.guest.boot()
    (note,) = vm.notes
    assert "stream 0x8 is blocked" in note


def test_a_range_without_a_granule_is_illegal(vm):
    vm.guest.boot()
    wrong = Va0.of(OPCODE=Op.TLBI_NH_VA, NUM=1), Address1.of(ADDR=IOVA >> 12)
    start = vm.guest.prod
    assert vm.guest.submit(tlbi_all(), wrong) == CommandError.ILL
    assert vm.guest.read(Registers.CMDQ_CONS).RD == start + 1


def test_a_full_table_of_contexts_makes_the_vmm_attach_no_more_than_it_offered(monkeypatch):
    monkeypatch.setattr(offers, "PASIDS_LG2", 4)
    vm = SmmuVm()
    pages, *_ = a_guest(vm, S1CDMAX=4)
    for ssid in range(32):
        vm.guest.use(TEST, pages, 5, ssid)
    vm.guest.boot()
    assert len(vm.backing.passed[TEST].held.held) == 16
    assert [vm.read_by_test(IOVA, pasid) for pasid in (None, 15, 16)] == [b"old page", b"old page", UNTOUCHED]
    # What is more than its IDR1 says makes an STE illegal.
    vm.guest.stream(TEST, S1CDMAX=5, EATS=0)
    assert vm.guest.submit(forget_stream(TEST)) == 0
    assert vm.read_by_test(IOVA) == UNTOUCHED
    assert not vm.backing.passed[TEST].held.held
    vm.close()
