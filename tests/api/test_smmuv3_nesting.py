"""A guest's SMMUv3 through iommufd: a device's DMA by guest addresses, what the guest invalidates, and its events."""

import errno
from collections import Counter

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from api.smmuv3_vm import EDU, NODE, NVME0, RW, TEST, Vm, refusal
from drivers.smmuv3_guest import (
    RAM,
    RAM_SIZE,
    atc_inv,
    cfgi_cd,
    tlbi_all,
    tlbi_asid,
    tlbi_range,
    tlbi_va,
)
from softiommu.abi.generic_invalidation import GENERIC, InvalidateV1, InvalidateV2, Scope, Target
from softiommu.abi.iommufd import (
    HwptAllocFlags,
    HwptArmSmmuv3,
    HwptDataType,
    HwptVtdS1,
    HwQueueType,
    VeventArmSmmuv3,
    ViommuType,
)
from softiommu.hardware.smmuv3.events import Event, Event0, Event1
from softiommu.hardware.smmuv3.tables import Config, Eats

IOVA = 0x10000
BLOCKED = bytes(8)


@pytest.fixture
def vm():
    with Vm() as made:
        yield made


def a_guest(vm, device=None, **fields):
    """A guest whose device reads a page by its stage 1: the table, and two pages of which the first is mapped."""
    pages, old, new = vm.table(), vm.page(b"old page"), vm.page(b"new page")
    pages.map(IOVA, old, 4096, RW)
    vm.use(0, pages, 5)
    device = device or vm.edu
    device.attach(vm.nested(device, **fields))
    return pages, old, new


def move(pages, new):
    """Another page at the same address; nothing is invalidated."""
    pages.unmap(IOVA, 4096)
    pages.map(IOVA, new, 4096, RW)


def test_a_device_reads_by_guest_addresses(vm):
    a_guest(vm)
    assert vm.read_by_edu(IOVA) == b"old page"
    assert vm.read_by_edu(IOVA + 4096) == BLOCKED


@pytest.mark.parametrize(
    "commands", [[tlbi_va(IOVA, 5)], [tlbi_range(IOVA - 4096, 2, 5)], [tlbi_asid(5)], [tlbi_all()]], ids=str
)
def test_a_missing_invalidation_shows_the_old_page_and_a_right_one_the_new(vm, commands):
    pages, _, new = a_guest(vm)
    assert vm.read_by_edu(IOVA) == b"old page"
    move(pages, new)
    assert vm.read_by_edu(IOVA) == b"old page"
    assert vm.command(tlbi_va(IOVA + 4096, 5), tlbi_va(IOVA, 6), tlbi_asid(6)) == (3, 0)
    assert vm.read_by_edu(IOVA) == b"old page"
    assert vm.command(*commands) == (len(commands), 0)
    assert vm.read_by_edu(IOVA) == b"new page"


def test_a_device_tlb_is_the_guests_to_empty(vm):
    pages, _, new = a_guest(vm, vm.test)
    assert vm.read_by_test(IOVA) == b"old page"
    move(pages, new)
    assert vm.command(tlbi_va(IOVA, 5)) == (1, 0)
    assert vm.read_by_test(IOVA) == b"old page"
    assert vm.command(atc_inv(EDU, IOVA)) == (1, 0)
    assert vm.read_by_test(IOVA) == b"old page"
    assert vm.command(atc_inv(TEST, IOVA)) == (1, 0)
    assert vm.read_by_test(IOVA) == b"new page"


def test_a_guest_without_ats_need_not(vm):
    pages, _, new = a_guest(vm, vm.test, EATS=Eats.OFF)
    assert vm.read_by_test(IOVA) == b"old page"
    move(pages, new)
    assert vm.command(tlbi_va(IOVA, 5)) == (1, 0)
    assert vm.read_by_test(IOVA) == b"new page"
    vm.test.attach(vm.nested(vm.test))
    assert vm.read_by_test(IOVA) == b"new page"
    move(pages, vm.page(b"3rd page"))
    assert vm.command(tlbi_va(IOVA, 5)) == (1, 0)
    assert vm.read_by_test(IOVA) == b"new page"


def test_each_pasid_has_its_context(vm):
    a_guest(vm, vm.test)
    second = vm.table()
    second.map(IOVA, vm.page(b"of PASID"), 4096, RW)
    vm.use(2, second, 7)
    assert vm.read_by_test(IOVA) == b"old page"
    assert vm.read_by_test(IOVA, 2) == b"of PASID"
    vm.use(2, vm.table(), 8)
    assert vm.command(atc_inv(TEST, IOVA, 2)) == (1, 0)
    assert vm.read_by_test(IOVA, 2) == b"of PASID"
    assert vm.command(cfgi_cd(TEST, 2), atc_inv(TEST, 0, 2, 52)) == (2, 0)
    assert vm.read_by_test(IOVA, 2) == BLOCKED
    assert vm.read_by_test(IOVA) == b"old page"


