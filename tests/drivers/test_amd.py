"""The AMD driver over the AMD model: what is mapped is reached, what is unmapped is not, and nothing is left."""

import contextlib
from itertools import pairwise

import pytest
from hypothesis import given, strategies as st

from drivers.amd_rig import BOTH, LEAST, PASID, RAM, RW, Endpoint, reach, rig
from softiommu.abi.iommufd import HwInfoAmd
from softiommu.drivers.amd.domain import AmdDomain, _aligned
from softiommu.drivers.amd.driver import USUAL_CAPABILITY, AmdDriver
from softiommu.drivers.driver import DomainFlags, PageFault, PageResponse, ReservedKind
from softiommu.drivers.function import Function
from softiommu.errors import ModelError, UapiError
from softiommu.hardware.amd.commands import span, window
from softiommu.hardware.amd.events import Code
from softiommu.hardware.amd.model import AmdIommu
from softiommu.hardware.amd.presets import FULL
from softiommu.hardware.amd.registers import Efr, Efr2
from softiommu.hardware.amd.tables import Dte
from softiommu.hardware.iommu import PageRequest, ResponseCode
from softiommu.memory.physical import PhysicalMemory
from softiommu.pagetable.kinds import READ, WRITE


def test_a_device_reaches_what_its_domain_maps_and_is_blocked_without_one():
    iommu, driver = rig()
    assert reach(iommu, 0x20, 0x1000) is Code.IO_PAGE_FAULT
    device = driver.device(Function("0000:00:04.0", (0x20,)))
    assert reach(iommu, 0x20, 0x1000) is Code.IO_PAGE_FAULT
    domain = device.alloc_paging(DomainFlags.NONE, None)
    domain.map(0x10000, 0x800000, 0x3000, RW)
    device.attach(domain, None)
    assert reach(iommu, 0x20, 0x12004, WRITE) == 0x802004
    assert reach(iommu, 0x20, 0x13000) is Code.IO_PAGE_FAULT
    assert domain.iova_to_pa(0x12004) == 0x802004
    device.detach(None)
    assert reach(iommu, 0x20, 0x10000) is Code.IO_PAGE_FAULT
    domain.free()


@pytest.mark.parametrize("kinds", [(False, False), (False, True), (True, False), (True, True)], ids=str)
def test_replacing_a_domain_forgets_the_old_one(kinds):
    iommu, driver = rig()
    device = driver.device(Function("edu", (0x20, 0x28)))
    first, second = (AmdDomain(driver, guest=guest) for guest in kinds)
    first.map(0x10000, 0x800000, 0x1000, RW)
    second.map(0x10000, 0x900000, 0x1000, RW)
    for domain, pa in ((first, 0x800000), (second, 0x900000), (first, 0x800000)):
        device.attach(domain, None)
        assert [reach(iommu, sid, 0x10000) for sid in (0x20, 0x28)] == [pa, pa]


def test_an_unmap_takes_effect_at_its_flush():
    iommu, driver = rig()
    device = driver.device(Function("edu", (0x20,)))
    domain = device.alloc_paging(DomainFlags.NONE, None)
    device.attach(domain, None)
    domain.map(0x200000, 0x800000, 0x400000, RW)
    assert reach(iommu, 0x20, 0x200000) == 0x800000
    assert domain.unmap(0x200000, 0x400000) == 0x400000
    assert reach(iommu, 0x20, 0x200000) == 0x800000
    domain.flush()
    assert reach(iommu, 0x20, 0x200000) is Code.IO_PAGE_FAULT


