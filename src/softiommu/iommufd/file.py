"""The file behind a descriptor of `/dev/iommu`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from softiommu.iommufd import dispatch
from softiommu.iommufd.context import Context, Services
from softiommu.memory.files import File, MmapRequest

if TYPE_CHECKING:
    from softiommu.memory.client import Caller


class IommufdFile(File):
    """One open `/dev/iommu`, or `/dev/vfio/vfio` where the machine's VFIO container is iommufd's."""

    kind = "iommufd"

    def __init__(self, services: Services, container: bool = False) -> None:
        super().__init__()
        self.context = Context(services)
        # VFIO's limit is the process's: a container starts with that mode.
        self.context.per_process_limit = container
        self.context.regions.is_mapped = lambda offset, length: self.is_mapped(offset, length)

    def ioctl(self, caller: Caller, cmd: int, arg: int) -> int:
        """Any iommufd or VFIO container command."""
        return dispatch.ioctl(self.context, caller, cmd, arg)

    def mmap(self, caller: Caller, request: MmapRequest) -> None:
        """One whole region of a vIOMMU. EINVAL, EPERM, ENXIO."""
        self.context.regions.check(request)

    def pages_fd(self) -> int:
        """The pages of the regions."""
        return self.context.regions.pages_fd()

    def release(self) -> None:
        """The last descriptor and mapping are gone; event files may keep the objects."""
        self.context.put()
