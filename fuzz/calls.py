"""Every call that a hostile program can make of an iommufd, and which bytes of its memory the call may write."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from softiommu.abi import iommufd as abi, iommufd_test as test, vfio
from softiommu.abi.struct import UserStruct

Ranges = list[tuple[int, int]]
Op = test.TestOp

#: The member of the test command's union for each operation.
PAYLOADS: dict[int, type[UserStruct]] = {
    Op.ADD_RESERVED: test.AddReserved,
    Op.MOCK_DOMAIN: test.MockDomain,
    Op.MD_CHECK_MAP: test.CheckMap,
    Op.MD_CHECK_REFS: test.CheckRefs,
    Op.CREATE_ACCESS: test.CreateAccess,
    Op.DESTROY_ACCESS_PAGES: test.DestroyAccessPages,
    Op.ACCESS_PAGES: test.AccessPages,
    Op.ACCESS_RW: test.AccessRw,
    Op.SET_TEMP_MEMORY_LIMIT: test.MemoryLimit,
    Op.MOCK_DOMAIN_REPLACE: test.MockDomainReplace,
    Op.ACCESS_REPLACE_IOAS: test.AccessReplaceIoas,
    Op.MOCK_DOMAIN_FLAGS: test.MockDomainFlags,
    Op.DIRTY: test.Dirty,
    Op.MD_CHECK_IOTLB: test.CheckIotlb,
    Op.TRIGGER_IOPF: test.TriggerIopf,
    Op.DEV_CHECK_CACHE: test.CheckDevCache,
    Op.TRIGGER_VEVENT: test.TriggerVevent,
    Op.PASID_ATTACH: test.PasidAttach,
    Op.PASID_REPLACE: test.PasidReplace,
    Op.PASID_DETACH: test.PasidDetach,
    Op.PASID_CHECK_HWPT: test.PasidCheck,
    Op.DMABUF_GET: test.DmabufGet,
    Op.DMABUF_REVOKE: test.DmabufRevoke,
    # An operation that does not exist.
    99: test.MemoryLimit,
}
#: Operations whose `id` is a descriptor, which may be of another iommufd.
BY_DESCRIPTOR = frozenset(
    (Op.DESTROY_ACCESS_PAGES, Op.ACCESS_PAGES, Op.ACCESS_RW, Op.ACCESS_REPLACE_IOAS, Op.DMABUF_REVOKE)
)
#: What kinds of objects the `id` of an operation names; the others want a selftest object.
OPERANDS: dict[int, tuple[str, ...]] = {
    Op.ADD_RESERVED: ("IOAS",),
    Op.MOCK_DOMAIN: ("IOAS", "IOAS", "HWPT_PAGING", "HWPT_NESTED"),
    Op.MOCK_DOMAIN_FLAGS: ("IOAS", "IOAS", "HWPT_PAGING", "HWPT_NESTED"),
    Op.CREATE_ACCESS: ("IOAS",),
    Op.MD_CHECK_MAP: ("HWPT_PAGING",),
    Op.DIRTY: ("HWPT_PAGING",),
    Op.MD_CHECK_IOTLB: ("HWPT_NESTED",),
    Op.DEV_CHECK_CACHE: ("device",),
}
VFIO: tuple[tuple[int, type[UserStruct] | None], ...] = (
    (vfio.GET_API_VERSION, None),
    (vfio.CHECK_EXTENSION, None),
    (vfio.SET_IOMMU, None),
    (vfio.IOMMU_GET_INFO, vfio.IommuType1Info),
    (vfio.IOMMU_MAP_DMA, vfio.IommuType1DmaMap),
    (vfio.IOMMU_UNMAP_DMA, vfio.IommuType1DmaUnmap),
)


class Call(NamedTuple):
    """An ioctl: its number, its structure, and the member of the union when it is the test command."""

    cmd: int
    struct: UserStruct
    payload: UserStruct | None = None

    def raw(self) -> bytes:
        """The bytes in memory."""
        if self.payload is None:
            return self.struct.to_bytes()
        head = self.struct.to_bytes()[:16]
        return head + self.payload.to_bytes().ljust(test.TestCmd.SIZE - 16, b"\0")


def _iova_ranges(cmd: abi.IoasIovaRanges) -> Ranges:
    return [(cmd.allowed_iovas, 16 * cmd.num_iovas)]


def _hw_info(cmd: abi.HwInfo) -> Ranges:
    return [(cmd.data_uptr, cmd.data_len)]


def _bitmap(cmd: abi.HwptGetDirtyBitmap) -> Ranges:
    page = cmd.page_size & -cmd.page_size
    return [(cmd.data, -(-cmd.length // page // 8) + 1)] if page else []


def _viommu(cmd: abi.ViommuAlloc) -> Ranges:
    return [(cmd.data_uptr, cmd.data_len)]


def _access_rw(cmd: test.AccessRw) -> Ranges:
    return [] if cmd.flags & test.AccessRwFlags.WRITE else [(cmd.uptr, cmd.length)]


_GIVEN: dict[type[UserStruct], Callable[..., Ranges]] = {
    abi.IoasIovaRanges: _iova_ranges,
    abi.HwInfo: _hw_info,
    abi.HwptGetDirtyBitmap: _bitmap,
    abi.ViommuAlloc: _viommu,
    test.AccessRw: _access_rw,
}


def given(call: Call, at: int, size: int) -> Ranges:
    """The (address, length) ranges that the call may write, with its structure of `size` bytes at `at`."""
    ranges = [(at, size if call.cmd == vfio.IOMMU_GET_INFO else min(size, type(call.struct).SIZE))]
    named = call.struct if call.payload is None else call.payload
    choose = _GIVEN.get(type(named))
    return ranges + choose(named) if choose else ranges


def anywhere(call: Call) -> int:
    """How many bytes it may write through an IOAS, to wherever that leads."""
    payload = call.payload
    if isinstance(payload, test.AccessRw) and payload.flags & test.AccessRwFlags.WRITE:
        return payload.length
    return 0
