"""The VT-d driver over the VT-d model: what is mapped is reached, what is unmapped is not, and nothing is left."""

import contextlib

import pytest
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from softiommu.abi.iommufd import HwInfoVtd
from softiommu.drivers.driver import DomainFlags, Prot
from softiommu.drivers.function import Function
from softiommu.drivers.vtd.domain import VtdDomain, smallest_block
from softiommu.drivers.vtd.driver import LINUX_6_12, LINUX_7_2, VtdDriver
from softiommu.errors import UapiError
from softiommu.hardware.iommu import TranslationFaultError
from softiommu.hardware.vtd.events import Reason
from softiommu.hardware.vtd.model import Unit
from softiommu.hardware.vtd.presets import FULL, LEGACY, QEMU
from softiommu.memory.physical import PhysicalMemory
from softiommu.pagetable.formats import vtdss
from softiommu.pagetable.kinds import READ, WRITE

RAM = 32 << 20
RW = Prot.READ | Prot.WRITE


def rig(cap=LEGACY.cap, ecap=LEGACY.ecap, quirks=LINUX_7_2):
    memory = PhysicalMemory(RAM)
    unit = Unit(memory, cap, ecap)
    return unit, VtdDriver(memory, unit, quirks)


def reach(unit, sid, iova, want=READ, pasid=None):
    try:
        return unit.translate(sid, iova, want, pasid).pa
    except TranslationFaultError as fault:
        return Reason(fault.reason)


def test_a_device_reaches_what_its_domain_maps_and_is_blocked_without_one():
    unit, driver = rig()
    device = driver.device(Function("0000:00:04.0", (0x20,)))
    assert reach(unit, 0x20, 0x1000) is Reason.ROOT_NOT_PRESENT
    domain = device.alloc_paging(DomainFlags.NONE, None)
    domain.map(0x10000, 0x800000, 0x3000, RW)
    device.attach(domain, None)
    assert reach(unit, 0x20, 0x12004, WRITE) == 0x802004
    assert reach(unit, 0x20, 0x13000) is Reason.NO_READ
    device.detach(None)
    assert reach(unit, 0x20, 0x10000) is Reason.CONTEXT_NOT_PRESENT
    domain.free()


def test_replacing_a_domain_forgets_the_old_one():
    unit, driver = rig()
    device = driver.device(Function("edu", (0x20,)))
    first, second = (device.alloc_paging(DomainFlags.NONE, None) for _ in range(2))
    first.map(0x10000, 0x800000, 0x1000, RW)
    second.map(0x10000, 0x900000, 0x1000, RW)
    device.attach(first, None)
    assert reach(unit, 0x20, 0x10000) == 0x800000
    device.attach(second, None)
    assert reach(unit, 0x20, 0x10000) == 0x900000


def test_an_unmap_takes_effect_at_its_flush():
    unit, driver = rig()
    device = driver.device(Function("edu", (0x20,)))
    domain = device.alloc_paging(DomainFlags.NONE, None)
    device.attach(domain, None)
    domain.map(0x200000, 0x800000, 0x400000, RW)
    assert reach(unit, 0x20, 0x200000) == 0x800000
    assert domain.unmap(0x200000, 0x400000) == 0x400000
    assert reach(unit, 0x20, 0x200000) == 0x800000
    domain.flush()
    assert reach(unit, 0x20, 0x200000) is Reason.NO_READ


def test_two_devices_share_a_domain_and_two_domains_keep_apart():
    unit, driver = rig()
    one, two, other = (driver.device(Function(name, (sid,))) for name, sid in (("a", 0x20), ("b", 0x28), ("c", 0x130)))
    shared, own = (one.alloc_paging(DomainFlags.NONE, None) for _ in range(2))
    shared.map(0x10000, 0x800000, 0x1000, RW)
    for device in (one, two):
        device.attach(shared, None)
    other.attach(own, None)
    assert [reach(unit, sid, 0x10000) for sid in (0x20, 0x28)] == [0x800000, 0x800000]
    assert reach(unit, 0x130, 0x10000) is Reason.NO_READ
    assert shared.did != own.did


