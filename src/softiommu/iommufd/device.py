"""Devices, their groups, and what they are attached to.

All devices of a group share one HWPT for each PASID. A PASID that is None is the device's own requests (RID).
"""

from __future__ import annotations

from errno import EBUSY, EINVAL, ENODEV, EOPNOTSUPP, EPERM
from typing import TYPE_CHECKING

from softiommu.abi import iommufd as abi
from softiommu.drivers.driver import Device, DomainFlags, PageFault, ReservedKind
from softiommu.errors import UapiError
from softiommu.iommufd.context import Context
from softiommu.iommufd.hwpt import Hwpt, HwptPaging
from softiommu.iommufd.ioas import Ioas, refuse
from softiommu.iommufd.objects import Object

if TYPE_CHECKING:
    from collections.abc import Callable

_INPUT_TYPE = 1
_CAP_DIRTY, _CAP_PASID_EXEC, _CAP_PASID_PRIV, _CAP_NO_ATS = 1, 2, 4, 8


class Attachment:
    """What a group routes one PASID (or the RID) to, and the devices that asked for it."""

    def __init__(self, hwpt: Hwpt) -> None:
        self.hwpt = hwpt
        self.devices: list[DeviceObject] = []


class Group:
    """Devices that cannot be isolated from one another."""

    def __init__(self) -> None:
        self.attachments: dict[int | None, Attachment] = {}
        self.members = 0

    def hwpt(self, pasid: int | None) -> Hwpt | None:
        """What `pasid` is attached to."""
        attachment = self.attachments.get(pasid)
        return attachment.hwpt if attachment else None


class DeviceObject(Object):
    """A device bound to this file (iommufd_device)."""

    kind = "device"
    internal = True

    def __init__(self, ctx: Context, device: Device) -> None:
        super().__init__()
        self.device = device
        self.ctx = ctx
        self.group = ctx.groups.setdefault(device.group, Group())
        self.group.members += 1
        ctx.services.owners[device.group] = ctx
        #: Its DMA must be cache coherent: the manager asks the domain for it, where the IOMMU can.
        self.enforce_cache_coherency = device.features.enforces_coherency
        #: Set while the device has a vdevice: takes it away before the device goes.
        self.vdevice: Object | None = None
        #: Page faults whose group is not complete, by group.
        self.partial_faults: dict[int, tuple[PageFault, ...]] = {}
        device.on_fault = self._on_fault

    @property
    def recovers(self) -> bool:
        """Whether anything that it is attached to has a fault queue."""
        return any(attachment.hwpt.fault_queue is not None for attachment in self.group.attachments.values())

    def _on_fault(self, fault: PageFault) -> None:
        from softiommu.iommufd import events

        hwpt, route = self.group.hwpt(fault.pasid), fault.pasid
        if hwpt is None and fault.pasid is not None:
            # A guest's own PASIDs fault on the nested HWPT that holds its PASID table.
            base = self.group.hwpt(None)
            hwpt, route = (base if base is not None and not isinstance(base, HwptPaging) else None), None
        events.deliver(self, hwpt, route, fault)

    def destroy(self, ctx: Context) -> None:
        """The driver lets go of the device."""
        self.device.on_fault = None
        self.group.members -= 1
        if not self.group.members:
            ctx.services.owners.pop(self.device.group, None)
            if not self.group.attachments:
                ctx.groups.pop(self.device.group, None)


def bind(ctx: Context, device: Device) -> DeviceObject:
    """A device's driver gives it to this file (iommufd_device_bind).

    EINVAL: its DMA is not coherent; EPERM: it could forge interrupts, or another file uses its group.
    """
    features, services = device.features, ctx.services
    if not features.cache_coherent:
        raise UapiError(EINVAL, f"the DMA of {device.name} is not coherent with the caches")
    if not features.isolated_msi and not services.unsafe_interrupts:
        raise UapiError(EPERM, f"writes of {device.name} can be any interrupt: nothing remaps interrupts")
    if services.owners.get(device.group, ctx) is not ctx:
        raise UapiError(EPERM, f"another iommufd uses the group of {device.name}")
    return ctx.new(DeviceObject(ctx, device))


def unbind(device: DeviceObject) -> None:
    """The driver takes its device back, which is attached to nothing (iommufd_device_unbind)."""
    if device.vdevice is not None:
        device.ctx.discard(device.vdevice, tombstone=True)
    device.ctx.discard(device)


def find_target(ctx: Context, pt_id: int) -> Ioas | Hwpt:
    """What an attach names. ENOENT; EINVAL: an object of another kind."""
    target = ctx.objects.get(pt_id, Object)
    if not isinstance(target, Ioas | Hwpt):
        raise UapiError(EINVAL, f"object {pt_id} is a {target.kind}: a device attaches to an IOAS or an HWPT")
    return target


