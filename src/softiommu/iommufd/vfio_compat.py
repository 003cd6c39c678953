"""VFIO type 1 on an iommufd: the container commands, carried out on one IOAS (the compatibility IOAS)."""

from __future__ import annotations

from errno import EINVAL, ENOTTY, EOVERFLOW, EPERM
from typing import TYPE_CHECKING

from softiommu.abi import vfio
from softiommu.drivers.driver import Prot
from softiommu.errors import UapiError
from softiommu.iommufd.area import MAX, Progress
from softiommu.iommufd.context import CallDone, Context
from softiommu.iommufd.ioas import Ioas, map_va, set_large_pages
from softiommu.iommufd.vfio_ioas import compat_ioas
from softiommu.memory.client import CAP_SYS_RAWIO, PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from softiommu.abi.struct import UserStruct
    from softiommu.memory.client import Caller

_EXTENSIONS = (vfio.Extension.TYPE1_IOMMU, vfio.Extension.TYPE1v2_IOMMU, vfio.Extension.UNMAP_ALL)
_DMA_AVAIL = 2**32 - 1
#: Where a capability says which one follows.
_NEXT = 4


def ioctl(ctx: Context, caller: Caller, cmd: int, arg: int) -> int:
    """A container command on an iommufd: its return value. ENOTTY: not one of VFIO's."""
    row = _COMMANDS.get(cmd)
    if row is None:
        raise UapiError(ENOTTY, f"{cmd:#x} is no command of an iommufd or a VFIO container")
    name, handler = row
    seen: list[UserStruct | int] = [arg]
    listener = ctx.services.on_call
    try:
        result = ctx.run(caller, lambda: handler(ctx, arg, seen))
    except UapiError as error:
        if listener is not None:
            listener(CallDone(ctx.number, caller, name, seen[-1], -1, error))
        raise
    if listener is not None:
        listener(CallDone(ctx.number, caller, name, seen[-1], result, None))
    return result


def _api_version(ctx: Context, arg: int, seen: list[UserStruct | int]) -> int:
    return vfio.API_VERSION


def _check_extension(ctx: Context, arg: int, seen: list[UserStruct | int]) -> int:
    if arg in _EXTENSIONS:
        return 1
    if arg == vfio.Extension.DMA_CC_IOMMU:
        return int(all(hwpt.enforces_cache_coherency for hwpt in compat_ioas(ctx).hwpts))
    if arg == vfio.Extension.NOIOMMU_IOMMU:
        return int(ctx.services.no_iommu)
    return 0


def _set_iommu(ctx: Context, arg: int, seen: list[UserStruct | int]) -> int:
    if arg == vfio.Extension.NOIOMMU_IOMMU and ctx.services.no_iommu and ctx.no_iommu_mode:
        if not ctx.caller.capable(CAP_SYS_RAWIO):
            raise UapiError(EPERM, "no-IOMMU mode needs CAP_SYS_RAWIO")
        return 0
    if arg not in (vfio.Extension.TYPE1_IOMMU, vfio.Extension.TYPE1v2_IOMMU) or ctx.no_iommu_mode:
        raise UapiError(EINVAL, f"IOMMU type {arg} cannot be set")
    ioas = compat_ioas(ctx)
    if arg == vfio.Extension.TYPE1_IOMMU:
        # Type 1 may unmap the middle of a mapping, which large pages forbid.
        set_large_pages(ioas, False)
    return 0


def _copy_in(ctx: Context, struct: type[UserStruct], arg: int, least: int) -> UserStruct:
    raw = ctx.caller.read(arg, least)
    argsz = int.from_bytes(raw[:4], "little")
    if argsz < least:
        raise UapiError(EINVAL, f"argsz {argsz} is less than {least}")
    return struct.from_bytes(raw.ljust(struct.SIZE, b"\0"))


def _map_dma(ctx: Context, arg: int, seen: list[UserStruct | int]) -> int:
    cmd = _copy_in(ctx, vfio.IommuType1DmaMap, arg, vfio.IommuType1DmaMap.SIZE)
    assert isinstance(cmd, vfio.IommuType1DmaMap)
    seen.append(cmd)
    if cmd.flags & ~int(vfio.DmaMapFlags.READ | vfio.DmaMapFlags.WRITE):
        raise UapiError(EINVAL, f"flags {cmd.flags:#x} are not known")
    prot = Prot.NONE
    if cmd.flags & vfio.DmaMapFlags.READ:
        prot |= Prot.READ
    if cmd.flags & vfio.DmaMapFlags.WRITE:
        prot |= Prot.WRITE
    map_va(ctx, compat_ioas(ctx), cmd.vaddr, cmd.size, cmd.iova, prot)
    return 0