def test_an_entry_that_changes_is_never_seen_torn():
    memory = PhysicalMemory(RAM)
    iommu = AmdIommu(memory)
    driver = AmdDriver(memory, iommu)
    device = driver.device(Function("edu", (0x20,)))
    domains = [AmdDomain(driver, guest=guest) for guest in (False, True, False, True)]
    at = driver.routes.table.register.BASE << 12 | 32 * 0x20
    whole, seen = [], []
    write = memory.write

    def watched(pa, data):
        write(pa, data)
        if at <= pa < at + 32:
            seen.append(Dte.from_bytes(memory.read(at, 32)))

    memory.write = watched
    for domain in [*domains, domains[0], None, domains[1], None]:
        device.attach(domain, None) if domain else device.detach(None)
        whole.append(Dte.from_bytes(memory.read(at, 32)))

    def translation(dte):
        modes = dte.q2.GuestPagingMode if dte.q0.GV else 0
        return (dte.q0, dte.q1, modes)

    assert len(seen) >= 2 * (len(domains) + 4)
    assert {translation(dte) for dte in seen} <= {translation(dte) for dte in whole}


def test_page_sizes_and_apertures_are_those_of_the_tables():
    _, driver = rig()
    host, guest = AmdDomain(driver), AmdDomain(driver, guest=True)
    assert host.aperture == (0, (1 << 64) - 1)
    assert host.page_sizes == sum(1 << lg2 for lg2 in range(12, 52) if lg2 != 39)
    assert guest.aperture == (0, (1 << 56) - 1)
    assert guest.page_sizes == 0x40201000
    _, small = rig(LEAST)
    assert AmdDomain(small).aperture == (0, (1 << 48) - 1)


def test_what_the_hardware_has_is_told():
    _, driver = rig()
    device = driver.device(Function("gpu", (0x20,), pasid_bits=16, ats=True, pri=True))
    features = device.features
    assert (features.dirty_tracking, features.ats, features.page_faults, features.max_pasids) == (
        True,
        True,
        True,
        65536,
    )
    assert device.hw_info(0).data == HwInfoAmd(int(FULL.efr), int(FULL.efr2)).to_bytes()
    assert device.hw_info(1) is None
    assert [(*region[:2], region.kind) for region in device.reserved_regions()] == [
        (0xFEE00000, 0xFEEFFFFF, ReservedKind.MSI),
        (0xFD00000000, 0xFFFFFFFFFF, ReservedKind.RESERVED),
    ]
    least = rig(LEAST, Efr2.of(HTRangeIgnore=1), USUAL_CAPABILITY.replace(IotlbSup=0))[1]
    device = least.device(Function("gpu", (0x20,), pasid_bits=16, ats=True, pri=True))
    features = device.features
    assert (features.dirty_tracking, features.ats, features.page_faults, features.max_pasids) == (
        False,
        False,
        False,
        0,
    )
    assert len(device.reserved_regions()) == 1


def test_what_the_hardware_has_not_is_refused():
    _, driver = rig(LEAST)
    device = driver.device(Function("edu", (0x20,), pasid_bits=8))
    for flags in (DomainFlags.NEST_PARENT, DomainFlags.DIRTY_TRACKING, PASID, PASID | DomainFlags.DIRTY_TRACKING):
        with pytest.raises(UapiError):
            device.alloc_paging(flags, None)
    with pytest.raises(UapiError, match="no PASIDs"):
        device.attach(AmdDomain(driver), 3)
    _, stranger = rig()
    with pytest.raises(UapiError, match="not of the IOMMU"):
        device.attach(AmdDomain(stranger), None)
    with pytest.raises(UapiError, match="without dirty tracking"):
        AmdDomain(driver).set_dirty_tracking(True)