def attach(device: DeviceObject, pt_id: int, pasid: int | None = None) -> int:
    """Attach to an HWPT, or to an IOAS through an automatic one; the id of the HWPT (iommufd_device_attach)."""
    return _change(device, pt_id, pasid, _attach)


def replace(device: DeviceObject, pt_id: int, pasid: int | None = None) -> int:
    """Move an attached device to another HWPT without a gap (iommufd_device_replace)."""
    return _change(device, pt_id, pasid, _replace)


def detach(device: DeviceObject, pasid: int | None = None) -> None:
    """Undo attach (iommufd_device_detach). Nothing happens for a PASID that is not attached."""
    attachment = device.group.attachments.get(pasid)
    if attachment is None or device not in attachment.devices:
        return
    hwpt = attachment.hwpt
    attachment.devices.remove(device)
    if not attachment.devices:
        del device.group.attachments[pasid]
        _drop_faults(hwpt, device, pasid)
        device.device.detach(pasid)
    if pasid is None and hwpt.paging is not None:
        hwpt.paging.ioas.map.unreserve(device)
    _put(device.ctx, hwpt, 1)


def _change(
    device: DeviceObject, pt_id: int, pasid: int | None, step: Callable[[DeviceObject, Hwpt, int | None], None]
) -> int:
    target = find_target(device.ctx, pt_id)
    if isinstance(target, Hwpt):
        step(device, target, pasid)
        return target.id
    for hwpt in target.hwpts:
        if not hwpt.auto:
            continue
        try:
            step(device, hwpt, pasid)
        except UapiError as error:
            if error.errno != EINVAL:
                raise
            continue
        return hwpt.id
    return _attach_auto(device, target, pasid, step)


def _attach_auto(
    device: DeviceObject, ioas: Ioas, pasid: int | None, step: Callable[[DeviceObject, Hwpt, int | None], None]
) -> int:
    ctx = device.ctx
    domain = device.device.alloc_paging(DomainFlags.NONE, None)
    hwpt = ctx.new(HwptPaging(ioas, domain, auto=True))
    try:
        if device.enforce_cache_coherency:
            hwpt.enforce_cache_coherency()
        if step is _attach:
            # The device is attached before the domain is filled: its reserved ranges come before the areas' pins.
            step(device, hwpt, pasid)
            try:
                hwpt.fill()
            except UapiError:
                hwpt.users += 1
                detach(device, pasid)
                hwpt.users -= 1
                raise
        else:
            hwpt.fill()
            step(device, hwpt, pasid)
    except UapiError:
        ctx.discard(hwpt)
        raise
    ctx.publish(hwpt)
    return hwpt.id


def _attach(device: DeviceObject, hwpt: Hwpt, pasid: int | None) -> None:
    group = device.group
    attachment = group.attachments.get(pasid)
    if attachment is not None and device in attachment.devices:
        raise UapiError(EBUSY, f"device {device.device.name} is attached already{_name(pasid)}")
    if attachment is not None and attachment.hwpt is not hwpt:
        raise UapiError(EINVAL, f"the group of {device.device.name} is attached to HWPT {attachment.hwpt.id}")
    paging = hwpt.paging
    if paging is not None and device.enforce_cache_coherency and hwpt is paging:
        paging.enforce_cache_coherency()
    if paging is not None and pasid is None:
        _reserve(paging.ioas, device)
    if attachment is None:
        try:
            _check_pasid(group, hwpt, device, pasid)
            _check_faults(hwpt, device)
            device.device.attach(hwpt.domain, pasid)
        except UapiError:
            if paging is not None and pasid is None:
                paging.ioas.map.unreserve(device)
            raise
        attachment = group.attachments[pasid] = Attachment(hwpt)
    attachment.devices.append(device)
    hwpt.users += 1


def _replace(device: DeviceObject, hwpt: Hwpt, pasid: int | None) -> None:
    attachment = device.group.attachments.get(pasid)
    if attachment is None or device not in attachment.devices:
        raise UapiError(
            EINVAL, f"device {device.device.name} is not attached{_name(pasid)}: there is nothing to replace"
        )
    old = attachment.hwpt
    if old is hwpt:
        return
    new_ioas = hwpt.paging.ioas if hwpt.paging else None
    old_ioas = old.paging.ioas if old.paging else None
    moves = pasid is None and new_ioas is not old_ioas
    if moves and new_ioas is not None:
        _reserve_all(new_ioas, attachment.devices)
    try:
        _check_pasid(device.group, hwpt, device, pasid)
        _check_faults(hwpt, device)
        device.device.attach(hwpt.domain, pasid)
    except UapiError:
        if moves and new_ioas is not None:
            _unreserve_all(new_ioas, attachment.devices)
        raise
    # What devices ask for when they are answered is for the new HWPT.
    attachment.hwpt = hwpt
    for other in attachment.devices:
        _drop_faults(old, other, pasid)
    if moves and old_ioas is not None:
        _unreserve_all(old_ioas, attachment.devices)
    hwpt.users += len(attachment.devices)
    _put(device.ctx, old, len(attachment.devices))


