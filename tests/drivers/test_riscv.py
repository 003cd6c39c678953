"""The RISC-V driver over the RISC-V model: what is mapped is reached, what is unmapped is not, and nothing is left."""

import contextlib
from errno import EINVAL, ENODEV, ENOMEM, EOPNOTSUPP

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from softiommu.drivers.driver import DomainFlags, Prot, Range, Reserved, ReservedKind
from softiommu.drivers.function import Function
from softiommu.drivers.riscv.domain import RiscvDomain
from softiommu.drivers.riscv.driver import Ids, RiscvDriver
from softiommu.errors import ModelError, UapiError
from softiommu.hardware.iommu import TranslationFaultError
from softiommu.hardware.riscv.events import Cause
from softiommu.hardware.riscv.model import RiscvIommu
from softiommu.hardware.riscv.presets import FULL, QEMU, SMALL
from softiommu.memory.physical import PhysicalMemory
from softiommu.pagetable.kinds import READ, WRITE

RAM = 48 << 20
RW = Prot.READ | Prot.WRITE
NONE, PARENT, DIRTY, PASIDS = DomainFlags.NONE, DomainFlags.NEST_PARENT, DomainFlags.DIRTY_TRACKING, DomainFlags.PASID
SID = 0x20


class Watched:
    """The bus, which keeps the commands that the driver rings the doorbell for."""

    def __init__(self, memory, iommu):
        self._memory, self._iommu, self._seen, self.commands = memory, iommu, 0, []
        self.read = iommu.read

    def write(self, offset, width, value):
        if offset == 0x24:
            base = (self._iommu.read(0x18, 8) >> 10) << 12
            while self._seen != value:
                self.commands.append(self._memory.read_u64(base + 16 * self._seen))
                self._seen = (self._seen + 1) % 256
        self._iommu.write(offset, width, value)


def rig(capabilities=FULL, ram=RAM, **more):
    memory = PhysicalMemory(ram)
    iommu = RiscvIommu(memory, capabilities, **more)
    driver = RiscvDriver(memory, Watched(memory, iommu))
    return iommu, driver


def function(*sids, pasid_bits=0, name="edu"):
    return Function(name, sids or (SID,), pasid_bits=pasid_bits)


def reach(iommu, iova, want=READ, pasid=None, sid=SID):
    try:
        return iommu.translate(sid, iova, want, pasid).pa
    except TranslationFaultError as fault:
        return Cause(fault.reason)


def refused(errno, call, *arguments):
    with pytest.raises(UapiError) as caught:
        call(*arguments)
    assert caught.value.errno == errno


@pytest.mark.parametrize("capabilities", [FULL, QEMU, SMALL, FULL.replace(SV57=0), FULL.replace(IGS=1)], ids=hex)
def test_a_device_reaches_what_its_domain_maps_and_is_blocked_without_one(capabilities):
    iommu, driver = rig(capabilities)
    device = driver.device(function())
    assert reach(iommu, 0x1000) is Cause.DDT_NOT_VALID
    domain = device.alloc_paging(NONE, None)
    domain.map(0x10000, 0x800000, 0x3000, RW)
    device.attach(domain, None)
    assert reach(iommu, 0x12004, WRITE) == 0x802004
    assert reach(iommu, 0x13000) is Cause.READ_PAGE_FAULT
    device.detach(None)
    assert reach(iommu, 0x10000) is Cause.DDT_NOT_VALID
    domain.free()


@pytest.mark.parametrize(("levels", "last"), [(1, 63), (2, 0x7FFF), (3, 0xFFFFFF)])
def test_the_directory_is_as_deep_as_the_hardware_takes(levels, last):
    iommu, driver = rig(levels=levels)
    device = driver.device(function(last))
    domain = device.alloc_paging(NONE, None)
    device.attach(domain, None)
    domain.map(0x5000, 0x9000, 0x1000, RW)
    assert reach(iommu, 0x5000, sid=last) == 0x9000
    if levels < 3:
        refused(ENODEV, driver.device, function(last + 1))


