"""The SMMUv3 driver over the SMMUv3 model: what is mapped is reached, what is unmapped is not, and nothing is left."""

import contextlib

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from softiommu.abi.iommufd import HwInfoArmSmmuv3
from softiommu.drivers.driver import DomainFlags, Prot, Range, ReservedKind
from softiommu.drivers.function import Function
from softiommu.drivers.smmuv3.domain import SmmuDomain
from softiommu.drivers.smmuv3.driver import LINUX_6_12, SmmuDriver
from softiommu.drivers.smmuv3.queue import atc_inv
from softiommu.errors import ModelError, UapiError
from softiommu.hardware.iommu import TranslationFaultError
from softiommu.hardware.smmuv3.events import Event
from softiommu.hardware.smmuv3.model import Smmu
from softiommu.hardware.smmuv3.presets import FULL, QEMU
from softiommu.memory.physical import PhysicalMemory
from softiommu.pagetable.engine import Run
from softiommu.pagetable.kinds import READ, WRITE

RAM = 64 << 20
RW = Prot.READ | Prot.WRITE
HOST = FULL._replace(idr0=FULL.idr0.replace(HYP=1))
ONLY_2 = FULL._replace(
    idr0=FULL.idr0.replace(S1P=0, ASID16=0, CD2L=0), idr1=FULL.idr1.replace(SSIDSIZE=0), idr3=FULL.idr3.replace(RIL=0)
)
LINEAR = QEMU._replace(idr0=QEMU.idr0.replace(ST_LEVEL=0), idr1=QEMU.idr1.replace(SIDSIZE=10, CMDQS=1, EVENTQS=1))
BIG_PAGES = FULL._replace(idr5=FULL.idr5.replace(GRAN4K=0, GRAN16K=0, DS=0))
MIDDLE_PAGES = FULL._replace(idr5=FULL.idr5.replace(GRAN4K=0))
FORCED = FULL._replace(idr0=FULL.idr0.replace(STALL_MODEL=2))
UNITS = {
    "full": FULL,
    "qemu": QEMU,
    "host": HOST,
    "stage-2": ONLY_2,
    "linear": LINEAR,
    "64k": BIG_PAGES,
    "16k": MIDDLE_PAGES,
    "stalls": FORCED,
}
EDU = Function("edu", (0x20,))


def rig(identity=FULL, **keys):
    memory = PhysicalMemory(RAM)
    unit = Smmu(memory, identity, **keys)
    return unit, SmmuDriver(memory, unit)


def reach(unit, sid, iova, want=READ, pasid=None):
    try:
        return unit.translate(sid, iova, want, pasid).pa
    except TranslationFaultError as fault:
        return Event(fault.reason)


@pytest.mark.parametrize("name", UNITS)
def test_a_device_reaches_what_its_domain_maps_and_is_blocked_without_one(name):
    unit, driver = rig(UNITS[name])
    device = driver.device(EDU)
    assert reach(unit, 0x20, 0x1000) is Event.SILENT
    domain = device.alloc_paging(DomainFlags.NONE, None)
    domain.map(0x10000, 0x800000, 0x30000, RW)
    device.attach(domain, None)
    assert reach(unit, 0x20, 0x12004, WRITE) == 0x802004
    assert reach(unit, 0x20, 0x40000) is Event.F_TRANSLATION
    device.detach(None)
    assert reach(unit, 0x20, 0x10000) is Event.SILENT
    domain.free()


@pytest.mark.parametrize(
    ("name", "sizes", "width"),
    [
        ("full", 0x40201000, 48),
        ("qemu", 0x40201000, 48),
        ("stage-2", 0x40201000, 48),
        ("64k", 0x20010000, 48),
        ("16k", 0x2004000, 48),
    ],
)
def test_page_sizes_and_apertures_are_the_kernels(name, sizes, width):
    _, driver = rig(UNITS[name])
    domain = driver.device(EDU).alloc_paging(DomainFlags.NONE, None)
    assert (domain.page_sizes, domain.aperture) == (sizes, (0, (1 << width) - 1))


