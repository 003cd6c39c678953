"""A driver's side of SMMUv3's command queue: commands in, a SYNC behind them, the doorbell, and what stops it."""

from __future__ import annotations

from itertools import chain
from struct import pack
from typing import TYPE_CHECKING

from softiommu.errors import ModelError
from softiommu.hardware.smmuv3.commands import COMMAND_BYTES, AtcInv0, AtcInv1, Op, Sync0
from softiommu.hardware.smmuv3.registers import CmdqCons, CommandError, Gerror, QueueBase, Registers, Ring
from softiommu.memory.physical import PAGE

if TYPE_CHECKING:
    from softiommu.drivers.function import Bus
    from softiommu.memory.physical import PhysicalMemory

Command = tuple[int, int]
_SYNC = pack("<2Q", Sync0.of(OPCODE=Op.SYNC), 0)

#: So many commands, where the hardware has so many.
_LG2 = 12
#: ATC_INV of everything.
EVERYTHING = 52


class CommandQueue:
    """The queue of one SMMU; `most_lg2` is the largest that the hardware takes."""

    def __init__(self, memory: PhysicalMemory, bus: Bus, most_lg2: int) -> None:
        self._memory, self._bus = memory, bus
        self._ring = Ring(min(_LG2, most_lg2))
        size = max(COMMAND_BYTES << self._ring.lg2, PAGE)
        self._base = memory.alloc(size, size)
        self._prod = self._cons = 0
        self._error = CmdqCons(0)
        self._busy = False
        self._posted = b""
        #: How often device TLBs did not answer.
        self.timeouts = 0
        base = QueueBase.of(LOG2SIZE=self._ring.lg2, ADDR=self._base >> 5, HINT=1)
        bus.write(Registers.CMDQ_BASE.offset, 8, base)
        bus.write(Registers.CMDQ_PROD.offset, 4, 0)
        bus.write(Registers.CMDQ_CONS.offset, 4, 0)

    def submit(self, *commands: Command) -> None:
        """Put commands and a SYNC in the queue, and return when the hardware has carried them out."""
        done = self.attempt(pack(f"<{2 * len(commands)}Q", *chain.from_iterable(commands)))
        if done < len(commands):
            raise ModelError(f"the command queue stopped at {commands[done]}: {self._error!r}")

    def attempt(self, raw: bytes) -> int:
        """The same for commands as they lie in memory, which the hardware may find illegal: how many it carried out
        before such a one. If what others do that are waited for led here, they are carried out behind those."""
        if self._busy:
            self._posted += raw
            return len(raw) // COMMAND_BYTES
        self._busy = True
        try:
            done = self._attempt(raw)
        finally:
            self._busy = False
        if self._posted:
            posted, self._posted = self._posted, b""
            if self.attempt(posted) < len(posted) // COMMAND_BYTES:
                raise ModelError(f"the command queue stopped: {self._error!r}")
        return done

    def _attempt(self, raw: bytes) -> int:
        """As many as the queue holds at a time, and one SYNC behind the last."""
        room = max(1, (1 << self._ring.lg2) - 1) * COMMAND_BYTES
        for start in range(0, max(len(raw), 1), room):
            first, some = self._prod, raw[start : start + room]
            refused = self._put(some if start + room < len(raw) else some + _SYNC)
            if refused is not None:
                return start // COMMAND_BYTES + (refused - first & (2 << self._ring.lg2) - 1)
        return len(raw) // COMMAND_BYTES

    def _put(self, raw: bytes) -> int | None:
        """Put commands in the queue; a pointer to one that is illegal, behind which none is carried out."""
        start = 0
        while start < len(raw):
            # As many as there is room for, up to the end of the memory.
            room = self._ring.ahead(self._cons ^ 1 << self._ring.lg2, self._prod)
            if not room:
                refused = self._ring_doorbell()
                if refused is not None:
                    return refused
                continue
            some = raw[start : start + room * COMMAND_BYTES]
            self._write(self._prod, some)
            self._prod = self._ring.skip(self._prod, len(some) // COMMAND_BYTES)
            start += len(some)
        return self._ring_doorbell()

    def _write(self, pointer: int, raw: bytes) -> None:
        self._memory.write(self._base + COMMAND_BYTES * self._ring.slot(pointer), raw)

    def _ring_doorbell(self) -> int | None:
        self._bus.write(Registers.CMDQ_PROD.offset, 4, self._prod)
        cons, refused = CmdqCons(self._bus.read(Registers.CMDQ_CONS.offset, 4)), None
        while self._prod != cons.RD:
            errors = Gerror(self._bus.read(Registers.GERROR.offset, 4))
            if cons.ERR == CommandError.ILL and refused is None:
                refused, self._error = cons.RD, cons
                self._skip(cons.RD)
            elif cons.ERR == CommandError.ATC_INV_SYNC:
                self.timeouts += 1  # a device is in trouble, but the queue goes on
            else:
                raise ModelError(f"the command queue stopped: {cons!r}, {errors!r}")
            self._bus.write(Registers.GERRORN.offset, 4, errors)
            cons = CmdqCons(self._bus.read(Registers.CMDQ_CONS.offset, 4))
        self._cons = cons.RD
        return refused

    def _skip(self, pointer: int) -> None:
        """Nothing from a command on is to be carried out: what is in the queue cannot be taken back."""
        while pointer != self._prod:
            self._write(pointer, _SYNC)
            pointer = self._ring.next(pointer)


def atc_inv(sid: int, pasid: int | None, first: int = 0, last: int = 2**64 - 1) -> Command:
    """Forget what a device's own TLB has of `first`..`last`: the power of two of pages that covers it."""
    lg2 = min(max((first ^ last).bit_length() - 12, 0), EVERYTHING)
    low = AtcInv0.of(OPCODE=Op.ATC_INV, SID=sid)
    if pasid is not None:
        low = low.replace(SSV=1, SSID=pasid)
    return low, AtcInv1.of(SIZE=lg2, ADDR=first >> 12 + lg2 << lg2)


def every_atc(sid: int, first: int = 0, last: int = 2**64 - 1) -> tuple[Command, Command]:
    """The same of requests without a PASID, and of those with any."""
    low, high = atc_inv(sid, 0, first, last)
    return atc_inv(sid, None, first, last), (AtcInv0(low).replace(GLOBAL=1), high)