@pytest.mark.parametrize(
    ("capabilities", "width"), [(SMALL, 38), (SMALL.replace(SV48=1), 47), (SMALL.replace(SV48=1, SV57=1), 56)]
)
def test_the_aperture_is_the_lower_half_of_the_widest_table(capabilities, width):
    iommu, driver = rig(capabilities)
    device = driver.device(function())
    domain = device.alloc_paging(NONE, None)
    assert domain.aperture == Range(0, (1 << width) - 1)
    domain.map(domain.aperture.last - 0xFFF, 0x9000, 0x1000, Prot.READ)
    device.attach(domain, None)
    assert reach(iommu, domain.aperture.last) == 0x9FFF
    assert reach(iommu, domain.aperture.last + 1) is Cause.READ_PAGE_FAULT


def test_replacing_a_domain_forgets_the_old_one():
    for bits in (0, 8):
        iommu, driver = rig()
        device = driver.device(function(pasid_bits=bits))
        first, second = (device.alloc_paging(NONE, None) for _ in range(2))
        first.map(0x10000, 0x800000, 0x1000, RW)
        second.map(0x10000, 0x900000, 0x1000, RW)
        device.attach(first, None)
        assert reach(iommu, 0x10000) == 0x800000
        device.attach(second, None)
        assert reach(iommu, 0x10000) == 0x900000


def test_an_unmap_takes_effect_at_its_flush():
    iommu, driver = rig()
    device = driver.device(function())
    domain = device.alloc_paging(NONE, None)
    device.attach(domain, None)
    domain.map(0x200000, 0x800000, 0x400000, RW)
    assert reach(iommu, 0x200000) == 0x800000
    assert domain.unmap(0x200000, 0x400000) == 0x400000
    assert reach(iommu, 0x200000) == 0x800000
    domain.flush()
    assert reach(iommu, 0x200000) is Cause.READ_PAGE_FAULT


@pytest.mark.parametrize("nl", [0, 1])
def test_few_pages_are_invalidated_one_by_one_and_many_or_tables_as_a_whole(nl):
    _, driver = rig(FULL.replace(NL=nl))
    domain = driver.device(function()).alloc_paging(NONE, None)
    commands = driver._bus.commands
    domain.map(0, 0, 4 << 20, RW)
    domain.map(0x400000, 0x9000, 0x1000 * 80, RW)
    domain.map(0x4FF000, 0x9000, 0x1000, RW)
    ask, fence = 1 | domain.id << 12 | 1 << 32, 2
    for iova, length, expected in (
        (0x400000, 0x3000, [ask | 1 << 10] * 3),
        (0x403000, 0x1000 * 70, [ask]),
        (0, 0x200000, [ask | 1 << 10]),
        (0x449000, 0xB7000, [ask | 1 << 10 | 1 << 34] * 8 if nl else [ask]),
    ):
        commands.clear()
        domain.unmap(iova, length)
        domain.flush()
        assert [fence if command & 0x7F == fence else command for command in commands] == [
            *expected,
            fence,
        ]
    commands.clear()
    domain.flush()
    assert commands == []


def test_the_queues_wrap():
    iommu, driver = rig()
    device = driver.device(function())
    domain = device.alloc_paging(NONE, None)
    device.attach(domain, None)
    for number in range(300):
        domain.map(0x1000 * number, 0x9000, 0x1000, RW)
        assert reach(iommu, 0x1000 * number) == 0x9000
        domain.unmap(0x1000 * number, 0x1000)
        domain.flush()
        assert reach(iommu, 0x1000 * number) is Cause.READ_PAGE_FAULT
        assert [fault.iova for fault in driver.faults.take()] == [0x1000 * number]
    driver._bus.commands.clear()
    driver.queue.submit(*[(1, 0)] * 1000)
    assert driver._bus.commands.count(1) == 1000
    assert iommu.read(0x48, 4) == 1 | 1 << 16


def test_every_id_of_a_function_is_routed():
    iommu, driver = rig()
    device = driver.device(function(SID, 0x1234))
    domain = device.alloc_paging(NONE, None)
    domain.map(0x10000, 0x800000, 0x1000, RW)
    device.attach(domain, None)
    assert [reach(iommu, 0x10000, sid=sid) for sid in (SID, 0x1234)] == [0x800000] * 2
    device.detach(None)
    assert [reach(iommu, 0x10000, sid=sid) for sid in (SID, 0x1234)] == [Cause.DDT_NOT_VALID] * 2


