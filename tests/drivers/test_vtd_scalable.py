"""The VT-d driver in scalable mode: stages, PASIDs, dirty tracking, device TLBs; against the model in any order."""

import contextlib
from errno import EOPNOTSUPP

import pytest
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from softiommu.drivers.driver import Device, DomainFlags, PageFault, PageResponse, Prot, Range, Reserved, ReservedKind
from softiommu.drivers.function import Function
from softiommu.drivers.vtd.driver import LINUX_6_12, LINUX_7_2, VtdDriver
from softiommu.errors import UapiError
from softiommu.hardware.iommu import PageRequest, ResponseCode, TranslationFaultError
from softiommu.hardware.vtd.events import Reason
from softiommu.hardware.vtd.model import Unit
from softiommu.hardware.vtd.presets import FULL, QEMU
from softiommu.hardware.vtd.registers import Registers
from softiommu.hardware.vtd.tables import Pasid0, Pasid1, Pgtt
from softiommu.memory.physical import PhysicalMemory
from softiommu.pagetable.formats import x86_64
from softiommu.pagetable.kinds import READ, WRITE

RAM = 64 << 20
RW = Prot.READ | Prot.WRITE
GPU = Function("gpu", (0x20,), pasid_bits=10, ats=True, pri=True)


def rig(unit=FULL, quirks=LINUX_7_2):
    memory = PhysicalMemory(RAM)
    silicon = Unit(memory, *unit)
    return silicon, VtdDriver(memory, silicon, quirks)


def reach(unit, sid, iova, want=READ, pasid=None):
    try:
        return unit.translate(sid, iova, want, pasid).pa
    except TranslationFaultError as fault:
        return Reason(fault.reason)


class DeviceTlb:
    """A device that caches every translation that it asked for, until it is told to forget."""

    def __init__(self, unit, sid):
        self.unit, self.sid, self.held, self.answers = unit, sid, {}, []
        unit.connect(sid, self)

    def read(self, iova, pasid=None):
        page = iova >> 12
        if (pasid, page) not in self.held:
            answer = self.unit.ats_translate(self.sid, iova, READ, pasid)
            if not answer.allowed & READ:
                return None
            self.held[pasid, page] = answer.pa >> 12
        return self.unit.admit_translated(self.sid, self.held[pasid, page] << 12 | iova & 0xFFF, READ).pa

    def invalidate(self, pasid, first, last):
        for key in [key for key in self.held if key[0] == pasid and first >> 12 <= key[1] <= last >> 12]:
            del self.held[key]
        return True

    def page_response(self, pasid, group, code):
        self.answers.append((pasid, group, code))


def test_a_device_tlb_forgets_what_is_unmapped_or_replaced():
    unit, driver = rig()
    device = driver.device(GPU)
    assert device.features.ats
    tlb = DeviceTlb(unit, 0x20)
    base, other = (device.alloc_paging(DomainFlags.PASID, None) for _ in range(2))
    base.map(0x10000, 0x800000, 0x4000, RW)
    other.map(0x10000, 0x900000, 0x1000, RW)
    device.attach(base, None)
    device.attach(base, 7)
    assert [tlb.read(0x10000, pasid) for pasid in (None, 7)] == [0x800000, 0x800000]
    base.unmap(0x10000, 0x1000)
    assert tlb.read(0x10000) == 0x800000  # until the flush
    base.flush()
    assert [tlb.read(0x10000, pasid) for pasid in (None, 7)] == [None, None]
    assert tlb.read(0x11000, 7) == 0x801000
    device.attach(other, 7)
    assert [tlb.read(0x11000, 7), tlb.read(0x10000, 7)] == [None, 0x900000]
    assert tlb.read(0x11000) == 0x801000


