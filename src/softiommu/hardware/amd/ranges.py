"""Addresses that are not translated as others are. AMD IOMMU 48882, 2.1.2 and 3.4.4."""

from __future__ import annotations

from typing import TYPE_CHECKING

from softiommu.hardware.amd.events import BadRequest
from softiommu.hardware.amd.faults import bad_request
from softiommu.hardware.amd.tables import Dte1, PortIo
from softiommu.hardware.iommu import ALL, Translation
from softiommu.pagetable.kinds import WRITE

if TYPE_CHECKING:
    from softiommu.hardware.amd.registers import Registers
    from softiommu.hardware.iommu import Request

#: Writes here are interrupt requests.
INTERRUPTS = range(0xFEE00000, 0xFEF00000)
#: HyperTransport's ranges of messages that the device table entry controls.
SYSTEM_MANAGEMENT = range(0xFD_F910_0000, 0xFD_F920_0000)
PORT_IO = range(0xFD_FC00_0000, 0xFD_FE00_0000)
#: Both of them lie here.
CONTROLLED = range(SYSTEM_MANAGEMENT.start, PORT_IO.stop)


def is_interrupt(request: Request) -> bool:
    """Whether a request is an interrupt's message."""
    return request.iova in INTERRUPTS and request.pasid is None and bool(request.want & WRITE)


def special(registers: Registers, entry: Dte1, request: Request) -> Translation | None:
    """Where a request without PASID goes that tables do not translate; None: they do. EventError."""
    forwarded = Translation(request.iova, 12, ALL)
    if _is_excluded(registers, entry, request.iova):
        return forwarded
    if registers.EFR2.HTRangeIgnore:
        return None
    if request.iova in PORT_IO and entry.IoCtl != PortIo.SOME:
        if entry.IoCtl == PortIo.FORWARD:
            return forwarded
        raise bad_request(request, BadRequest.PORT_IO)
    if request.iova in SYSTEM_MANAGEMENT and entry.SysMgt != PortIo.TRANSLATE:
        if not request.want & WRITE:
            raise bad_request(request, BadRequest.SYSTEM_MANAGEMENT_READ)
        # INTx messages, which SOME would let through, are no writes of a device here.
        if entry.SysMgt != PortIo.FORWARD:
            raise bad_request(request, BadRequest.SYSTEM_MANAGEMENT_WRITE)
        return forwarded
    return None


def _is_excluded(registers: Registers, entry: Dte1, iova: int) -> bool:
    base = registers.EXCL_BASE
    if not base.ExEn or not (base.Allow or entry.EX):
        return False
    return base.ADDR <= iova >> 12 <= registers.EXCL_LIMIT.ADDR