def test_coherency_sets_snoop_on_new_leaves_of_a_domain_that_was_never_mapped():
    _, driver = rig()
    domain = VtdDomain(driver)
    assert domain.enforce_cache_coherency()
    domain.map(0x20000, 0x900000, 0x1000, RW)
    assert all(leaf.pte & vtdss.SNP for leaf in domain.pages.leaves(0, domain.aperture.last))
    assert domain.enforce_cache_coherency()
    mapped = VtdDomain(driver)
    mapped.map(0x10000, 0x800000, 0x1000, RW)
    assert not mapped.enforce_cache_coherency()
    _, other = rig(*QEMU["vtd"])
    assert not VtdDomain(other).enforce_cache_coherency()


def test_a_unit_of_39_bits_has_a_smaller_aperture():
    unit, driver = rig(LEGACY.cap.replace(SAGAW=2, MGAW=38))
    domain = VtdDomain(driver)
    assert domain.aperture.last == (1 << 39) - 1
    driver.device(Function("edu", (0x20,))).attach(domain, None)
    assert reach(unit, 0x20, 1 << 39) is Reason.ADDRESS_BEYOND_WIDTH


def test_a_map_without_memory_for_tables_leaves_nothing():
    _, driver = rig()
    domain = VtdDomain(driver)
    driver.memory.alloc(RAM // 2)
    with contextlib.suppress(MemoryError):
        while True:
            driver.memory.alloc(4096)
    with pytest.raises(UapiError, match="no memory for a page table"):
        domain.map(0, 0x800000, 0x1000, RW)
    assert domain.iova_to_pa(0) is None
    with pytest.raises(UapiError, match="no memory for a page table"):
        VtdDomain(driver)
    with pytest.raises(UapiError, match="no memory for a context table"):
        driver.routes.reserve(0x500, None)


def test_what_legacy_mode_has_not_is_refused():
    _, driver = rig()
    device = driver.device(Function("edu", (0x20,)))
    for flags in (DomainFlags.NEST_PARENT, DomainFlags.DIRTY_TRACKING):
        with pytest.raises(UapiError):
            device.alloc_paging(flags, None)
    with pytest.raises(UapiError, match="no PASIDs"):
        device.attach(VtdDomain(driver), 3)
    _, stranger = rig()
    with pytest.raises(UapiError, match="not of the IOMMU"):
        device.attach(VtdDomain(stranger), None)
    with pytest.raises(UapiError, match="without any right"):
        VtdDomain(driver).map(0, 0x800000, 0x1000, Prot.NONE)


EDU = Function("edu0", (0x20,))


@pytest.mark.parametrize("name", QEMU)
@pytest.mark.parametrize("quirks", [LINUX_6_12, LINUX_7_2], ids=["6.12", "7.2"])
def test_a_machine_of_qemu_does_what_its_kernel_does(name, quirks):
    unit, driver = rig(*QEMU[name], quirks)
    device = driver.device(EDU)
    domain = device.alloc_paging(DomainFlags.NONE, None)
    width = 39 if name == "vtd-39" else 47 if domain.first else 48
    assert domain.aperture == (0, (1 << width) - 1)
    assert domain.page_sizes == 0x40201000
    assert device.hw_info(0).data == HwInfoVtd(1, 0, *map(int, QEMU[name])).to_bytes()
    assert device.features.isolated_msi == (name != "vtd-noir")
    assert domain.enforce_cache_coherency() == (name == "vtd-sc")
    domain.map(0x10000, 0x800000, 0x1000, Prot.WRITE)
    if name == "vtd-flts" and quirks is LINUX_6_12:
        with pytest.raises(UapiError, match="no second stage"):
            device.attach(domain, None)
        return
    device.attach(domain, None)
    assert reach(unit, 0x20, 0x10000, WRITE) == 0x800000
    readable = quirks is LINUX_6_12 or domain.first
    assert (reach(unit, 0x20, 0x10000, READ) == 0x800000) == readable


@pytest.mark.parametrize("flags", [DomainFlags.PASID, DomainFlags.DIRTY_TRACKING], ids=["first", "second"])
def test_every_function_of_a_group_is_routed_but_not_by_its_bridges_id(flags):
    unit, driver = rig(*FULL)
    device = driver.device(Function("edu2", (0x208, 0x200, 0x210)))
    driver.device(Function("edu3", (0x210, 0x200, 0x208)))
    domain = device.alloc_paging(flags, None)
    domain.map(0x10000, 0x800000, 0x1000, RW)
    device.attach(domain, None)
    assert [reach(unit, sid, 0x10000) for sid in (0x208, 0x210)] == [0x800000] * 2
    device.detach(None)
    assert [reach(unit, sid, 0x10000) for sid in (0x208, 0x210)] == [Reason.PASID_ENTRY_NOT_PRESENT] * 2
    assert reach(unit, 0x200, 0x10000) is Reason.SCALABLE_CONTEXT_NOT_PRESENT


def test_a_legacy_group_is_routed_by_its_bridges_id_too():
    unit, driver = rig()
    device = driver.device(Function("edu2", (0x208, 0x200, 0x210)))
    domain = device.alloc_paging(DomainFlags.NONE, None)
    domain.map(0x10000, 0x800000, 0x1000, RW)
    device.attach(domain, None)
    assert [reach(unit, sid, 0x10000) for sid in device.function.sids] == [0x800000] * 3


def test_pasids_have_domains_of_their_own():
    unit, driver = rig(*FULL)
    device = driver.device(Function("gpu", (0x20,), pasid_bits=16))
    assert device.features.max_pasids == 1 << 16
    base, other = (device.alloc_paging(DomainFlags.PASID, None) for _ in range(2))
    for domain, pa in ((base, 0x800000), (other, 0x900000)):
        domain.map(0x10000, pa, 0x2000, RW)
    device.attach(base, None)
    device.attach(base, 5)
    device.attach(other, 65535)
    assert [reach(unit, 0x20, 0x10000, pasid=pasid) for pasid in (None, 5, 65535)] == [0x800000, 0x800000, 0x900000]
    assert base.unmap(0x10000, 0x1000) == 0x1000
    base.flush()
    assert [reach(unit, 0x20, 0x10000, pasid=pasid) for pasid in (None, 5)] == [Reason.FIRST_NOT_PRESENT] * 2
    device.attach(other, 5)
    device.detach(65535)
    assert reach(unit, 0x20, 0x10000, pasid=5) == 0x900000
    assert reach(unit, 0x20, 0x10000, pasid=65535) is Reason.PASID_ENTRY_NOT_PRESENT
    for bad in (0, 1 << 16):
        with pytest.raises(UapiError, match="has no PASID"):
            device.attach(other, bad)


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [(0x1000, 0x1FFF, (0x1000, 0)), (0x1000, 0x2FFF, (0, 2)), (0x4000, 0x7FFF, (0x4000, 2)), (0, 2**48 - 1, (0, 36))],
)
def test_a_range_is_covered_by_onesmallest_block(first, last, expected):
    assert smallest_block(first, last) == expected