def test_a_device_tlb_that_does_not_answer_keeps_nobody_waiting():
    unit, driver = rig()
    device = driver.device(GPU)
    domain = device.alloc_paging(DomainFlags.NONE, None)
    domain.map(0x10000, 0x800000, 0x1000, RW)
    device.attach(domain, None)
    assert domain.unmap(0x10000, 0x1000) == 0x1000
    domain.flush()  # no device is connected: the hardware's time-out
    assert reach(unit, 0x20, 0x10000) is Reason.FIRST_NOT_PRESENT
    assert unit.registers.FSTS.ITE == 0


def test_page_requests_reach_who_hears_them_and_are_answered():
    memory = PhysicalMemory(RAM)
    unit = Unit(memory, *FULL, interrupt=lambda address, data: driver.service())
    driver = VtdDriver(memory, unit)
    device = driver.device(GPU)
    assert device.features.page_faults
    tlb = DeviceTlb(unit, 0x20)
    unit.page_request(PageRequest(0x20, 0x5000, READ, 1, True))
    assert tlb.answers == [(None, 1, ResponseCode.INVALID)]
    heard = []
    device.on_fault = heard.append
    unit.page_request(PageRequest(0x20, 0x5000, READ | WRITE, 2, False, 7, True))
    unit.page_request(PageRequest(0x20, 0x6000, READ, 2, True, 7))
    assert heard == [PageFault(7, 2, False, 11, 0x5000), PageFault(7, 2, True, 1, 0x6000)]
    device.page_response(heard, PageResponse.SUCCESS)
    assert tlb.answers[1:] == [(7, 2, ResponseCode.SUCCESS)]
    assert unit.registers.PQH == unit.registers.PQT


def test_a_flood_of_page_requests_is_served_again_after_an_overflow():
    unit, driver = rig()  # no message comes: the queue fills
    device = driver.device(GPU)
    tlb = DeviceTlb(unit, 0x20)
    device.on_fault = (heard := []).append
    for group in range(2100):
        unit.page_request(PageRequest(0x20, 0x5000, READ, group % 512, True))
    assert len(tlb.answers) == 2100 - 2047
    driver.service()
    assert len(heard) == 2047
    unit.page_request(PageRequest(0x20, 0x5000, READ, 9, True))
    driver.service()
    assert len(heard) == 2048


def test_a_function_without_page_requests_has_none():
    unit, driver = rig(QEMU["vtd-sm"])
    assert not driver.device(GPU).features.page_faults
    driver.service()
    assert unit.registers.PQA == 0


class Report:
    def __init__(self):
        self.found = []

    def record(self, iova, length):
        self.found.append((iova, length))


def test_dirty_pages_are_those_that_were_written_while_tracking():
    unit, driver = rig()
    device = driver.device(GPU)
    assert device.features.dirty_tracking
    domain = device.alloc_paging(DomainFlags.DIRTY_TRACKING, None)
    domain.map(0x10000, 0x800000, 0x4000, RW)
    device.attach(domain, None)
    reach(unit, 0x20, 0x10000, WRITE)
    domain.set_dirty_tracking(True)
    assert reach(unit, 0x20, 0x11000, WRITE) == 0x801000
    reach(unit, 0x20, 0x12000, READ)
    window = Range(0x10000, 0x13FFF)
    assert dirty(domain, window, clear=False) == [(0x11000, 0x1000)]
    assert dirty(domain, window, clear=True) == [(0x11000, 0x1000)]
    assert dirty(domain, window, clear=True) == []
    reach(unit, 0x20, 0x11000, WRITE)
    domain.read_dirty(window, None, clear=True)
    assert dirty(domain, window, clear=True) == []
    reach(unit, 0x20, 0x12000, WRITE)
    assert dirty(domain, window, clear=True) == [(0x12000, 0x1000)]
    domain.set_dirty_tracking(False)
    reach(unit, 0x20, 0x13000, WRITE)
    assert dirty(domain, window, clear=True) == []


def dirty(domain, window, clear):
    report = Report()
    domain.read_dirty(window, report, clear)
    return report.found


