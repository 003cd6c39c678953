"""What a kernel does for a device, found by trying: the uAPI has bits for little of it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, NamedTuple, Protocol

from softiommu.abi import iommufd as abi
from softiommu.abi.struct import UserStruct
from softiommu.vmm.capabilities.families import Info, told
from softiommu.vmm.capabilities.rules import Capability

_WIDTH = 48


class Device(Protocol):
    """A device that is bound to an iommufd, and attached to nothing; `softiommu.VfioDevice` is such."""

    def hw_info(self, type: int | None = None) -> Info:
        """GET_HW_INFO. OSError."""
        ...

    def hwpt(self, parent: Any, flags: int = 0, data: tuple[int, UserStruct] | None = None, faults: Any = None) -> Any:
        """HWPT_ALLOC. OSError."""
        ...

    def viommu(self, type: int, parent: Any, data: bytearray | None = None) -> Any:
        """VIOMMU_ALLOC. OSError."""
        ...

    def attach(self, target: Any) -> int:
        """Attach it. OSError."""
        ...

    def detach(self) -> None:
        """Detach it."""
        ...


class Iommufd(Protocol):
    """An open iommufd; `softiommu.Iommufd` is such."""

    def ioas(self) -> Any:
        """IOAS_ALLOC."""
        ...

    def fault_queue(self) -> Any:
        """FAULT_QUEUE_ALLOC. OSError."""
        ...


class Seen(NamedTuple):
    """What is known of a device's IOMMU and of the kernel: the information of each type, and the capabilities."""

    infos: tuple[Info, ...]
    kernel: Capability


def probe(iommufd: Iommufd, device: Device) -> Seen:
    """Ask for everything, and try what nothing tells of. Nothing that is made is left. OSError: GET_HW_INFO fails."""
    info = device.hw_info()
    infos = [info]
    kernel = told(info)
    queues = _queues(device) if info.type == abi.HwInfoType.ARM_SMMUV3 else None
    if queues is not None:
        infos.append(queues)
    with iommufd.ioas() as ioas:
        if _nests(device, ioas, info.type):
            kernel |= Capability.NESTING
        if queues is not None and _has_viommu(
            device, ioas, abi.ViommuType.TEGRA241_CMDQV, bytearray(abi.ViommuTegra241Cmdqv.SIZE)
        ):
            kernel |= Capability.VCMDQ
        if _brings_faults(iommufd, device, ioas):
            kernel |= Capability.PAGE_FAULTS
    return Seen(tuple(infos), kernel)


def _queues(device: Device) -> Info | None:
    try:
        return device.hw_info(abi.HwInfoType.TEGRA241_CMDQV)
    except OSError:
        return None


def _nests(device: Device, ioas: Any, type: int) -> bool:
    if type == abi.HwInfoType.ARM_SMMUV3:
        return _has_viommu(device, ioas, abi.ViommuType.ARM_SMMUV3, None)
    if type != abi.HwInfoType.INTEL_VTD:
        return False  # AMD's has no number of a vIOMMU to ask for
    try:
        with (
            device.hwpt(ioas, int(abi.HwptAllocFlags.ALLOC_NEST_PARENT)) as parent,
            device.hwpt(parent, 0, (int(abi.HwptDataType.VTD_S1), abi.HwptVtdS1(addr_width=_WIDTH))),
        ):
            return True
    except OSError:
        return False


def _has_viommu(device: Device, ioas: Any, type: int, data: bytearray | None) -> bool:
    try:
        with (
            device.hwpt(ioas, int(abi.HwptAllocFlags.ALLOC_NEST_PARENT)) as parent,
            device.viommu(type, parent, data),
        ):
            return True
    except OSError:
        return False


def _brings_faults(iommufd: Iommufd, device: Device, ioas: Any) -> bool:
    with ExitStack() as made:
        try:
            queue = made.enter_context(iommufd.fault_queue())
            hwpt = made.enter_context(device.hwpt(ioas, faults=queue))
            device.attach(hwpt)
        except OSError:
            return False
        device.detach()
        return True
