"""Front door 2: iommufd from Python, on a soft machine in this process or on a real `/dev/iommu`."""

from softiommu.api.backend import Backend, KernelBackend, SoftBackend
from softiommu.api.device import Device, HwInfo, MockDevice
from softiommu.api.hwpt import Hwpt
from softiommu.api.ioas import Ioas, Mapping
from softiommu.api.iommufd import Iommufd, open, open_kernel
from softiommu.api.queues import Event, EventQueue, Fault, FaultQueue
from softiommu.api.vfio import VfioDevice
from softiommu.api.viommu import HwQueue, Vdevice, Viommu

__all__ = [
    "Backend",
    "Device",
    "Event",
    "EventQueue",
    "Fault",
    "FaultQueue",
    "HwInfo",
    "HwQueue",
    "Hwpt",
    "Ioas",
    "Iommufd",
    "KernelBackend",
    "Mapping",
    "MockDevice",
    "SoftBackend",
    "Vdevice",
    "VfioDevice",
    "Viommu",
    "open",
    "open_kernel",
]