def test_a_domain_without_dirty_tracking_refuses_it():
    _, driver = rig()
    domain = driver.device(GPU).alloc_paging(DomainFlags.NONE, None)
    with pytest.raises(UapiError, match="without dirty tracking"):
        domain.set_dirty_tracking(True)
    with pytest.raises(UapiError, match="without dirty tracking"):
        domain.read_dirty(Range(0, 0xFFF), None, clear=False)


def test_the_stage_follows_the_kernel_and_what_is_asked():
    for quirks, first in ((LINUX_7_2, True), (LINUX_6_12, False)):
        _, driver = rig(FULL, quirks)
        device = driver.device(GPU)
        assert device.alloc_paging(DomainFlags.NONE, None).first == first
        assert not device.alloc_paging(DomainFlags.DIRTY_TRACKING, None).first
        assert not device.alloc_paging(DomainFlags.NEST_PARENT, None).first
    _, driver = rig(QEMU["vtd-sm"])
    assert not driver.device(GPU).alloc_paging(DomainFlags.NONE, None).first
    assert driver.device(GPU).features.max_pasids == 0


def test_software_that_does_not_want_scalable_mode_gets_legacy_mode():
    memory = PhysicalMemory(RAM)
    unit = Unit(memory, *FULL)
    driver = VtdDriver(memory, unit, scalable=False)
    device = driver.device(GPU)
    domain = device.alloc_paging(DomainFlags.NONE, None)
    domain.map(0x10000, 0x800000, 0x1000, RW)
    device.attach(domain, None)
    assert reach(unit, 0x20, 0x10000) == 0x800000
    assert DeviceTlb(unit, 0x20).read(0x10000) == 0x800000
    with pytest.raises(UapiError, match="no PASIDs"):
        device.attach(domain, 1)


def test_a_unit_that_was_left_on_is_set_up_anew():
    unit, old = rig()
    device = old.device(GPU)
    domain = device.alloc_paging(DomainFlags.NONE, None)
    domain.map(0x10000, 0x800000, 0x1000, RW)
    device.attach(domain, None)
    assert reach(unit, 0x20, 0x10000) == 0x800000
    unit.write(Registers.IQT.offset, 8, 1 << 18)
    assert unit.registers.FSTS.IQE
    driver = VtdDriver(old.memory, unit)
    assert unit.registers.FSTS.IQE == 0
    assert reach(unit, 0x20, 0x10000) is Reason.SCALABLE_ROOT_NOT_PRESENT
    fresh = driver.device(GPU).alloc_paging(DomainFlags.NONE, None)
    fresh.map(0x10000, 0x900000, 0x1000, RW)
    driver.device(GPU).attach(fresh, None)
    assert reach(unit, 0x20, 0x10000) == 0x900000


def test_coherency_of_a_first_stage_is_in_the_pasid_entry():
    unit, driver = rig()
    device = driver.device(GPU)
    domain = device.alloc_paging(DomainFlags.NONE, None)
    domain.map(0x10000, 0x800000, 0x1000, RW)
    device.attach(domain, None)
    at = driver.routes.reserve(0x20, None)
    assert not domain.cache_coherent
    assert domain.enforce_cache_coherency()
    assert Pasid1(driver.memory.read_u64(at + 8)).PGSNP == 1
    assert Pasid0(driver.memory.read_u64(at)).PGTT == Pgtt.FIRST
    assert domain.cache_coherent
    assert reach(unit, 0x20, 0x10000) == 0x800000


def test_a_first_stage_is_written_with_its_flags_ahead():
    _, driver = rig()
    domain = driver.device(GPU).alloc_paging(DomainFlags.NONE, None)
    domain.map(0x10000, 0x800000, 0x1000, RW)
    domain.map(0x20000, 0x900000, 0x1000, Prot.READ)
    writable, readable = domain.pages.leaves(0, 1 << 40)
    assert writable.pte & (x86_64.A | x86_64.D | x86_64.RW) == x86_64.A | x86_64.D | x86_64.RW
    assert readable.pte & (x86_64.A | x86_64.D | x86_64.RW) == x86_64.A


