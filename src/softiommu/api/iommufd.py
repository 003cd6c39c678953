"""An open iommufd."""

from __future__ import annotations

from typing import TYPE_CHECKING

from softiommu.abi import iommufd as abi
from softiommu.api.backend import Backend, KernelBackend, SoftBackend
from softiommu.api.device import MockDevice
from softiommu.api.ioas import Ioas
from softiommu.api.queues import FaultQueue
from softiommu.api.vfio import VfioDevice, find_node

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from softiommu.api.vdpa import VdpaDevice
    from softiommu.machine.assemble import Machine


class Iommufd:
    """An open iommufd. As a context manager it is closed at the end, and everything in it goes.

    >>> import mmap, softiommu
    >>> with softiommu.open() as iommufd, iommufd.ioas() as ioas:
    ...     with ioas.map(mmap.mmap(-1, 4096)) as mapping:
    ...         mapping.iova
    4096
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        #: By IOAS and I/O address: how long what is mapped there is, and what keeps it alive and in place.
        self.buffers: dict[int, dict[int, tuple[int, object]]] = {}

    def ioas(self) -> Ioas:
        """A new I/O address space."""
        cmd = abi.IoasAlloc(12, 0, 0)
        self.backend.call("IOAS_ALLOC", abi.IOAS_ALLOC, cmd)
        return Ioas(self, cmd.out_ioas_id)

    def fault_queue(self) -> FaultQueue:
        """A new queue for I/O page faults."""
        cmd = abi.FaultAlloc(16, 0, 0, 0)
        self.backend.call("FAULT_QUEUE_ALLOC", abi.FAULT_QUEUE_ALLOC, cmd)
        return FaultQueue(self, cmd.out_fault_id, cmd.out_fault_fd)

    def device(self, name: str) -> VfioDevice:
        """A device that VFIO holds, bound to this iommufd: by its name in the machine, PCI address, or node."""
        return VfioDevice(self, find_node(name, self.backend.nodes))

    def vdpa_device(self, name: str) -> VdpaDevice:
        """A virtio device that vDPA has, bound to this iommufd: by its name in the machine. ConfigError."""
        from softiommu.api.vdpa import VdpaDevice

        return VdpaDevice(self, name)

    def mock_device(self, ioas: Ioas, flags: int = 0) -> MockDevice:
        """A new mock device attached to `ioas`, on a machine (or a kernel) with the test command."""
        return MockDevice.new(self, ioas, flags)

    def destroy(self, id: int) -> None:
        """Destroy an object. ENOENT: there is none; EBUSY: it is used."""
        self.backend.call("DESTROY", abi.DESTROY, abi.Destroy(8, id))
        self.buffers.pop(id, {}).clear()

    @property
    def per_process_limit(self) -> bool:
        """Whether RLIMIT_MEMLOCK counts the process's pinned pages instead of the user's."""
        cmd = abi.Option(24, abi.OptionId.RLIMIT_MODE, abi.OptionOp.GET, 0, 0, 0)
        self.backend.call("OPTION", abi.OPTION, cmd)
        return bool(cmd.val64)

    @per_process_limit.setter
    def per_process_limit(self, enable: bool) -> None:
        cmd = abi.Option(24, abi.OptionId.RLIMIT_MODE, abi.OptionOp.SET, 0, 0, int(enable))
        self.backend.call("OPTION", abi.OPTION, cmd)

    def change_process(self) -> None:
        """Charge every pinned page to the calling process. EINVAL unless all mappings are of files."""
        self.backend.call("IOAS_CHANGE_PROCESS", abi.IOAS_CHANGE_PROCESS, abi.IoasChangeProcess(8, 0))

    def close(self) -> None:
        """Close it. Buffers that are mapped are let go."""
        self.backend.close()
        for buffers in self.buffers.values():
            buffers.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def open(machine: str | Machine = "nodev", kernel: str | None = None) -> Iommufd:
    """An iommufd on a soft machine in this process: a built-in machine's name, a TOML file's path, or a Machine."""
    if isinstance(machine, str):
        from softiommu.machine.assemble import machine as assemble

        machine = assemble(machine, kernel)
    return Iommufd(SoftBackend(machine))


def open_kernel(path: str = "/dev/iommu") -> Iommufd:
    """An iommufd on a device node, by plain ioctls."""
    return Iommufd(KernelBackend(path))
