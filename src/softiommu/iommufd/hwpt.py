"""Hardware page tables: paging ones that show an IOAS, and nested ones that a guest owns."""

from __future__ import annotations

from errno import EINVAL, EOPNOTSUPP
from typing import TYPE_CHECKING

from softiommu.abi import iommufd as abi
from softiommu.abi.software_nesting import MAPPED
from softiommu.drivers.driver import DomainFlags, NestedDomain, PagingDomain
from softiommu.drivers.user_data import UserData
from softiommu.errors import UapiError
from softiommu.iommufd.context import Context
from softiommu.iommufd.ioas import Ioas, refuse
from softiommu.iommufd.objects import Object

if TYPE_CHECKING:
    from softiommu.iommufd.device import DeviceObject
    from softiommu.iommufd.events import FaultQueue
    from softiommu.iommufd.viommu import ViommuObject

NEST_PARENT, DIRTY_TRACKING, FAULT_ID_VALID, PASID = 1, 2, 4, 8


class Hwpt(Object):
    """What a device can be attached to."""

    kind = "HWPT"
    domain: PagingDomain | NestedDomain

    def __init__(self, pasid: bool) -> None:
        super().__init__()
        #: Whether it may be used together with PASIDs.
        self.pasid = pasid
        self.fault_queue: FaultQueue | None = None

    @property
    def paging(self) -> HwptPaging | None:
        """The paging HWPT whose IOAS the device sees at the end."""
        raise NotImplementedError

    @property
    def auto(self) -> bool:
        """Made by an attach to an IOAS; vanishes with its last user."""
        return False

    def use_fault_queue(self, queue: FaultQueue) -> None:
        """Send the page faults of attached devices to `queue`."""
        self.fault_queue = queue
        queue.users += 1

    def destroy(self, ctx: Context) -> None:
        """Let go of the fault queue and the domain."""
        if self.fault_queue is not None:
            self.fault_queue.users -= 1
            self.fault_queue = None
        self.domain.free()


class HwptPaging(Hwpt):
    """A page table that shows every area of an IOAS."""

    kind = "HWPT_PAGING"
    domain: PagingDomain

    def __init__(self, ioas: Ioas, domain: PagingDomain, auto: bool, parent: HwptPaging | None = None) -> None:
        super().__init__(DomainFlags.PASID in domain.flags)
        self.ioas, self.domain, self._auto = ioas, domain, auto
        #: What the addresses in the IOAS are of, where it is nested in software.
        self.parent = parent
        if parent is not None:
            parent.users += 1
        self.enforces_cache_coherency = False
        self.filled = False
        ioas.users += 1

    @property
    def paging(self) -> HwptPaging:
        """Itself."""
        return self

    @property
    def auto(self) -> bool:
        """Made by an attach to an IOAS."""
        return self._auto

    @property
    def nest_parent(self) -> bool:
        """Whether nested HWPTs and vIOMMUs can be made on it."""
        return DomainFlags.NEST_PARENT in self.domain.flags

    def fill(self) -> None:
        """Show the IOAS: from now on every area is in the domain. EINVAL: the IOAS holds a parent's addresses, which
        lead nowhere without it; else as `IoPageTable.add_domain`."""
        if self.ioas.of_parent and self.parent is None:
            raise UapiError(EINVAL, f"IOAS {self.ioas.id} holds addresses of a parent: it is shown by a child's HWPT")
        self.ioas.map.add_domain(self.domain)
        self.ioas.hwpts.append(self)
        self.filled = True

    def enforce_cache_coherency(self) -> None:
        """Make DMA coherent for a device that asks for it. EINVAL: the hardware cannot."""
        if not self.enforces_cache_coherency and not self.domain.enforce_cache_coherency():
            raise UapiError(EINVAL, "the IOMMU cannot force this device's DMA to be cache coherent")
        self.enforces_cache_coherency = True

    def destroy(self, ctx: Context) -> None:
        """Take the IOAS's areas out."""
        if self.filled:
            self.ioas.hwpts.remove(self)
            self.ioas.map.remove_domain(self.domain)
        self.ioas.users -= 1
        super().destroy(ctx)
        if self.parent is not None:
            self.parent.users -= 1


class HwptNested(Hwpt):
    """A guest's page table, on a paging HWPT or on a vIOMMU (whose parent it then uses)."""

    kind = "HWPT_NESTED"
    domain: NestedDomain

    def __init__(self, parent: HwptPaging | ViommuObject, domain: NestedDomain, pasid: bool) -> None:
        super().__init__(pasid)
        self.parent, self.domain = parent, domain
        parent.users += 1

    @property
    def paging(self) -> HwptPaging | None:
        """The nesting parent."""
        return self.parent if isinstance(self.parent, HwptPaging) else self.parent.hwpt

    def destroy(self, ctx: Context) -> None:
        """Let go of the parent."""
        super().destroy(ctx)
        self.parent.users -= 1