def test_a_parent_is_of_the_second_stage():
    iommu, driver = rig()
    device = driver.device(function(pasid_bits=8))
    parent = device.alloc_paging(PARENT, None)
    assert (parent.first, parent.aperture) == (False, Range(0, (1 << 59) - 1))
    parent.map(0x10000, 0x800000, 0x1000, RW)
    device.attach(parent, None)
    assert reach(iommu, 0x10000, WRITE) == 0x800000
    parent.unmap(0x10000, 0x1000)
    parent.flush()
    assert reach(iommu, 0x10000, WRITE) is Cause.WRITE_GUEST_PAGE_FAULT
    refused(EINVAL, device.attach, device.alloc_paging(NONE, None), 3)
    device.attach(device.alloc_paging(NONE, None), None)
    assert reach(iommu, 0x10000, WRITE) is Cause.WRITE_PAGE_FAULT
    refused(EINVAL, device.attach, parent, 3)


def test_hardware_without_a_first_stage_has_domains_of_the_second():
    iommu, driver = rig(SMALL.replace(SV39=0, SV39X4=1))
    device = driver.device(function())
    domain = device.alloc_paging(NONE, None)
    domain.map(0x10000, 0x800000, 0x1000, RW)
    device.attach(domain, None)
    assert reach(iommu, 0x10000) == 0x800000
    refused(EOPNOTSUPP, device.alloc_paging, PASIDS, None)


@pytest.mark.parametrize(("bits", "have", "most"), [(5, "", 5), (20, "", 20), (9, "PD17 PD20", 8), (20, "PD20", 17)])
def test_processes_have_routes_of_their_own(bits, have, most):
    iommu, driver = rig(FULL.replace(**dict.fromkeys(have.split(), 0)))
    device = driver.device(function(pasid_bits=bits))
    assert device.features.max_pasids == 1 << most
    last = (1 << most) - 1
    whole, own = (device.alloc_paging(PASIDS, None) for _ in range(2))
    whole.map(0x10000, 0x800000, 0x1000, RW)
    own.map(0x10000, 0x900000, 0x1000, RW)
    device.attach(own, last)
    assert reach(iommu, 0x10000) is Cause.PDT_NOT_VALID
    device.attach(whole, None)
    assert (reach(iommu, 0x10000), reach(iommu, 0x10000, pasid=last)) == (0x800000, 0x900000)
    assert reach(iommu, 0x10000, pasid=last - 1) is Cause.PDT_NOT_VALID
    device.attach(whole, last)
    assert reach(iommu, 0x10000, pasid=last) == 0x800000
    device.detach(None)
    assert reach(iommu, 0x10000) is Cause.PDT_NOT_VALID
    assert reach(iommu, 0x10000, pasid=last) == 0x800000
    device.detach(last)
    assert reach(iommu, 0x10000, pasid=last) is Cause.DDT_NOT_VALID
    refused(EINVAL, device.attach, own, 1 << most)
    refused(EINVAL, device.attach, own, 0)
    device.attach(own, 1)
    assert reach(iommu, 0x10000, pasid=1) == 0x900000


def test_a_device_without_processes_has_none():
    _, driver = rig()
    device = driver.device(function())
    domain = device.alloc_paging(NONE, None)
    refused(EOPNOTSUPP, device.attach, domain, 3)
    device.detach(3)
    _, small = rig(SMALL)
    assert small.device(function(pasid_bits=20)).features.max_pasids == 0


class Report:
    def __init__(self):
        self.written = []

    def record(self, iova, length):
        self.written.append((iova, length))


