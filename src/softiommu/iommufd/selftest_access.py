"""The test command's accesses: kernel-side users of an IOAS that a program drives through a descriptor."""

from __future__ import annotations

from contextlib import suppress
from errno import EBADE, EBADFD, ENOENT, ENOMEM, EOPNOTSUPP
from typing import TYPE_CHECKING, NamedTuple

from softiommu.abi import iommufd_test as test
from softiommu.errors import UapiError
from softiommu.iommufd.access import Access, Flags, Page
from softiommu.iommufd.area import MAX
from softiommu.iommufd.context import Context
from softiommu.iommufd.ioas import Ioas
from softiommu.iommufd.selftest_reply import respond
from softiommu.memory.client import PAGE_SIZE
from softiommu.memory.files import File

if TYPE_CHECKING:
    from softiommu.iommufd.selftest import SelftestCommand

_MAX_LENGTH = 16 << 20


class Item(NamedTuple):
    """Pages that a program had pinned."""

    iova: int
    length: int


class AccessFile(File):
    """The descriptor of an access. Closing it lets go of everything."""

    kind = "test access"

    def __init__(self, ctx: Context, ioas: Ioas, pins: bool) -> None:
        super().__init__()
        self.ctx = ctx
        self.access = ctx.new(Access(ctx, pins, self.let_go))
        self.items: dict[int, Item] = {}
        self._next_item = 0
        self.access.attach(ioas)
        ctx.hold()

    def add_item(self, iova: int, length: int) -> int:
        """Remember pinned pages; their number, from 0."""
        number = self._next_item
        self._next_item += 1
        self.items[number] = Item(iova, length)
        return number

    def let_go(self, iova: int, length: int) -> None:
        """Unpin every item that meets the range."""
        for number, item in list(self.items.items()):
            if item.iova < iova + length and iova < item.iova + item.length:
                self.drop(number)

    def drop(self, number: int) -> None:
        """Unpin an item."""
        item = self.items.pop(number)
        self.access.unpin(item.iova, item.length)

    def release(self) -> None:
        """The last descriptor is closed."""
        self.let_go(0, 1 << 64)
        self.ctx.discard(self.access)
        self.ctx.put()


def _access(ctx: Context, fd: int) -> AccessFile:
    """EBADFD: the number is no descriptor of an access."""
    try:
        file = ctx.caller.file(fd)
    except UapiError as error:
        raise UapiError(EBADFD, f"descriptor {fd} is not open") from error
    if not isinstance(file, AccessFile):
        raise UapiError(EBADFD, f"descriptor {fd} is a {file.kind}, not an access")
    return file


def create(self: SelftestCommand, ctx: Context, cmd: test.TestCmd, arg: test.CreateAccess) -> None:
    """CREATE_ACCESS."""
    if arg.flags & ~int(test.AccessCreateFlags.NEEDS_PIN_PAGES):
        raise UapiError(EOPNOTSUPP, f"flags {arg.flags:#x} are not known")
    ioas = ctx.objects.get(cmd.id, Ioas)
    file = AccessFile(ctx, ioas, bool(arg.flags))
    try:
        # Tried before the descriptor exists: an EFAULT must not leave one behind.
        respond(ctx, cmd, arg)
        arg.out_access_fd = ctx.caller.install(file)
    except UapiError:
        ctx.put()
        raise
    with suppress(UapiError):
        # Only a thread that has just taken the memory away misses the number.
        respond(ctx, cmd, arg)


def destroy_pages(self: SelftestCommand, ctx: Context, cmd: test.TestCmd, arg: test.DestroyAccessPages) -> None:
    """DESTROY_ACCESS_PAGES. ENOENT: no such item."""
    file = _access(ctx, cmd.id)
    if arg.access_pages_id not in file.items:
        raise UapiError(ENOENT, f"there are no pinned pages {arg.access_pages_id}")
    file.drop(arg.access_pages_id)


def pages(self: SelftestCommand, ctx: Context, cmd: test.TestCmd, arg: test.AccessPages) -> None:
    """ACCESS_PAGES: pin, and compare with the caller's own pages (EBADE)."""
    length, uptr = arg.length, arg.uptr
    if length > _MAX_LENGTH:
        raise UapiError(ENOMEM, f"{length:#x} bytes are more than {_MAX_LENGTH:#x}")
    if arg.flags & ~int(test.AccessFlags.WRITE | test.AccessFlags.SYZ):
        raise UapiError(EOPNOTSUPP, f"flags {arg.flags:#x} are not known")
    file = _access(ctx, cmd.id)
    if not file.access.pins:
        raise UapiError(EOPNOTSUPP, "the access was made without NEEDS_PIN_PAGES")
    iova = _iova(file.access, arg.flags, arg.iova)
    flags = Flags.WRITE if arg.flags & test.AccessFlags.WRITE else Flags.READ
    pinned = file.access.pin(iova, length, flags)
    try:
        if uptr:
            _compare(ctx, pinned, uptr - iova % PAGE_SIZE)
        arg.out_access_pages_id = file.add_item(iova, length)
    except UapiError:
        file.access.unpin(iova, length)
        raise
    try:
        respond(ctx, cmd, arg)
    except UapiError:
        file.drop(arg.out_access_pages_id)
        raise


def _iova(access: Access, flags: int, iova: int) -> int:
    if flags & test.AccessFlags.SYZ and access.ioas is not None:
        return nth_area(access.ioas, iova)
    return iova


def nth_area(ioas: Ioas, packed: int) -> int:
    """The address that (area number, offset), packed in 64 bits, means; 0 when there is no such area."""
    number, offset = packed & 0xFFFFFFFF, packed >> 32
    areas = ioas.map.areas
    return int(areas.peekitem(number)[0]) + offset & MAX if number < len(areas) else 0


def _compare(ctx: Context, pinned: list[Page], va: int) -> None:
    for index, (backing, offset) in enumerate(pinned):
        at = (va + index * PAGE_SIZE) & -PAGE_SIZE
        (extent,) = ctx.caller.mm.extents(at, PAGE_SIZE, False)
        if extent.backing is not backing or extent.offset != offset:
            raise UapiError(EBADE, f"page {index} of the access is not the page at {at:#x}")


def rw(self: SelftestCommand, ctx: Context, cmd: test.TestCmd, arg: test.AccessRw) -> None:
    """ACCESS_RW: copy between the IOAS and the caller's memory."""
    if arg.length > _MAX_LENGTH:
        raise UapiError(ENOMEM, f"{arg.length:#x} bytes are more than {_MAX_LENGTH:#x}")
    if arg.flags & ~int(test.AccessRwFlags.WRITE | test.AccessRwFlags.SLOW_PATH):
        raise UapiError(EOPNOTSUPP, f"flags {arg.flags:#x} are not known")
    access = _access(ctx, cmd.id).access
    if arg.flags & test.AccessRwFlags.WRITE:
        access.write(arg.iova, ctx.caller.read(arg.uptr, arg.length))
    else:
        ctx.caller.write(arg.uptr, access.read(arg.iova, arg.length))


def replace_ioas(self: SelftestCommand, ctx: Context, cmd: test.TestCmd, arg: test.AccessReplaceIoas) -> None:
    """ACCESS_REPLACE_IOAS."""
    file = _access(ctx, cmd.id)
    # The descriptor may be of another iommufd than the one that is called: the access stays within its own.
    file.access.replace(file.ctx.objects.get(arg.ioas_id, Ioas))
