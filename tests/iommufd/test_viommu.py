"""vIOMMUs, their devices' names, hardware queues and mapped regions."""

from __future__ import annotations

from errno import (
    EADDRINUSE,
    EBUSY,
    EEXIST,
    EFAULT,
    EINVAL,
    EIO,
    ENOENT,
    ENOMEM,
    ENXIO,
    EOPNOTSUPP,
    EOVERFLOW,
    EPERM,
    ERANGE,
)

import pytest

from iommufd.fakes import BASE
from iommufd.good import DATA, parent, viommu
from iommufd.soft import APERTURE, WRITE, Soft, refused
from softiommu.abi import iommufd as abi, iommufd_test as test
from softiommu.iommufd.regions import Regions
from softiommu.memory.files import MmapRequest

PAGE = 4096
SHARED, PRIVATE = 1, 2
KIND = test.VIOMMU_TYPE_SELFTEST


def queue(number: int, index: int = 0, iova: int = APERTURE, length: int = PAGE) -> abi.HwQueueAlloc:
    """The command for a hardware queue."""
    kind = test.HW_QUEUE_TYPE_SELFTEST
    return abi.HwQueueAlloc(viommu_id=number, type=kind, index=index, nesting_parent_iova=iova, length=length)


def test_a_viommu_with_data_shares_a_region_that_starts_with_it(soft: Soft) -> None:
    device, hwpt = parent(soft)
    soft.caller.write(DATA, test.ViommuSelftest(in_data=0xABCD).to_bytes())
    cmd = abi.ViommuAlloc(type=KIND, dev_id=device, hwpt_id=hwpt, data_len=24, data_uptr=DATA)
    soft.call(cmd)
    answer = test.ViommuSelftest.from_bytes(soft.caller.read(DATA, 24))
    assert (answer.out_data, answer.out_mmap_offset, answer.out_mmap_length) == (0xABCD, PAGE, 2 * PAGE)
    assert soft.ctx.regions.load(answer.out_mmap_offset, 4) == (0xABCD).to_bytes(4, "little")
    soft.file.mmap(soft.caller, MmapRequest(2 * PAGE, PAGE, 3, SHARED))
    soft.file.is_mapped = lambda offset, length: (offset, length) == (PAGE, 2 * PAGE)
    assert soft.errno(abi.Destroy(id=cmd.out_viommu_id)) == EBUSY
    soft.file.is_mapped = lambda offset, length: False
    soft.destroy(cmd.out_viommu_id)
    with refused(ENXIO):
        soft.file.mmap(soft.caller, MmapRequest(2 * PAGE, PAGE, 3, SHARED))


def test_a_viommu_whose_data_cannot_be_answered_leaves_nothing(soft: Soft) -> None:
    device, hwpt = parent(soft)
    soft.caller.write(DATA, test.ViommuSelftest(in_data=1).to_bytes())
    soft.caller.mm.read_only = {30}
    cmd = abi.ViommuAlloc(type=KIND, dev_id=device, hwpt_id=hwpt, data_len=24, data_uptr=DATA)
    with refused(EFAULT):
        soft.call(cmd)
    with refused(ENXIO):
        soft.file.mmap(soft.caller, MmapRequest(2 * PAGE, PAGE, 3, SHARED))
    soft.destroy(hwpt)


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (MmapRequest(2 * PAGE, PAGE, 3, PRIVATE), EINVAL),
        (MmapRequest(2 * PAGE, PAGE, 7, SHARED), EPERM),
        (MmapRequest(PAGE, PAGE, 3, SHARED), ENXIO),
        (MmapRequest(2 * PAGE, 2 * PAGE, 3, SHARED), ENXIO),
        (MmapRequest(2 * PAGE, 0, 3, SHARED), ENXIO),
    ],
)
def test_only_one_whole_region_can_be_mapped(request_: MmapRequest, expected: int) -> None:
    regions = Regions()
    assert regions.add(2 * PAGE) == PAGE
    with refused(expected):
        regions.check(request_)
    regions.close()


def test_a_region_lies_at_the_lowest_free_offset_and_is_zero() -> None:
    regions = Regions()
    assert [regions.add(size) for size in (PAGE, 2 * PAGE, 1)] == [PAGE, 2 * PAGE, 4 * PAGE]
    regions.store(2 * PAGE, b"old")
    regions.remove(2 * PAGE)
    assert [regions.add(3 * PAGE), regions.add(PAGE), regions.add(PAGE)] == [5 * PAGE, 2 * PAGE, 3 * PAGE]
    assert regions.load(2 * PAGE, 3) == bytes(3)
    regions.close()


