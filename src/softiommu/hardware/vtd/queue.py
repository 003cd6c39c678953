"""The invalidation queue: descriptors are fetched, checked and carried out in order. VT-d 6.5.2."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from softiommu.hardware.vtd.commands import (
    LAYOUTS,
    Context,
    DeviceTlb1,
    Iotlb0,
    PasidCache0,
    PasidIotlb0,
    Range,
    Type,
    Wait0,
    Wait1,
)
from softiommu.memory.physical import BadAddressError

if TYPE_CHECKING:
    from softiommu.hardware.vtd.model import Unit
    from softiommu.hardware.vtd.walker import Route
    from softiommu.memory.physical import PhysicalMemory

_FUNCTION_MASKS = (0xFFFF, 0xFFFB, 0xFFF9, 0xFFF8)


class Selection(NamedTuple):
    """Which cached things a command names; None is any."""

    did: int | None = None
    pasid: int | None = None
    sid: int | None = None
    sid_mask: int = 0xFFFF
    #: An inclusive range of addresses.
    window: tuple[int, int] | None = None

    def covers_route(self, key: tuple[int, int], route: Route) -> bool:
        """Whether a cached route is named. Device-selective commands name the stream, whatever its domain."""
        if self.sid is not None:
            return (key[0] ^ self.sid) & self.sid_mask == 0
        if self.did is not None and route.did != self.did:
            return False
        return self.pasid is None or max(key[1], 0) == self.pasid

    def covers_tags(self, tags: tuple[int, ...]) -> bool:
        """Whether translations with these tags (domain, PASID or -1) are named."""
        return (self.did is None or tags[0] == self.did) and (self.pasid is None or tags[1] == self.pasid)


class Queue:
    """The queue of one unit."""

    def __init__(self, unit: Unit, memory: PhysicalMemory) -> None:
        self._unit, self._memory = unit, memory

    def run(self) -> None:
        """Carry descriptors out until the queue is empty or one is wrong."""
        registers = self._unit.registers
        while registers.GSTS.QIE and not registers.FSTS.IQE:
            head, tail = registers.IQH.OFFSET << 4, registers.IQT.OFFSET << 4
            if head == tail:
                return
            size = 4096 << registers.IQA.QS
            step = 32 if registers.IQA.DW else 16
            if tail >= size or tail % step or not self._step(head, step):
                self._unit.queue_error()
                return
            registers.IQH = (head + step) % size

    def _step(self, head: int, step: int) -> bool:
        """Carry the descriptor at `head` out; whether it was a right one."""
        base = self._unit.registers.IQA.IQA << 12
        try:
            words = [self._memory.read_u64(base + head + 8 * n) for n in range(step // 8)]
        except BadAddressError:
            return False
        kind = words[0] & 0xF | words[0] >> 5 & 0x70
        if kind not in LAYOUTS or any(words[2:]):
            return False
        layout = LAYOUTS[Type(kind)]
        low = layout.low(words[0])
        high = layout.high(words[1]) if layout.high is not None else None
        if low.reserved or (high is None and words[1]) or (high is not None and high.reserved):
            return False
        return self._carry_out(low, high)

    def _carry_out(self, low: object, high: object) -> bool:
        unit = self._unit
        if isinstance(low, Context):
            return self._context(low)
        if isinstance(low, Iotlb0) and isinstance(high, Range):
            return self._iotlb(low, high)
        if isinstance(low, PasidIotlb0) and isinstance(high, Range):
            return self._pasid_iotlb(low, high)
        if isinstance(low, PasidCache0):
            if low.G == 2:
                return False
            did = None if low.G == 3 else low.DID
            unit.forget_contexts(Selection(did=did, pasid=low.PASID if low.G == 1 else None))
            return True
        if isinstance(low, Wait0) and isinstance(high, Wait1):
            return self._wait(low, high)
        # Device TLBs and the interrupt entry cache belong to hardware that this unit does not hold.
        return isinstance(high, DeviceTlb1) or high is None

    def _context(self, command: Context) -> bool:
        if command.G == 0:
            return False
        chosen = {
            1: Selection(),
            2: Selection(did=command.DID),
            3: Selection(sid=command.SID, sid_mask=_FUNCTION_MASKS[command.FM]),
        }
        self._unit.forget_contexts(chosen[command.G])
        return True

    def _iotlb(self, command: Iotlb0, where: Range) -> bool:
        if command.G == 0:
            return False
        window = self._window(where) if command.G == 3 else None
        if command.G == 3 and window is None:
            return False
        self._unit.forget_translations(Selection(did=None if command.G == 1 else command.DID, window=window))
        return True

    def _pasid_iotlb(self, command: PasidIotlb0, where: Range) -> bool:
        if command.G not in (2, 3):
            return False
        window = self._window(where) if command.G == 3 else None
        if command.G == 3 and window is None:
            return False
        self._unit.forget_translations(Selection(command.DID, command.PASID, window=window))
        return True

    def _window(self, where: Range) -> tuple[int, int] | None:
        """The addresses of a page-selective command; None when more pages are named than the hardware takes."""
        if where.AM > self._unit.registers.CAP.MAMV:
            return None
        size = 4096 << where.AM
        first = (where.ADDR << 12) & ~(size - 1)
        return first, first + size - 1

    def _wait(self, low: Wait0, high: Wait1) -> bool:
        if low.SW:
            try:
                self._memory.write(high.ADDR << 2, low.DATA.to_bytes(4, "little"))
            except BadAddressError:
                return False
        self._unit.complete_wait(bool(low.IF))
        return True
