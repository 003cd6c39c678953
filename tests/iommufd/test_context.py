"""The objects of one open file: undone calls, and closing in an order that always ends."""

from __future__ import annotations

from collections.abc import Callable
from errno import EBUSY, EFAULT, EMFILE, ENOENT

import pytest

from iommufd.fakes import BASE
from iommufd.soft import APERTURE, Soft, refused
from softiommu.abi import iommufd as abi, iommufd_test as test

PAGE = 4096


def make_device(soft: Soft, ioas: int) -> tuple[int, bytes]:
    """A device on an automatic HWPT of its own."""
    return test.TEST_CMD, test.TestCmd(72, test.TestOp.MOCK_DOMAIN, ioas).to_bytes()


def make_second_device(soft: Soft, ioas: int) -> tuple[int, bytes]:
    """A device on the automatic HWPT of another."""
    soft.mock(ioas)
    return make_device(soft, ioas)


def make_access(soft: Soft, ioas: int) -> tuple[int, bytes]:
    """An access."""
    return test.TEST_CMD, test.TestCmd(72, test.TestOp.CREATE_ACCESS, ioas).to_bytes()


def make_ioas(soft: Soft, ioas: int) -> tuple[int, bytes]:
    """One more IOAS."""
    return abi.IOAS_ALLOC, abi.IoasAlloc().to_bytes()


def make_hwpt(soft: Soft, ioas: int) -> tuple[int, bytes]:
    """An HWPT."""
    return abi.HWPT_ALLOC, abi.HwptAlloc(dev_id=soft.mock(ioas).out_idev_id, pt_id=ioas).to_bytes()


def make_fault_queue(soft: Soft, ioas: int) -> tuple[int, bytes]:
    """A fault queue with its descriptor."""
    return abi.FAULT_QUEUE_ALLOC, abi.FaultAlloc().to_bytes()


MAKERS = [make_device, make_second_device, make_access, make_ioas, make_hwpt, make_fault_queue]


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_what_a_call_made_is_undone_when_its_answer_cannot_be_stored(
    soft: Soft, make: Callable[[Soft, int], tuple[int, bytes]]
) -> None:
    ioas = soft.ioas()
    soft.map(ioas, BASE, PAGE, APERTURE)
    cmd, raw = make(soft, ioas)
    before = [(obj.id, obj.kind, obj.users) for obj in soft.ctx.objects]
    files, pins = dict(soft.caller.files), soft.pins
    soft.store(raw)
    soft.caller.mm.read_only.add(63)
    with refused(EFAULT):
        soft.file.ioctl(soft.caller, cmd, soft.scratch)
    # An automatic HWPT that was made for the call is gone with it.
    assert [(obj.id, obj.kind, obj.users) for obj in soft.ctx.objects] == before
    assert soft.caller.files == files
    assert soft.pins == pins


@pytest.mark.parametrize("make", [make_access, make_fault_queue], ids=lambda make: make.__name__)
def test_what_a_call_made_is_undone_when_no_descriptor_is_free(
    soft: Soft, make: Callable[[Soft, int], tuple[int, bytes]]
) -> None:
    ioas = soft.ioas()
    cmd, raw = make(soft, ioas)
    soft.caller.table_full = True
    with refused(EMFILE):
        soft.ioctl(cmd, raw)
    assert [(obj.id, obj.users) for obj in soft.ctx.objects] == [(ioas, 0)]


def test_closing_lets_hardware_queues_go_before_what_they_pin(soft: Soft) -> None:
    soft.caller.mm.ram.together = True
    ioas = soft.ioas()
    soft.map(ioas, BASE, 8 * PAGE, APERTURE)
    device = soft.mock(ioas).out_idev_id
    parent = soft.hwpt(device, ioas, 1)
    viommu = soft.call(abi.ViommuAlloc(type=test.VIOMMU_TYPE_SELFTEST, dev_id=device, hwpt_id=parent)).out_viommu_id
    queues = [abi.HwQueueAlloc(viommu_id=viommu, type=1, index=n, length=PAGE) for n in range(2)]
    for queue in queues:
        queue.type, queue.nesting_parent_iova = test.HW_QUEUE_TYPE_SELFTEST, APERTURE
        soft.call(queue)
    with refused(EBUSY):
        soft.destroy(queues[0].out_hw_queue_id)
    assert soft.pins == 8


def test_closing_ends_after_a_device_left_with_a_pasid_attached(soft: Soft) -> None:
    ioas = soft.ioas()
    device = soft.mock(ioas, int(test.DeviceFlags.PASID))
    hwpt = soft.hwpt(device.out_idev_id, ioas, 8)
    selftest = device.out_stdev_id
    soft.op(test.TestOp.MOCK_DOMAIN_REPLACE, selftest, test.MockDomainReplace(pt_id=hwpt))
    soft.op(test.TestOp.PASID_ATTACH, selftest, test.PasidAttach(pasid=5, pt_id=hwpt))
    soft.destroy(selftest)
    with refused(EBUSY):
        soft.destroy(hwpt)
    with refused(ENOENT):
        soft.destroy(selftest)


def test_groups_of_devices_that_left_are_forgotten(soft: Soft) -> None:
    ioas = soft.ioas()
    for _ in range(3):
        soft.destroy(soft.mock(ioas).out_stdev_id)
    assert soft.ctx.groups == {}


def test_an_event_file_keeps_the_objects_after_the_iommufd_is_closed() -> None:
    soft = Soft()
    ioas = soft.ioas()
    soft.map(ioas, BASE, PAGE, APERTURE)
    soft.mock(ioas)
    queue = soft.call(abi.FaultAlloc())
    soft.file.release()
    assert soft.pins == 1
    soft.caller.close(queue.out_fault_fd)
    assert soft.pins == 0
    assert list(soft.ctx.objects) == []