def test_bypass_uses_the_guests_physical_addresses_and_abort_none(vm):
    _, old, _ = a_guest(vm)
    for config, seen in ((Config.BYPASS, b"old page"), (Config.ABORT, BLOCKED)):
        vm.edu.attach(vm.nested(vm.edu, CONFIG=config))
        vm.guest.memory.write(vm.result, BLOCKED)
        for source, target, command in ((vm.blank, 0x40000, 1), (old, 0x40000, 1), (0x40000, vm.result, 3)):
            vm.run_edu(source, target, command)
        assert vm.guest.memory.read(vm.result, 8) == seen
    vm.edu.attach(vm.nested(vm.edu))
    assert vm.read_by_edu(IOVA) == b"old page"
    vm.edu.detach()
    vm.guest.memory.write(vm.result, b"nobody's")
    assert vm.read_by_edu(IOVA) == b"nobody's"


def test_what_the_vmm_takes_away_is_gone_whatever_the_guest_cached(vm):
    for device in (vm.edu, vm.test):
        a_guest(vm, device)
    assert vm.read_by_edu(IOVA) == vm.read_by_test(IOVA) == b"old page"
    vm.ram.unmap()
    vm.guest.memory.write(vm.result, b"untouchd")
    assert vm.read_by_edu(IOVA) == vm.read_by_test(IOVA) == b"untouchd"
    vm.ram = vm.ioas.map_file(vm.guest.memory.file.fd, 0, RAM_SIZE, iova=RAM)
    assert vm.read_by_edu(IOVA) == vm.read_by_test(IOVA) == b"old page"


def test_the_generic_form_is_taken_by_both(vm):
    pages, old, new = a_guest(vm)
    nested = vm.nested(vm.edu)
    vm.edu.attach(nested)
    everything = Target.LEAF | Target.TABLES | Target.DEVICE_TLB
    page = {"scope": Scope.RANGE_NO_PASID, "addr": IOVA, "count": 1, "granule_lg2": 12, "targets": everything}
    for target, entry in ((vm.viommu, InvalidateV1(**page)), (nested, InvalidateV2(**page))):
        move(pages, old)
        assert vm.command(tlbi_all()) == (1, 0)
        assert vm.read_by_edu(IOVA) == b"old page"
        move(pages, new)
        assert vm.read_by_edu(IOVA) == b"old page"
        assert target.invalidate(GENERIC, [entry]) == 1
        assert vm.read_by_edu(IOVA) == b"new page"


def test_a_device_whose_name_is_gone_is_one_of_its_viommus_still(vm):
    pages, _, new = a_guest(vm, vm.test)
    assert vm.read_by_test(IOVA) == b"old page"
    move(pages, new)
    vm.names[TEST].destroy()
    everything = InvalidateV1(scope=Scope.DOMAIN, targets=Target.LEAF | Target.DEVICE_TLB)
    assert vm.viommu.invalidate(GENERIC, [everything]) == 1
    assert vm.read_by_test(IOVA) == b"new page"


# Events


def test_faults_of_stage_1_are_the_guests(vm):
    a_guest(vm)
    assert not vm.events.ready
    vm.read_by_edu(IOVA + 8192)
    (event,) = vm.events.read()
    record = VeventArmSmmuv3.from_bytes(event.data)
    first, how = Event0(record.evt0), Event1(record.evt1)
    assert (first.TYPE, first.SID, first.SSV, record.evt2) == (Event.F_TRANSLATION, EDU, 0, IOVA + 8192)
    assert (how.RNW, how.S2, how.STALL) == (1, 0, 0)
    assert NODE or vm.messages == []


def test_faults_of_stage_2_are_the_hosts(vm):
    pages, _, _ = a_guest(vm)
    pages.map(IOVA + 4096, RAM + RAM_SIZE, 4096, RW)
    vm.read_by_edu(IOVA + 4096)
    assert vm.events.read() == []
    assert NODE or [f"iova {IOVA + 4096:#x}" in line for line in vm.messages] == [True]


def test_events_that_are_lost_are_marked(vm):
    a_guest(vm)
    for number in range(18):
        vm.read_by_edu(0x100000 + 4096 * number)
    events = vm.events.read()
    assert [event.sequence for event in events] == [*range(16), 17]
    assert [event.data is None for event in events] == [False] * 16 + [True]
    assert VeventArmSmmuv3.from_bytes(events[-2].data).evt2 == 0x10F000


