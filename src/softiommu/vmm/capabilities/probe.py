"""What a kernel does for a device, found by trying: the uAPI has bits for little of it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, NamedTuple, Protocol

from softiommu.abi import amd_extension, iommufd as abi, riscv_extension
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
    if info.type == abi.HwInfoType.NONE:
        info = _extra(device, riscv_extension.HW_INFO) or info
    infos = [info]
    kernel = told(info)
    queues = _extra(device, abi.HwInfoType.TEGRA241_CMDQV) if info.type == abi.HwInfoType.ARM_SMMUV3 else None
    if queues is not None:
        infos.append(queues)
    with iommufd.ioas() as ioas:
        kernel |= _nesting(device, ioas, info.type)
        if queues is not None and _has_viommu(
            device, ioas, abi.ViommuType.TEGRA241_CMDQV, bytearray(abi.ViommuTegra241Cmdqv.SIZE)
        ):
            kernel |= Capability.VCMDQ
        if _brings_faults(iommufd, device, ioas):
            kernel |= Capability.PAGE_FAULTS
    return Seen(tuple(infos), kernel)


def _extra(device: Device, type: int) -> Info | None:
    """The information of a type that is told when it is asked for."""
    try:
        return device.hw_info(type)
    except OSError:
        return None


#: The vIOMMUs that nested HWPTs are made on, by the type of hardware information.
_VIOMMUS = {
    int(abi.HwInfoType.ARM_SMMUV3): int(abi.ViommuType.ARM_SMMUV3),
    int(abi.HwInfoType.AMD): amd_extension.VIOMMU,
    riscv_extension.HW_INFO: riscv_extension.VIOMMU,
}
_VTD = {
    Capability.NESTING: 0,
    Capability.SUPERVISOR: int(abi.VtdS1Flags.SRE),
    Capability.EXTENDED_ACCESSED: int(abi.VtdS1Flags.EAFE),
}


def _nesting(device: Device, ioas: Any, type: int) -> Capability:
    """What of nested HWPTs there is. VT-d's is attached: nesting in software refuses some of them only then."""
    found = Capability(0)
    if type in _VIOMMUS and _has_viommu(device, ioas, _VIOMMUS[type], None):
        found |= Capability.NESTING
    for capability, flags in _VTD.items() if type == abi.HwInfoType.INTEL_VTD else ():
        if _attaches_first_stage(device, ioas, flags):
            found |= capability
    return found


def _attaches_first_stage(device: Device, ioas: Any, flags: int) -> bool:
    data = int(abi.HwptDataType.VTD_S1), abi.HwptVtdS1(flags, addr_width=_WIDTH)
    try:
        with device.hwpt(ioas, int(abi.HwptAllocFlags.ALLOC_NEST_PARENT)) as parent, device.hwpt(parent, 0, data) as s1:
            device.attach(s1)
            device.detach()
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
