"""A guest on a virtual SMMUv3: what its table, contexts and commands say is what its devices' DMA meets."""

import pytest

from drivers.smmuv3_guest import atc_inv, cfgi_cd, tlbi_all, tlbi_asid, tlbi_va
from softiommu.hardware.smmuv3.commands import Bare, Op, Resume0, Resume1, Signal, Stream0, Sync0, Vmid0
from softiommu.hardware.smmuv3.events import Event, Event0, Event1
from softiommu.hardware.smmuv3.registers import CommandError, Cr0, Gbpa, Registers
from softiommu.hardware.smmuv3.signals import Signals
from softiommu.hardware.smmuv3.tables import Config, Eats
from vmm.smmuv3_vm import EDU, IOVA, MSI, RW, TEST, Vm, forget_stream, forget_streams

BLOCKED, UNTOUCHED = bytes(8), b"untouchd"


@pytest.fixture
def vm():
    made = Vm()
    yield made
    made.close()


def a_guest(vm, sid=TEST, ssid=0, asid=5, **fields):
    """A table with one page, in use."""
    pages, old, new = vm.table(), vm.ram.page(b"old page"), vm.ram.page(b"new page")
    pages.map(IOVA, old, 4096, RW)
    if sid not in vm.guest.contexts:
        vm.guest.stream(sid, **fields)
    vm.guest.use(sid, pages, asid, ssid)
    return pages, old, new


def move(pages, new):
    pages.unmap(IOVA, 4096)
    pages.map(IOVA, new, 4096, RW)


def test_before_translation_is_on_gbpa_decides(vm):
    at = vm.ram.page(b"physical")
    vm.edu.copy(at, vm.result)
    assert vm.ram.read(vm.result, 8) == b"physical"
    vm.guest.write(Registers.GBPA, Gbpa.of(ABORT=1, UPDATE=1))
    vm.ram.write(at, b"2nd time")
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
    vm.guest.write(Registers.CR0, Cr0.of(CMDQEN=1, EVENTQEN=1))
    vm.edu.copy(old, vm.result)
    assert vm.ram.read(vm.result, 8) == b"old page"


@pytest.mark.parametrize("command", [forget_stream(TEST), forget_stream(TEST, 0), forget_streams()], ids=str)
def test_an_ste_counts_when_it_is_named(vm, command):
    vm.guest.ste_at(TEST)
    vm.guest.boot()
    a_guest(vm)
    assert vm.read_by_test(IOVA) == UNTOUCHED
    assert vm.guest.submit(forget_stream(EDU)) == 0
    assert vm.read_by_test(IOVA) == UNTOUCHED
    assert vm.guest.submit(command) == 0
    assert vm.read_by_test(IOVA) == b"old page"
    vm.guest.stream(TEST, CONFIG=Config.ABORT)
    assert vm.read_by_test(IOVA) == b"old page"
    assert vm.guest.submit(command) == 0
    assert vm.read_by_test(IOVA) == UNTOUCHED


def test_a_stream_behind_no_leaf_is_aborted_until_the_level_1_descriptor_is_read_again(vm):
    vm.guest.boot()
    assert vm.read_by_test(IOVA) == UNTOUCHED
    a_guest(vm)
    assert vm.guest.submit(forget_stream(TEST, 0)) == 0
    assert vm.read_by_test(IOVA) == b"old page"


def test_bypass(vm):
    _, old, _ = a_guest(vm, EDU, CONFIG=Config.BYPASS)
    vm.guest.boot()
    vm.edu.copy(old, vm.result)
    assert vm.ram.read(vm.result, 8) == b"old page"


@pytest.mark.parametrize("right", [tlbi_va(IOVA, 5), tlbi_asid(5), tlbi_all()], ids=str)
def test_a_missing_invalidation_shows_the_old_page_and_a_right_one_the_new(vm, right):
    pages, _, new = a_guest(vm, EATS=Eats.OFF)
    vm.guest.boot()
    assert vm.read_by_test(IOVA) == b"old page"
    move(pages, new)
    assert vm.guest.submit(tlbi_va(IOVA + 4096, 5), tlbi_va(IOVA, 6), tlbi_asid(6)) == 0
    assert vm.read_by_test(IOVA) == b"old page"
    assert vm.guest.submit(right) == 0
    assert vm.read_by_test(IOVA) == b"new page"


def test_each_pasid_has_its_context(vm):
    a_guest(vm), a_guest(vm, ssid=2, asid=7)
    vm.guest.boot()
    assert vm.read_by_test(IOVA, 2) == b"old page"
    assert vm.read_by_test(IOVA, 3) == UNTOUCHED
    vm.guest.use(TEST, None, 0, 2)
    forget = atc_inv(TEST, 0, 2, 52)
    assert vm.guest.submit(cfgi_cd(TEST, 2), forget) == 0
    assert (vm.read_by_test(IOVA), vm.read_by_test(IOVA, 2)) == (b"old page", UNTOUCHED)


def test_with_an_ste_goes_what_was_read_through_it(vm):
    a_guest(vm, EATS=Eats.OFF)
    vm.guest.boot()
    assert vm.read_by_test(IOVA) == b"old page"
    vm.guest.use(TEST, None, 0)
    assert vm.read_by_test(IOVA) == b"old page"
    assert vm.guest.submit(forget_stream(TEST)) == 0
    assert vm.read_by_test(IOVA) == UNTOUCHED


def test_a_batch_is_one_call(vm, monkeypatch):
    a_guest(vm)
    vm.guest.boot()
    calls = []
    backend, call = vm.iommufd.backend, vm.iommufd.backend.call
    monkeypatch.setattr(backend, "call", lambda name, cmd, struct: (calls.append(name), call(name, cmd, struct))[1])
    assert vm.guest.submit(*[tlbi_va(IOVA + 4096 * number, 5) for number in range(50)]) == 0
    assert calls == ["HWPT_INVALIDATE"]


