"""What differs between the kernels, and IOMMU_IOAS_NOIOMMU_GET_PA, which only the newest has."""

from __future__ import annotations

from collections.abc import Callable
from errno import EINVAL, ENOENT, ENOTTY, EOPNOTSUPP, EOVERFLOW, EPERM

import pytest

from iommufd.fakes import BASE
from iommufd.good import mapped, no_iommu_ioas
from iommufd.soft import APERTURE, Soft
from softiommu.abi import iommufd as abi, iommufd_test as test
from softiommu.errors import ConfigError
from softiommu.iommufd import device as devices
from softiommu.iommufd.device import DeviceObject
from softiommu.iommufd.kernels import KERNELS, kernel
from softiommu.memory.client import CAP_SYS_RAWIO

PAGE = 4096
Open = Callable[..., Soft]


def test_an_unknown_kernel_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 7\.2"):
        kernel("7.1.2")
    assert kernel("7.3").name == "7.3"


def test_the_test_command_is_only_on_machines_with_the_mock(open_soft: Open) -> None:
    for name in KERNELS:
        assert test.TEST_CMD in open_soft(name).machine.services.commands
        assert open_soft(name, mock=False).errno(test.TestCmd()) == ENOTTY


@pytest.mark.parametrize(("name", "expected"), [("6.12", ENOENT), ("7.2", EINVAL), ("7.3", EINVAL)])
def test_invalidating_an_object_of_another_kind(open_soft: Open, name: str, expected: int) -> None:
    soft = open_soft(name)
    assert soft.errno(abi.HwptInvalidate(hwpt_id=soft.ioas())) == expected


@pytest.mark.parametrize(("name", "expected"), [("6.12", EOPNOTSUPP), ("7.2", 0), ("7.3", 0)])
def test_hardware_information_of_a_chosen_type(open_soft: Open, name: str, expected: int) -> None:
    soft = open_soft(name)
    device = soft.mock(soft.ioas()).out_idev_id
    info = abi.HwInfo(flags=1, dev_id=device, data_type=test.HW_INFO_TYPE_SELFTEST)
    assert soft.errno(info) == expected


@pytest.mark.parametrize(("name", "expected"), [("6.12", EINVAL), ("7.2", EOVERFLOW), ("7.3", EOVERFLOW)])
def test_an_empty_range_of_a_dirty_bitmap(open_soft: Open, name: str, expected: int) -> None:
    soft = open_soft(name)
    ioas = mapped(soft)
    hwpt = soft.hwpt(soft.mock(ioas).out_idev_id, ioas, 2)
    assert soft.errno(abi.HwptGetDirtyBitmap(hwpt_id=hwpt, iova=APERTURE, page_size=PAGE)) == expected


# IOMMU_IOAS_NOIOMMU_GET_PA


def query(ioas: int, iova: int = APERTURE, length: int = 1, **fields: int) -> abi.IoasNoiommuGetPa:
    """The command."""
    return abi.IoasNoiommuGetPa(ioas_id=ioas, iova=iova, length=length, **fields)


def test_the_address_of_pinned_memory_and_how_far_it_goes_on(open_soft: Open) -> None:
    soft = open_soft("7.3", no_iommu=True)
    ioas = no_iommu_ioas(soft)
    frames, ram = soft.machine.physical.frames, soft.caller.mm.ram
    assert soft.pins == 2
    answer = soft.call(query(ioas, APERTURE + 0x123))
    assert (answer.out_phys, answer.length) == (frames.pa(ram, BASE + 0x123), PAGE - 0x123)


def test_memory_that_lies_together_is_one_run_up_to_the_end_of_its_area(open_soft: Open) -> None:
    soft = open_soft("7.3", no_iommu=True)
    soft.caller.mm.ram.together = True
    ioas = no_iommu_ioas(soft)
    soft.map(ioas, BASE + 2 * PAGE, PAGE, APERTURE + 2 * PAGE)
    assert soft.call(query(ioas, APERTURE, 100 * PAGE)).length == 2 * PAGE
    assert soft.call(query(ioas, APERTURE + PAGE)).length == PAGE


def test_the_address_is_refused_in_the_kernels_order(open_soft: Open) -> None:
    soft = open_soft("7.3", no_iommu=True)
    ioas = no_iommu_ioas(soft)
    soft.caller.capabilities.clear()
    wrong = query(99, 2**64 - 1, 0, flags=1)
    assert soft.errno(wrong) == EPERM
    soft.caller.capabilities.add(CAP_SYS_RAWIO)
    assert soft.errno(wrong) == EOPNOTSUPP
    assert soft.errno(query(99, 2**64 - 1, 0, reserved=1)) == EOPNOTSUPP
    assert soft.errno(query(99, 2**64 - 1, 0)) == EINVAL
    assert soft.errno(query(99, 2**64 - 1)) == EOVERFLOW
    assert soft.errno(query(99)) == ENOENT
    assert soft.errno(query(ioas, APERTURE - 1)) == ENOENT
    assert soft.errno(query(mapped(soft))) == EOPNOTSUPP


def test_a_kernel_without_no_iommu_refuses_before_it_looks(open_soft: Open) -> None:
    assert open_soft("7.3").errno(query(99)) == EOPNOTSUPP
    assert open_soft("7.2").errno(query(99)) == ENOTTY


def test_a_device_without_an_iommu_takes_only_plain_page_tables(open_soft: Open) -> None:
    soft = open_soft("7.3", no_iommu=True)
    ioas = no_iommu_ioas(soft)
    device = next(obj for obj in soft.ctx.objects if isinstance(obj, DeviceObject))
    assert soft.errno(abi.HwptAlloc(dev_id=device.id, pt_id=ioas, flags=2)) == EOPNOTSUPP
    assert soft.errno(abi.HwptAlloc(dev_id=device.id, pt_id=ioas, flags=1)) == EOPNOTSUPP
    assert soft.errno(abi.HwptAlloc(dev_id=device.id, pt_id=ioas)) == 0
    info = soft.call(abi.HwInfo(dev_id=device.id, data_len=8, data_uptr=soft.store(b"\xff" * 8)))
    assert (info.data_len, info.data_type) == (0, 0)
    assert soft.caller.read(soft.scratch, 8) == bytes(8)
    soft.ctx.run(soft.caller, devices.detach, device)
