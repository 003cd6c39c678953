"""The mock's devices: what they can do, how they attach, and what they say about themselves."""

from __future__ import annotations

from errno import EFAULT, EINVAL, ENOENT, ENOMEM, EOPNOTSUPP

import pytest

from iommufd.fakes import BASE, FakeCaller, FakeMm
from iommufd.soft import refused
from softiommu.abi import iommufd_test as test
from softiommu.abi.struct import UserStruct
from softiommu.drivers.driver import Device, DomainFlags, PageFault, PageResponse, PagingDomain
from softiommu.drivers.mock.domain import MockDomain
from softiommu.drivers.mock.driver import MockDevice, MockDriver
from softiommu.drivers.mock.nested import MockNestedDomain
from softiommu.drivers.mock.viommu import MockViommu
from softiommu.drivers.user_data import UserData

PASID = int(test.DeviceFlags.PASID)
NO_DIRTY = int(test.DeviceFlags.NO_DIRTY)
HUGE_OF_6_12 = 2


class Host:
    """The manager's side of a vIOMMU."""

    def __init__(self) -> None:
        self.regions: dict[int, bytearray] = {}
        self.events: list[tuple[int, bytes]] = []

    def mmap_region(self, length: int, poll=None) -> int:
        """A region at the next page."""
        self.regions[4096] = bytearray(length)
        return 4096

    def store(self, offset: int, data: bytes) -> None:
        """Write."""
        self.regions[offset][: len(data)] = data

    def load(self, offset: int, length: int) -> bytes:
        """Read."""
        return bytes(self.regions[offset][:length])

    def report_event(self, type: int, data: bytes) -> None:
        """Remember."""
        self.events.append((type, data))


def user_data(struct: UserStruct, data_type: int, length: int | None = None) -> UserData:
    """A structure in a program's memory."""
    caller = FakeCaller(FakeMm(1))
    caller.write(BASE, struct.to_bytes())
    return UserData(caller, BASE, struct.SIZE if length is None else length, data_type)


def hwpt_data(
    iotlb: int = 0, pagetable: int = 0, data_type: int = test.HWPT_DATA_SELFTEST, length: int = 8
) -> UserData:
    """The mock's data of an HWPT."""
    return user_data(test.HwptSelftest(iotlb, pagetable), data_type, length)


def paging(device: MockDevice, flags: DomainFlags = DomainFlags.NONE) -> PagingDomain:
    """A domain without data."""
    return device.alloc_paging(flags, None)


def viommu(device: MockDevice, host: Host | None = None) -> MockViommu:
    """A vIOMMU over a new parent."""
    parent = paging(device, DomainFlags.NEST_PARENT)
    made = device.alloc_viommu(test.VIOMMU_TYPE_SELFTEST, parent, host or Host(), None)
    assert isinstance(made, MockViommu)
    return made


@pytest.mark.parametrize(("new", "known"), [(True, NO_DIRTY | PASID), (False, NO_DIRTY | HUGE_OF_6_12)])
def test_a_device_takes_the_flags_of_its_kernel(new: bool, known: int) -> None:
    driver = MockDriver(per_item=new)
    driver.device(known)
    for bit in range(32):
        if not known >> bit & 1:
            with refused(EINVAL):
                driver.device(1 << bit)


def test_devices_have_groups_of_their_own_and_share_the_iommu() -> None:
    driver = MockDriver()
    one, two = driver.device(0), driver.device(PASID)
    assert isinstance(one, Device)
    assert one.group is not two.group
    assert one.iommu is two.iommu
    assert one.name != two.name
    assert (one.features.max_pasids, two.features.max_pasids) == (0, 1 << 20)
    assert not one.features.ats


def test_hardware_information_is_the_selftest_structure() -> None:
    device = MockDriver().device(0)
    for wanted in (0, test.HW_INFO_TYPE_SELFTEST):
        info = device.hw_info(wanted)
        assert info is not None
        assert info.type == 0xFEEDBEEF
        assert info.data == bytes(4) + b"\xef\xbe\xad\xde"
    assert device.hw_info(1) is None


@pytest.mark.parametrize(("pagetable", "smallest"), [(0, 2048), (1, 4096)])
def test_the_data_of_a_paging_domain_chooses_its_table(pagetable: int, smallest: int) -> None:
    table = MockDriver().device(0).alloc_paging(DomainFlags.NONE, hwpt_data(pagetable=pagetable))
    assert table.page_sizes & -table.page_sizes == smallest


def test_data_of_a_paging_domain_is_refused_by_type_length_table_and_address() -> None:
    device = MockDriver().device(0)
    for data, expected in (
        (hwpt_data(data_type=1), EOPNOTSUPP),
        (hwpt_data(pagetable=2), EOPNOTSUPP),
        (hwpt_data(length=3), EINVAL),
        (hwpt_data(length=9), EINVAL),
        (UserData(FakeCaller(FakeMm(1)), 0, 8, test.HWPT_DATA_SELFTEST), EFAULT),
    ):
        with refused(expected):
            device.alloc_paging(DomainFlags.NONE, data)


