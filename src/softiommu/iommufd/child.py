"""A child that the program fills: an IOAS whose "user" addresses are those of a nesting parent (data type MAPPED)."""

from __future__ import annotations

from collections.abc import Iterator
from errno import EFAULT, EINVAL
from typing import TYPE_CHECKING

from softiommu.abi.software_nesting import MAPPED, HwptMapped
from softiommu.drivers.driver import SoftwareNesting, unsupported
from softiommu.drivers.user_data import UserData
from softiommu.errors import UapiError
from softiommu.iommufd.hwpt import NEST_PARENT, PASID, HwptPaging, check_parent, domain_flags
from softiommu.iommufd.ioas import Ioas, refuse
from softiommu.memory.accounts import Mode, Payer
from softiommu.memory.client import PAGE_SIZE, Extent
from softiommu.memory.frames import Run
from softiommu.memory.pins import Hold, PageSet

if TYPE_CHECKING:
    from softiommu.iommufd.context import Context
    from softiommu.iommufd.device import DeviceObject


class ParentSource:
    """Addresses of a parent."""

    def __init__(self, address: int) -> None:
        self.start = address

    def pages(self, offset: int, length: int, write: bool) -> list[Extent]:
        """EFAULT: what they lead to changes with the parent."""
        raise UapiError(EFAULT, f"{self.start + offset:#x} is an address of a parent, not of memory")


class ParentPages(PageSet):
    """What an area of a child shows: addresses of `space`. Nothing is pinned for it: that space's areas pin memory."""

    def __init__(self, ctx: Context, address: int, length: int, space: Ioas) -> None:
        self.space = space
        payer = Payer(ctx.caller.mm, None)
        super().__init__(ctx.physical, ParentSource(address), length, True, payer, Mode.UNCOUNTED)

    def hold(self, first: int, last: int) -> Hold:
        """Nothing is held."""
        return Hold(first, last)

    def release(self, hold: Hold) -> None:
        """Nothing is let go."""

    def runs(self, first_byte: int, length: int) -> Iterator[Run]:
        """The parent's addresses, for a domain that takes them."""
        yield Run(self.source.start // PAGE_SIZE * PAGE_SIZE + first_byte, length)


def alloc(ctx: Context, parent: HwptPaging, device: DeviceObject, flags: int, data: UserData) -> HwptPaging:
    """A child of `parent` whose table is an IOAS. EOPNOTSUPP: nothing nests in software here; EINVAL: the parent is
    none, or the IOAS is used otherwise: one whose addresses are of another space than the parent's, too."""
    refuse(flags & ~(NEST_PARENT | (PASID if ctx.kernel.hwpt_pasid else 0)), "flags for a child that is mapped")
    config = data.copy(HwptMapped, MAPPED)
    refuse(config.reserved, "reserved")
    nesting = device.device
    if not isinstance(nesting, SoftwareNesting):
        raise unsupported(f"nothing nests tables in software for device {device.device.name}")
    check_parent(parent, device)
    ioas = ctx.objects.get(config.ioas_id, Ioas)
    if ioas.space is None and (ioas.hwpts or ioas.map.areas or ioas.map.accesses):
        raise UapiError(EINVAL, f"IOAS {ioas.id} has memory or HWPTs: a child needs one of its own")
    if ioas.space not in (None, parent.ioas):
        raise UapiError(EINVAL, f"IOAS {ioas.id} holds addresses of another space than IOAS {parent.ioas.id}")
    hwpt = ctx.new(HwptPaging(ioas, nesting.alloc_mapped(parent.domain, domain_flags(flags)), False, parent))
    if device.enforce_cache_coherency:
        hwpt.enforce_cache_coherency()
    hwpt.fill()
    return hwpt
