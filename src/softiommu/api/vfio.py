"""Devices that VFIO holds: bound to an iommufd, attached, and driven by registers."""

from __future__ import annotations

from glob import glob
from typing import TYPE_CHECKING

from softiommu.abi import vfio
from softiommu.api.device import Device
from softiommu.errors import ConfigError

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from softiommu.abi.struct import UserStruct
    from softiommu.api.hwpt import Hwpt
    from softiommu.api.ioas import Ioas
    from softiommu.api.iommufd import Iommufd

CONFIG = int(vfio.PciRegion.CONFIG)


class VfioDevice(Device):
    """A device by its node (`/dev/vfio/devices/vfioN`). As a context manager it is closed, and so unbound, at the end.

    `read` and `write` reach its BARs by number, and configuration space as region CONFIG.
    """

    def __init__(self, iommufd: Iommufd, node: str) -> None:
        self._backend, self.node = iommufd.backend, node
        self._fd = self._backend.open_node(node)
        try:
            cmd = vfio.DeviceBindIommufd(vfio.DeviceBindIommufd.MIN_SIZE, 0, self._backend.number)
            self._call("VFIO_DEVICE_BIND_IOMMUFD", vfio.DEVICE_BIND_IOMMUFD, cmd)
        except OSError:
            self._backend.close_fd(self._fd)
            raise
        super().__init__(iommufd, cmd.out_devid)
        self._offsets: dict[int, int] = {}

    def _call(self, name: str, cmd: int, struct: UserStruct) -> int:
        return self._backend.ioctl(self._fd, name, cmd, struct)

    def attach(self, target: Ioas | Hwpt, pasid: int | None = None) -> int:
        """Attach the device, or one of its PASIDs, in place of what it had; the id of the HWPT."""
        cmd = vfio.DeviceAttachIommufdPt(vfio.DeviceAttachIommufdPt.MIN_SIZE, 0, target.id)
        if pasid is not None:
            cmd = vfio.DeviceAttachIommufdPt(cmd.SIZE, vfio.DEVICE_ATTACH_PASID, target.id, pasid)
        self._call("VFIO_DEVICE_ATTACH_IOMMUFD_PT", vfio.DEVICE_ATTACH_IOMMUFD_PT, cmd)
        return cmd.pt_id

    def detach(self, pasid: int | None = None) -> None:
        """Detach the device, or one of its PASIDs: its DMA is blocked."""
        cmd = vfio.DeviceDetachIommufdPt(vfio.DeviceDetachIommufdPt.MIN_SIZE)
        if pasid is not None:
            cmd = vfio.DeviceDetachIommufdPt(cmd.SIZE, vfio.DEVICE_DETACH_PASID, pasid)
        self._call("VFIO_DEVICE_DETACH_IOMMUFD_PT", vfio.DEVICE_DETACH_IOMMUFD_PT, cmd)

    def read(self, region: int, offset: int, width: int) -> int:
        """The little-endian number of `width` bytes in a region. OSError: there is no such place."""
        return int.from_bytes(self._backend.pread(self._fd, width, self._offset(region) + offset), "little")

    def write(self, region: int, offset: int, width: int, value: int) -> None:
        """Store a number of `width` bytes in a region. OSError: there is no such place."""
        self._backend.pwrite(self._fd, value.to_bytes(width, "little"), self._offset(region) + offset)

    def enable(self) -> None:
        """Let it answer accesses to its BARs, and do DMA (the Command register)."""
        self.write(CONFIG, 4, 2, self.read(CONFIG, 4, 2) | 6)

    def _offset(self, region: int) -> int:
        if region not in self._offsets:
            cmd = vfio.RegionInfo(vfio.RegionInfo.SIZE, 0, region)
            self._call("VFIO_DEVICE_GET_REGION_INFO", vfio.DEVICE_GET_REGION_INFO, cmd)
            self._offsets[region] = cmd.offset
        return self._offsets[region]

    def reset(self) -> None:
        """Reset the function. ENOTTY: it cannot be reset alone."""
        self._backend.ioctl(self._fd, "VFIO_DEVICE_RESET", vfio.DEVICE_RESET, None)

    def close(self) -> None:
        """Detach and unbind it."""
        self._backend.close_fd(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<VfioDevice {self.node}>"


def find_node(name: str, nodes: dict[str, str]) -> str:
    """The node of a device: of a path, of a name that the machine knows, or of a PCI address in sysfs."""
    if name.startswith("/"):
        return name
    if name in nodes:
        return nodes[name]
    found = glob(f"/sys/bus/pci/devices/{name}/vfio-dev/vfio*")
    if not found:
        known = f": there are {', '.join(nodes)}" if nodes else ""
        raise ConfigError(f"VFIO has no device {name!r}{known}")
    return f"/dev/vfio/devices/{found[0].rsplit('/', 1)[1]}"
