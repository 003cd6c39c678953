"""A function's reset as the kernel carries it out: what the host set up in configuration space is there afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from softiommu.hardware.pci_config import Ats, CapabilityId, Express, ExtendedId, Header, Pasid, Pri
from softiommu.registers import Register

if TYPE_CHECKING:
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


def reset(function: Function) -> None:
    """Reset it. Interrupts are not restored: whoever set them up does that."""
    saved = []
    for id, register in _RESTORED:
        start = 0 if id is None else function.find_capability(id)
        if start is not None:
            at = start + register.offset
            saved.append((at, register.size, function.read_config(at, register.size)))
    function.reset()
    for at, size, value in saved:
        function.write_config(at, size, value)
