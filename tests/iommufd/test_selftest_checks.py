"""The test command's checks of maps, pins and caches, and what it makes devices do: writes, faults, events."""

from __future__ import annotations

from errno import (
    EFAULT,
    EINVAL,
    EIO,
    ENOENT,
    ENOMEM,
    EOPNOTSUPP,
)

import pytest

from iommufd.fakes import BASE
from iommufd.good import mapped, parent, viommu
from iommufd.soft import APERTURE, Soft
from softiommu.abi import iommufd as abi, iommufd_test as test
from softiommu.drivers.driver import PageResponse
from softiommu.drivers.mock.driver import MockDevice
from softiommu.iommufd.device import DeviceObject

K, PAGE = 1 << 10, 4096
TOP = 1 << 64
Op = test.TestOp
NO_DIRTY, PASID = int(test.DeviceFlags.NO_DIRTY), int(test.DeviceFlags.PASID)
HWPT_PASID = 8


# Checks of maps and pins


def attached(soft: Soft) -> int:
    """The HWPT of a device on an IOAS with two pages."""
    return soft.mock(mapped(soft)).out_hwpt_id


def check_map(soft: Soft, hwpt: int, iova: int = APERTURE, length: int = 2 * PAGE, va: int = BASE) -> int:
    """MD_CHECK_MAP's errno."""
    return soft.op_errno(Op.MD_CHECK_MAP, hwpt, test.CheckMap(iova, length, va))


def test_a_map_is_checked_granule_by_granule(soft: Soft) -> None:
    hwpt = attached(soft)
    assert check_map(soft, hwpt) == 0
    assert check_map(soft, hwpt, APERTURE + 2 * K, 2 * K, BASE + 2 * K) == 0
    assert check_map(soft, hwpt, APERTURE + 2 * K, 2 * K, BASE) == EINVAL
    assert check_map(soft, hwpt, APERTURE, 3 * PAGE, BASE) == EINVAL
    assert check_map(soft, hwpt, APERTURE, PAGE, BASE + PAGE) == EINVAL
    assert check_map(soft, hwpt, length=0) == 0


@pytest.mark.parametrize(
    ("iova", "length", "va", "expected"),
    [
        (APERTURE + K, PAGE, BASE, EINVAL),
        (APERTURE, PAGE + K, BASE, EINVAL),
        (APERTURE, PAGE, BASE + K, EINVAL),
        (APERTURE, PAGE, TOP - PAGE, EINVAL),
        (APERTURE, PAGE, 1 << 31, EFAULT),
    ],
)
def test_a_check_of_a_map_needs_granules_and_memory(soft: Soft, iova: int, length: int, va: int, expected: int) -> None:
    assert check_map(soft, attached(soft), iova, length, va) == expected


def test_only_a_paging_table_has_a_map(soft: Soft) -> None:
    device, hwpt = parent(soft)
    assert check_map(soft, hwpt) == 0
    for other in (device, soft.nested(device, hwpt), 99):
        assert check_map(soft, other) == ENOENT


def check_refs(soft: Soft, refs: int, va: int = BASE, length: int = 2 * PAGE) -> int:
    """MD_CHECK_REFS' errno."""
    return soft.op_errno(Op.MD_CHECK_REFS, 0, test.CheckRefs(length, va, refs))


def test_a_page_is_pinned_once_for_each_page_set(soft: Soft) -> None:
    ioas = mapped(soft)
    assert check_refs(soft, 0) == 0
    made = soft.mock(ioas)
    assert (check_refs(soft, 1), check_refs(soft, 0), check_refs(soft, 2)) == (0, EIO, EIO)
    flags, length, target = 7, 2 * PAGE, APERTURE + 8 * PAGE
    soft.call(abi.IoasCopy(64, flags, ioas, ioas, length, target, APERTURE))
    assert check_refs(soft, 1) == 0
    soft.map(ioas, BASE + PAGE, PAGE, APERTURE + 32 * PAGE)
    assert (check_refs(soft, 1), check_refs(soft, 1, length=PAGE), check_refs(soft, 2, BASE + PAGE, PAGE)) == (
        EIO,
        0,
        0,
    )
    soft.destroy(made.out_stdev_id)
    assert check_refs(soft, 0) == 0


@pytest.mark.parametrize(
    ("va", "length", "expected"),
    [(BASE + 1, PAGE, EINVAL), (BASE, 1, EINVAL), (TOP - PAGE, PAGE, EINVAL), (1 << 31, PAGE, EFAULT), (BASE, 0, 0)],
)
def test_a_check_of_pins_needs_pages(soft: Soft, va: int, length: int, expected: int) -> None:
    assert check_refs(soft, 0, va, length) == expected


# Dirty marks


def tracked(soft: Soft) -> int:
    """An HWPT that tracks, on an IOAS with two pages."""
    ioas = mapped(soft)
    hwpt = soft.hwpt(soft.mock(ioas).out_idev_id, ioas, 2)
    soft.call(abi.HwptSetDirtyTracking(flags=1, hwpt_id=hwpt))
    return hwpt


