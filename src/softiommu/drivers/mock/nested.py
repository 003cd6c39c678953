"""A guest's page table as the mock sees it: nothing but four IOTLB words that invalidation clears."""

from __future__ import annotations

from errno import EINVAL, EOPNOTSUPP
from typing import TYPE_CHECKING

from softiommu.abi import iommufd_test as test
from softiommu.drivers.driver import unsupported
from softiommu.drivers.user_data import Handled, UserArray, UserData
from softiommu.errors import UapiError

if TYPE_CHECKING:
    from softiommu.drivers.mock.viommu import MockViommu

HWPT_PASID = 8
WORDS = 4


class MockNestedDomain:
    """A guest's table as the mock sees it: four IOTLB words that invalidation clears."""

    def __init__(self, owner: object, viommu: MockViommu | None, iotlb: int) -> None:
        self.owner = owner
        self.viommu = viommu
        self.iotlb = [iotlb] * WORDS

    def invalidate(self, entries: UserArray, handled: Handled) -> None:
        """Clear one word, or all. EINVAL, EOPNOTSUPP at the first bad entry; earlier ones stay done."""
        if entries.data_type != test.HWPT_INVALIDATE_DATA_SELFTEST or (
            entries.entry_num and entries.entry_len != test.HwptInvalidateSelftest.SIZE
        ):
            raise UapiError(EINVAL, f"type {entries.data_type:#x} with entries of {entries.entry_len} bytes")
        for index in range(entries.entry_num):
            entry = entries.entry(index, test.HwptInvalidateSelftest, test.HWPT_INVALIDATE_DATA_SELFTEST)
            if entry.flags & ~test.TEST_INVALIDATE_FLAG_ALL:
                raise UapiError(EOPNOTSUPP, f"entry {index} has flags {entry.flags:#x}")
            if entry.iotlb_id >= WORDS:
                raise UapiError(EINVAL, f"entry {index} names IOTLB word {entry.iotlb_id}")
            if entry.flags & test.TEST_INVALIDATE_FLAG_ALL:
                self.iotlb = [0] * WORDS
            else:
                self.iotlb[entry.iotlb_id] = 0
            handled.count += 1

    def free(self) -> None:
        """Nothing to give back."""


def nested_data(flags: int, data: UserData, has_pagetable_type: bool = True) -> test.HwptSelftest:
    """What the program gives for a nested HWPT. EOPNOTSUPP: flags or type; EINVAL: length; EFAULT.

    The structure of 6.12 had the IOTLB word only.
    """
    if flags & ~HWPT_PASID:
        raise unsupported(f"flags {flags:#x} for a nested HWPT")
    if data.data_type != test.HWPT_DATA_SELFTEST:
        raise unsupported(f"HWPT data type {data.data_type:#x}")
    if not has_pagetable_type and data.length > test.HwptSelftest.MIN_SIZE:
        raise UapiError(EINVAL, f"{data.length} bytes of data are more than {test.HwptSelftest.MIN_SIZE}")
    return data.copy(test.HwptSelftest, test.HWPT_DATA_SELFTEST)