def alloc(ctx: Context, cmd: abi.HwptAlloc) -> None:
    """IOMMU_HWPT_ALLOC on an IOAS, a nesting parent or a vIOMMU."""
    from softiommu.iommufd.device import DeviceObject
    from softiommu.iommufd.events import FaultQueue
    from softiommu.iommufd.viommu import ViommuObject

    refuse(cmd.reserved, "reserved")
    if bool(cmd.data_type) != bool(cmd.data_len):
        raise UapiError(EINVAL, f"data type {cmd.data_type:#x} does not go with {cmd.data_len} bytes of data")
    device = ctx.objects.get(cmd.dev_id, DeviceObject)
    target = ctx.objects.find(cmd.pt_id)
    data = UserData(ctx.caller, cmd.data_uptr, cmd.data_len, cmd.data_type) if cmd.data_type else None
    if isinstance(target, Ioas):
        hwpt: Hwpt = _alloc_paging(ctx, target, device, cmd.flags, data)
    elif isinstance(target, HwptPaging):
        hwpt = _alloc_nested(ctx, target, device, cmd.flags, data)
    elif isinstance(target, ViommuObject):
        hwpt = _alloc_on_viommu(ctx, target, device, cmd.flags, data)
    else:
        raise UapiError(EINVAL, f"pt_id {cmd.pt_id} is no IOAS, paging HWPT or vIOMMU")
    if cmd.flags & FAULT_ID_VALID:
        hwpt.use_fault_queue(ctx.objects.get(cmd.fault_id, FaultQueue))
    cmd.out_hwpt_id = hwpt.id


def _alloc_paging(ctx: Context, ioas: Ioas, device: DeviceObject, flags: int, data: UserData | None) -> HwptPaging:
    known = NEST_PARENT | DIRTY_TRACKING | (FAULT_ID_VALID | PASID if ctx.kernel.hwpt_pasid else 0)
    refuse(flags & ~known, "flags")
    if flags & DIRTY_TRACKING and not device.device.features.dirty_tracking:
        raise UapiError(EOPNOTSUPP, f"device {device.device.name} has no dirty tracking")
    if flags & FAULT_ID_VALID and flags & NEST_PARENT:
        raise UapiError(EOPNOTSUPP, "a nesting parent cannot have a fault queue: its nested HWPTs have")
    return new_paging(ctx, ioas, device, domain_flags(flags), data)


def domain_flags(flags: int) -> DomainFlags:
    """What HWPT_ALLOC flags ask of a domain."""
    wanted = DomainFlags.NONE
    if flags & NEST_PARENT:
        wanted |= DomainFlags.NEST_PARENT
    if flags & DIRTY_TRACKING:
        wanted |= DomainFlags.DIRTY_TRACKING
    if flags & PASID:
        wanted |= DomainFlags.PASID
    return wanted


def new_paging(ctx: Context, ioas: Ioas, device: DeviceObject, flags: DomainFlags, data: UserData | None) -> HwptPaging:
    """A paging HWPT that shows `ioas`, not attached. Undone with the call when it raises."""
    hwpt = ctx.new(HwptPaging(ioas, device.device.alloc_paging(flags, data), auto=False))
    if device.enforce_cache_coherency:
        hwpt.enforce_cache_coherency()
    hwpt.fill()
    return hwpt


def _alloc_nested(
    ctx: Context, parent: HwptPaging, device: DeviceObject, flags: int, data: UserData | None
) -> HwptNested | HwptPaging:
    if data is not None and data.data_type == MAPPED:
        from softiommu.iommufd import child

        return child.alloc(ctx, parent, device, flags, data)
    refuse(flags & ~(FAULT_ID_VALID | (PASID if ctx.kernel.hwpt_pasid else 0)), "flags for a nested HWPT")
    if data is None or not device.device.features.nested_domains:
        raise UapiError(EOPNOTSUPP, "a nested HWPT needs the driver's data, and a driver that has such")
    check_parent(parent, device)
    domain = device.device.alloc_nested(parent.domain, flags & ~FAULT_ID_VALID, data)
    return ctx.new(HwptNested(parent, domain, bool(flags & PASID)))


def check_parent(parent: HwptPaging, device: DeviceObject) -> None:
    """EINVAL: tables of the device cannot be nested on this."""
    if parent.auto or not parent.nest_parent or parent.domain.owner is not device.device.driver:
        raise UapiError(EINVAL, f"HWPT {parent.id} is no nesting parent for device {device.device.name}")


def _alloc_on_viommu(
    ctx: Context, viommu: ViommuObject, device: DeviceObject, flags: int, data: UserData | None
) -> HwptNested:
    if device.device.iommu is not viommu.iommu:
        raise UapiError(EINVAL, f"device {device.device.name} sits behind another IOMMU than vIOMMU {viommu.id}")
    refuse(flags & ~(FAULT_ID_VALID | PASID), "flags for a nested HWPT")
    if data is None:
        raise UapiError(EOPNOTSUPP, "a nested HWPT needs the driver's data")
    domain = viommu.viommu.alloc_nested(device.device, flags & ~FAULT_ID_VALID, data)
    return ctx.new(HwptNested(viommu, domain, bool(flags & PASID)))
