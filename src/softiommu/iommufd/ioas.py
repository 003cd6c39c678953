"""IOAS commands: make an I/O address space, map, copy and unmap memory in it, and bound where it may map."""

from __future__ import annotations

from bisect import bisect_left
from errno import EADDRINUSE, EINVAL, EMSGSIZE, ENODEV, ENOENT, EOPNOTSUPP, EOVERFLOW
from struct import Struct
from typing import TYPE_CHECKING

from softiommu.abi import iommufd as abi
from softiommu.drivers.driver import Prot, Range
from softiommu.errors import UapiError
from softiommu.iommufd.area import MAX, Elm
from softiommu.iommufd.areas import IoPageTable
from softiommu.iommufd.context import Context
from softiommu.iommufd.objects import Object
from softiommu.memory.accounts import Mode, Payer
from softiommu.memory.client import CAP_IPC_LOCK, PAGE_SIZE
from softiommu.memory.files import DmabufFile, HostFile
from softiommu.memory.pins import DmabufSource, FileSource, PageSet, Source, VaSource

if TYPE_CHECKING:
    from softiommu.iommufd.hwpt import HwptPaging

_FIXED, _WRITEABLE, _READABLE = 1, 2, 4
_FLAGS = _FIXED | _WRITEABLE | _READABLE
_RANGE = Struct("<QQ")


class Ioas(Object):
    """An I/O address space: a map, and the hardware page tables that show it."""

    kind = "IOAS"

    def __init__(self) -> None:
        super().__init__()
        self.map = IoPageTable()
        self.hwpts: list[HwptPaging] = []

    @property
    def space(self) -> Ioas | None:
        """Whose addresses its areas lead to, where those are a nesting parent's (see `child`). None: to memory."""
        if self.hwpts:
            parent = self.hwpts[0].parent
            return None if parent is None else parent.ioas
        from softiommu.iommufd.child import ParentPages

        pages = self.map.areas.peekitem(0)[1].pages if self.map.areas else None
        return pages.space if isinstance(pages, ParentPages) else None

    @property
    def of_parent(self) -> bool:
        """Whether its areas show addresses of a nesting parent, and not memory."""
        return self.space is not None

    def destroy(self, ctx: Context) -> None:
        """Unmap everything."""
        self.map.unmap(0, MAX)
        if ctx.vfio_ioas is self:
            ctx.vfio_ioas = None


def alloc(ctx: Context, cmd: abi.IoasAlloc) -> None:
    """IOMMU_IOAS_ALLOC."""
    refuse(cmd.flags, "flags")
    cmd.out_ioas_id = ctx.new(Ioas()).id


def iova_ranges(ctx: Context, cmd: abi.IoasIovaRanges) -> None:
    """IOMMU_IOAS_IOVA_RANGES: as many as fit, always the number and the alignment; EMSGSIZE when some did not fit."""
    refuse(cmd.reserved, "reserved")
    table = ctx.objects.get(cmd.ioas_id, Ioas).map
    ranges = table.free_ranges()
    given = cmd.num_iovas
    for index, free in enumerate(ranges[:given]):
        ctx.caller.write(cmd.allowed_iovas + index * _RANGE.size, _RANGE.pack(*free))
    cmd.num_iovas = len(ranges)
    cmd.out_iova_alignment = table.alignment
    if len(ranges) > given:
        ctx.respond(cmd)
        raise UapiError(EMSGSIZE, f"there are {len(ranges)} ranges, room was given for {given}")


def allow_iovas(ctx: Context, cmd: abi.IoasAllowIovas) -> None:
    """IOMMU_IOAS_ALLOW_IOVAS: replaces the allowed ranges, or changes nothing."""
    refuse(cmd.reserved, "reserved")
    table = ctx.objects.get(cmd.ioas_id, Ioas).map
    ranges: list[Range] = []
    for index in range(cmd.num_iovas):
        first, last = _RANGE.unpack(ctx.caller.read(cmd.allowed_iovas + index * _RANGE.size, _RANGE.size))
        if first >= last:
            raise UapiError(EINVAL, f"allowed range {index} {first:#x}..{last:#x} is empty")
        place = bisect_left(ranges, (first, last))
        near = ranges[max(place - 1, 0) : place + 1]
        if any(first <= other.last and other.first <= last for other in near):
            raise UapiError(EINVAL, f"allowed range {index} {first:#x}..{last:#x} meets an earlier one")
        ranges.insert(place, Range(first, last))
    table.set_allowed(ranges)