def test_what_nobody_has_is_refused():
    unit, driver = rig()
    device = driver.device(GPU)
    domain = device.alloc_paging(DomainFlags.NONE, None)
    for refused in (
        lambda: device.alloc_paging(DomainFlags.NONE, "data"),
        lambda: device.alloc_viommu(1, domain, None, None),
    ):
        with pytest.raises(UapiError) as error:
            refused()
        assert error.value.errno == EOPNOTSUPP
    assert device.viommu_types() == ()
    assert device.hw_info(2) is None
    assert device.reserved_regions() == (Reserved(0xFEE00000, 0xFEEFFFFF, ReservedKind.MSI),)
    device.detach(1 << 20)  # a PASID that it cannot have had
    assert reach(unit, 0x20, 0) is Reason.PASID_DIRECTORY_NOT_PRESENT


def test_a_unit_has_so_many_domains_and_gives_ids_again():
    _, driver = rig(FULL._replace(cap=FULL.cap.replace(ND=0)))
    device = driver.device(GPU)
    domains = [device.alloc_paging(DomainFlags.NONE, None) for _ in range(15)]
    with pytest.raises(UapiError, match="every domain id"):
        device.alloc_paging(DomainFlags.NONE, None)
    domains[4].free()
    assert device.alloc_paging(DomainFlags.NONE, None).did == 5


def test_a_map_that_runs_out_of_memory_is_undone():
    unit, driver = rig()
    device = driver.device(GPU)
    domain = device.alloc_paging(DomainFlags.NONE, None)
    device.attach(domain, None)
    domain.map(0x10000, 0x800000, 0x1000, RW)
    with contextlib.suppress(MemoryError):
        while True:
            driver.memory.alloc(4096)
    with pytest.raises(UapiError, match="no memory"):
        domain.map(0x1FF000, 0x900000, 0x2000, RW)  # the second page needs a table
    assert reach(unit, 0x20, 0x1FF000) is Reason.FIRST_NOT_PRESENT
    assert reach(unit, 0x20, 0x10000) == 0x800000


def test_many_changes_forget_the_domain_at_once():
    unit, driver = rig()
    device = driver.device(GPU._replace(ats=False))
    domain = device.alloc_paging(DomainFlags.NONE, None)
    device.attach(domain, None)
    for number in range(12):
        domain.map(0x100000 * number, 0x800000, 0x1000, RW)
        reach(unit, 0x20, 0x100000 * number)
    head = unit.registers.IQH.OFFSET
    for number in range(12):
        domain.unmap(0x100000 * number, 0x1000)
    domain.flush()
    assert (unit.registers.IQH.OFFSET - head) * 16 == 2 * 32  # one command and its wait
    assert {reach(unit, 0x20, 0x100000 * number) for number in range(12)} == {Reason.FIRST_NOT_PRESENT}


@pytest.mark.parametrize("unit", [FULL, FULL._replace(cap=FULL.cap.replace(CM=1))], ids=["plain", "caching"])
def test_a_device_tlb_in_legacy_mode_follows_its_stream(unit):
    memory = PhysicalMemory(RAM)
    silicon = Unit(memory, *unit)
    driver = VtdDriver(memory, silicon, scalable=False)
    tlb = DeviceTlb(silicon, 0x20)
    device = driver.device(GPU)
    one, two = (device.alloc_paging(DomainFlags.NONE, None) for _ in range(2))
    for domain, pa in ((one, 0x800000), (two, 0x900000)):
        domain.map(0x10000, pa, 0x1000, RW)
        device.attach(domain, None)
        assert tlb.read(0x10000) == pa


def test_no_pasid_attaches_where_dirty_pages_are_tracked():
    _, driver = rig()
    device = driver.device(GPU)
    with pytest.raises(UapiError, match="no PASID attaches"):
        device.attach(device.alloc_paging(DomainFlags.DIRTY_TRACKING | DomainFlags.PASID, None), 3)


