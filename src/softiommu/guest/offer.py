"""What a machine offers a guest: asked as QEMU will ask, by the calls that it will make, before it is started.

What QEMU would only tell as an error number is told with its reason, and what can be chosen is chosen to fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NamedTuple

from softiommu.abi import iommufd as abi
from softiommu.api import Iommufd, open
from softiommu.errors import ConfigError, UapiError
from softiommu.hardware.vtd.registers import Cap

if TYPE_CHECKING:
    from softiommu.api import Ioas, VfioDevice
    from softiommu.machine.assemble import Machine

#: What QEMU passes on of a guest: a first stage of four levels. Nobody walks it here.
_FIRST_STAGE = abi.HwptDataType.VTD_S1, abi.HwptVtdS1(0, 0, 48)
_UNSAFE = (
    "hint: `unsafe_interrupts = true` in a machine's file lets a device go all the same, as "
    "iommufd.allow_unsafe_interrupts=1 does on Linux"
)
_NESTS = "hint: --machine vtd-nested, or vtd-paged, which nests in software"


class Offer(NamedTuple):
    """What is free of I/O addresses, for all devices that are passed on."""

    #: MiB from address 0 on, where a PC has its RAM.
    memory: int
    #: Bits of the highest address.
    width: int
    #: Whether a first stage may have pages of 1 GiB (VT-d).
    gigabyte_pages: bool


def ask(world: Machine, names: Sequence[str], nested: bool) -> Offer:
    """What these devices, one or more, can be given. ConfigError: one cannot be passed on, or its tables not nested.
    The machine is left as it was."""
    with open(world) as iommufd, ExitStack() as stack:
        ioas = iommufd.ioas()
        devices = [stack.enter_context(_attached(iommufd, ioas, name, world)) for name in names]
        ranges = ioas.ranges()
        if nested:
            for device, name in zip(devices, names, strict=True):
                _check_nesting(device, ioas, name, world)
        first, last = ranges[0]
        return Offer(
            memory=0 if first else (last + 1) >> 20,
            width=ranges[-1][1].bit_length(),
            gigabyte_pages=all(map(_has_gigabyte_pages, devices)),
        )


@contextmanager
def _attached(iommufd: Iommufd, ioas: Ioas, name: str, world: Machine) -> Iterator[VfioDevice]:
    """A device that has all of an address space. ConfigError."""
    try:
        device = iommufd.device(name)
    except UapiError as error:
        hint = "" if world.description.unsafe_interrupts else f"\n{_UNSAFE}"
        raise ConfigError(f"machine {world.description.name} passes {name} on to nobody: {error.why}{hint}") from error
    with device:
        device.attach(ioas)
        yield device


def _check_nesting(device: VfioDevice, ioas: Ioas, name: str, world: Machine) -> None:
    """Do what QEMU does with a guest's first stage. ConfigError."""
    try:
        parent = device.hwpt(ioas, abi.HwptAllocFlags.ALLOC_NEST_PARENT)
        device.attach(device.hwpt(parent, 0, _FIRST_STAGE))
    except UapiError as error:
        raise ConfigError(
            f"machine {world.description.name} does not nest the tables of {name}'s guest: {error.why}\n{_NESTS}"
        ) from error


def _has_gigabyte_pages(device: VfioDevice) -> bool:
    info = device.hw_info()
    return info.type == abi.HwInfoType.INTEL_VTD and bool(Cap(abi.HwInfoVtd.from_bytes(info.data).cap_reg).FS1GP)
