"""VFIO groups: `/dev/vfio/GROUP`, the older way to a device.

A group joins a container, which here is an iommufd (or /dev/vfio/vfio, which is one): its compatibility IOAS is what
the group's devices see.
"""

from __future__ import annotations

from errno import EBADFD, EBUSY, EINVAL, ENODEV, ENOTTY
from typing import TYPE_CHECKING

from softiommu.abi import vfio
from softiommu.consumers.calls import Call, carry_out
from softiommu.errors import UapiError
from softiommu.iommufd.file import IommufdFile
from softiommu.iommufd.ioas import Ioas
from softiommu.memory.client import PAGE_SIZE
from softiommu.memory.files import File

if TYPE_CHECKING:
    from collections.abc import Callable

    from softiommu.consumers.vfio.device import VfioDevice
    from softiommu.iommufd.context import Context, Services
    from softiommu.memory.client import Caller


class VfioGroup:
    """Devices that cannot be isolated from one another (struct vfio_group)."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.devices: list[VfioDevice] = []
        #: Whether its node is open.
        self.opened = False
        #: How many of its devices are bound through nodes of their own: the group's node is closed to others then.
        self.cdevs_bound = 0
        #: The iommufd that is its container.
        self.container: Context | None = None

    def open(self, services: Services) -> GroupFile:
        """open(2) of its node. EBUSY: it is open, or one of its devices is bound through its own node."""
        if self.opened or self.cdevs_bound:
            how = "its node is open" if self.opened else "a device of it is bound through the device's node"
            raise UapiError(EBUSY, f"group {self.number} is used: {how}")
        self.opened = True
        return GroupFile(self, services)

    def block(self) -> None:
        """A device is about to be bound through its own node. EBUSY: the group is open."""
        if self.opened:
            raise UapiError(EBUSY, f"group {self.number} is open: its devices are not bound by themselves")
        self.cdevs_bound += 1

    def unblock(self) -> None:
        """The device is not bound any more."""
        self.cdevs_bound -= 1

    def leave(self) -> None:
        """Leave the container."""
        if self.container is not None:
            self.container.put()
            self.container = None


class GroupFile(File):
    """One open `/dev/vfio/GROUP`."""

    kind = "vfio group"

    def __init__(self, group: VfioGroup, services: Services) -> None:
        super().__init__()
        self.group, self._services = group, services

    def ioctl(self, caller: Caller, cmd: int, arg: int) -> int:
        """A command of a group; ENOTTY: any other."""
        row = _COMMANDS.get(cmd)
        if row is None:
            raise UapiError(ENOTTY, f"{cmd:#x} is no command of a VFIO group")
        name, handler = row
        container = self.group.container
        number = container.number if container else 0
        return carry_out(self._services, number, name, Call(caller, arg), lambda call: handler(self, call))

    def release(self) -> None:
        """The last descriptor is gone: the group leaves its container."""
        self.group.opened = False
        self.group.leave()

    def get_status(self, call: Call) -> None:
        """VFIO_GROUP_GET_STATUS: whether its devices may be used, and whether it has a container."""
        cmd = call.struct(vfio.GroupStatus)
        flags = vfio.GroupFlags(0)
        if self.group.container is not None:
            flags = vfio.GroupFlags.VIABLE | vfio.GroupFlags.CONTAINER_SET
        elif not any(device.device.group in self._services.owners for device in self.group.devices):
            flags = vfio.GroupFlags.VIABLE
        cmd.flags = int(flags)
        call.reply(cmd)

    def set_container(self, call: Call) -> None:
        """VFIO_GROUP_SET_CONTAINER: EBADF: not open; EINVAL: the group has one; EBADFD: no container."""
        number = int.from_bytes(call.read(0, 4), "little", signed=True)
        file = call.caller.file(number)
        if self.group.container is not None:
            raise UapiError(EINVAL, f"group {self.group.number} has a container")
        if not isinstance(file, IommufdFile):
            raise UapiError(EBADFD, f"descriptor {number} is no VFIO container and no iommufd")
        context = file.context
        context.run(call.caller, _make_compat_ioas, context)
        context.hold()
        self.group.container = context

    def unset_container(self, call: Call) -> None:
        """VFIO_GROUP_UNSET_CONTAINER: EINVAL: it has none."""
        if self.group.container is None:
            raise UapiError(EINVAL, f"group {self.group.number} has no container")
        self.group.leave()

    def get_device_fd(self, call: Call) -> int:
        """VFIO_GROUP_GET_DEVICE_FD: a new descriptor for the device of this name. ENODEV: the group has none such;
        EINVAL: an option behind the name, or no container."""
        name, *options = _string(call).split(" ")
        for device in self.group.devices:
            if device.address == name:
                if any(options):
                    # The one that exists is a token, for virtual functions and their owners only.
                    raise UapiError(EINVAL, f"{name} takes no option {' '.join(options)!r}")
                return self._install(device, call)
        raise UapiError(ENODEV, f"group {self.group.number} has no device {name!r}")

    def _install(self, device: VfioDevice, call: Call) -> int:
        from softiommu.consumers.vfio.file import DeviceFile

        file = DeviceFile(device, self._services, grouped=True)
        file.open_in_container(call)
        try:
            return call.caller.install(file)
        except UapiError:
            file.release()
            raise


def _make_compat_ioas(context: Context) -> None:
    """An iommufd that becomes a container gets a compatibility IOAS, unless it has one. EINVAL: no-IOMMU mode."""
    if context.no_iommu_mode:
        raise UapiError(EINVAL, "the container is in no-IOMMU mode")
    if context.vfio_ioas is None:
        context.vfio_ioas = context.new(Ioas())


def _string(call: Call) -> str:
    """The caller's string. EFAULT; EINVAL: longer than a page."""
    text = b""
    while b"\0" not in text:
        if len(text) >= PAGE_SIZE:
            raise UapiError(EINVAL, "the name is longer than a page")
        at = len(text)
        text += call.read(at, min(PAGE_SIZE - (call.arg + at) % PAGE_SIZE, PAGE_SIZE - at))
    return text.split(b"\0")[0].decode("latin-1")


_COMMANDS: dict[int, tuple[str, Callable[[GroupFile, Call], int | None]]] = {
    vfio.GROUP_GET_STATUS: ("VFIO_GROUP_GET_STATUS", GroupFile.get_status),
    vfio.GROUP_SET_CONTAINER: ("VFIO_GROUP_SET_CONTAINER", GroupFile.set_container),
    vfio.GROUP_UNSET_CONTAINER: ("VFIO_GROUP_UNSET_CONTAINER", GroupFile.unset_container),
    vfio.GROUP_GET_DEVICE_FD: ("VFIO_GROUP_GET_DEVICE_FD", GroupFile.get_device_fd),
}