@pytest.mark.parametrize(
    ("oas", "width", "top"), [(0, 32, 2), (1, 36, 2), (2, 40, 2), (3, 42, 2), (4, 44, 3), (5, 48, 3)]
)
def test_stage_2_is_as_wide_as_physical_addresses(oas, width, top):
    identity = FULL._replace(idr5=FULL.idr5.replace(OAS=oas, DS=0))
    unit, driver = rig(identity)
    device = driver.device(EDU)
    domain = device.alloc_paging(DomainFlags.NEST_PARENT, None)
    assert (domain.aperture.last, domain.pages.table.top) == ((1 << width) - 1, top)
    device.attach(domain, None)
    domain.map((1 << width) - 0x1000, 0x800000, 0x1000, RW)
    assert reach(unit, 0x20, (1 << width) - 0x1000) == 0x800000


def test_replacing_a_domain_forgets_the_old_one():
    unit, driver = rig()
    device = driver.device(EDU)
    first, second = (device.alloc_paging(DomainFlags.NONE, None) for _ in range(2))
    parent = device.alloc_paging(DomainFlags.NEST_PARENT, None)
    for number, domain in enumerate((first, second, parent)):
        domain.map(0x10000, 0x800000 + (number << 20), 0x1000, RW)
    for number, domain in enumerate((first, second, parent, first, parent)):
        device.attach(domain, None)
        assert reach(unit, 0x20, 0x10000) == 0x800000 + ((0, 1, 2, 0, 2)[number] << 20)
    assert (first.id, second.id, parent.id) == (1, 2, 1)


@pytest.mark.parametrize("name", ["full", "qemu", "host", "stage-2", "linear"])
def test_an_unmap_takes_effect_at_its_flush(name):
    unit, driver = rig(UNITS[name])
    device = driver.device(EDU)
    domain = device.alloc_paging(DomainFlags.NONE, None)
    device.attach(domain, None)
    domain.map(0x200000, 0x800000, 0x400000, RW)
    assert reach(unit, 0x20, 0x200000) == 0x800000
    assert domain.unmap(0x200000, 0x400000) == 0x400000
    assert reach(unit, 0x20, 0x200000) == 0x800000
    domain.flush()
    assert reach(unit, 0x20, 0x200000) is Event.F_TRANSLATION


@settings(max_examples=60, deadline=None)
@given(pages=st.integers(1, 3000), start=st.integers(0, 600), leaf=st.booleans())
def test_range_commands_cover_what_was_removed_and_nothing_else(pages, start, leaf):
    _, driver = rig()
    domain = SmmuDomain(driver, DomainFlags.NONE, True)
    domain._removed = [Run(start << 12, pages << 12, 12)]
    at = start
    for low, high in domain._ranges(leaf):
        assert (high.ADDR, high.TG, high.TTL) == (at, 1, 3 if leaf else 0)
        assert low.NUM or low.SCALE or high.TTL
        at += (low.NUM + 1) << low.SCALE
    assert at == start + pages + (not leaf and pages & 31 == 1)


def test_many_small_changes_forget_the_address_space():
    unit, driver = rig(QEMU._replace(idr3=QEMU.idr3.replace(RIL=0)))
    device = driver.device(EDU)
    domain = device.alloc_paging(DomainFlags.NONE, None)
    device.attach(domain, None)
    for number in range(200):
        domain.map(0x10000 + 0x2000 * number, 0x800000, 0x1000, RW)
        assert reach(unit, 0x20, 0x10000 + 0x2000 * number) == 0x800000
    before = driver.queue._prod
    domain.unmap(0x10000, 0x2000 * 200)
    domain.flush()
    assert driver.queue._prod - before in (2, 2 - 8192)  # TLBI_NH_ASID and SYNC
    assert all(reach(unit, 0x20, 0x10000 + 0x2000 * n) is Event.F_TRANSLATION for n in range(200))


@pytest.mark.parametrize("name", ["full", "stage-2"])
def test_an_id_is_used_again_when_nothing_is_cached_under_it(name):
    unit, driver = rig(UNITS[name])
    device = driver.device(EDU)
    for pa in (0x800000, 0x900000):
        domain = device.alloc_paging(DomainFlags.NONE, None)
        domain.map(0x10000, pa, 0x1000, RW)
        device.attach(domain, None)
        assert (domain.id, reach(unit, 0x20, 0x10000)) == (1, pa)
        device.detach(None)
        domain.free()