class AnyOrder(RuleBasedStateMachine):
    """Maps, unmaps, attaches and requests in any order: a device reaches exactly what its domain holds."""

    @initialize()
    def start(self):
        self.unit, self.driver = rig()
        self.devices = {sid: self.driver.device(Function(f"dev{sid:x}", (sid,))) for sid in (0x20, 0x28, 0x300)}
        self.domains = [VtdDomain(self.driver) for _ in range(2)]
        self.held = [{}, {}]
        self.attached = dict.fromkeys(self.devices)

    places = st.sampled_from([0x10000, 0x11000, 0x1FF000, 0x200000, 0x3FF000, 1 << 30, (1 << 30) + 0x1000])
    sids = st.sampled_from([0x20, 0x28, 0x300])

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

    @rule(sid=sids, which=st.one_of(st.none(), st.integers(0, 1)))
    def attach(self, sid, which):
        if which is None:
            self.devices[sid].detach(None)
        else:
            self.devices[sid].attach(self.domains[which], None)
        self.attached[sid] = which

    @rule(sid=sids, iova=places, offset=st.integers(0, 0xFFF))
    def request(self, sid, iova, offset):
        which = self.attached[sid]
        found = self.held[which].get(iova) if which is not None else None
        got = reach(self.unit, sid, iova + offset, WRITE)
        assert got == found[0] + offset if found else isinstance(got, Reason)

    @invariant()
    def the_queue_is_empty(self):
        if hasattr(self, "unit"):
            assert self.unit.registers.IQH == self.unit.registers.IQT

    def teardown(self):
        if not hasattr(self, "unit"):
            return
        for device in self.devices.values():
            device.detach(None)
        for domain in self.domains:
            domain.unmap(0, 1 << 48)
            domain.flush()
            domain.free()
        assert len(self.unit.caches.iotlb.cache) == 0


AnyOrder.TestCase.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
test_a_device_reaches_exactly_what_its_domain_holds = AnyOrder.TestCase