@pytest.mark.parametrize("cm", [0, 1])
def test_a_unit_in_caching_mode_hears_of_every_new_entry(cm):
    unit, driver = rig(FULL._replace(cap=FULL.cap.replace(CM=cm)))
    device = driver.device(GPU)
    domain = device.alloc_paging(DomainFlags.NONE, None)
    device.attach(domain, None)
    before = unit.registers.IQH
    domain.map(0x10000, 0x800000, 0x1000, RW)
    assert (unit.registers.IQH != before) == bool(cm)
    assert reach(unit, 0x20, 0x10000) == 0x800000


class Scalable(RuleBasedStateMachine):
    """Maps, unmaps, attaches and requests in any order: each route reaches exactly what its domain holds."""

    flags = DomainFlags.PASID
    routes = ((0x20, None), (0x20, 5), (0x20, 700), (0x300, None))

    @initialize()
    def start(self):
        self.unit, self.driver = rig()
        twins = [
            Function(f"gpu{n}", sids, "twins", pasid_bits=10) for n, sids in enumerate([(0x20, 0x28), (0x28, 0x20)])
        ]
        functions = [*twins, Function("nic", (0x300,))]
        self.devices: dict[int, Device] = {f.sids[0]: self.driver.device(f) for f in functions}
        self.domains = [self.devices[0x20].alloc_paging(self.flags, None) for _ in range(2)]
        self.held = [{}, {}]
        self.attached = dict.fromkeys(self.routes)

    places = st.sampled_from([0x10000, 0x11000, 0x1FF000, 0x200000, 0x3FF000, 1 << 30, (1 << 30) + 0x1000])

    @rule(which=st.integers(0, 1), iova=places, pages=st.sampled_from([1, 2, 3, 512, 513]))
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
        which = data.draw(st.sampled_from([n for n in (0, 1) if self.held[n]]))
        held = self.held[which]
        _, iova, pages = held[data.draw(st.sampled_from(sorted(held)))]
        assert self.domains[which].unmap(iova, 0x1000 * pages) == 0x1000 * pages
        self.domains[which].flush()
        for n in range(pages):
            del held[iova + 0x1000 * n]

    @rule(data=st.data(), which=st.one_of(st.none(), st.integers(0, 1)))
    def attach(self, data, which):
        sid, pasid = data.draw(st.sampled_from(self.routes))
        if which is None:
            self.devices[sid].detach(pasid)
        else:
            self.devices[sid].attach(self.domains[which], pasid)
        self.attached[sid, pasid] = which

    @rule(data=st.data(), iova=places, offset=st.integers(0, 0xFFF))
    def request(self, data, iova, offset):
        route = data.draw(st.sampled_from(self.routes))
        which = self.attached[route]
        found = self.held[which].get(iova) if which is not None else None
        for sid in self.devices[route[0]].function.sids:
            got = reach(self.unit, sid, iova + offset, WRITE, route[1])
            assert got == found[0] + offset if found else isinstance(got, Reason)

    @invariant()
    def the_queue_is_empty(self):
        if hasattr(self, "unit"):
            assert self.unit.registers.IQH == self.unit.registers.IQT

    def teardown(self):
        if not hasattr(self, "unit"):
            return
        for sid, pasid in self.routes:
            self.devices[sid].detach(pasid)
        given = self.driver.memory.given
        tables = sum(4096 * (len(domain.pages._tables) + 1) for domain in self.domains)
        for domain in self.domains:
            domain.free()
        assert len(self.unit.caches.iotlb.cache) == 0
        assert self.driver.memory.given == given - tables


class SecondStage(Scalable):
    """The same with second-stage tables, which no PASID uses while they track dirty pages."""

    flags = DomainFlags.DIRTY_TRACKING
    routes = ((0x20, None), (0x300, None))


calm = settings(max_examples=30, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck))
Scalable.TestCase.settings = SecondStage.TestCase.settings = calm
test_first_stages_reach_exactly_what_is_mapped = Scalable.TestCase
test_second_stages_reach_exactly_what_is_mapped = SecondStage.TestCase