# Refusals


def test_fields_of_a_nested_hwpt(vm):
    def alloc(ste, flags=0, data_type=HwptDataType.ARM_SMMUV3, parent=vm.viommu):
        return refusal(vm.edu.hwpt, parent, flags, (data_type, ste))

    good = vm.guest.ste()
    assert alloc(good, HwptAllocFlags.ALLOC_PASID) == errno.EOPNOTSUPP
    assert alloc(good, HwptAllocFlags.ALLOC_NEST_PARENT) == errno.EOPNOTSUPP
    assert alloc(good, data_type=HwptDataType.VTD_S1) == errno.EINVAL
    assert alloc(HwptVtdS1()) == errno.EINVAL
    assert alloc(good, parent=vm.parent) == errno.EOPNOTSUPP
    assert refusal(vm.edu.hwpt, vm.viommu) == errno.EOPNOTSUPP
    for ste0, ste1 in ((1 | 7 << 1, 0), (1 | 5 << 1 | 1 << 52, 0), (1 | 5 << 1, 2 << 28), (1 | 5 << 1, 1 << 44)):
        assert alloc(HwptArmSmmuv3(ste0, ste1)) == errno.EIO


def test_fields_of_a_viommu_and_its_names(vm):
    plain = vm.edu.hwpt(vm.ioas)
    assert refusal(vm.edu.viommu, ViommuType.ARM_SMMUV3, plain) == errno.EINVAL
    assert refusal(vm.edu.viommu, 99, vm.parent) == errno.EOPNOTSUPP
    assert refusal(vm.viommu.vdevice, vm.edu, 0x33) == errno.EEXIST
    assert refusal(vm.viommu.hw_queue, HwQueueType.TEGRA241_CMDQV, 0, RAM, 4096) == errno.EOPNOTSUPP
    second = vm.edu.viommu(ViommuType.ARM_SMMUV3, vm.parent)
    nvme = vm.device(NVME0)
    assert refusal(vm.viommu.vdevice, nvme, EDU) == errno.EEXIST
    nested = vm.nested(nvme)
    assert refusal(nvme.attach, nested) == errno.ENOENT
    name = second.vdevice(nvme, EDU)
    assert refusal(nvme.attach, nested) == errno.ENOENT
    name.destroy()
    vm.viommu.vdevice(nvme, 0x40)
    nvme.attach(nested)
    assert refusal(nested.destroy) == errno.EBUSY
    assert refusal(vm.viommu.destroy) == errno.EBUSY


def test_an_array_that_fails_in_the_middle_counts_what_was_done(vm):
    pages, _, new = a_guest(vm)
    assert vm.read_by_edu(IOVA) == b"old page"
    move(pages, new)
    assert vm.command(tlbi_va(IOVA, 5), cfgi_cd(0x99, 0), tlbi_all()) == (1, errno.EIO)
    assert vm.read_by_edu(IOVA) == b"new page"
    assert vm.command() == (0, errno.EINVAL)


# Any guest


#: What makes a device see the new page, and what does not: nothing, others, and each cache without the other.
ENOUGH = ("the page", "a range", "the pasid", "everything")
TOO_LITTLE = ("nothing", "another", "no device", "the device alone")


