"""The virtio-iommu driver over the model: what is mapped is reached, what is unmapped is not, and nothing is left."""

from dataclasses import replace
from errno import EINVAL, EIO, ENODEV, ENOMEM, ENOSPC, EOPNOTSUPP

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from softiommu.drivers.driver import DomainFlags, Prot, Range, Reserved, ReservedKind
from softiommu.drivers.function import Function
from softiommu.drivers.virtio.device import reserved_of
from softiommu.drivers.virtio.driver import LINUX_6_12, LINUX_7_2, VirtioDriver
from softiommu.errors import ModelError, UapiError
from softiommu.hardware.iommu import TranslationFaultError
from softiommu.hardware.virtio.commands import Subtype, to_bytes
from softiommu.hardware.virtio.events import Reason
from softiommu.hardware.virtio.model import VirtioIommu
from softiommu.hardware.virtio.presets import FULL, QEMU, Offer, resv_mem
from softiommu.hardware.virtio.registers import Features
from softiommu.memory.physical import PhysicalMemory
from softiommu.pagetable.kinds import READ, WRITE

RAM = 32 << 20
RW = Prot.READ | Prot.WRITE
MSI = Reserved(0xFEE00000, 0xFEEFFFFF, ReservedKind.MSI)


def rig(offer=QEMU, quirks=LINUX_7_2, **callbacks):
    memory = PhysicalMemory(RAM)
    unit = VirtioIommu(memory, offer, **callbacks)
    return unit, VirtioDriver(memory, unit, quirks)


def device(driver, *sids):
    return driver.device(Function("edu", sids or (0x20,)))


def paging(shown):
    return shown.alloc_paging(DomainFlags.NONE, None)


def reach(unit, sid, iova, want=READ):
    try:
        return unit.translate(sid, iova, want).pa
    except TranslationFaultError as fault:
        return Reason(fault.reason)


def test_a_device_is_blocked_until_it_is_attached_also_where_the_hardware_would_let_it_through():
    unit, driver = rig()
    assert reach(unit, 0x20, 0x1000) == 0x1000
    edu = device(driver)
    assert reach(unit, 0x20, 0x1000) is Reason.MAPPING
    domain = paging(edu)
    domain.map(0x10000, 0x800000, 0x3000, RW)
    edu.attach(domain, None)
    assert reach(unit, 0x20, 0x12004, WRITE) == 0x802004
    assert reach(unit, 0x20, 0x13000) is Reason.MAPPING
    edu.detach(None)
    assert reach(unit, 0x20, 0x12004) is Reason.MAPPING
    domain.free()


def test_an_unmap_takes_effect_at_its_flush():
    unit, driver = rig()
    edu = device(driver)
    domain = paging(edu)
    edu.attach(domain, None)
    domain.map(0x200000, 0x800000, 0x400000, RW)
    assert domain.iova_to_pa(0x212345) == 0x812345
    assert domain.unmap(0x200000, 0x400000) == 0x400000
    assert domain.iova_to_pa(0x212345) is None
    assert reach(unit, 0x20, 0x200000) == 0x800000
    domain.flush()
    assert reach(unit, 0x20, 0x200000) is Reason.MAPPING


def test_a_mapping_goes_whole_or_not_at_all():
    unit, driver = rig()
    edu = device(driver)
    domain = paging(edu)
    edu.attach(domain, None)
    domain.map(0x10000, 0x800000, 0x4000, RW)
    assert domain.unmap(0x11000, 0x1000) == 0
    assert domain.unmap(0x10000, 0x1000) == 0x4000
    domain.flush()
    assert reach(unit, 0x20, 0x13000) is Reason.MAPPING
    assert domain.unmap(0x10000, 0x4000) == 0


def test_rights_are_exact():
    unit, driver = rig()
    edu = device(driver)
    domain = paging(edu)
    edu.attach(domain, None)
    for page, prot in enumerate((Prot.NONE, Prot.READ, Prot.WRITE, RW)):
        domain.map(page << 12, 0x800000, 0x1000, prot)
    got = [[reach(unit, 0x20, page << 12, want) == 0x800000 for want in (READ, WRITE)] for page in range(4)]
    assert got == [[False, False], [True, False], [False, True], [True, True]]


