"""Linux iommufd and the IOMMUs under it, in user space.

>>> import mmap, softiommu
>>> with softiommu.open() as iommufd, iommufd.ioas() as ioas:
...     with ioas.map(mmap.mmap(-1, 4096)) as mapping:
...         print(f"{mapping.iova:#x}")
0x1000
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from softiommu.api import (
        Device as Device,
        EventQueue as EventQueue,
        FaultQueue as FaultQueue,
        Hwpt as Hwpt,
        Ioas as Ioas,
        Iommufd as Iommufd,
        Mapping as Mapping,
        MockDevice as MockDevice,
        VfioDevice as VfioDevice,
        Viommu as Viommu,
        open as open,
        open_kernel as open_kernel,
    )
    from softiommu.errors import ConfigError as ConfigError, ModelError as ModelError, UapiError as UapiError
    from softiommu.machine.assemble import Machine as Machine, machine as machine

_HOMES = {
    "softiommu.api": [
        *("Device", "EventQueue", "FaultQueue", "Hwpt", "Ioas", "Iommufd", "Mapping", "MockDevice", "VfioDevice"),
        *("Viommu", "open", "open_kernel"),
    ],
    "softiommu.errors": ["ConfigError", "ModelError", "UapiError"],
    "softiommu.machine.assemble": ["Machine", "machine"],
}
__all__ = sorted(name for names in _HOMES.values() for name in names)


def __getattr__(name: str) -> object:
    """Load a part at its first use: the command line starts without the Python face."""
    for home, names in _HOMES.items():
        if name in names:
            from importlib import import_module

            return getattr(import_module(home), name)
    raise AttributeError(f"module 'softiommu' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
