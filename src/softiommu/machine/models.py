"""Which IOMMUs and devices a machine can have: by name, loaded when a description asks for one."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

if TYPE_CHECKING:
    from softiommu.drivers.driver import Device
    from softiommu.drivers.function import Function
    from softiommu.hardware import pci
    from softiommu.hardware.bus import Port
    from softiommu.hardware.iommu import Iommu
    from softiommu.iommufd.kernels import Kernel
    from softiommu.machine.reading import Table
    from softiommu.memory.physical import PhysicalMemory

IOMMUS = ("amd", "mock", "riscv", "smmuv3", "virtio", "vtd")
DEVICES = ("edu", "ioat", "nvme", "pcitest", "virtio_blk")
#: Which driver of the kernel has a device, and what vDPA may have: that has those where the description leaves it out.
DRIVERS, VDPA = ("vfio", "vdpa"), ("virtio_blk",)


class Driver(Protocol):
    """A vendor driver that runs one IOMMU."""

    def device(self, function: Function) -> Device:
        """A function behind it."""
        ...


class Site(NamedTuple):
    """What a machine lends to the IOMMU that is built in it."""

    memory: PhysicalMemory
    kernel: Kernel
    #: What the kernel's driver would print.
    report: Callable[[str], None]


class Built(NamedTuple):
    """An IOMMU that runs: the hardware, and the driver that set it up."""

    unit: Iommu
    driver: Driver


class IommuModel(Protocol):
    """A module of `machine.iommus`."""

    def read(self, table: Table) -> object:
        """The features that a description's table asks for. ConfigError names the rule that it breaks."""
        ...

    def build(self, features: object, site: Site) -> Built:
        """The hardware with these features, and its driver."""
        ...


class DeviceModel(Protocol):
    """A module of `machine.devices`."""

    def read(self, table: Table) -> object:
        """The options that a description's table asks for. ConfigError."""
        ...

    def build(self, options: object, port: Port, express: bool, claim: bool) -> pci.Function:
        """A function that does its DMA through `port`; without PCI Express when it sits on a conventional bus. Files
        that it keeps its blocks in are its alone (`claim`), unless it is only looked at. ConfigError."""
        ...


def iommu(model: str) -> IommuModel:
    """The module of an IOMMU's model."""
    return cast(IommuModel, import_module(f"softiommu.machine.iommus.{model}"))


def device(model: str) -> DeviceModel:
    """The module of a device's model."""
    return cast(DeviceModel, import_module(f"softiommu.machine.devices.{model}"))