@pytest.mark.parametrize("flags", [DIRTY, DIRTY | PARENT])
@pytest.mark.parametrize("pasid_bits", [0, 8])
def test_what_a_device_writes_is_dirty_until_it_is_cleared(flags, pasid_bits):
    iommu, driver = rig()
    device = driver.device(function(pasid_bits=pasid_bits))
    domain = device.alloc_paging(flags, None)
    device.attach(domain, None)
    domain.map(0x10000, 0x20000, 0x10000, RW)
    domain.map(0x200000, 0x400000, 0x200000, RW)
    domain.map(0x5000, 0x9000, 0x1000, RW)
    for iova, want in ((0x5000, READ), (0x1A000, WRITE), (0x234567, WRITE)):
        assert isinstance(reach(iommu, iova, want), int)

    everywhere = Range(0, (1 << 64) - 1)

    def dirty(clear, window=everywhere):
        report = Report()
        domain.read_dirty(window, report, clear)
        return report.written

    refused(EINVAL, domain.read_dirty, Range(0, 1), Report(), False)
    domain.read_dirty(everywhere, None, True)
    domain.set_dirty_tracking(True)
    assert dirty(False) == []
    for iova, want in ((0x5000, READ), (0x1A000, WRITE), (0x234567, WRITE)):
        assert not isinstance(reach(iommu, iova, want), Cause)
    assert dirty(False, Range(0x200000, 0x200FFF)) == [(0x200000, 0x200000)]
    assert dirty(True) == [(0x10000, 0x10000), (0x200000, 0x200000)]
    assert dirty(True) == []
    reach(iommu, 0x5000, WRITE)
    assert dirty(True) == [(0x5000, 0x1000)]


def test_dirty_tracking_needs_hardware_that_sets_flags_and_a_domain_made_for_it():
    _, driver = rig(QEMU)
    device = driver.device(function())
    assert not device.features.dirty_tracking
    refused(EOPNOTSUPP, device.alloc_paging, DIRTY, None)
    domain = device.alloc_paging(NONE, None)
    refused(EOPNOTSUPP, domain.set_dirty_tracking, True)
    refused(EOPNOTSUPP, domain.read_dirty, Range(0, 1), None, True)


class Endpoint:
    """A device that hears invalidations, and answers when it is well."""

    def __init__(self):
        self.heard, self.well = [], True

    def invalidate(self, pasid, first, last):
        self.heard.append((pasid, first, last))
        return self.well


@pytest.mark.parametrize("pasid", [None, 3])
@pytest.mark.parametrize("sid", [SID, 0x43210])
def test_device_tlbs_are_emptied_with_the_iotlb(pasid, sid):
    iommu, driver = rig()
    device = driver.device(Function("nic", (sid, 0x77), pasid_bits=8 if pasid else 0, ats=True))
    assert device.features.ats
    endpoint = Endpoint()
    iommu.connect(sid, endpoint)
    domain = device.alloc_paging(NONE, None)
    device.attach(domain, pasid)
    domain.map(0x5000, 0x9000, 0x1000, RW)
    domain.map(0x200000, 0x800000, 0x200000, RW)
    assert iommu.ats_translate(sid, 0x5000, WRITE, pasid).pa == 0x9000
    assert endpoint.heard == []
    domain.unmap(0x5000, 0x1000)
    domain.unmap(0x200000, 0x200000)
    domain.flush()
    everything = (pasid, 0, (1 << 64) - 1)
    assert endpoint.heard == [(pasid, 0x5000, 0x5FFF), (pasid, 0x200000, 0x3FFFFF)]
    endpoint.well = False
    domain.map(0, 0x801000, 0x1000 * 100, RW)
    domain.unmap(0, 0x1000 * 100)
    domain.flush()
    assert endpoint.heard[2:] == [everything], "a device that does not answer does not stop the queue"
    device.detach(pasid)
    assert endpoint.heard[3:] == [everything]
    domain.free()
    assert len(endpoint.heard) == 4, "it is not attached any more"


def test_without_ats_in_device_and_iommu_nothing_is_sent():
    for capabilities, ats in ((SMALL, True), (FULL, False)):
        iommu, driver = rig(capabilities)
        device = driver.device(Function("nic", (SID,), ats=ats))
        device.attach(device.alloc_paging(NONE, None), None)
        assert not device.features.ats
        with pytest.raises(TranslationFaultError, match="TYPE_DISALLOWED"):
            iommu.ats_translate(SID, 0x5000, READ)


def test_what_there_is_not_is_refused():
    _, driver = rig(SMALL)
    device = driver.device(function())
    refused(EOPNOTSUPP, device.alloc_paging, PARENT, None)
    refused(EOPNOTSUPP, device.alloc_paging, NONE, object())
    domain = device.alloc_paging(NONE, None)
    refused(EOPNOTSUPP, domain.map, 0, 0x1000, 0x1000, Prot.NONE)
    refused(EOPNOTSUPP, device.alloc_nested, domain, 0, None)
    refused(EOPNOTSUPP, device.alloc_viommu, 0, domain, None, None)
    assert (device.hw_info(0), device.viommu_types(), domain.enforce_cache_coherency()) == (None, (), False)
    _, stranger = rig()
    refused(EINVAL, device.attach, stranger.device(function()).alloc_paging(NONE, None), None)