def _check_pasid(group: Group, hwpt: Hwpt, device: DeviceObject, pasid: int | None) -> None:
    """A device with PASIDs in use needs HWPTs made for PASIDs, on its RID too."""
    if pasid is None:
        if not hwpt.pasid and any(key is not None for key in group.attachments):
            raise UapiError(
                EINVAL, f"HWPT {hwpt.id} was made without ALLOC_PASID, and PASIDs of the device are attached"
            )
        return
    base = group.hwpt(None)
    if not hwpt.pasid or (base is not None and not base.pasid):
        raise UapiError(EINVAL, f"attaching PASID {pasid} needs HWPTs made with ALLOC_PASID, on the RID too")
    limit = device.device.features.max_pasids
    if pasid >= limit:
        raise UapiError(EINVAL, f"PASID {pasid} is past the {limit} PASIDs of {device.device.name}")


def _check_faults(hwpt: Hwpt, device: DeviceObject) -> None:
    """A fault queue is for devices that make page requests, or whose driver does not mind."""
    features = device.device.features
    if hwpt.fault_queue is not None and not (features.page_faults or features.ignores_fault_queues):
        raise UapiError(ENODEV, f"device {device.device.name} makes no page requests: HWPT {hwpt.id} has a fault queue")


def _reserve(ioas: Ioas, device: DeviceObject) -> None:
    """Keep the device's own regions free of mappings. EADDRINUSE: nothing is kept."""
    try:
        for region in device.device.reserved_regions():
            if region.kind is not ReservedKind.DIRECT_RELAXABLE:
                ioas.map.reserve(region.first, region.last, device)
    except UapiError:
        ioas.map.unreserve(device)
        raise


def _reserve_all(ioas: Ioas, devices: list[DeviceObject]) -> None:
    done: list[DeviceObject] = []
    try:
        for device in devices:
            _reserve(ioas, device)
            done.append(device)
    except UapiError:
        _unreserve_all(ioas, done)
        raise


def _unreserve_all(ioas: Ioas, devices: list[DeviceObject]) -> None:
    for device in devices:
        ioas.map.unreserve(device)


def _drop_faults(hwpt: Hwpt, device: DeviceObject, pasid: int | None) -> None:
    """Answer what waits of a route that the device has no more."""
    if hwpt.fault_queue is None:
        return
    if not device.recovers:
        device.partial_faults.clear()
    hwpt.fault_queue.drop(device, pasid)


def _put(ctx: Context, hwpt: Hwpt, count: int) -> None:
    hwpt.users -= count
    if hwpt.auto and not hwpt.users:
        ctx.discard(hwpt)


def _name(pasid: int | None) -> str:
    return "" if pasid is None else f" for PASID {pasid}"


def get_hw_info(ctx: Context, cmd: abi.HwInfo) -> None:
    """IOMMU_GET_HW_INFO."""
    if cmd.flags & ~(_INPUT_TYPE if ctx.kernel.hw_info_input_type else 0):
        raise UapiError(EOPNOTSUPP, f"flags {cmd.flags:#x} are not known")
    refuse(any(cmd.reserved), "reserved")
    device = ctx.objects.get(cmd.dev_id, DeviceObject).device
    wanted = cmd.data_type if cmd.flags & _INPUT_TYPE else 0
    info = device.hw_info(wanted)
    # A driver that tells nothing at all is not asked for a type.
    if info is None and wanted and device.hw_info(0) is not None:
        raise UapiError(EOPNOTSUPP, f"device {device.name} has no hardware information of type {wanted:#x}")
    data = info.data if info else b""
    ctx.caller.write(cmd.data_uptr, data[: cmd.data_len])
    clear_user(ctx, cmd.data_uptr + len(data), cmd.data_len - len(data))
    cmd.data_len = len(data)
    cmd.data_type = info.type if info else 0
    features = device.features
    cmd.out_capabilities = features.capabilities | (_CAP_DIRTY if features.dirty_tracking else 0)
    if features.max_pasids and ctx.kernel.hwpt_pasid:
        cmd.out_max_pasid_log2 = features.max_pasids.bit_length() - 1
        cmd.out_capabilities |= _CAP_PASID_EXEC if features.pasid_exec else 0
        cmd.out_capabilities |= _CAP_PASID_PRIV if features.pasid_priv else 0
    else:
        cmd.out_max_pasid_log2 = 0
    if ctx.kernel.hw_info_input_type and not features.ats:
        cmd.out_capabilities |= _CAP_NO_ATS


def clear_user(ctx: Context, va: int, length: int) -> None:
    """Zero `length` bytes of the caller's memory, whatever the length. EFAULT."""
    while length > 0:
        step = min(length, 1 << 16)
        ctx.caller.write(va, bytes(step))
        va, length = va + step, length - step