def test_a_domain_is_replayed_when_its_first_device_is_attached():
    unit, driver = rig()
    one, two = device(driver, 0x20), device(driver, 0x28)
    first, second = paging(one), paging(one)
    first.map(0x10000, 0x800000, 0x1000, RW)
    first.map(0x40000, 0x900000, 0x1000, RW)
    for _ in range(2):
        one.attach(first, None)
        assert [reach(unit, 0x20, at) for at in (0x10000, 0x40000)] == [0x800000, 0x900000]
        one.attach(second, None)
        assert reach(unit, 0x20, 0x10000) is Reason.MAPPING
    two.attach(first, None)
    one.attach(first, None)
    two.detach(None)
    first.unmap(0x40000, 0x1000)
    first.flush()
    assert [reach(unit, 0x20, at) for at in (0x10000, 0x40000)] == [0x800000, Reason.MAPPING]


def test_all_that_cannot_be_told_from_a_function_is_attached_with_it():
    unit, driver = rig()
    edu = device(driver, 0x210, 0x200, 0x208)
    domain = paging(edu)
    domain.map(0x10000, 0x800000, 0x1000, RW)
    edu.attach(domain, None)
    assert [reach(unit, sid, 0x10000) for sid in (0x210, 0x200, 0x208)] == [0x800000] * 3


def test_many_requests_go_through_a_ring_that_wraps():
    unit, driver = rig(replace(QEMU, queue_size=4))
    edu = device(driver)
    domain = paging(edu)
    edu.attach(domain, None)
    for page in range(100):
        domain.map(page << 13, 0x800000 + (page << 12), 0x1000, RW)
    for page in range(0, 100, 2):
        domain.unmap(page << 13, 0x1000)
    domain.flush()
    for page in range(100):
        expected = 0x800000 + (page << 12) if page % 2 else Reason.MAPPING
        assert reach(unit, 0x20, page << 13) == expected


def test_what_the_device_has_no_room_for_is_not_mapped():
    _, driver = rig(replace(QEMU, most_mappings=2))
    edu = device(driver)
    domain, full = paging(edu), paging(edu)
    for page in range(3):
        full.map(page << 12, 0x800000, 0x1000, RW)
    edu.attach(domain, None)
    domain.map(0x1000, 0x800000, 0x1000, RW)
    domain.map(0x2000, 0x800000, 0x1000, RW)
    with pytest.raises(UapiError) as error:
        domain.map(0x3000, 0x800000, 0x1000, RW)
    assert error.value.errno == ENOMEM
    assert domain.iova_to_pa(0x3000) is None
    with pytest.raises(UapiError) as error:
        domain.map(0x2000, 0x800000, 0x1000, RW)
    assert error.value.errno == EINVAL


def test_an_attach_that_the_device_refuses_leaves_the_old_domain():
    unit, driver = rig(replace(QEMU, most_mappings=2))
    edu = device(driver, 0x20, 0x28)
    old, new = paging(edu), paging(edu)
    old.map(0x1000, 0x800000, 0x1000, RW)
    for page in range(3):
        new.map(page << 12, 0x900000, 0x1000, RW)
    edu.attach(old, None)
    with pytest.raises(UapiError) as error:
        edu.attach(new, None)
    assert error.value.errno == ENOMEM
    assert [reach(unit, sid, 0x1000) for sid in (0x20, 0x28)] == [0x800000] * 2
    assert new.sids == set()


def test_what_a_virtio_iommu_has_not():
    _, driver = rig()
    edu = device(driver)
    domain = paging(edu)
    for flags in (DomainFlags.NEST_PARENT, DomainFlags.DIRTY_TRACKING, DomainFlags.PASID):
        with pytest.raises(UapiError) as error:
            edu.alloc_paging(flags, None)
        assert error.value.errno == EOPNOTSUPP
    for call in (
        lambda: edu.attach(domain, 1),
        lambda: domain.set_dirty_tracking(True),
        lambda: domain.read_dirty(Range(0, 4095), None, True),
        lambda: edu.alloc_nested(domain, 0, None),
        lambda: edu.alloc_viommu(1, domain, None, None),
    ):
        with pytest.raises(UapiError) as error:
            call()
        assert error.value.errno == EOPNOTSUPP
    assert edu.hw_info(0) is None
    assert not domain.enforce_cache_coherency()
    assert not domain.cache_coherent
    assert not edu.features.isolated_msi
    assert (edu.features.cache_coherent, edu.features.enforces_coherency) == (True, False)