def test_the_mock_of_6_12_takes_no_data_for_a_paging_domain_and_one_word_for_a_nested_one() -> None:
    device = MockDriver(per_item=False).device(0)
    with refused(EOPNOTSUPP):
        device.alloc_paging(DomainFlags.NONE, hwpt_data())
    parent = paging(device, DomainFlags.NEST_PARENT)
    with refused(EINVAL):
        device.alloc_nested(parent, 0, hwpt_data(length=8))
    nested = device.alloc_nested(parent, 0, hwpt_data(iotlb=9, length=4))
    assert isinstance(nested, MockNestedDomain)
    assert nested.iotlb == [9] * 4


def test_the_huge_device_of_6_12_has_tables_of_1_mib() -> None:
    table = paging(MockDriver(per_item=False).device(HUGE_OF_6_12))
    assert table.page_sizes == 1 << 20 | 2048


def test_a_nested_domain_is_refused_by_flags_type_and_length() -> None:
    device = MockDriver().device(0)
    parent = paging(device, DomainFlags.NEST_PARENT)
    for flags, data, expected in (
        (1, hwpt_data(), EOPNOTSUPP),
        (0, hwpt_data(data_type=1), EOPNOTSUPP),
        (0, hwpt_data(length=3), EINVAL),
    ):
        with refused(expected):
            device.alloc_nested(parent, flags, data)
        with refused(expected):
            viommu(device).alloc_nested(device, flags, data)


def test_a_device_without_dirty_tracking_refuses_domains_with_it() -> None:
    driver = MockDriver()
    plain, capable = driver.device(NO_DIRTY), driver.device(0)
    with refused(EOPNOTSUPP):
        paging(plain, DomainFlags.DIRTY_TRACKING)
    with refused(EINVAL):
        plain.attach(paging(capable, DomainFlags.DIRTY_TRACKING), None)
    assert plain.attached(None) is None
    plain.attach(paging(capable), None)
    assert isinstance(plain.attached(None), MockDomain)


def test_the_reserved_pasid_fails_each_second_time_in_a_row() -> None:
    device = MockDriver().device(PASID)
    first, second = paging(device), paging(device)
    device.attach(first, 1024)
    with refused(ENOMEM):
        device.attach(second, 1024)
    assert device.attached(1024) is first
    device.attach(second, 1024)
    device.detach(1024)
    device.attach(first, 1024)
    for _ in range(3):
        device.attach(second, 1023)


def test_a_viommus_domain_needs_this_devices_name_on_that_viommu() -> None:
    driver = MockDriver()
    device, other = driver.device(0), driver.device(0)
    guest = viommu(device)
    nested = guest.alloc_nested(device, 0, hwpt_data())
    guest.add_vdevice(other, 5)
    with refused(ENOENT):
        device.attach(nested, None)
    guest.add_vdevice(device, 6)
    device.attach(nested, None)
    with refused(ENOENT):
        device.attach(viommu(device).alloc_nested(device, 0, hwpt_data()), None)
    assert device.attached(None) is nested


def test_events_have_the_name_with_which_the_device_came_to_its_viommu() -> None:
    host = Host()
    device = MockDriver().device(0)
    guest = viommu(device, host)
    one, two = (guest.alloc_nested(device, 0, hwpt_data()) for _ in range(2))
    guest.add_vdevice(device, 0x1_0800_0005)
    device.attach(one, None)
    guest.remove_vdevice(device)
    guest.report(device.event_id)
    guest.add_vdevice(device, 7)
    device.attach(two, None)
    guest.report(device.event_id)
    device.detach(None)
    device.attach(two, None)
    guest.report(device.event_id)
    assert [data for _, data in host.events] == [n.to_bytes(4, "little") for n in (0x800_0005, 0x800_0005, 7)]
    assert {kind for kind, _ in host.events} == {test.VEVENTQ_TYPE_SELFTEST}
    with refused(ENOENT):
        guest.report(0)


@pytest.mark.parametrize("length", [8, 16, 24])
def test_a_viommu_with_data_answers_as_much_as_the_program_has_room_for(length: int) -> None:
    host = Host()
    device = MockDriver().device(0)
    data = user_data(test.ViommuSelftest(in_data=0xABCD, out_mmap_length=1), test.VIOMMU_TYPE_SELFTEST, length)
    device.alloc_viommu(test.VIOMMU_TYPE_SELFTEST, paging(device, DomainFlags.NEST_PARENT), host, data)
    answer = test.ViommuSelftest(0xABCD, 0xABCD, 4096, 8192).to_bytes()
    untouched = test.ViommuSelftest(in_data=0xABCD, out_mmap_length=1).to_bytes()
    assert data.caller.read(BASE, 24) == answer[:length] + untouched[length:]
    assert host.load(4096, 8192) == b"\xcd\xab\0\0".ljust(8192, b"\0")


def test_faults_and_their_answers_are_kept_by_the_device() -> None:
    device = MockDriver().device(0)
    faults = [PageFault(None, 1, last, 1, 0x1000) for last in (False, True)]
    device.page_response(faults, PageResponse.SUCCESS)
    assert list(device.responses) == [(fault, PageResponse.SUCCESS) for fault in faults]