def test_marks_are_the_set_bits_within_the_length(soft: Soft) -> None:
    hwpt = tracked(soft)
    bitmap = soft.store(b"\xf5")
    arg = test.Dirty(iova=APERTURE, length=4 * K, page_size=2 * K, uptr=bitmap)
    assert soft.op(Op.DIRTY, hwpt, arg).out_nr_dirty == 1
    domain = soft.paging(hwpt).domain
    marks: list[int] = []

    class Report:
        def record(self, iova: int, length: int) -> None:
            marks.append(iova)

    domain.read_dirty(domain.aperture, Report(), True)
    assert marks == [APERTURE]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"page_size": 0}, EINVAL),
        ({"length": 0}, EINVAL),
        ({"iova": APERTURE + K}, EINVAL),
        ({"length": 3 * K}, EINVAL),
        ({"uptr": 0}, EINVAL),
        ({"uptr": 8}, EFAULT),
        ({"length": 1 << 60}, ENOMEM),
    ],
)
def test_a_bad_bitmap_marks_nothing(soft: Soft, fields: dict[str, int], expected: int) -> None:
    hwpt = tracked(soft)
    good = {"iova": APERTURE, "length": 4 * K, "page_size": 2 * K, "uptr": soft.store(b"\xff")}
    arg = test.Dirty(**(good | fields))
    assert soft.op_errno(Op.DIRTY, hwpt, arg) == expected
    if expected == EINVAL:
        assert soft.op_errno(Op.DIRTY, 99, arg) == EINVAL
    assert soft.op_errno(Op.DIRTY, 99, test.Dirty(**good)) == ENOENT


def test_a_bitmap_that_ends_in_a_hole_marks_nothing(soft: Soft) -> None:
    hwpt = tracked(soft)
    soft.caller.mm.holes = {40}
    end = BASE + 40 * PAGE
    soft.caller.write(end - PAGE, b"\xff" * PAGE)
    arg = test.Dirty(iova=0, length=(1 << 16) * 2 * K, page_size=2 * K, uptr=end - PAGE)
    assert soft.op_errno(Op.DIRTY, hwpt, arg) == EFAULT
    arg = test.Dirty(iova=0, length=(1 << 15) * 2 * K, page_size=2 * K, uptr=end - PAGE)
    assert soft.op(Op.DIRTY, hwpt, arg).out_nr_dirty == 1 << 15


def test_marks_need_tracking(soft: Soft) -> None:
    hwpt = tracked(soft)
    soft.call(abi.HwptSetDirtyTracking(flags=0, hwpt_id=hwpt))
    arg = test.Dirty(iova=APERTURE, length=2 * K, page_size=2 * K, uptr=soft.store(b"\1"))
    assert soft.op_errno(Op.DIRTY, hwpt, arg) == EINVAL


# Caches


def test_words_are_compared_and_there_are_four(soft: Soft) -> None:
    device, hwpt = parent(soft)
    nested = soft.nested(device, hwpt)
    for word, value, expected in ((3, 0x1234, 0), (3, 0x1235, EINVAL), (4, 0x1234, EINVAL)):
        assert soft.op_errno(Op.MD_CHECK_IOTLB, nested, test.CheckIotlb(word, value)) == expected
    default = test.TEST_DEV_CACHE_DEFAULT
    for word, value, expected in ((3, default, 0), (0, 0, EINVAL), (4, default, EINVAL)):
        assert soft.op_errno(Op.DEV_CHECK_CACHE, device, test.CheckDevCache(word, value)) == expected
    assert soft.op_errno(Op.MD_CHECK_IOTLB, hwpt, test.CheckIotlb(0, 0x1234)) == ENOENT
    assert soft.op_errno(Op.DEV_CHECK_CACHE, hwpt, test.CheckDevCache(0, default)) == ENOENT


# Faults and events


def test_a_fault_that_nobody_waits_for_is_answered_and_no_error(soft: Soft) -> None:
    made = soft.mock(soft.ioas())
    soft.op(Op.TRIGGER_IOPF, 0, test.TriggerIopf(made.out_idev_id, 7, 3, 1, 0x5000))
    assert soft.op_errno(Op.TRIGGER_IOPF, 0, test.TriggerIopf(99)) == ENOENT
    mock = soft.ctx.objects.get(made.out_idev_id, DeviceObject).device
    assert isinstance(mock, MockDevice)
    ((fault, code),) = mock.responses
    assert (fault.pasid, fault.group, fault.last, fault.perm, fault.addr) == (7, 3, True, 1, 0x5000)
    assert code is PageResponse.INVALID


def test_an_event_needs_a_viommu_a_name_and_a_queue(soft: Soft) -> None:
    device, number = viommu(soft)
    selftest = next(obj.id for obj in soft.ctx.objects if obj.kind == "selftest")
    trigger = test.TriggerVevent(device)
    assert soft.op_errno(Op.TRIGGER_VEVENT, 0, test.TriggerVevent(99)) == ENOENT
    assert soft.op_errno(Op.TRIGGER_VEVENT, 0, trigger) == ENOENT
    soft.call(abi.VdeviceAlloc(viommu_id=number, dev_id=device, virt_id=0x1_0000_0007))
    soft.op(Op.MOCK_DOMAIN_REPLACE, selftest, test.MockDomainReplace(soft.nested(device, number)))
    assert soft.op_errno(Op.TRIGGER_VEVENT, 0, trigger) == EOPNOTSUPP
    made = soft.call(abi.VeventqAlloc(viommu_id=number, type=test.VEVENTQ_TYPE_SELFTEST, veventq_depth=1))
    assert soft.op_errno(Op.TRIGGER_VEVENT, 0, trigger) == 0
    queue = soft.caller.files[made.out_veventq_fd]
    assert queue.read(soft.caller, soft.scratch, PAGE) == 12
    assert soft.caller.read(soft.scratch, 12) == bytes(8) + b"\7\0\0\0"