def test_domains_of_another_device_are_refused():
    (_, one), (_, two) = rig(), rig()
    with pytest.raises(UapiError) as error:
        device(one).attach(paging(device(two)), None)
    assert error.value.errno == EINVAL


def test_limits_are_the_device_s():
    _, driver = rig()
    domain = paging(device(driver))
    assert domain.aperture == Range(0, 0x7FFFFFFFFF)
    assert domain.page_sizes == 0xFFFFFFFFFFFFF000
    _, bare = rig(Offer(Features.of(MAP_UNMAP=1, VERSION_1=1)))
    edu = device(bare)
    assert paging(edu).aperture == Range(0, 2**64 - 1)
    assert edu.reserved_regions() == (Reserved(0x8000000, 0x80FFFFF, ReservedKind.SW_MSI),)


def test_domain_numbers_are_reused_and_end():
    _, driver = rig(replace(FULL, domain_range=(3, 4)))
    edu = device(driver)
    domain = paging(edu)
    assert {driver.blocking.number, domain.number} == {3, 4}
    with pytest.raises(UapiError) as error:
        paging(edu)
    assert error.value.errno == ENOSPC
    domain.free()
    assert paging(edu).number == domain.number


def test_an_old_kernel_s_domain_has_a_number_and_an_aperture_from_its_first_attach():
    unit, driver = rig(replace(FULL, domain_range=(3, 4)), LINUX_6_12)
    edu = device(driver)
    unused, domain, last = (paging(edu) for _ in range(3))
    assert (domain.aperture, domain.number) == (Range(0, 0), None)
    domain.map(0x10000, 0x800000, 0x1000, RW)
    edu.attach(domain, None)
    assert (domain.aperture, domain.number) == (Range(0, 2**64 - 1), 4)
    assert reach(unit, 0x20, 0x10000) == 0x800000
    unused.free()
    with pytest.raises(UapiError) as error:
        edu.attach(last, None)
    assert error.value.errno == ENOSPC
    assert reach(unit, 0x20, 0x10000) == 0x800000


def test_pages_larger_than_the_machine_s_have_no_domains():
    _, driver = rig(replace(FULL, page_size_mask=1 << 16))
    with pytest.raises(UapiError) as error:
        paging(device(driver))
    assert error.value.errno == ENODEV


def test_an_endpoint_that_the_device_does_not_know_is_no_device():
    _, driver = rig(replace(QEMU, endpoints=(0x28,)))
    with pytest.raises(UapiError):
        device(driver)
    assert device(driver, 0x28).reserved_regions() == (MSI,)


@pytest.mark.parametrize("name", ["MAP_UNMAP"])
def test_a_device_that_the_driver_cannot_use_is_refused(name):
    features = Features(FULL.features & ~Features.of(**{name: 1}))
    with pytest.raises(ModelError, match=name):
        rig(replace(FULL, features=features))


def test_a_device_that_stops_is_an_error_of_ours():
    unit, driver = rig()
    edu = device(driver)
    unit.write(0x14, 1, 0)
    with pytest.raises(ModelError, match="did not carry"):
        edu.attach(paging(edu), None)


def test_faults_are_told_in_order_and_their_buffers_used_again():
    lines = []
    unit, driver = rig(line=lines.append)
    device(driver)
    for round_trip in range(3):
        del lines[:]
        for page in range(200):
            reach(unit, 0x20, page << 12, WRITE if page % 2 else READ)
        assert lines[0]
        told = driver.faults.take()
        assert [(one.sid, one.iova, one.access) for one in told] == [
            (0x20, page << 12, "write" if page % 2 else "read") for page in range(200)
        ]
        assert "mapping (0x2)" in str(told[0]), round_trip
    assert driver.faults.take() == []
    assert unit.lost == 0


# Properties


