"""IOMMU_HWPT_INVALIDATE: how many entries were carried out, whatever happens."""

from __future__ import annotations

from errno import E2BIG, EFAULT, EINVAL, ENOENT, EOPNOTSUPP

import pytest

from iommufd.good import DATA, parent, viommu
from iommufd.soft import Soft
from softiommu.abi import iommufd as abi, iommufd_test as test
from softiommu.errors import UapiError

KIND = test.HWPT_INVALIDATE_DATA_SELFTEST


def invalidate(soft: Soft, cmd: abi.HwptInvalidate) -> tuple[int, int]:
    """The errno, and entry_num as the program's memory has it afterwards."""
    soft.store(cmd.to_bytes())
    errno = 0
    try:
        soft.file.ioctl(soft.caller, abi.HWPT_INVALIDATE, soft.scratch)
    except UapiError as error:
        errno = error.errno
    return errno, abi.HwptInvalidate.from_bytes(soft.caller.read(soft.scratch, 32)).entry_num


def entries(soft: Soft, *pairs: tuple[int, int]) -> None:
    """(flags, word) entries in memory."""
    raw = b"".join(test.HwptInvalidateSelftest(*pair).to_bytes() for pair in pairs)
    soft.caller.write(DATA, raw)


def words(soft: Soft, hwpt: int) -> list[bool]:
    """Which IOTLB words are still as they were made."""
    check = [test.CheckIotlb(id=n, iotlb=0x1234) for n in range(4)]
    return [soft.op_errno(test.TestOp.MD_CHECK_IOTLB, hwpt, arg) == 0 for arg in check]


def test_entries_before_a_bad_one_are_done_and_counted(soft: Soft) -> None:
    nested = soft.nested(*parent(soft))
    entries(soft, (0, 1), (0, 3), (0, 4), (1, 0))
    cmd = abi.HwptInvalidate(hwpt_id=nested, data_uptr=DATA, data_type=KIND, entry_len=8, entry_num=4)
    assert invalidate(soft, cmd) == (EINVAL, 2)
    assert words(soft, nested) == [True, False, True, False]
    entries(soft, (1, 0))
    cmd.entry_num = 1
    assert invalidate(soft, cmd) == (0, 1)
    assert words(soft, nested) == [False] * 4


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"reserved": 1}, EOPNOTSUPP),
        ({"data_uptr": 0}, EINVAL),
        ({"entry_len": 0}, EINVAL),
        ({"entry_len": 4097}, EINVAL),
        ({"entry_len": 12}, EINVAL),
        ({"entry_num": (1 << 19) + 1}, EINVAL),
        ({"hwpt_id": 99}, ENOENT),
        ({"hwpt_id": 1}, EINVAL),
        ({"data_type": 0}, EINVAL),
        ({"data_uptr": 8}, EFAULT),
    ],
)
def test_a_refused_array_counts_nothing(soft: Soft, fields: dict[str, int], expected: int) -> None:
    good = {"hwpt_id": soft.nested(*parent(soft)), "data_uptr": DATA, "data_type": KIND, "entry_len": 8, "entry_num": 3}
    entries(soft, (0, 0))
    assert invalidate(soft, abi.HwptInvalidate(**(good | fields))) == (expected, 0)


def test_no_entries_only_ask_whether_the_type_is_known(soft: Soft) -> None:
    nested = soft.nested(*parent(soft))
    assert invalidate(soft, abi.HwptInvalidate(hwpt_id=nested, data_type=KIND)) == (0, 0)
    assert invalidate(soft, abi.HwptInvalidate(hwpt_id=nested, data_type=1)) == (EINVAL, 0)


def test_a_viommus_array_is_read_whole_before_any_entry_is_done(soft: Soft) -> None:
    device, number = viommu(soft)
    soft.call(abi.VdeviceAlloc(viommu_id=number, dev_id=device, virt_id=6))
    kind = test.VIOMMU_INVALIDATE_DATA_SELFTEST
    good = test.ViommuInvalidateSelftest(vdev_id=6, cache_id=2).to_bytes()
    cmd = abi.HwptInvalidate(hwpt_id=number, data_uptr=DATA, data_type=kind, entry_len=16, entry_num=2)
    soft.caller.write(DATA, good + bytes(4) + good + b"\1\0\0\0")
    assert invalidate(soft, cmd) == (E2BIG, 0)
    untouched = test.CheckDevCache(id=2, cache=test.TEST_DEV_CACHE_DEFAULT)
    assert soft.op_errno(test.TestOp.DEV_CHECK_CACHE, device, untouched) == 0
    soft.caller.write(DATA, good + bytes(4) + bytes(12) + bytes(4))
    assert invalidate(soft, cmd) == (EINVAL, 1)
    assert soft.op_errno(test.TestOp.DEV_CHECK_CACHE, device, test.CheckDevCache(id=2, cache=0)) == 0