def test_every_stream_of_a_function_is_routed():
    unit, driver = rig()
    device = driver.device(Function("edu2", (0x208, 0x200, 0x1210)))
    domain = device.alloc_paging(DomainFlags.NONE, None)
    domain.map(0x10000, 0x800000, 0x1000, RW)
    device.attach(domain, None)
    assert [reach(unit, sid, 0x10000) for sid in device.function.sids] == [0x800000] * 3
    device.detach(None)
    assert [reach(unit, sid, 0x10000) for sid in device.function.sids] == [Event.SILENT] * 3


@pytest.mark.parametrize(("bits", "name"), [(4, "full"), (16, "full"), (16, "host")])
def test_pasids_have_domains_of_their_own(bits, name):
    unit, driver = rig(UNITS[name])
    device = driver.device(Function("gpu", (0x20,), pasid_bits=bits))
    last = (1 << bits) - 1
    assert device.features.max_pasids == 1 << bits
    base, other = (device.alloc_paging(DomainFlags.PASID, None) for _ in range(2))
    for domain, pa in ((base, 0x800000), (other, 0x900000)):
        domain.map(0x10000, pa, 0x2000, RW)
    device.attach(other, last)  # the stream itself is blocked
    assert reach(unit, 0x20, 0x10000) is Event.F_STREAM_DISABLED
    assert reach(unit, 0x20, 0x10000, pasid=last) == 0x900000
    device.attach(base, None)
    device.attach(base, 5)
    assert [reach(unit, 0x20, 0x10000, pasid=pasid) for pasid in (None, 5, last)] == [0x800000, 0x800000, 0x900000]
    assert base.unmap(0x10000, 0x1000) == 0x1000
    base.flush()
    assert [reach(unit, 0x20, 0x10000, pasid=pasid) for pasid in (None, 5)] == [Event.F_TRANSLATION] * 2
    device.attach(other, 5)
    device.detach(None)
    assert reach(unit, 0x20, 0x10000, pasid=5) == 0x900000
    assert reach(unit, 0x20, 0x10000) is Event.F_STREAM_DISABLED
    device.detach(last)
    assert reach(unit, 0x20, 0x10000, pasid=last) is Event.C_BAD_CD
    device.detach(5)
    device.detach(5)
    assert reach(unit, 0x20, 0x10000, pasid=5) is Event.SILENT
    for bad in (0, last + 1):
        with pytest.raises(UapiError, match="has no PASID"):
            device.attach(other, bad)


def test_stage_2_and_pasids_do_not_go_together():
    _, driver = rig()
    device = driver.device(Function("gpu", (0x20,), pasid_bits=4))
    parent, base = device.alloc_paging(DomainFlags.NEST_PARENT, None), device.alloc_paging(DomainFlags.PASID, None)
    with pytest.raises(UapiError, match="stage 1"):
        device.attach(parent, 1)
    device.attach(parent, None)
    with pytest.raises(UapiError, match="no PASIDs"):
        device.attach(base, 1)
    device.attach(base, None)
    device.attach(base, 1)
    with pytest.raises(UapiError, match="in use"):
        device.attach(parent, None)


class Report:
    def __init__(self):
        self.found = []

    def record(self, iova, length):
        self.found.append((iova, length))


def test_writes_are_tracked_and_cleared():
    unit, driver = rig()
    device = driver.device(EDU)
    assert device.features.dirty_tracking
    domain = device.alloc_paging(DomainFlags.DIRTY_TRACKING, None)
    domain.map(0x10000, 0x800000, 0x4000, RW)
    domain.map(0x20000, 0x900000, 0x1000, Prot.READ)
    device.attach(domain, None)
    window, report = Range(0, (1 << 48) - 1), Report()
    domain.read_dirty(window, None, True)  # what is mapped counts as written
    domain.set_dirty_tracking(True)
    assert reach(unit, 0x20, 0x10000) == 0x800000
    domain.read_dirty(window, report, True)
    assert report.found == []
    for _ in range(2):
        assert reach(unit, 0x20, 0x11000, WRITE) == 0x801000
        domain.read_dirty(window, report, True)
    assert report.found == [(0x11000, 0x1000)] * 2
    assert reach(unit, 0x20, 0x20000, WRITE) is Event.F_PERMISSION
    plain = device.alloc_paging(DomainFlags.NONE, None)
    for call in (lambda: plain.set_dirty_tracking(True), lambda: plain.read_dirty(window, None, True)):
        with pytest.raises(UapiError, match="without dirty tracking"):
            call()