def test_pasids_have_domains_of_their_own():
    iommu, driver = rig()
    device = driver.device(Function("gpu", (0x20,), pasid_bits=16))
    base, other = (device.alloc_paging(PASID, None) for _ in range(2))
    for domain, pa in ((base, 0x800000), (other, 0x900000)):
        domain.map(0x10000, pa, 0x2000, RW)
    device.attach(base, None)
    device.attach(base, 5)
    device.attach(other, 65535)
    assert [reach(iommu, 0x20, 0x10000, pasid=pasid) for pasid in (None, 5, 65535)] == [0x800000, 0x800000, 0x900000]
    base.unmap(0x10000, 0x1000)
    base.flush()
    assert [reach(iommu, 0x20, 0x10000, pasid=pasid) for pasid in (None, 5)] == [Code.IO_PAGE_FAULT] * 2
    device.attach(other, 5)
    device.detach(65535)
    assert reach(iommu, 0x20, 0x10000, pasid=5) == 0x900000
    assert reach(iommu, 0x20, 0x10000, pasid=65535) is Code.IO_PAGE_FAULT
    device.detach(None)
    assert reach(iommu, 0x20, 0x11000) is Code.IO_PAGE_FAULT
    assert reach(iommu, 0x20, 0x10000, pasid=5) == 0x900000
    for bad in (0, 1 << 16):
        with pytest.raises(UapiError, match="has no PASID"):
            device.attach(other, bad)


def test_host_tables_and_pasids_of_a_device_exclude_one_another():
    iommu, driver = rig()
    device = driver.device(Function("gpu", (0x20,), pasid_bits=8))
    host, guest = AmdDomain(driver), AmdDomain(driver, guest=True)
    with pytest.raises(UapiError, match="needs a domain with guest tables"):
        device.attach(host, 5)
    device.attach(host, None)
    with pytest.raises(UapiError, match="no PASIDs of its own"):
        device.attach(guest, 5)
    device.detach(None)
    device.attach(guest, 5)
    with pytest.raises(UapiError, match="on host tables has no PASIDs"):
        device.attach(host, None)
    guest.map(0x10000, 0x800000, 0x1000, RW)
    assert reach(iommu, 0x20, 0x10000, pasid=5) == 0x800000


def test_a_host_table_grows_while_devices_use_it():
    iommu, driver = rig()
    before = driver.memory.given
    domain, held = AmdDomain(driver), {}
    devices = [driver.device(Function(f"d{sid:x}", (sid,))) for sid in (0x20, 0x28)]
    for device in devices:
        device.attach(domain, None)
    for number, (lg2, mode) in enumerate([(20, 3), (38, 3), (39, 4), (56, 5), (57, 6), (63, 6)]):
        held[1 << lg2] = 0x800000 + (number << 12)
        domain.map(1 << lg2, held[1 << lg2], 0x1000, RW)
        assert domain.mode == mode
        for sid in (0x20, 0x28):
            assert {iova: reach(iommu, sid, iova) for iova in held} == held
    assert domain.unmap(0, 1 << 64) == 0x1000 * len(held)
    domain.flush()
    assert {reach(iommu, 0x20, iova) for iova in held} == {Code.IO_PAGE_FAULT}
    for device in devices:
        device.detach(None)
    domain.free()
    assert driver.memory.given == before


class Dirty:
    def __init__(self):
        self.found = []

    def record(self, iova, length):
        self.found.append((iova, length))


def test_writes_are_tracked_while_that_is_on():
    iommu, driver = rig()
    device = driver.device(Function("nic", (0x20,)))
    domain = device.alloc_paging(DomainFlags.DIRTY_TRACKING, None)
    domain.map(0x10000, 0x800000, 0x1000, RW)
    domain.map(0x20000, 0x900000, 0x4000, RW)
    device.attach(domain, None)

    def dirty(clear):
        report = Dirty()
        domain.read_dirty(domain.aperture, report, clear)
        return report.found

    reach(iommu, 0x20, 0x10000, WRITE)
    assert dirty(False) == []
    domain.set_dirty_tracking(True)
    reach(iommu, 0x20, 0x20000, READ)
    assert dirty(False) == []
    for iova in (0x10000, 0x21000):
        assert reach(iommu, 0x20, iova, WRITE) != Code.IO_PAGE_FAULT
    assert dirty(True) == [(0x10000, 0x1000), (0x20000, 0x4000)]
    assert dirty(True) == []
    reach(iommu, 0x20, 0x10000, WRITE)
    assert dirty(True) == [(0x10000, 0x1000)]
    domain.set_dirty_tracking(False)
    reach(iommu, 0x20, 0x10000, WRITE)
    assert dirty(True) == []


