"""Interrupt requests: device table entries let them through, remap or block them. AMD IOMMU 48882, 2.2.5."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from softiommu.hardware.amd.events import BadRequest, Code
from softiommu.hardware.amd.faults import bad_request, hardware_error, illegal_entry, page_fault
from softiommu.hardware.amd.tables import (
    MOST_INTERRUPTS_LG2,
    REMAPPED_TYPES,
    Dte,
    IntCtl,
    Irte,
    LongIrteHigh,
    LongIrteLow,
    MsiAddress,
    MsiData,
)
from softiommu.hardware.cache import Cache, Shape
from softiommu.memory.physical import BadAddressError

if TYPE_CHECKING:
    from softiommu.hardware.amd.registers import Registers
    from softiommu.hardware.iommu import Request
    from softiommu.memory.physical import PhysicalMemory

#: The low bits of a message's data that choose the remapping entry.
_INDEX = (1 << MOST_INTERRUPTS_LG2) - 1


class Target(NamedTuple):
    """What a remapping entry says, of either length."""

    kind: int
    logical: int
    destination: int
    vector: int


class Remapper:
    """The interrupt side of one IOMMU, with its cache of remapping entries by (device, index)."""

    def __init__(self, memory: PhysicalMemory, registers: Registers, shape: Shape) -> None:
        self._memory, self._registers = memory, registers
        self.cache: Cache[tuple[int, int], Target] = Cache(shape)

    def admit(self, dte: Dte, request: Request) -> bool:
        """Whether an interrupt request is to be remapped, or goes as it is. EventError: it is blocked."""
        q2, q3 = dte.q2, dte.q3
        if not q2.IV:
            return False
        if q2.reserved | q3.reserved or q2.IntTabLen > MOST_INTERRUPTS_LG2:
            raise illegal_entry(request, True, I=1)
        if q2.IntCtl == IntCtl.FORWARD:
            return False
        if q2.IntCtl == IntCtl.REMAP:
            return True
        if q2.IntCtl == IntCtl.ABORT:
            raise bad_request(request, BadRequest.INTERRUPT)
        raise illegal_entry(request, False, I=1)

    def remap(self, dte: Dte, request: Request, address: int, data: int) -> tuple[int, int]:
        """The message that goes out for one that came in. EventError."""
        index = data & _INDEX
        target = self.cache.get((request.sid, index))
        if target is None:
            target = self._load(dte, request, index)
            self.cache.put((request.sid, index), target)
        where = MsiAddress(address & 0xFFFFFFFF).replace(DM=target.logical, Destination=target.destination & 0xFF)
        # Destinations above 255 lie in the upper half of the address, as x2APIC messages have them.
        upper = target.destination >> 8 << 40
        what = MsiData(data & 0xFFFF).replace(Mode=target.kind, Vector=target.vector)
        return upper | int(where), int(what)

    def _load(self, dte: Dte, request: Request, index: int) -> Target:
        q2, domain = dte.q2, dte.q1.DomainID
        long = bool(self._registers.CONTROL.GAEn)
        if index >> q2.IntTabLen:
            raise page_fault(request, domain, None, I=1)
        at = (q2.IntTableRoot << 6) + index * (16 if long else 4)
        try:
            raw = self._memory.read_u64(at) if long else self._memory.read_u32(at)
            high = LongIrteHigh(self._memory.read_u64(at + 8) if long else 0)
        except BadAddressError as error:
            raise hardware_error(Code.PAGE_TAB_HARDWARE_ERROR, request, domain, None, at) from error
        entry = LongIrteLow(raw) if long else Irte(raw)
        if not entry.RemapEn:
            raise page_fault(request, domain, None, I=1)
        # Guest mode posts to a virtual processor, which this hardware has not.
        if entry.reserved or high.reserved or entry.GuestMode or entry.IntType not in REMAPPED_TYPES:
            raise page_fault(request, domain, None, I=1, PR=1, RZ=1)
        if isinstance(entry, LongIrteLow):
            return Target(entry.IntType, entry.DM, high.DestinationHigh << 24 | entry.Destination, high.Vector)
        return Target(entry.IntType, entry.DM, entry.Destination, entry.Vector)

    def quiet(self, dte: Dte, sid: int, data: int) -> bool:
        """Whether an interrupt that is not remapped is not told: DTE.IG, or the entry's SupIOPF."""
        if dte.q2.IG:
            return True
        long = bool(self._registers.CONTROL.GAEn)
        index = data & _INDEX
        if index >> dte.q2.IntTabLen:
            return False
        try:
            return bool(Irte(self._memory.read_u32((dte.q2.IntTableRoot << 6) + index * (16 if long else 4))).SupIOPF)
        except BadAddressError:
            return False