def map(ctx: Context, cmd: abi.IoasMap) -> None:
    """IOMMU_IOAS_MAP."""
    _check_map_args(cmd.flags, cmd.reserved, cmd.iova, cmd.length)
    ioas = ctx.objects.get(cmd.ioas_id, Ioas)
    iova = cmd.iova if cmd.flags & _FIXED else None
    cmd.iova = map_va(ctx, ioas, cmd.user_va, cmd.length, iova, _prot(cmd.flags))


def map_va(ctx: Context, ioas: Ioas, va: int, length: int, iova: int | None, prot: Prot) -> int:
    """Map the caller's memory; the I/O address. EOVERFLOW: the addresses wrap; else as `IoPageTable.map`."""
    wraps = UapiError(EOVERFLOW, f"user_va {va:#x} + length {length:#x} wraps") if va + length > MAX else None
    if wraps and ctx.kernel.map_checks_wrap_first:
        raise wraps
    if not length or length > MAX - PAGE_SIZE:
        raise UapiError(EINVAL, f"length {length:#x} cannot be mapped")
    if wraps:
        raise wraps
    space = ioas.space
    if space is not None:
        from softiommu.iommufd.child import ParentPages

        pages = ParentPages(ctx, va, length, space)
        return ioas.map.map([Elm(pages, pages.skew, length)], length, iova, prot)
    return _map_source(ctx, ioas, VaSource(ctx.caller.mm, va), length, iova, prot)


def map_file(ctx: Context, cmd: abi.IoasMapFile) -> None:
    """IOMMU_IOAS_MAP_FILE."""
    _check_map_args(cmd.flags, 0, cmd.iova, cmd.length)
    ioas = ctx.objects.get(cmd.ioas_id, Ioas)
    if not cmd.length:
        raise UapiError(EINVAL, "length 0 cannot be mapped")
    if cmd.start + cmd.length - 1 > MAX:
        raise UapiError(EOVERFLOW, f"start {cmd.start:#x} + length {cmd.length:#x} wraps")
    if ioas.of_parent:
        raise UapiError(EINVAL, f"IOAS {ioas.id} holds addresses of a parent: no file can be mapped in it")
    source = _file_source(ctx, cmd.fd, cmd.start, cmd.length)
    iova = cmd.iova if cmd.flags & _FIXED else None
    cmd.iova = _map_source(ctx, ioas, source, cmd.length, iova, _prot(cmd.flags))


def _file_source(ctx: Context, fd: int, start: int, length: int) -> Source:
    file = ctx.caller.file(fd)
    if isinstance(file, DmabufFile):
        if start + length > file.size:
            raise UapiError(EINVAL, f"{start:#x}..{start + length - 1:#x} passes the end of the dma-buf")
        if file.revoked:
            raise UapiError(ENODEV, "the dma-buf is revoked")
        return DmabufSource(file, start)
    if isinstance(file, HostFile):
        return FileSource(file, start)
    return FileSource(None, start)


def _map_source(ctx: Context, ioas: Ioas, source: Source, length: int, iova: int | None, prot: Prot) -> int:
    mode = _mode(ctx, source)
    payer = Payer(ctx.caller.mm, ctx.caller.uid if mode is Mode.USER else None)
    pages = PageSet(ctx.physical, source, length, prot.writable, payer, mode)
    return ioas.map.map([Elm(pages, pages.skew, length)], length, iova, prot)


def _mode(ctx: Context, source: Source) -> Mode:
    if isinstance(source, DmabufSource):
        return Mode.UNCOUNTED
    if ctx.caller.capable(CAP_IPC_LOCK):
        return Mode.NONE
    return Mode.PROCESS if ctx.per_process_limit else Mode.USER


def _check_map_args(flags: int, reserved: int, iova: int, length: int) -> None:
    refuse(flags & ~_FLAGS, "flags")
    refuse(reserved, "reserved")
    if iova == MAX or length == MAX:
        raise UapiError(EOVERFLOW, "iova and length must be below 2**64 - 1")
    if not flags & (_READABLE | _WRITEABLE):
        raise UapiError(EINVAL, "a mapping needs READABLE or WRITEABLE")


def _prot(flags: int) -> Prot:
    return _PROTS[flags >> 1 & 3]


_PROTS = (Prot.NONE, Prot.WRITE, Prot.READ, Prot.READ | Prot.WRITE)