@pytest.mark.parametrize("guest", [False, True])
def test_device_tlbs_are_told_what_is_gone(guest):
    iommu, driver = rig()
    device = driver.device(Function("gpu", (0x20, 0x8), pasid_bits=8, ats=True))
    endpoint = Endpoint()
    iommu.connect(0x20, endpoint)
    domain = AmdDomain(driver, guest=guest)
    domain.map(0x10000, 0x800000, 0x3000, RW)
    device.attach(domain, None)
    assert iommu.ats_translate(0x20, 0x10000, BOTH).pa == 0x800000
    domain.unmap(0x10000, 0x2000)
    domain.flush()
    assert endpoint.invalidated == [(None, 0x10000, 0x11FFF)]
    assert not iommu.ats_translate(0x20, 0x10000, BOTH).allowed & BOTH
    device.detach(None)
    assert endpoint.invalidated[1:] == [(None, 0, (1 << 64) - 1)]
    assert reach(iommu, 0x20, 0x12000) is Code.IO_PAGE_FAULT


def test_page_requests_come_to_the_device_and_answers_go_back():
    iommu, driver = rig()
    device = driver.device(Function("gpu", (0x20,), pasid_bits=8, ats=True, pri=True))
    endpoint, faults = Endpoint(), []
    iommu.connect(0x20, endpoint)
    device.attach(AmdDomain(driver, guest=True), 5)
    request = PageRequest(0x20, 0x10000, WRITE, group=3, last=True, pasid=5)
    iommu.page_request(request)
    driver.service()
    assert endpoint.responses == [(5, 3, ResponseCode.INVALID)]
    device.on_fault = faults.append
    iommu.page_request(request._replace(last=False, want=READ, privileged=True))
    iommu.page_request(request)
    driver.service()
    assert faults == [PageFault(5, 3, False, 1 | 8, 0x10000), PageFault(5, 3, True, 2, 0x10000)]
    device.page_response(faults, PageResponse.SUCCESS)
    assert endpoint.responses[1:] == [(5, 3, ResponseCode.SUCCESS)]


def test_a_device_that_asks_while_it_forgets_is_answered_at_once():
    memory = PhysicalMemory(RAM)
    iommu = AmdIommu(memory, interrupt=lambda address, data: driver.service())
    driver = AmdDriver(memory, iommu)
    device = driver.device(Function("gpu", (0x20,), ats=True, pri=True))

    class Asking(Endpoint):
        def invalidate(self, pasid, first, last):
            iommu.page_request(PageRequest(0x20, first, READ, len(self.invalidated), last=True))
            return super().invalidate(pasid, first, last)

    endpoint = Asking()
    iommu.connect(0x20, endpoint)
    domain = AmdDomain(driver)
    device.attach(domain, None)
    for number in range(3):
        domain.map(0x10000, 0x800000, 0x1000, RW)
        domain.unmap(0x10000, 0x1000)
        domain.flush()
        assert endpoint.responses[number:] == [(None, number, ResponseCode.INVALID)]


def test_a_full_log_of_page_requests_runs_again():
    iommu, driver = rig()
    device = driver.device(Function("gpu", (0x20,), ats=True, pri=True))
    endpoint, faults = Endpoint(), []
    iommu.connect(0x20, endpoint)
    device.attach(AmdDomain(driver), None)
    device.on_fault = faults.append
    for group in range(512):
        iommu.page_request(PageRequest(0x20, 0x1000, READ, group, last=True))
    assert endpoint.responses == [(None, 511, ResponseCode.SUCCESS)]
    driver.service()
    assert len(faults) == 511
    iommu.page_request(PageRequest(0x20, 0x1000, READ, 1, last=True))
    driver.service()
    assert len(faults) == 512