class Endpoint:
    def __init__(self, unit):
        self.unit, self.heard, self.answers = unit, [], True

    def invalidate(self, pasid, first, last):
        self.heard.append((pasid, first, last))
        return self.answers

    def page_response(self, pasid, group, code):
        raise AssertionError("nobody asked")


def test_device_tlbs_are_emptied():
    unit, driver = rig()
    device = driver.device(Function("nic", (0x20,), ats=True))
    assert device.features.ats
    endpoint = Endpoint(unit)
    unit.connect(0x20, endpoint)
    domain = device.alloc_paging(DomainFlags.NONE, None)
    domain.map(0x10000, 0x800000, 0x4000, RW)
    device.attach(domain, None)
    assert unit.ats_translate(0x20, 0x10000, READ).pa == 0x800000
    endpoint.heard.clear()
    domain.unmap(0x11000, 0x1000)
    domain.flush()
    assert endpoint.heard == [(None, 0x11000, 0x11FFF)]
    endpoint.answers = False
    device.detach(None)
    assert endpoint.heard[1:] == [(None, 0, 2**64 - 1)]
    with pytest.raises(TranslationFaultError):
        unit.ats_translate(0x20, 0x10000, READ)


def test_a_device_tlb_that_does_not_answer_stops_nobody():
    unit, driver = rig(FULL, wired=lambda wire: driver.faults.take())
    device = driver.device(Function("nic", (0x20,), ats=True))
    endpoint = Endpoint(unit)
    endpoint.answers = False
    unit.connect(0x20, endpoint)
    domain = device.alloc_paging(DomainFlags.NONE, None)
    device.attach(domain, None)
    for _ in range(3):
        domain.map(0x10000, 0x800000, 0x4000, RW)
        domain.unmap(0x10000, 0x4000)
        domain.flush()
    assert len(endpoint.heard) == 4
    assert unit.registers.GERROR == unit.registers.GERRORN
    with pytest.raises(ModelError, match="ILL"):
        driver.queue.submit((0xFF, 0))


def test_errors_of_other_queues_are_acknowledged():
    unit, driver = rig(FULL)
    unit.signals.error("EVENTQ_ABT")
    driver.faults.take()
    assert unit.registers.GERROR == unit.registers.GERRORN


@pytest.mark.parametrize(
    ("first", "last", "size", "at"), [(0x1000, 0x1FFF, 0, 1), (0x1000, 0x2FFF, 2, 0), (0, 2**64 - 1, 52, 0)]
)
def test_an_atc_invalidation_covers_its_range(first, last, size, at):
    _, where = atc_inv(0, None, first, last)
    assert (where.SIZE, where.ADDR) == (size, at)


def test_what_was_blocked_is_told_and_stalls_are_aborted():
    told = []
    resumed = []
    unit, driver = rig(
        FORCED,
        wired=lambda wire: told.extend(str(blocked) for blocked in driver.faults.take()),
        resumed=lambda *how: resumed.append(how),
    )
    device = driver.device(EDU)
    domain = device.alloc_paging(DomainFlags.NONE, None)
    device.attach(domain, None)
    assert reach(unit, 0x20, 0x1234, WRITE) is Event.F_TRANSLATION
    assert told[0].startswith("DMA write by 00:04.0 at iova 0x1234 is blocked: f translation (0x10); ")
    assert len(resumed) == 1
    assert unit.stalls.waiting == {}
    assert reach(unit, 0x21, 0) is Event.SILENT
    assert reach(unit, 0x1234567, 0) is Event.C_BAD_STREAMID
    assert "c bad streamid (0x2)" in told[1]