class AnyGuest(RuleBasedStateMachine):
    """A guest that maps, unmaps and invalidates at will. What its device reads is what each of three caches has kept.

    These are the device's TLB, the IOTLB, and the contexts. The architecture lets each of them forget at any time; ours
    do not, so the oracle says which page is read.
    """

    pasids = st.sampled_from([None, 2])
    numbers = st.integers(0, 1)
    hows = st.sampled_from(ENOUGH + TOO_LITTLE)

    def __init__(self, seen):
        super().__init__()
        self.seen = seen
        self.vm = Vm()
        self.data = [0] + [self.vm.page(bytes([number]) * 8) for number in (1, 2, 3)]
        #: A context is a table, and what it maps.
        self.contexts = {}
        self.device, self.iotlb, self.used = {}, {}, {}
        for pasid in (None, 2):
            self.new_context(pasid)
            for number in (0, 1):
                self.store(pasid, number, 1 + number)
        self.vm.test.attach(self.vm.nested(self.vm.test))

    def teardown(self):
        self.vm.close()

    def new_context(self, pasid):
        self.contexts[pasid] = self.vm.table(), {}
        self.vm.use(pasid or 0, self.contexts[pasid][0], 10 + (pasid or 0))

    def store(self, pasid, number, what):
        """The guest maps another page, or none (0)."""
        page = IOVA + 4096 * number
        table, mapped = self.contexts[pasid]
        if mapped.pop(number, 0):
            table.unmap(page, 4096)
        if what:
            table.map(page, self.data[what], 4096, RW)
            mapped[number] = what

    def invalidate(self, pasid, number, how):
        """The guest invalidates: not at all, or not enough, or as it should."""
        page, beside = IOVA + 4096 * number, IOVA + 4096 * (1 - number)
        asid, other = 10 + (pasid or 0), {None: 2, 2: None}[pasid]
        here, mine = [(pasid, number)], [(pasid, 0), (pasid, 1)]
        tlbi, atc = tlbi_va(page, asid), atc_inv(TEST, page, pasid)
        others = [tlbi_va(beside, asid), tlbi_va(page, 10 + (other or 0)), tlbi_va(page, 11)]
        others += [atc_inv(TEST, beside, pasid), atc_inv(TEST, page, 9), atc_inv(EDU, page, pasid)]
        #: The commands, and what they take out of the device's TLB and of the IOTLB.
        commands, device, iotlb = {
            "nothing": ([tlbi_va(page + 0x100000, asid), atc_inv(TEST, page + 0x100000, pasid)], [], []),
            "another": (others, [(pasid, 1 - number)], [(pasid, 1 - number), (other, number)]),
            "no device": ([tlbi], [], here),
            "the device alone": ([atc], here, []),
            "the page": ([tlbi, atc], here, here),
            "a range": ([tlbi_range(page, 1, asid), atc], here, here),
            "the pasid": ([tlbi_asid(asid), atc_inv(TEST, 0, pasid, 52)], mine, mine),
            "everything": (
                [tlbi_all(), atc_inv(TEST, 0, None, 52), atc_inv(TEST, 0, 2, 52)],
                [*self.device],
                [*self.iotlb],
            ),
        }[how]
        assert self.vm.command(*commands) == (len(commands), 0)
        # For a device, an invalidation without a PASID is for all of them.
        device = [*device, *((2, at) for one, at in device if one is None)]
        for cache, gone in ((self.device, device), (self.iotlb, iotlb)):
            for key in gone:
                cache.pop(key, None)

    @rule(pasid=pasids, number=numbers, what=st.integers(0, 3), how=hows)
    def change_between_two_reads(self, pasid, number, what, how):
        self.dma(pasid, number)
        self.store(pasid, number, what)
        self.invalidate(pasid, number, how)
        self.dma(pasid, number)

    @rule(pasid=pasids, number=numbers, what=st.integers(0, 3), tells=st.booleans(), how=hows)
    def move(self, pasid, number, what, tells, how):
        """Another table takes the place of a context's, with one page in it."""
        self.new_context(pasid)
        self.store(pasid, number, what)
        if tells:
            assert self.vm.command(cfgi_cd(TEST, pasid or 0)) == (1, 0)
            self.used.pop(pasid, None)
        self.invalidate(pasid, number, how)
        self.dma(pasid, number)

    @rule(pasid=pasids, number=numbers)
    def attach_again(self, pasid, number):
        self.vm.test.detach()
        self.vm.test.attach(self.vm.nested(self.vm.test))
        self.device.clear()
        self.used.clear()
        self.dma(pasid, number)

    @rule()
    def take_the_ram_away_and_give_it_back(self):
        """What the host changes is forgotten, whatever the guest does."""
        self.vm.ram.unmap()
        self.vm.ram = self.vm.ioas.map_file(self.vm.guest.memory.file.fd, 0, RAM_SIZE, iova=RAM)
        self.device.clear()
        self.iotlb.clear()

    @rule(pasid=pasids, number=numbers)
    def dma(self, pasid, number):
        key = pasid, number
        fresh = self.contexts[pasid][1].get(number, 0)
        expected = self.device.get(key)
        if expected is None:
            walked = self.used.setdefault(pasid, self.contexts[pasid][1])
            expected = self.iotlb.get(key) or walked.get(number, 0)
            if expected:
                self.device[key] = self.iotlb[key] = expected
        self.seen["fresh" if expected == fresh else "stale"] += 1
        assert self.vm.read_by_test(IOVA + 4096 * number, pasid) == bytes([expected]) * 8


def test_any_guest_sees_what_is_cached_until_it_invalidates_it_and_then_what_it_mapped():
    seen = Counter()
    how = settings(max_examples=5 if NODE else 20, stateful_step_count=30, deadline=None)
    run_state_machine_as_test(lambda: AnyGuest(seen), settings=how)
    assert min(seen["stale"], seen["fresh"]) > 0, seen