def test_interrupt_messages_have_a_window_where_the_machine_says_so():
    iommu, driver = rig()
    assert driver.device(function()).reserved_regions() == ()
    told = RiscvDriver(driver.memory, iommu, msi_window=(0xFEE00000, 0xFEEFFFFF))
    assert told.device(function()).reserved_regions() == (Reserved(0xFEE00000, 0xFEEFFFFF, ReservedKind.MSI),)


@pytest.mark.parametrize("igs", [0, 1, 2])
def test_faults_are_told_and_taken(igs):
    told = []
    iommu, driver = rig(
        FULL.replace(IGS=igs), interrupt=lambda *msi: told.append("msi"), wire=lambda *w: told.append(w)
    )
    device = driver.device(function(pasid_bits=4))
    device.attach(device.alloc_paging(NONE, None), None)
    reach(iommu, 0x5000, WRITE)
    reach(iommu, 0x6000, READ, pasid=3)
    expected = [(1, True)] if igs == 1 else ["msi"]
    assert told == expected
    first, second = driver.faults.take()
    assert (first.sid, first.pasid, first.iova, first.access) == (SID, None, 0x5000, "write")
    assert (second.pasid, second.iova, second.access, second.reason) == (3, 0x6000, "read", "pdt not valid (266)")
    assert str(first).startswith("DMA write by 00:04.0 at iova 0x5000 is blocked: write page fault (15); <Fault0")
    assert driver.faults.take() == []
    assert told == ([(1, True), (1, False)] if igs == 1 else ["msi"])


@pytest.mark.parametrize("igs", [0, 1])
def test_faults_can_be_taken_whenever_they_are_told(igs):
    """Also at once, from within; and when the queue overflowed while nobody listened."""
    found, deaf = [], []

    def tell(*_):
        if not deaf:
            found.extend(fault.iova for fault in driver.faults.take())

    iommu, driver = rig(FULL.replace(IGS=igs), interrupt=tell, wire=tell)
    driver.device(function())
    for number in range(3):
        reach(iommu, number << 12)
        assert found.pop() == number << 12
    deaf.append(True)
    for number in range(200):
        reach(iommu, number << 12)
    deaf.clear()
    tell()
    assert found == [number << 12 for number in range(127)]
    reach(iommu, 0x7000)
    assert found[127:] == [0x7000]


def test_a_fault_queue_that_overflowed_takes_faults_again():
    iommu, driver = rig()
    driver.device(function())
    for number in range(200):
        reach(iommu, number << 12)
    assert len(driver.faults.take()) == 127
    reach(iommu, 0x7000)
    assert [fault.iova for fault in driver.faults.take()] == [0x7000]


def test_a_map_without_memory_for_tables_leaves_nothing():
    _, driver = rig(ram=8 << 20)
    device = driver.device(function())
    domain = device.alloc_paging(NONE, None)
    with contextlib.suppress(MemoryError):
        while True:
            driver.memory.alloc(4096)
    refused(ENOMEM, domain.map, 0, 0x800000, 0x1000, RW)
    assert domain.iova_to_pa(0) is None
    refused(ENOMEM, device.alloc_paging, NONE, None)
    refused(ENOMEM, driver.device, function(0x9000))


def test_ids_are_given_again_and_end():
    ids = Ids(3)
    assert [ids.take() for _ in range(3)] == [1, 2, 3]
    ids.give(2)
    assert ids.take() == 2
    refused(ENOMEM, ids.take)


@given(st.booleans(), st.lists(st.tuples(st.sampled_from(["take", "claim", "give"]), st.integers(0, 6)), max_size=30))
def test_ids_are_taken_in_turn_and_out_of_turn(descending, steps):
    ids, free, best = Ids(5, descending=descending), set(range(1, 6)), max if descending else min
    for what, number in steps:
        if what == "take" and free:
            taken = ids.take()
            assert taken == best(free)
            free.discard(taken)
        elif what == "take":
            refused(ENOMEM, ids.take)
        elif what == "claim":
            assert ids.claim(number) == (number in free)
            free.discard(number)
        elif 1 <= number <= 5 and number not in free:
            ids.give(number)
            free.add(number)
        assert set(ids) == free
        assert len(ids) == len(free)