def copy(ctx: Context, cmd: abi.IoasCopy) -> None:
    """IOMMU_IOAS_COPY: the same pages at another place, one area for each piece of the source."""
    if ctx.services.prepare_copy is not None:
        ctx.services.prepare_copy(ctx, cmd)
    refuse(cmd.flags & ~_FLAGS, "flags")
    if MAX in (cmd.length, cmd.src_iova, cmd.dst_iova):
        raise UapiError(EOVERFLOW, "length and addresses must be below 2**64 - 1")
    if not cmd.flags & (_READABLE | _WRITEABLE):
        raise UapiError(EINVAL, "a mapping needs READABLE or WRITEABLE")
    source = ctx.objects.get(cmd.src_ioas_id, Ioas)
    elms = _source_elms(source, cmd.src_iova, cmd.length)
    target = ctx.objects.get(cmd.dst_ioas_id, Ioas)
    if source.space is not target.space:
        raise UapiError(EINVAL, "what one IOAS holds, memory or addresses of another IOAS, the other does not")
    iova = cmd.dst_iova if cmd.flags & _FIXED else None
    cmd.dst_iova = target.map.map(elms, cmd.length, iova, _prot(cmd.flags))


def _source_elms(source: Ioas, iova: int, length: int) -> list[Elm]:
    if not length:
        raise UapiError(EINVAL, "length 0 cannot be copied")
    last = iova + length - 1
    if last > MAX:
        raise UapiError(EOVERFLOW, f"src_iova {iova:#x} + length {length:#x} wraps")
    pieces = source.map.contiguous(iova, last)
    return [Elm(p.area.pages, p.area.byte(p.first), p.last - p.first + 1) for p in pieces]


def unmap(ctx: Context, cmd: abi.IoasUnmap) -> None:
    """IOMMU_IOAS_UNMAP: (0, 2**64 - 1) is everything."""
    table = ctx.objects.get(cmd.ioas_id, Ioas).map
    if cmd.iova == 0 and cmd.length == MAX:
        # The whole address space has 2**64 bytes, which the field says as the kernel's counter does: 0.
        cmd.length = table.unmap(0, MAX) & MAX
        return
    if MAX in (cmd.iova, cmd.length):
        raise UapiError(EOVERFLOW, "iova and length must be below 2**64 - 1")
    if not cmd.length:
        raise UapiError(EINVAL, "length 0 cannot be unmapped")
    last = cmd.iova + cmd.length - 1
    if last > MAX:
        raise UapiError(EOVERFLOW, f"iova {cmd.iova:#x} + length {cmd.length:#x} wraps")
    done = table.unmap(cmd.iova, last)
    if not done:
        raise UapiError(ENOENT, f"nothing is mapped in {cmd.iova:#x}..{last:#x}")
    cmd.length = done


def change_process(ctx: Context, cmd: abi.IoasChangeProcess) -> None:
    """IOMMU_IOAS_CHANGE_PROCESS: charge every pinned page of this file to the calling process."""
    refuse(cmd.reserved, "reserved")
    spaces = [obj for obj in ctx.objects if isinstance(obj, Ioas)]
    sets = list(dict.fromkeys(area.pages for ioas in spaces for area in ioas.map.areas.values()))
    for pages in sets:
        if not isinstance(pages.source, FileSource):
            raise UapiError(EINVAL, "a mapping that is not of a file cannot change its process")
    payer = Payer(ctx.caller.mm, ctx.caller.uid)
    moved: list[tuple[PageSet, Payer]] = []
    try:
        for pages in sets:
            old = pages.payer
            pages.change_payer(payer)
            moved.append((pages, old))
    except UapiError:
        for pages, old in moved:
            pages.change_payer(old)
        raise


def refuse(value: int, what: str) -> None:
    """EOPNOTSUPP for bits that have no meaning (yet)."""
    if value:
        raise UapiError(EOPNOTSUPP, f"{what} {value:#x} is not known")


def set_large_pages(ioas: Ioas, enable: bool) -> None:
    """IOMMU_OPTION_HUGE_PAGES. EINVAL: in use; EADDRINUSE: an area is not page aligned."""
    table = ioas.map
    if enable == table.large_pages:
        return
    if not enable and table.domains and table.areas:
        raise UapiError(EINVAL, f"IOAS {ioas.id} has domains and areas: large pages cannot be turned off any more")
    was = table.large_pages
    table.large_pages = enable
    try:
        table.update_alignment()
    except UapiError as error:
        table.large_pages = was
        raise UapiError(EADDRINUSE, error.why) from error
