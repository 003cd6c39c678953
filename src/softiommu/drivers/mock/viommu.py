"""The mock's vIOMMU: virtual ids, device caches, a mapped region, two hardware queues, events."""

from __future__ import annotations

from collections.abc import Sequence
from errno import EEXIST, EFAULT, EINVAL, EIO, ENOENT, EOPNOTSUPP
from typing import TYPE_CHECKING

from softiommu.abi import iommufd_test as test
from softiommu.drivers.driver import Device, NestedDomain, PagingDomain, ViommuHost
from softiommu.drivers.mock.nested import WORDS, MockNestedDomain, nested_data
from softiommu.drivers.user_data import Handled, UserArray, UserData
from softiommu.errors import UapiError

if TYPE_CHECKING:
    from softiommu.drivers.mock.driver import MockDevice

_REGION = 2 * 4096


class MockViommu:
    """A guest's slice of the mock IOMMU."""

    def __init__(self, owner: object, parent: PagingDomain, host: ViommuHost, data: UserData | None) -> None:
        self._owner, self._parent, self._host = owner, parent, host
        self._devices: dict[int, MockDevice] = {}
        self._queues: set[int] = set()
        if data is not None:
            self._answer(data)

    def _answer(self, data: UserData) -> None:
        parsed = data.copy(test.ViommuSelftest, test.VIOMMU_TYPE_SELFTEST)
        offset = self._host.mmap_region(_REGION)
        self._host.store(offset, parsed.in_data.to_bytes(4, "little"))
        parsed.out_data = parsed.in_data
        parsed.out_mmap_offset, parsed.out_mmap_length = offset, _REGION
        data.reply(parsed.to_bytes())

    def alloc_nested(self, device: Device, flags: int, data: UserData) -> NestedDomain:
        """A nested domain on this vIOMMU."""
        return MockNestedDomain(self._owner, self, nested_data(flags, data).iotlb)

    def invalidate(self, entries: UserArray, handled: Handled) -> None:
        """Clear words of device caches: all entries are read first, then carried out up to the first bad one."""
        copied = entries.entries(test.ViommuInvalidateSelftest, test.VIOMMU_INVALIDATE_DATA_SELFTEST)
        for index, entry in enumerate(copied):
            if entry.flags & ~test.TEST_INVALIDATE_FLAG_ALL:
                raise UapiError(EOPNOTSUPP, f"entry {index} has flags {entry.flags:#x}")
            if entry.cache_id >= WORDS:
                raise UapiError(EINVAL, f"entry {index} names cache word {entry.cache_id}")
            device = self._devices.get(entry.vdev_id)
            if device is None:
                raise UapiError(EINVAL, f"entry {index}: no vDEVICE has virtual id {entry.vdev_id:#x}")
            if entry.flags & test.TEST_INVALIDATE_FLAG_ALL:
                device.cache = [0] * WORDS
            else:
                device.cache[entry.cache_id] = 0
            handled.count += 1

    def add_vdevice(self, device: Device, virt_id: int) -> None:
        """Name a device."""
        mock = _mock(device)
        self._devices[virt_id] = mock
        mock.viommu, mock.virt_id = self, virt_id

    def remove_vdevice(self, device: Device) -> None:
        """Forget a device's name."""
        mock = _mock(device)
        del self._devices[mock.virt_id]
        mock.viommu, mock.virt_id = None, 0

    def hw_queue_types(self) -> Sequence[int]:
        """The selftest type."""
        return (test.HW_QUEUE_TYPE_SELFTEST,)

    def add_hw_queue(self, index: int, iova: int, pa: int, length: int) -> int | None:
        """EINVAL: no such queue; EEXIST: taken; EIO: queue 0 must come first; EFAULT: the parent says otherwise."""
        if index >= test.TEST_HW_QUEUE_MAX:
            raise UapiError(EINVAL, f"there is no hardware queue {index}")
        if index in self._queues:
            raise UapiError(EEXIST, f"hardware queue {index} is in use")
        if index and index - 1 not in self._queues:
            raise UapiError(EIO, f"hardware queue {index} needs queue {index - 1}")
        if self._parent.iova_to_pa(iova) != pa:
            raise UapiError(EFAULT, f"the parent does not translate {iova:#x} to the pinned page")
        self._queues.add(index)
        return index - 1 if index else None

    def remove_hw_queue(self, index: int) -> None:
        """Stop a queue."""
        self._queues.discard(index)

    def report(self, virt_id: int) -> None:
        """A device reported an event. ENOENT: it has no virtual id; EOPNOTSUPP: nobody listens."""
        if not virt_id:
            raise UapiError(ENOENT, "the device has no virtual id")
        event = test.ViommuEventSelftest(virt_id=virt_id & 0xFFFFFFFF)
        self._host.report_event(test.VEVENTQ_TYPE_SELFTEST, event.to_bytes())

    def free(self) -> None:
        """Nothing is left."""


def _mock(device: Device) -> MockDevice:
    from softiommu.drivers.mock.driver import MockDevice

    assert isinstance(device, MockDevice), "devices of one IOMMU instance are of one driver"
    return device