def _unmap_dma(ctx: Context, arg: int, seen: list[UserStruct | int]) -> int:
    cmd = _copy_in(ctx, vfio.IommuType1DmaUnmap, arg, vfio.IommuType1DmaUnmap.SIZE)
    assert isinstance(cmd, vfio.IommuType1DmaUnmap)
    seen.append(cmd)
    if cmd.flags & ~int(vfio.DmaUnmapFlags.ALL):
        raise UapiError(EINVAL, f"flags {cmd.flags:#x} are not known")
    ioas = compat_ioas(ctx)
    everything = bool(cmd.flags & vfio.DmaUnmapFlags.ALL)
    if everything and (cmd.iova or cmd.size):
        raise UapiError(EINVAL, "with UNMAP_ALL iova and size must be 0")
    iova, size, progress = cmd.iova, cmd.size, Progress()
    if not everything and not ioas.map.large_pages:
        # Areas that cross the ends are cut there, so that each is whole inside or outside.
        ioas.map.cut((iova + size) & MAX)
        if iova:
            ioas.map.cut(iova)
    try:
        first, last = (0, MAX) if everything else _unmap_range(iova, size)
        ioas.map.unmap(first, last, progress)
    finally:
        cmd.size = progress.bytes & MAX
        ctx.caller.write(arg, cmd.to_bytes())
    return 0


def _unmap_range(iova: int, size: int) -> tuple[int, int]:
    if not size:
        raise UapiError(EINVAL, "size 0 cannot be unmapped")
    if iova + size - 1 > MAX:
        raise UapiError(EOVERFLOW, f"iova {iova:#x} + size {size:#x} wraps")
    return iova, iova + size - 1


def _get_info(ctx: Context, arg: int, seen: list[UserStruct | int]) -> int:
    cmd = _copy_in(ctx, vfio.IommuType1Info, arg, 16)
    assert isinstance(cmd, vfio.IommuType1Info)
    seen.append(cmd)
    ioas = compat_ioas(ctx)
    given, total = cmd.argsz, vfio.IommuType1Info.SIZE
    last: int | None = None
    for write in (_write_dma_avail, _write_iova_ranges):
        length = write(ctx, ioas, arg + total, given - total)
        if last is not None and given >= total:
            ctx.caller.write(arg + last + _NEXT, total.to_bytes(4, "little"))
        last, total = total, total + -(-length // 8) * 8
    cmd.flags = int(vfio.IommuInfoFlags.PGSIZES | vfio.IommuInfoFlags.CAPS)
    cmd.iova_pgsizes = _page_sizes(ioas)
    cmd.cap_offset = vfio.IommuType1Info.SIZE if given >= total else 0
    cmd.argsz = total
    ctx.caller.write(arg, cmd.to_bytes()[: min(given, vfio.IommuType1Info.SIZE)])
    return 0


def _write_dma_avail(ctx: Context, ioas: Ioas, at: int, room: int) -> int:
    """How many mappings may be made, if it fits; its length."""
    cap = vfio.IommuType1InfoDmaAvail(header_id=vfio.Type1Cap.DMA_AVAIL, header_version=1, avail=_DMA_AVAIL).to_bytes()
    if room >= len(cap):
        ctx.caller.write(at, cap)
    return len(cap)


def _write_iova_ranges(ctx: Context, ioas: Ioas, at: int, room: int) -> int:
    """Where there may be mappings: every range that fits, and what counts them if all do; the length of all."""
    length = vfio.IommuType1InfoCapIovaRange.SIZE
    free = ioas.map.free_ranges()
    for first, last in free:
        entry = vfio.IovaRange(start=first, end=last).to_bytes()
        if room >= length + len(entry):
            ctx.caller.write(at + length, entry)
        length += len(entry)
    if room >= length:
        head = vfio.IommuType1InfoCapIovaRange(header_id=vfio.Type1Cap.IOVA_RANGE, header_version=1, nr_iovas=len(free))
        ctx.caller.write(at, head.to_bytes())
    return length


def _page_sizes(ioas: Ioas) -> int:
    sizes = MAX
    for hwpt in ioas.hwpts:
        sizes &= hwpt.domain.page_sizes
    if sizes & (PAGE_SIZE - 1):
        sizes = sizes & ~(PAGE_SIZE - 1) | PAGE_SIZE
    return max(sizes, ioas.map.alignment)


_COMMANDS: dict[int, tuple[str, Callable[[Context, int, list[UserStruct | int]], int]]] = {
    vfio.GET_API_VERSION: ("VFIO_GET_API_VERSION", _api_version),
    vfio.CHECK_EXTENSION: ("VFIO_CHECK_EXTENSION", _check_extension),
    vfio.SET_IOMMU: ("VFIO_SET_IOMMU", _set_iommu),
    vfio.IOMMU_GET_INFO: ("VFIO_IOMMU_GET_INFO", _get_info),
    vfio.IOMMU_MAP_DMA: ("VFIO_IOMMU_MAP_DMA", _map_dma),
    vfio.IOMMU_UNMAP_DMA: ("VFIO_IOMMU_UNMAP_DMA", _unmap_dma),
}
