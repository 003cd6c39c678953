"""Interrupt files in memory. RISC-V AIA 1.0, section "Memory-resident interrupt files".

For every 64 interrupt identities a file has a word of pending bits and a word of enable bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from softiommu.hardware.riscv.events import Cause
from softiommu.hardware.riscv.walker import BlockedError, InterruptFile
from softiommu.memory.physical import BadAddressError

if TYPE_CHECKING:
    from softiommu.hardware.iommu import Request
    from softiommu.memory.physical import PhysicalMemory

#: Registers of an interrupt file's page: the identity to set pending, in either byte order.
_SETEIPNUM_LE, _SETEIPNUM_BE = 0, 4
_IDENTITIES = 2048


def store_interrupt(memory: PhysicalMemory, file: InterruptFile, data: bytes, request: Request) -> bool:
    """Set the interrupt pending that a write to the file's page names; whether its notice is to be sent.

    Writes that name none are dropped. BlockedError: the file is not in memory.
    """
    where = request.iova & 0xFFF
    if len(data) != 4 or where not in (_SETEIPNUM_LE, _SETEIPNUM_BE):
        return False
    identity = int.from_bytes(data, "little" if where == _SETEIPNUM_LE else "big")
    if not 0 < identity < _IDENTITIES:
        return False
    at, mask = file.pa + 16 * (identity >> 6), 1 << (identity & 63)
    try:
        memory.write_u64(at, memory.read_u64(at) | mask)
        return bool(memory.read_u64(at + 8) & mask)
    except BadAddressError as error:
        raise BlockedError(Cause.MRIF_ACCESS_FAULT, request) from error
