"""Devices with reserved regions, in groups, and with PASIDs: what the mock of the recordings does not have."""

from __future__ import annotations

from collections.abc import Sequence
from errno import EADDRINUSE, EBUSY, EINVAL, ENOMEM, EOPNOTSUPP

import pytest

from iommufd.fakes import BASE
from iommufd.soft import APERTURE, Soft, refused
from softiommu.abi import iommufd as abi, iommufd_test as test
from softiommu.drivers.driver import Domain, Reserved, ReservedKind
from softiommu.drivers.mock.driver import MockDevice, MockDriver
from softiommu.errors import UapiError
from softiommu.iommufd import device as devices
from softiommu.iommufd.device import DeviceObject

PAGE = 4096
MSI = APERTURE + 16 * PAGE


class Guarded(MockDevice):
    """A device with an MSI page and a relaxable one; its driver refuses to attach when `stubborn`."""

    stubborn = False

    def reserved_regions(self) -> Sequence[Reserved]:
        """Two regions, of which one counts."""
        relaxed = Reserved(MSI + PAGE, MSI + 2 * PAGE - 1, ReservedKind.DIRECT_RELAXABLE)
        return (Reserved(MSI, MSI + PAGE - 1, ReservedKind.MSI), relaxed)

    def attach(self, domain: Domain, pasid: int | None) -> None:
        """As the mock, or ENOMEM."""
        if self.stubborn:
            raise UapiError(ENOMEM, "stubborn")
        super().attach(domain, pasid)


def bind(soft: Soft, driver: MockDriver, group: object = None) -> tuple[DeviceObject, Guarded]:
    """A device given to the iommufd."""
    made = Guarded(driver, "guarded", int(test.DeviceFlags.PASID))
    if group is not None:
        made.group = group
    bound = soft.ctx.run(soft.caller, devices.bind, soft.ctx, made)
    return bound, made


def attach(soft: Soft, device: DeviceObject, target: int, pasid: int | None = None) -> int:
    """Attach: the id of the HWPT."""
    return soft.ctx.run(soft.caller, devices.attach, device, target, pasid)


def detach(soft: Soft, device: DeviceObject, pasid: int | None = None) -> None:
    """Detach."""
    soft.ctx.run(soft.caller, devices.detach, device, pasid)


def test_reserved_regions_are_kept_free_while_the_device_is_attached(soft: Soft) -> None:
    ioas = soft.ioas()
    device, _ = bind(soft, MockDriver())
    attach(soft, device, ioas)
    with refused(EINVAL):
        soft.map(ioas, BASE, PAGE, MSI)
    assert soft.map(ioas, BASE, PAGE, MSI + PAGE) == MSI + PAGE
    detach(soft, device)
    assert soft.map(ioas, BASE, PAGE, MSI) == MSI
    assert soft.table(ioas).map.free_ranges() == [(0, 2**64 - 1)]
    with refused(EADDRINUSE):
        attach(soft, device, ioas)
    assert soft.table(ioas).map.free_ranges() == [(0, 2**64 - 1)]


def test_a_driver_that_tells_nothing_tells_nothing_of_every_type(soft: Soft) -> None:
    device, made = bind(soft, MockDriver())
    assert soft.errno(abi.HwInfo(dev_id=device.id, flags=1, data_type=1)) == EOPNOTSUPP
    made.hw_info = lambda type: None
    for wanted in (0, 1, 77):
        info = soft.call(abi.HwInfo(dev_id=device.id, flags=1, data_type=wanted, data_len=8, data_uptr=soft.scratch))
        assert (info.data_type, info.data_len) == (0, 0)


def test_a_device_that_its_driver_refuses_reserves_nothing(soft: Soft) -> None:
    ioas = soft.ioas()
    device, guarded = bind(soft, MockDriver())
    guarded.stubborn = True
    with refused(ENOMEM):
        attach(soft, device, ioas)
    assert soft.table(ioas).map.free_ranges() == [(0, 2**64 - 1)]
    assert device.group.attachments == {}
    guarded.stubborn = False
    attach(soft, device, ioas)
    guarded.stubborn = True
    other = soft.ioas()
    with refused(ENOMEM):
        soft.ctx.run(soft.caller, devices.replace, device, other, None)
    assert soft.table(other).map.free_ranges() == [(0, 2**64 - 1)]
    detach(soft, device)


def test_regions_move_with_the_device(soft: Soft) -> None:
    first, second = soft.ioas(), soft.ioas()
    device, _ = bind(soft, MockDriver())
    attach(soft, device, first)
    soft.ctx.run(soft.caller, devices.replace, device, second, None)
    assert soft.table(first).map.free_ranges() == [(0, 2**64 - 1)]
    with refused(EINVAL):
        soft.map(second, BASE, PAGE, MSI)
    detach(soft, device)


def test_devices_of_a_group_share_a_page_table_until_the_last_one_leaves(soft: Soft) -> None:
    driver, group = MockDriver(), object()
    ioas, other = soft.ioas(), soft.ioas()
    one, first = bind(soft, driver, group)
    two, _ = bind(soft, driver, group)
    hwpt = attach(soft, one, ioas)
    with refused(EBUSY):
        attach(soft, one, ioas)
    with refused(EINVAL):
        attach(soft, two, other)
    assert attach(soft, two, ioas) == hwpt
    detach(soft, one)
    assert first.attached(None) is not None
    assert soft.table(ioas).map.domains
    with refused(EINVAL):
        soft.map(ioas, BASE, PAGE, MSI)
    detach(soft, two)
    assert not soft.table(ioas).map.domains


@pytest.mark.parametrize("pasid", [1, (1 << 20) - 1])
def test_a_pasid_needs_page_tables_made_for_it(soft: Soft, pasid: int) -> None:
    ioas = soft.ioas()
    device, _ = bind(soft, MockDriver())
    plain, able = (soft.hwpt(device.id, ioas, flags) for flags in (0, 8))
    with refused(EINVAL):
        attach(soft, device, ioas, pasid)
    with refused(EINVAL):
        attach(soft, device, plain, pasid)
    with refused(EINVAL):
        attach(soft, device, able, 1 << 20)
    assert attach(soft, device, able, pasid) == able
    with refused(EINVAL):
        attach(soft, device, plain)
    attach(soft, device, able)
    detach(soft, device, pasid + 1)
    detach(soft, device, pasid)
    detach(soft, device)
