"""What the host's kernel does to a function by itself: what it turns on for the IOMMU, and what outlasts a reset.

A program has no say in either: VFIO shows it ATS and page requests to read only, and PASIDs not at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from softiommu.hardware.pci_config import (
    Ats,
    AtsControl,
    CapabilityId,
    Express,
    ExtendedId,
    Header,
    Pasid,
    PasidControl,
    Pri,
    PriControl,
)
from softiommu.registers import Register

if TYPE_CHECKING:
    from softiommu.drivers.driver import DeviceFeatures
    from softiommu.hardware.pci import Function

#: In the order of their restoring: PASIDs and page requests before ATS, the right to master the bus last.
_RESTORED: tuple[tuple[CapabilityId | ExtendedId | None, Register[Any]], ...] = (
    (None, Header.CACHE_LINE),
    (CapabilityId.EXPRESS, Express.DEVICE_CONTROL),
    (CapabilityId.EXPRESS, Express.DEVICE_CONTROL_2),
    (ExtendedId.PASID, Pasid.PASID_CONTROL),
    (ExtendedId.PRI, Pri.ALLOCATION),
    (ExtendedId.PRI, Pri.PRI_CONTROL),
    (ExtendedId.ATS, Ats.ATS_CONTROL),
    (None, Header.COMMAND),
)


def turn_on(function: Function, features: DeviceFeatures) -> None:
    """PASIDs, page requests and ATS, as far as the function and the IOMMU have them together."""
    if features.max_pasids:
        _write(function, ExtendedId.PASID, Pasid.PASID_CONTROL, PasidControl.of(ENABLE=1))
    if features.page_faults:
        at = function.find_capability(ExtendedId.PRI)
        if at is not None:
            _write(function, ExtendedId.PRI, Pri.ALLOCATION, function.read_config(at + Pri.CAPACITY.offset, 4))
        _write(function, ExtendedId.PRI, Pri.PRI_CONTROL, PriControl.of(ENABLE=1))
    if features.ats:
        _write(function, ExtendedId.ATS, Ats.ATS_CONTROL, AtsControl.of(ENABLE=1))


def _write(function: Function, id: ExtendedId, register: Register[Any], value: int) -> None:
    at = function.find_capability(id)
    if at is not None:
        function.write_config(at + register.offset, register.size, value)


def reset(function: Function) -> None:
    """Reset it. Interrupts are not restored: whoever set them up does that."""
    saved = []
    for id, register in _RESTORED:
        start = 0 if id is None else function.find_capability(id)
        if start is not None:
            at = start + register.offset
            saved.append((at, register.size, function.read_config(at, register.size)))
    saved += [(at, 4, function.read_config(at, 4)) for at in (Header.BAR.at(index) for index in range(6))]
    function.reset()
    for at, size, value in saved:
        function.write_config(at, size, value)
