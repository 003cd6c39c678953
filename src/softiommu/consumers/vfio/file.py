"""The file behind a VFIO device's descriptor: `/dev/vfio/devices/vfioN`, or one that a group gave."""

from __future__ import annotations

from errno import EBADFD, EINVAL
from typing import TYPE_CHECKING

from softiommu.abi import vfio
from softiommu.consumers.calls import Call, carry_out
from softiommu.consumers.vfio.mappings import Mappings
from softiommu.consumers.vfio.regions import offset_of, place_of
from softiommu.drivers.user_data import copy_struct
from softiommu.errors import UapiError
from softiommu.hardware.pci import Mapping
from softiommu.iommufd.file import IommufdFile
from softiommu.memory.files import File, MmapRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from softiommu.consumers.vfio.device import VfioDevice
    from softiommu.consumers.vfio.pci import OpenFunction
    from softiommu.iommufd.context import Context, Services
    from softiommu.memory.client import Caller

_TOKEN_SIZE = 16
_BARS = 6
#: So many looks without a store, which takes seconds, are a reason to ask whether anybody maps the file still.
_LONG = 1024
_WHOLE = 1 << 62


class DeviceFile(File):
    """One open device. It answers nothing but BIND until it is bound; one that a group gave is bound from the start."""

    kind = "vfio device"
    has_data = True

    def __init__(self, device: VfioDevice, services: Services, grouped: bool = False) -> None:
        super().__init__()
        self.device, self._services, self._grouped = device, services, grouped
        self._granted = False
        self._position = 0
        self._quiet = self._missed = 0
        self._mappings = Mappings(device.function, offset_of)

    def _open(self) -> OpenFunction:
        """The device, if this file has it. EINVAL: not bound."""
        if not self._granted:
            raise UapiError(EINVAL, f"{self.device.address} is not bound through this descriptor")
        assert self.device.pci is not None, "a bound device is enabled"
        if self._services.pollers:
            self._services.poll()
        return self.device.pci

    def ioctl(self, caller: Caller, cmd: int, arg: int) -> int:
        """A command of VFIO devices, or of PCI devices."""
        row = _COMMANDS.get(cmd)
        context = self.device.context
        number = context.number if context and self._granted else 0
        if self._granted and cmd != vfio.DEVICE_BIND_IOMMUFD and self.device.pci is not None:
            self.device.pci.wake()
        if row is not None and (cmd == vfio.DEVICE_BIND_IOMMUFD or not self._grouped):
            name, handler = row
            return carry_out(self._services, number, name, Call(caller, arg), lambda call: handler(self, call))
        pci = self._open()
        call = Call(caller, arg, self)
        call.can_trap = lambda: self._can_trap(caller)
        try:
            return pci.ioctl(self._services, call, cmd)
        finally:
            pci.refresh()

    def read(self, caller: Caller, va: int, count: int, offset: int | None = None) -> int:
        """read(2) of a region. EINVAL: not bound, or no region is there."""
        pci = self._open()
        at = self._position if offset is None else offset
        if count:
            pci.wake_by_access(at)
        data = pci.regions.read(at, count) if count else b""
        caller.write(va, data)
        return self._moved(len(data), offset)

    def write(self, caller: Caller, va: int, count: int, offset: int | None = None) -> int:
        """write(2) to a region. EINVAL: not bound, or no region is there."""
        pci = self._open()
        if not count:
            return 0
        at = self._position if offset is None else offset
        pci.wake_by_access(at)
        count = pci.regions.room(at, count)
        done = pci.regions.write(at, caller.read(va, count))
        if pci.regions.bar_at(at) is not None:
            pci.show()
        else:
            pci.refresh()
        return self._moved(done, offset)

    def _moved(self, count: int, offset: int | None) -> int:
        if offset is None:
            self._position += count
        return count

    # Mappings

    def mmap(self, caller: Caller, request: MmapRequest) -> None:
        """Part of a BAR. EINVAL: not bound, or it cannot be mapped so."""
        pci = self._open()
        bar = pci.regions.check_mmap(request)
        if bar.mapping is Mapping.TRAPPED:
            if not self._can_trap(caller):
                raise UapiError(EINVAL, "accesses to the BAR cannot be carried out one by one")
            return
        if self._mappings not in pci.mappings:
            pci.mappings.append(self._mappings)
            pci.refresh()
        self._quiet = self._missed = 0
        self._services.pollers[self] = self._look

    def _look(self) -> bool:
        """Whether the program stored anything. When nothing came for long, nobody may map the BARs any more."""
        self._quiet = 0 if self._mappings.look() else self._quiet + 1
        if self._quiet and not self._quiet % _LONG:
            # Twice, for a process that comes or goes while it is looked for can be missed.
            self._missed = 0 if self.is_mapped(0, _WHOLE) else self._missed + 1
            if self._missed > 1:
                del self._services.pollers[self]
        return not self._quiet

    def _can_trap(self, caller: Caller) -> bool:
        """Whether a caller's accesses to a mapping can be carried out one by one; the reason why not is reported."""
        if self.trap_obstacle is None:
            return False
        obstacle = self.trap_obstacle(caller)
        if obstacle:
            self._services.report(f"{self.device.address}: a BAR cannot be mapped: {obstacle}")
        return not obstacle

    def pages_fd(self) -> int | None:
        """The pages that mappings show."""
        return self._mappings.fd

    def is_trapped(self, offset: int) -> bool:
        """Whether a BAR's accesses come one by one."""
        index, _ = place_of(offset)
        bar = self.device.function.bars[index] if index < _BARS else None
        return bar is not None and bar.mapping is Mapping.TRAPPED

    def load(self, offset: int, width: int) -> int:
        """A load from a mapped BAR. EIO: the device's memory is off, which is a bus error."""
        return self._open().regions.load(offset, width)

    def store(self, offset: int, width: int, value: int) -> None:
        """A store to a mapped BAR. EIO: the device's memory is off, which is a bus error."""
        self._open().regions.store(offset, width, value)

    def release(self) -> None:
        """The last descriptor and the last mapping are gone."""
        self._services.pollers.pop(self, None)
        if self.device.pci is not None and self._mappings in self.device.pci.mappings:
            self.device.pci.mappings.remove(self._mappings)
        self._mappings.close()
        if self._granted:
            self._granted = False
            self.device.close()
            if not self._grouped:
                self.device.group.unblock()

    # Binding

    def open_in_container(self, call: Call) -> None:
        """A group gives the device: bind it to the group's container. EINVAL: the group has none."""
        context = self.device.group.container
        if context is None:
            raise UapiError(EINVAL, f"group {self.device.group.number} has no container")
        context.run(call.caller, self._open_compat, context)
        self._granted = True

    def _open_compat(self, context: Context) -> None:
        self.device.open(context, by_cdev=False)
        try:
            if self.device.opens == 1:
                self.device.attach_compat()
        except UapiError:
            self.device.close()
            raise

    def bind(self, call: Call) -> None:
        """VFIO_DEVICE_BIND_IOMMUFD: from now on this descriptor has the device."""
        cmd = self._bind_arguments(call)
        if self._grouped:
            raise UapiError(EINVAL, "a group gave this descriptor: the device is bound by its container")
        self.device.group.block()
        try:
            if self._granted:
                raise UapiError(EINVAL, "this descriptor is bound already")
            self._check_token(call, cmd)
            context = _iommufd(call, cmd.iommufd)
            context.run(call.caller, self._bind, context, call)
        except UapiError:
            self.device.group.unblock()
            raise
        self._granted = True

    def _bind(self, context: Context, call: Call) -> None:
        self.device.open(context, by_cdev=True)
        assert self.device.bound is not None, "it was bound above"
        try:
            call.write(vfio.DeviceBindIommufd.OFFSETS["out_devid"], self.device.bound.id.to_bytes(4, "little"))
        except UapiError:
            self.device.close()
            raise

    def _bind_arguments(self, call: Call) -> vfio.DeviceBindIommufd:
        cmd = call.struct(vfio.DeviceBindIommufd)
        known = 0
        if self._services.kernel.vfio_bind_token:
            known = vfio.DEVICE_BIND_FLAG_TOKEN
            cmd = copy_struct(call.caller, call.arg, cmd.argsz, vfio.DeviceBindIommufd)
            call.seen = cmd
        if cmd.flags & ~known or cmd.iommufd < 0:
            raise UapiError(EINVAL, f"flags {cmd.flags:#x} or descriptor {cmd.iommufd} cannot be")
        return cmd

    @staticmethod
    def _check_token(call: Call, cmd: vfio.DeviceBindIommufd) -> None:
        """A token is for virtual functions and their owners, which no device of ours is. EFAULT; EINVAL."""
        if cmd.flags & vfio.DEVICE_BIND_FLAG_TOKEN:
            call.caller.read(cmd.token_uuid_ptr, _TOKEN_SIZE)
            raise UapiError(EINVAL, "the device is no virtual function and has none: a token is wrong")

    # Attaching

    def attach(self, call: Call) -> None:
        """VFIO_DEVICE_ATTACH_IOMMUFD_PT: to an IOAS or an HWPT; the id of the HWPT comes back."""
        context, device = self._bound(), self.device
        cmd = call.struct(vfio.DeviceAttachIommufdPt)
        pasid = self._pasid(call, cmd, cmd.flags, vfio.DEVICE_ATTACH_PASID)
        at = vfio.DeviceAttachIommufdPt.OFFSETS["pt_id"]

        def attach() -> None:
            hwpt = device.attach(cmd.pt_id) if pasid is None else device.attach_pasid(pasid, cmd.pt_id)
            try:
                call.write(at, hwpt.to_bytes(4, "little"))
            except UapiError:
                device.detach() if pasid is None else device.detach_pasid(pasid)
                raise

        context.run(call.caller, attach)

    def detach(self, call: Call) -> None:
        """VFIO_DEVICE_DETACH_IOMMUFD_PT: nothing happens when it is not attached."""
        context = self._bound()
        cmd = call.struct(vfio.DeviceDetachIommufdPt)
        pasid = self._pasid(call, cmd, cmd.flags, vfio.DEVICE_DETACH_PASID)
        if pasid is None:
            context.run(call.caller, self.device.detach)
        else:
            context.run(call.caller, self.device.detach_pasid, pasid)

    def _bound(self) -> Context:
        self._open()
        assert self.device.context is not None, "a bound device has an iommufd"
        return self.device.context

    def _pasid(
        self,
        call: Call,
        cmd: vfio.DeviceAttachIommufdPt | vfio.DeviceDetachIommufdPt,
        flags: int,
        with_pasid: int,
    ) -> int | None:
        """The PASID, where the flag for it is given. EINVAL: unknown flags, or no room for it."""
        if flags & ~(with_pasid if self._services.kernel.vfio_pasid else 0):
            raise UapiError(EINVAL, f"flags {flags:#x} are not known")
        if not flags & with_pasid:
            return None
        at, size = type(cmd).FIELDS["pasid"]
        if cmd.argsz < at + size:
            raise UapiError(EINVAL, f"argsz {cmd.argsz} has no room for a PASID")
        cmd.pasid = int.from_bytes(call.read(at, size), "little")
        return cmd.pasid


def _iommufd(call: Call, fd: int) -> Context:
    """The iommufd of a descriptor. EBADF: not open; EBADFD: another file."""
    file = call.caller.file(fd)
    if not isinstance(file, IommufdFile):
        raise UapiError(EBADFD, f"descriptor {fd} is no iommufd")
    return file.context


_COMMANDS: dict[int, tuple[str, Callable[[DeviceFile, Call], int | None]]] = {
    vfio.DEVICE_BIND_IOMMUFD: ("VFIO_DEVICE_BIND_IOMMUFD", DeviceFile.bind),
    vfio.DEVICE_ATTACH_IOMMUFD_PT: ("VFIO_DEVICE_ATTACH_IOMMUFD_PT", DeviceFile.attach),
    vfio.DEVICE_DETACH_IOMMUFD_PT: ("VFIO_DEVICE_DETACH_IOMMUFD_PT", DeviceFile.detach),
}