def test_blocked_requests_are_told_in_words():
    iommu, driver = rig()
    driver.device(Function("edu", (0x20,)))
    reach(iommu, 0x20, 0x5000, WRITE)
    (blocked,) = driver.events.take()
    assert (blocked.sid, blocked.pasid, blocked.iova, blocked.access) == (0x20, None, 0x5000, "write")
    assert "io page fault" in str(blocked)
    assert driver.events.take() == []
    iommu.page_request(PageRequest(0x20, 0x1000, READ, 3, last=True))
    (trouble,) = driver.events.take()
    assert str(trouble).startswith("invalid ppr request (0x9): <PprRecord")


def test_a_full_event_log_runs_again():
    iommu, driver = rig()
    for number in range(600):
        reach(iommu, 0x20, number << 12)
    assert len(driver.events.take()) == 511
    reach(iommu, 0x20, 0x7000)
    assert [blocked.iova for blocked in driver.events.take()] == [0x7000]


def test_a_virtual_iommu_hears_of_new_mappings_and_of_ranges_one_by_one():
    iommu, driver = rig(capability=USUAL_CAPABILITY.replace(NpCache=1))
    device = driver.device(Function("edu", (0x20,)))
    domain = device.alloc_paging(DomainFlags.NONE, None)
    device.attach(domain, None)
    tail = iommu.registers.CMD_TAIL.OFFSET
    domain.map(0x13000, 0x803000, 0x5000, RW)
    assert iommu.registers.CMD_TAIL.OFFSET - tail == 2 + 1  # 0x13000, 0x14000..0x17fff, and the wait
    assert reach(iommu, 0x20, 0x13000) == 0x803000
    domain.unmap(0x13000, 0x5000)
    domain.flush()
    assert reach(iommu, 0x20, 0x13000) is Code.IO_PAGE_FAULT


def test_a_map_without_memory_for_tables_leaves_nothing():
    _, driver = rig()
    domain = AmdDomain(driver)
    device = driver.device(Function("gpu", (0x20,), pasid_bits=8))
    guest = AmdDomain(driver, guest=True)
    driver.memory.alloc(RAM // 2)
    with contextlib.suppress(MemoryError):
        while True:
            driver.memory.alloc(4096)
    with pytest.raises(UapiError, match="no memory for a page table"):
        domain.map(0, 0x800000, 0x1000, RW)
    assert domain.iova_to_pa(0) is None
    with pytest.raises(UapiError, match="no memory for a page table"):
        AmdDomain(driver)
    with pytest.raises(UapiError, match="no memory for a GCR3 table"):
        device.attach(guest, None)


def test_hardware_without_one_command_for_everything_is_refused():
    with pytest.raises(ModelError, match="INVALIDATE_IOMMU_ALL"):
        rig(Efr(0))


ADDRESSES = st.integers(0, (1 << 64) - 1)


@given(ADDRESSES, ADDRESSES)
def test_a_flush_covers_its_range_and_is_the_smallest_power_of_two(one, other):
    first, last = sorted((one, other))
    low, high = window(*span(first, last))
    assert low <= first <= last <= high
    size = high - low + 1
    assert size & size - 1 == 0
    if (1 << 13) <= size < 1 << 63:
        assert first < low + size // 2 <= last


@given(st.integers(0, 1 << 40), st.integers(1, 1 << 30))
def test_aligned_pieces_are_the_range(first, length):
    pieces = list(_aligned(first, first + length - 1))
    assert pieces[0][0] == first
    assert pieces[-1][1] == first + length - 1
    assert all(one[1] + 1 == other[0] for one, other in pairwise(pieces))
    assert all(low % (high - low + 1) == 0 and (high - low + 1).bit_count() == 1 for low, high in pieces)