def test_a_viommu_is_refused_in_the_kernels_order(soft: Soft) -> None:
    device, hwpt = parent(soft)
    plain = soft.hwpt(device, 1)
    assert soft.errno(abi.ViommuAlloc(flags=1, type=KIND, dev_id=99)) == EOPNOTSUPP
    assert soft.errno(abi.ViommuAlloc(type=0, dev_id=99)) == EOPNOTSUPP
    assert soft.errno(abi.ViommuAlloc(type=KIND, dev_id=99, hwpt_id=99)) == ENOENT
    assert soft.errno(abi.ViommuAlloc(type=1, dev_id=device, hwpt_id=99)) == EOPNOTSUPP
    assert soft.errno(abi.ViommuAlloc(type=KIND, dev_id=device, hwpt_id=99)) == ENOENT
    assert soft.errno(abi.ViommuAlloc(type=KIND, dev_id=device, hwpt_id=plain)) == EINVAL
    assert soft.errno(abi.ViommuAlloc(type=KIND, dev_id=device, hwpt_id=hwpt, reserved=1)) == 0


def test_a_device_and_a_virtual_id_are_named_once(soft: Soft) -> None:
    device, number = viommu(soft)
    other = soft.mock(1).out_idev_id
    first = soft.call(abi.VdeviceAlloc(viommu_id=number, dev_id=device, virt_id=2**64 - 1)).out_vdevice_id
    assert soft.errno(abi.VdeviceAlloc(viommu_id=number, dev_id=device, virt_id=5)) == EEXIST
    assert soft.errno(abi.VdeviceAlloc(viommu_id=number, dev_id=other, virt_id=2**64 - 1)) == EEXIST
    assert soft.errno(abi.Destroy(id=number)) == EBUSY
    soft.destroy(first)
    assert soft.errno(abi.VdeviceAlloc(viommu_id=number, dev_id=other, virt_id=2**64 - 1)) == 0


def test_a_nested_hwpt_of_a_viommu_needs_the_devices_name(soft: Soft) -> None:
    device, number = viommu(soft)
    nested = soft.nested(device, number)
    selftest = next(obj.id for obj in soft.ctx.objects if obj.kind == "selftest")
    move = test.MockDomainReplace(pt_id=nested)
    assert soft.op_errno(test.TestOp.MOCK_DOMAIN_REPLACE, selftest, move) == ENOENT
    soft.call(abi.VdeviceAlloc(viommu_id=number, dev_id=device, virt_id=1))
    assert soft.op_errno(test.TestOp.MOCK_DOMAIN_REPLACE, selftest, move) == 0
    assert soft.errno(abi.Destroy(id=nested)) == EBUSY


def test_a_hardware_queue_is_refused_in_the_kernels_order(soft: Soft) -> None:
    _, number = viommu(soft)
    wrong = queue(99, length=0)
    wrong.flags = 1
    assert soft.errno(wrong) == EOPNOTSUPP
    assert soft.errno(queue(99, length=0)) == EINVAL
    assert soft.errno(queue(99, iova=2**64 - 8, length=9)) == EOVERFLOW
    assert soft.errno(queue(99)) == ENOENT
    assert soft.errno(queue(number, iova=1, length=2**64 - 100)) == ERANGE
    assert soft.errno(queue(number, length=1 << 50)) == ENOMEM
    assert soft.errno(queue(number, iova=0)) == ENOENT
    assert soft.errno(queue(number, index=2)) == EINVAL
    assert soft.errno(queue(number, index=1)) == EIO
    assert soft.pins == 2
    assert soft.table(1).map.alignment == 2048


def test_a_queue_needs_memory_that_can_be_read_and_lies_together(soft: Soft) -> None:
    device, hwpt = parent(soft)
    number = soft.call(abi.ViommuAlloc(type=KIND, dev_id=device, hwpt_id=hwpt)).out_viommu_id
    assert soft.errno(queue(number, length=2 * PAGE)) == EFAULT
    soft.map(1, BASE, PAGE, APERTURE + 8 * PAGE, WRITE)
    assert soft.errno(queue(number, iova=APERTURE + 8 * PAGE)) == EPERM
    assert soft.errno(queue(number, iova=APERTURE + 100, length=8)) == 0
    soft.map(1, BASE, PAGE, APERTURE + 16 * PAGE)


def test_a_live_queue_keeps_areas_whole_pages(soft: Soft) -> None:
    _, number = viommu(soft)
    soft.map(1, BASE, 2048, APERTURE + 8 * PAGE)
    assert soft.errno(queue(number)) == EADDRINUSE
    soft.unmap(1, APERTURE + 8 * PAGE, 2048)
    made = soft.call(queue(number)).out_hw_queue_id
    assert soft.errno(abi.IoasMap(flags=6, ioas_id=1, user_va=BASE, length=2048)) == EINVAL
    assert soft.errno(queue(number)) == EEXIST
    soft.destroy(made)
    assert soft.errno(abi.IoasMap(flags=6, ioas_id=1, user_va=BASE, length=2048)) == 0