def test_hardware_of_another_version_is_not_driven():
    with pytest.raises(ModelError, match="version"):
        rig(FULL.replace(VERSION=0x20))


PASID = 5


class AnyOrder(RuleBasedStateMachine):
    """Maps, unmaps, attaches and requests in any order: a device reaches exactly what its domain holds."""

    @initialize(capabilities=st.sampled_from([FULL, QEMU.replace(MSI_FLAT=0)]))
    def start(self, capabilities):
        self.iommu, self.driver = rig(capabilities)
        self.devices = {
            sid: self.driver.device(function(sid, pasid_bits=8 * (sid == SID))) for sid in (SID, 0x28, 0x43210)
        }
        self.given = self.driver.memory.given
        flags = (NONE, DIRTY if capabilities.AMO_HWAD else NONE, PARENT)
        self.domains = [RiscvDomain(self.driver, kind, kind is not PARENT) for kind in flags]
        self.held = [{} for _ in self.domains]
        self.attached = {(sid, None): None for sid in self.devices} | {(SID, PASID): None}

    places = st.sampled_from([0x10000, 0x11000, 0x1FF000, 0x200000, 0x3FF000, 1 << 30, (1 << 30) + 0x1000])
    routes = st.sampled_from([(SID, None), (SID, PASID), (0x28, None), (0x43210, None)])

    @rule(which=st.integers(0, 2), iova=places, pages=st.sampled_from([1, 2, 3, 16, 80, 512, 513]))
    def map(self, which, iova, pages):
        held = self.held[which]
        wanted = [iova + 0x1000 * n for n in range(pages)]
        if any(page in held for page in wanted):
            return
        pa = (1 << 32) + iova
        self.domains[which].map(iova, pa, 0x1000 * pages, RW)
        held.update({page: (pa + page - iova, iova, pages) for page in wanted})

    @precondition(lambda self: any(self.held))
    @rule(data=st.data())
    def unmap(self, data):
        which = data.draw(st.sampled_from([n for n in range(3) if self.held[n]]))
        held = self.held[which]
        _, iova, pages = held[data.draw(st.sampled_from(sorted(held)))]
        assert self.domains[which].unmap(iova, 0x1000 * pages) == 0x1000 * pages
        self.domains[which].flush()
        for n in range(pages):
            del held[iova + 0x1000 * n]

    @rule(route=routes, which=st.one_of(st.none(), st.integers(0, 2)))
    def attach(self, route, which):
        sid, pasid = route
        device = self.devices[sid]
        if which is None:
            device.detach(pasid)
            self.attached[route] = None
            return
        rid, process = self.attached[SID, None], self.attached[SID, PASID]
        clash = which == 2 or rid == 2 if pasid is not None else sid == SID and which == 2 and process is not None
        if clash:
            refused(EINVAL, device.attach, self.domains[which], pasid)
        else:
            device.attach(self.domains[which], pasid)
            self.attached[route] = which

    @rule(route=routes, iova=places, offset=st.integers(0, 0xFFF), want=st.sampled_from([READ, WRITE]))
    def request(self, route, iova, offset, want):
        which = self.attached[route]
        found = self.held[which].get(iova) if which is not None else None
        got = reach(self.iommu, iova + offset, want, route[1], route[0])
        assert got == found[0] + offset if found else isinstance(got, Cause)

    @invariant()
    def the_queue_is_empty(self):
        if hasattr(self, "iommu"):
            assert self.iommu.read(0x20, 4) == self.iommu.read(0x24, 4)

    def teardown(self):
        if not hasattr(self, "iommu"):
            return
        for sid, pasid in self.attached:
            self.devices[sid].detach(pasid)
        for domain in self.domains:
            domain.unmap(0, 1 << 48)
            domain.flush()
            domain.free()
        assert len(self.iommu.translator.first.cache) + len(self.iommu.translator.second.cache) == 0
        directories = self.driver.memory.given - self.given
        assert directories <= 2 * 4096, "process directories stay, nothing else"


AnyOrder.TestCase.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
test_a_device_reaches_exactly_what_its_domain_holds = AnyOrder.TestCase
