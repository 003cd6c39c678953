"""For each command a call that succeeds: what it needs is made first."""

from __future__ import annotations

from collections.abc import Callable

from iommufd.fakes import BASE, memory_file
from iommufd.soft import APERTURE, READ, WRITE, Soft
from softiommu.abi import iommufd as abi, iommufd_test as test
from softiommu.abi.struct import UserStruct
from softiommu.drivers.noiommu import NoIommuDevice
from softiommu.iommufd import device as devices
from softiommu.memory.client import CAP_SYS_RAWIO

PAGE = 4096
#: Where the good calls keep ranges, bitmaps and data.
DATA = BASE + 30 * PAGE


def mapped(soft: Soft) -> int:
    """An IOAS with two pages at the start of the mock's aperture."""
    ioas = soft.ioas()
    soft.map(ioas, BASE, 2 * PAGE, APERTURE)
    return ioas


def parent(soft: Soft) -> tuple[int, int]:
    """A device, and a nesting parent for it."""
    ioas = mapped(soft)
    device = soft.mock(ioas).out_idev_id
    return device, soft.hwpt(device, ioas, 1)


def viommu(soft: Soft) -> tuple[int, int]:
    """A device, and a vIOMMU over its nesting parent."""
    soft.caller.mm.ram.together = True
    device, hwpt = parent(soft)
    cmd = abi.ViommuAlloc(type=test.VIOMMU_TYPE_SELFTEST, dev_id=device, hwpt_id=hwpt)
    return device, soft.call(cmd).out_viommu_id


def no_iommu_ioas(soft: Soft) -> int:
    """An IOAS whose only domain is that of a device without an IOMMU."""
    soft.caller.capabilities.add(CAP_SYS_RAWIO)
    ioas = mapped(soft)

    def attach() -> None:
        devices.attach(devices.bind(soft.ctx, NoIommuDevice("noiommu0")), ioas)

    soft.ctx.run(soft.caller, attach)
    return ioas


def _ranges(soft: Soft) -> UserStruct:
    return abi.IoasIovaRanges(ioas_id=soft.ioas(), num_iovas=4, allowed_iovas=DATA)


def _allow(soft: Soft) -> UserStruct:
    soft.caller.write(DATA, abi.IovaRange(PAGE, 1 << 20).to_bytes())
    return abi.IoasAllowIovas(ioas_id=soft.ioas(), num_iovas=1, allowed_iovas=DATA)


def _copy(soft: Soft) -> UserStruct:
    ioas = mapped(soft)
    return abi.IoasCopy(flags=READ, dst_ioas_id=ioas, src_ioas_id=ioas, length=PAGE, src_iova=APERTURE)


def _map_file(soft: Soft) -> UserStruct:
    soft.caller.files[9] = memory_file(4)
    return abi.IoasMapFile(flags=READ | WRITE, ioas_id=soft.ioas(), fd=9, length=PAGE)


def _hwpt(soft: Soft) -> UserStruct:
    ioas = mapped(soft)
    return abi.HwptAlloc(dev_id=soft.mock(ioas).out_idev_id, pt_id=ioas)


def _tracked(soft: Soft) -> int:
    ioas = mapped(soft)
    return soft.hwpt(soft.mock(ioas).out_idev_id, ioas, 2)


def _bitmap(soft: Soft) -> UserStruct:
    hwpt = _tracked(soft)
    soft.call(abi.HwptSetDirtyTracking(flags=1, hwpt_id=hwpt))
    return abi.HwptGetDirtyBitmap(hwpt_id=hwpt, iova=APERTURE, length=2 * PAGE, page_size=PAGE, data=DATA)


def _invalidate(soft: Soft) -> UserStruct:
    nested = soft.nested(*parent(soft))
    soft.caller.write(DATA, test.HwptInvalidateSelftest().to_bytes())
    kind = test.HWPT_INVALIDATE_DATA_SELFTEST
    return abi.HwptInvalidate(hwpt_id=nested, data_uptr=DATA, data_type=kind, entry_len=8, entry_num=1)


def _viommu(soft: Soft) -> UserStruct:
    device, hwpt = parent(soft)
    return abi.ViommuAlloc(type=test.VIOMMU_TYPE_SELFTEST, dev_id=device, hwpt_id=hwpt)


def _vdevice(soft: Soft) -> UserStruct:
    device, number = viommu(soft)
    return abi.VdeviceAlloc(viommu_id=number, dev_id=device, virt_id=7)


def _hw_queue(soft: Soft) -> UserStruct:
    _, number = viommu(soft)
    kind = test.HW_QUEUE_TYPE_SELFTEST
    return abi.HwQueueAlloc(viommu_id=number, type=kind, nesting_parent_iova=APERTURE, length=PAGE)


GOOD: dict[type[UserStruct], Callable[[Soft], UserStruct]] = {
    abi.Destroy: lambda soft: abi.Destroy(id=soft.ioas()),
    abi.IoasAlloc: lambda soft: abi.IoasAlloc(),
    abi.IoasAllowIovas: _allow,
    abi.IoasCopy: _copy,
    abi.IoasIovaRanges: _ranges,
    abi.IoasMap: lambda soft: abi.IoasMap(flags=READ, ioas_id=soft.ioas(), user_va=BASE, length=PAGE),
    abi.IoasUnmap: lambda soft: abi.IoasUnmap(ioas_id=mapped(soft), iova=APERTURE, length=2 * PAGE),
    abi.Option: lambda soft: abi.Option(option_id=1, op=1, object_id=soft.ioas()),
    abi.VfioIoas: lambda soft: abi.VfioIoas(ioas_id=soft.ioas(), op=abi.VfioIoasOp.SET),
    abi.HwptAlloc: _hwpt,
    abi.HwInfo: lambda soft: abi.HwInfo(dev_id=soft.mock(soft.ioas()).out_idev_id, data_len=8, data_uptr=DATA),
    abi.HwptSetDirtyTracking: lambda soft: abi.HwptSetDirtyTracking(flags=1, hwpt_id=_tracked(soft)),
    abi.HwptGetDirtyBitmap: _bitmap,
    abi.HwptInvalidate: _invalidate,
    abi.FaultAlloc: lambda soft: abi.FaultAlloc(),
    abi.IoasMapFile: _map_file,
    abi.ViommuAlloc: _viommu,
    abi.VdeviceAlloc: _vdevice,
    abi.IoasChangeProcess: lambda soft: abi.IoasChangeProcess(),
    abi.VeventqAlloc: lambda soft: abi.VeventqAlloc(viommu_id=viommu(soft)[1], type=1, veventq_depth=2),
    abi.HwQueueAlloc: _hw_queue,
    abi.IoasNoiommuGetPa: lambda soft: abi.IoasNoiommuGetPa(ioas_id=no_iommu_ioas(soft), iova=APERTURE, length=1),
    test.TestCmd: lambda soft: test.TestCmd(72, test.TestOp.MOCK_DOMAIN, soft.ioas()),
}