def test_a_map_without_memory_for_tables_leaves_nothing():
    _, driver = rig()
    domain = driver.device(EDU).alloc_paging(DomainFlags.NONE, None)
    driver.memory.alloc(RAM // 2)
    with contextlib.suppress(MemoryError):
        while True:
            driver.memory.alloc(4096)
    with pytest.raises(UapiError, match="no memory for a page table"):
        domain.map(0, 0x800000, 0x1000, RW)
    assert domain.iova_to_pa(0) is None
    with pytest.raises(UapiError, match="no memory for a page table"):
        SmmuDomain(driver, DomainFlags.NONE, True)
    with pytest.raises(UapiError, match="no memory for stream table entries"):
        driver.device(Function("far", (0x5000,)))
    with pytest.raises(UapiError, match="no memory for a table of context descriptors"):
        driver.device(EDU).attach(domain, None)


def test_a_stream_table_that_does_not_fit_is_refused():
    with pytest.raises(UapiError, match="no memory for the stream table"):
        rig(QEMU._replace(idr0=QEMU.idr0.replace(ST_LEVEL=0), idr1=QEMU.idr1.replace(SIDSIZE=32)))
    unit, driver = rig(QEMU._replace(idr1=QEMU.idr1.replace(SIDSIZE=32)))
    device = driver.device(Function("far", (0x1FFFFFF,)))
    domain = device.alloc_paging(DomainFlags.NONE, None)
    domain.map(0x10000, 0x800000, 0x1000, RW)
    device.attach(domain, None)
    assert reach(unit, 0x1FFFFFF, 0x10000) == 0x800000


def test_what_there_is_not_is_refused():
    _, driver = rig(QEMU)
    device = driver.device(EDU)
    for flags in (DomainFlags.DIRTY_TRACKING, DomainFlags.NEST_PARENT | DomainFlags.PASID):
        with pytest.raises(UapiError):
            device.alloc_paging(flags, None)
    _, second = rig(ONLY_2)
    for flags in (DomainFlags.NEST_PARENT, DomainFlags.PASID):
        with pytest.raises(UapiError, match="no domain is made"):
            second.device(EDU).alloc_paging(flags, None)
    domain = device.alloc_paging(DomainFlags.NONE, None)
    with pytest.raises(UapiError, match="no PASIDs together"):
        device.attach(domain, 3)
    with pytest.raises(UapiError, match="not of the IOMMU"):
        second.device(EDU).attach(domain, None)
    with pytest.raises(UapiError, match="without any right"):
        domain.map(0, 0x800000, 0x1000, Prot.NONE)
    with pytest.raises(UapiError, match="no place"):
        driver.device(Function("far", (1 << 20,)))
    assert second.device(EDU).viommu_types() == ()
    assert not domain.enforce_cache_coherency()


def test_a_device_tells_of_its_hardware():
    _, driver = rig(QEMU)
    device = driver.device(EDU)
    info = HwInfoArmSmmuv3.from_bytes(device.hw_info(0).data)
    assert (info.idr0, info.idr1, info.idr3, info.idr5, info.flags) == (*map(int, QEMU[:4]), 0)
    assert device.hw_info(1) is None
    (region,) = device.reserved_regions()
    assert region == (0x8000000, 0x80FFFFF, ReservedKind.SW_MSI)


def test_an_older_kernel_knows_less():
    memory = PhysicalMemory(RAM)
    device = SmmuDriver(memory, Smmu(memory, FULL), LINUX_6_12).device(EDU)
    assert device.hw_info(0) is None
    for flags in (DomainFlags.NEST_PARENT, DomainFlags.PASID):
        with pytest.raises(UapiError, match="this kernel makes no domain"):
            device.alloc_paging(flags, None)
    for flags in (DomainFlags.NONE, DomainFlags.DIRTY_TRACKING):
        assert device.alloc_paging(flags, None).first


def test_a_wrong_command_is_a_bug_of_ours():
    _, driver = rig()
    with pytest.raises(ModelError, match="ILL"):
        driver.queue.submit((0xFF, 0))


class AnyOrder(RuleBasedStateMachine):
    """Maps, unmaps, attaches and requests in any order: a device reaches exactly what its domain holds."""

    PASIDS = (None, 1, 7)

    @initialize(name=st.sampled_from(["full", "qemu", "host", "stage-2", "linear", "64k"]))
    def start(self, name):
        self.name = name
        self.unit, self.driver = rig(UNITS[name])
        self.grain = 1 << self.driver.limits.granule_lg2
        self.devices = {
            sid: self.driver.device(Function(f"dev{sid:x}", (sid,), pasid_bits=4)) for sid in (0x20, 0x28, 0x300)
        }
        self.domains = [self.devices[0x20].alloc_paging(DomainFlags.NONE, None) for _ in range(2)]
        self.held = [{}, {}]
        self.attached = {(sid, pasid): None for sid in self.devices for pasid in self.PASIDS}

    places = st.sampled_from([0x10000, 0x20000, 0x1F0000, 0x200000, 0x3F0000, 1 << 30, (1 << 30) + 0x10000])
    routes = st.tuples(st.sampled_from([0x20, 0x28, 0x300]), st.sampled_from(PASIDS))

    @rule(which=st.integers(0, 1), iova=places, pages=st.sampled_from([1, 2, 3, 512, 513]))
    def map(self, which, iova, pages):
        held = self.held[which]
        wanted = [iova + self.grain * n for n in range(pages)]
        if any(page in held for page in wanted):
            return
        pa = (1 << 32) + iova
        self.domains[which].map(iova, pa, self.grain * pages, RW)
        held.update({page: (pa + page - iova, iova, pages) for page in wanted})

    @precondition(lambda self: any(self.held))
    @rule(data=st.data())
    def unmap(self, data):
        which = data.draw(st.sampled_from([n for n in (0, 1) if self.held[n]]))
        held = self.held[which]
        _, iova, pages = held[data.draw(st.sampled_from(sorted(held)))]
        assert self.domains[which].unmap(iova, self.grain * pages) == self.grain * pages
        self.domains[which].flush()
        for n in range(pages):
            del held[iova + self.grain * n]

    @rule(route=routes, which=st.one_of(st.none(), st.integers(0, 1)))
    def attach(self, route, which):
        sid, pasid = route
        if pasid is not None and not self.devices[sid].features.max_pasids:
            return
        if which is None:
            self.devices[sid].detach(pasid)
        else:
            self.devices[sid].attach(self.domains[which], pasid)
        self.attached[route] = which

    @rule(route=routes, iova=places, offset=st.integers(0, 0xFFF))
    def request(self, route, iova, offset):
        which = self.attached[route]
        found = self.held[which].get(iova) if which is not None else None
        got = reach(self.unit, route[0], iova + offset, WRITE, route[1])
        assert got == found[0] + offset if found else isinstance(got, Event)

    @invariant()
    def the_queue_is_empty(self):
        if hasattr(self, "unit"):
            assert self.unit.registers.CMDQ_CONS.RD == self.unit.registers.CMDQ_PROD.WR
            assert self.unit.registers.GERROR == self.unit.registers.GERRORN

    def teardown(self):
        if not hasattr(self, "unit"):
            return
        for sid, pasid in self.attached:
            self.devices[sid].detach(pasid)
        for domain in self.domains:
            domain.unmap(0, 1 << 48)
            domain.flush()
            domain.free()
        assert len(self.unit.tlb.iotlb.cache) == 0
        assert {reach(self.unit, sid, 0x10000) for sid in self.devices} == {Event.SILENT}


AnyOrder.TestCase.settings = settings(
    max_examples=50, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
test_a_device_reaches_exactly_what_its_domain_holds = AnyOrder.TestCase


@pytest.mark.parametrize(
    ("identity", "keys", "recovers"),
    [
        (FULL, {"ats": True, "pri": True}, True),
        (FULL, {"ats": True}, False),
        (FULL, {"pri": True}, False),
        (FULL, {"stalls": True}, True),
        (FULL, {"ats": True, "stalls": True}, False),  # its requests for translations are answered, never held
        (FORCED, {}, True),
        (FORCED, {"ats": True}, False),
        (FORCED._replace(idr0=FORCED.idr0.replace(ATS=0, PRI=0, ATSRECERR=0)), {"ats": True, "pri": True}, True),
        (QEMU, {"ats": True, "pri": True, "stalls": True}, False),
    ],
)
def test_faults_are_recoverable_for_who_asks_for_pages_or_is_held(identity, keys, recovers):
    device = rig(identity)[1].device(Function("edu", (0x20,), **keys))
    assert device.features.page_faults == recovers