# Events


def test_faults_of_the_device_are_events_of_the_guest(vm):
    a_guest(vm, EATS=Eats.OFF)
    vm.guest.boot()
    vm.read_by_test(IOVA + 8192)
    assert vm.backing.queue.ready
    vm.smmu.service()
    assert vm.messages == [(MSI, 7)]
    (record,) = vm.guest.records()
    assert (Event0(record[0]).TYPE, Event0(record[0]).SID, record[2]) == (Event.F_TRANSLATION, TEST, IOVA + 8192)
    assert Event1(record[1]).RNW


@pytest.mark.parametrize("fields", [{"V": 0}, {"S1CDMAX": 31}, {"CONFIG": Config.S2}, {"CONFIG": Config.NEST}], ids=str)
def test_an_illegal_ste_aborts(vm, fields):
    a_guest(vm, EDU, **fields)
    vm.guest.boot()
    assert vm.read_by_edu(IOVA) == UNTOUCHED
    assert vm.notes == []


def test_events_that_find_no_room_are_an_overflow(vm):
    a_guest(vm, EATS=Eats.OFF)
    vm.guest.boot()
    for number in range(70):
        vm.test.run(0x100000 + 4096 * number, 3)
        if number % 8 == 7:
            vm.smmu.service()
    vm.smmu.service()
    assert vm.guest.read(Registers.EVENTQ_PROD).OVFLG
    assert len(vm.guest.records()) == 64
    vm.test.run(IOVA + 4096, 3)
    vm.smmu.service()
    assert len(vm.guest.records()) == 1


def test_events_that_the_host_lost_are_an_overflow(vm):
    a_guest(vm, EATS=Eats.OFF)
    vm.guest.boot()
    for number in range(20):
        vm.test.run(0x100000 + 4096 * number, 3)
    vm.smmu.service()
    assert vm.guest.read(Registers.EVENTQ_PROD).OVFLG
    assert len(vm.guest.records()) == 16


# Errors


WRONG = [
    (0xFF, 0),
    (int(tlbi_va(IOVA, 5)[0]) | 1 << 27, 0),
    (Bare.of(OPCODE=Op.TLBI_EL2_ALL), 0),
    (Vmid0.of(OPCODE=Op.TLBI_S12_VMALL), 0),
    (tlbi_va(IOVA, 5)[0] | 1 << 20, 0),  # a range without a granule: the host's SMMU says so
]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_a_wrong_command_stops_the_queue_there_and_what_is_before_it_is_done(vm, wrong):
    pages, _, new = a_guest(vm, EATS=Eats.OFF)
    vm.guest.boot()
    assert vm.read_by_test(IOVA) == b"old page"
    move(pages, new)
    start = vm.guest.prod
    assert vm.guest.submit(tlbi_asid(6), tlbi_va(IOVA, 5), wrong, tlbi_all()) == CommandError.ILL
    assert vm.guest.read(Registers.CMDQ_CONS).RD == start + 2
    assert vm.read_by_test(IOVA) == b"new page"
    assert (MSI, 8) in vm.messages
    vm.guest.go_on(skip=False)
    assert vm.guest.read(Registers.CMDQ_CONS).RD == start + 2
    vm.guest.go_on(skip=True)
    assert vm.guest.submit(tlbi_all()) == 0


def test_a_queue_without_memory_aborts(vm):
    vm.guest.write(Registers.CMDQ_BASE, 1 << 40 | 6)
    vm.guest.write(Registers.CR0, Cr0.of(CMDQEN=1))
    vm.guest.write(Registers.CMDQ_PROD, 1)
    assert vm.guest.read(Registers.CMDQ_CONS).ERR == CommandError.ABT


def test_who_is_told_of_a_sync_may_turn_the_queue_off(vm):
    vm.guest.boot()
    vm.smmu.signals = Signals(
        vm.ram, vm.smmu.registers, None, lambda wire: vm.guest.write(Registers.CR0, Cr0.of(EVENTQEN=1))
    )
    start = vm.guest.prod
    sync = Sync0.of(OPCODE=Op.SYNC, CS=Signal.IRQ), 0
    with pytest.raises(AssertionError):
        vm.guest.submit(tlbi_all(), sync, tlbi_all())
    assert vm.guest.read(Registers.CMDQ_CONS).RD == start + 2


def test_commands_for_streams_without_a_device_do_nothing(vm):
    vm.guest.boot()
    assert vm.guest.submit(cfgi_cd(0x77, 0), atc_inv(0x77, IOVA), forget_stream(0x77)) == 0


def test_nothing_stalls_and_so_there_is_no_answer_to_it(vm):
    vm.guest.boot()
    for wrong in ((Resume0.of(OPCODE=Op.RESUME), Resume1(0)), (Stream0.of(OPCODE=Op.STALL_TERM), 0)):
        assert vm.guest.submit(wrong) == CommandError.ILL
        vm.guest.go_on(skip=True)


def test_a_device_that_is_taken_away_is_blocked(vm):
    a_guest(vm)
    vm.guest.boot()
    vm.smmu.unplug(TEST)
    assert vm.read_by_test(IOVA) == UNTOUCHED
    vm.smmu.plug(TEST, vm.test_device)
    assert vm.read_by_test(IOVA) == b"old page"


def test_a_name_is_given_once(vm):
    nvme = vm.iommufd.device("nvme0")
    with pytest.raises(OSError, match="virtual id"):
        vm.smmu.plug(TEST, nvme)
    assert vm.smmu.passed[TEST].device is vm.test_device
