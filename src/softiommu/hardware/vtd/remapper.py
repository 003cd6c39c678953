"""Interrupt remapping: a message in, the message for the local APIC out, or a fault. VT-d chapter 5."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from softiommu.hardware.iommu import Request, TranslationFaultError
from softiommu.hardware.vtd.events import Reason
from softiommu.hardware.vtd.registers import Irta
from softiommu.hardware.vtd.tables import (
    FUNCTION_MASKS,
    Irte0,
    Irte1,
    MessageAddress,
    MessageData,
    RemappableAddress,
    SourceCheck,
)
from softiommu.memory.physical import BadAddressError
from softiommu.pagetable.kinds import WRITE

if TYPE_CHECKING:
    from softiommu.hardware.cache import Cache
    from softiommu.memory.physical import PhysicalMemory

_FEE = 0xFEE


class Message(NamedTuple):
    """An interrupt: a write of `data` to `address`."""

    address: int
    data: int


class InterruptFaultError(TranslationFaultError):
    """An interrupt that is blocked. `index` is the table entry it asked for; `quiet`: not recorded (FPD)."""

    def __init__(self, reason: Reason, sid: int, message: Message, index: int = 0, quiet: bool = False) -> None:
        super().__init__(reason, Request(sid, message.address, WRITE))
        self.index, self.quiet = index, quiet


class Remapper:
    """Looks interrupts up in the table that software has set."""

    def __init__(self, memory: PhysicalMemory, cache: Cache[int, tuple[Irte0, Irte1]]) -> None:
        self._memory, self._cache = memory, cache
        #: The table in use: the register's value when software gave the command.
        self.table = Irta(0)

    def remap(self, sid: int, message: Message, compatibility: bool) -> Message:
        """The message for the local APIC. InterruptFaultError."""
        address = RemappableAddress(message.address & 0xFFFFFFFF)
        if not address.FORMAT:
            if self.table.EIME or not compatibility:
                raise InterruptFaultError(Reason.COMPATIBILITY_BLOCKED, sid, message)
            return message
        if message.data >> 16:
            raise InterruptFaultError(Reason.INTERRUPT_RESERVED, sid, message)
        handle = address.HANDLE_HIGH << 15 | address.HANDLE_LOW
        index = handle + message.data if address.SHV else handle
        if index >> self.table.S + 1:
            raise InterruptFaultError(Reason.INTERRUPT_INDEX, sid, message, index & 0xFFFF)
        return self._deliver(*self._entry(sid, message, index), (sid, message, index))

    def _entry(self, sid: int, message: Message, index: int) -> tuple[Irte0, Irte1]:
        found = self._cache.get(index)
        if found is not None:
            return found
        at = (self.table.IRTA << 12) + 16 * index
        try:
            entry = Irte0(self._memory.read_u64(at)), Irte1(self._memory.read_u64(at + 8))
        except BadAddressError as error:
            raise InterruptFaultError(Reason.IRTE_ACCESS, sid, message, index) from error
        quiet = bool(entry[0].FPD)
        if not entry[0].P:
            raise InterruptFaultError(Reason.IRTE_NOT_PRESENT, sid, message, index, quiet)
        if self._is_reserved(*entry):
            raise InterruptFaultError(Reason.IRTE_RESERVED, sid, message, index, quiet)
        self._cache.put(index, entry)
        return entry

    def _is_reserved(self, low: Irte0, high: Irte1) -> bool:
        """Bits that must be 0; posted interrupts are not there."""
        wide = low.DST & ~0xFF00 and not self.table.EIME
        return bool(low.reserved or high.reserved or low.IM or wide or high.SVT not in SourceCheck.__members__.values())

    def _deliver(self, low: Irte0, high: Irte1, asked: tuple[int, Message, int]) -> Message:
        sid, message, index = asked
        if not _is_source(high, sid):
            raise InterruptFaultError(Reason.INTERRUPT_SOURCE, sid, message, index, bool(low.FPD))
        dest = low.DST if self.table.EIME else low.DST >> 8 & 0xFF
        address = MessageAddress.of(FEE=_FEE, DEST=dest & 0xFF, DEST_HIGH=dest >> 8, RH=low.RH, DM=low.DM)
        data = MessageData.of(VECTOR=low.V, DLM=low.DLM, LEVEL=1, TM=low.TM)
        return Message(int(address), int(data))


def _is_source(high: Irte1, sid: int) -> bool:
    """Whether a stream may raise an entry's interrupt."""
    if high.SVT == SourceCheck.STREAM:
        return (sid ^ high.SID) & FUNCTION_MASKS[high.SQ] == 0
    if high.SVT == SourceCheck.BUSES:
        return high.SID >> 8 <= sid >> 8 <= high.SID & 0xFF
    return True