def test_reserved_ranges_are_those_of_the_properties():
    mems = (resv_mem(0xFEE00000, 0xFEEFFFFF, Subtype.MSI), resv_mem(0x1000, 0x1FFF))
    data = b"".join(map(to_bytes, mems)).ljust(100, b"\0")
    assert reserved_of(data) == (Reserved(0x1000, 0x1FFF, ReservedKind.RESERVED), MSI)


def test_properties_that_cannot_be_understood_are_passed_over():
    good = to_bytes(resv_mem(0x1000, 0x1FFF))
    unknown = b"\x07\x00\x04\x00abcd"
    strange = to_bytes(resv_mem(0x5000, 0x5FFF).replace(SUBTYPE=9))
    backwards = to_bytes(resv_mem(0x9000, 0x8000))
    found = reserved_of(unknown + backwards + strange + good + b"\x01\x00\xff\x00")
    assert found == (
        Reserved(0x1000, 0x1FFF, ReservedKind.RESERVED),
        Reserved(0x5000, 0x5FFF, ReservedKind.RESERVED),
    )


@settings(deadline=None)
@given(st.binary(max_size=120))
def test_no_properties_make_the_driver_fail(data):
    assert all(region.first <= region.last for region in reserved_of(data))


def test_an_answer_without_a_number_is_an_input_output_error():
    unit, driver = rig()
    edu = device(driver)
    domain = paging(edu)
    unit.features = Features(0)  # MAP is no request any more: it comes back unanswered
    edu.attach(domain, None)
    with pytest.raises(UapiError) as error:
        domain.map(0x1000, 0x800000, 0x1000, RW)
    assert error.value.errno == EIO


class Machine(RuleBasedStateMachine):
    """Domains, devices and mappings in any order, against a dictionary of pages."""

    @initialize()
    def start(self):
        self.unit, self.driver = rig()
        self.devices = [device(self.driver, sid) for sid in (0x20, 0x28)]
        self.domains, self.pages = [], []
        self.routes = [None, None]
        self.pending = False

    @precondition(lambda self: len(self.domains) < 3)
    @rule()
    def make(self):
        self.domains.append(paging(self.devices[0]))
        self.pages.append({})

    @precondition(lambda self: self.domains)
    @rule(number=st.integers(0, 2), first=st.integers(0, 11), count=st.integers(1, 4), prot=st.sampled_from(list(Prot)))
    def map(self, number, first, count, prot):
        number %= len(self.domains)
        span = range(first, first + count)
        if self.pages[number].keys() & span:
            return
        self.domains[number].map(first << 12, 0x800000 + (first << 12), count << 12, prot)
        # The name of the mapping: all its pages go together.
        self.pages[number] |= dict.fromkeys(span, (prot, span))

    @precondition(lambda self: self.domains)
    @rule(number=st.integers(0, 2), first=st.integers(0, 11), count=st.integers(1, 8))
    def unmap(self, number, first, count):
        number %= len(self.domains)
        pages = self.pages[number]
        spans = {pages[page][1] for page in range(first, first + count) if page in pages}
        if any(span.start < first for span in spans):
            spans = set()
        length = self.domains[number].unmap(first << 12, count << 12)
        assert length == sum(map(len, spans)) << 12
        self.pages[number] = {page: what for page, what in pages.items() if what[1] not in spans}
        self.domains[number].flush()

    @precondition(lambda self: self.domains)
    @rule(which=st.integers(0, 1), number=st.integers(0, 2))
    def attach(self, which, number):
        number %= len(self.domains)
        self.devices[which].attach(self.domains[number], None)
        self.routes[which] = number

    @rule(which=st.integers(0, 1))
    def detach(self, which):
        self.devices[which].detach(None)
        self.routes[which] = None

    @invariant()
    def reached(self):
        for sid, route in zip((0x20, 0x28), self.routes, strict=True):
            pages = {} if route is None else self.pages[route]
            for page in range(16):
                prot = pages[page][0] if page in pages else Prot.NONE
                for want, has in ((READ, prot.readable), (WRITE, prot.writable)):
                    expected = 0x800000 + (page << 12) if has else Reason.MAPPING
                    assert reach(self.unit, sid, page << 12, want) == expected


Machine.TestCase.settings = settings(
    deadline=None, max_examples=25, stateful_step_count=25, suppress_health_check=list(HealthCheck)
)
TestMachine = Machine.TestCase
