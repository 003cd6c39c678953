"""The command queue of a virtual SMMUv3. Arm IHI 0070, 4 and 7.1.

Commands that only the host's SMMU can carry out are gathered and go to it in one call. One that changes what a stream
is attached to, a SYNC, and the end of the queue wait for those before them. CMDQ_CONS shows what has been done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from softiommu.hardware.smmuv3.commands import (
    COMMAND_BYTES,
    LAYOUTS,
    Leaf1,
    Op,
    Range1,
    Signal,
    Stream0,
    Sync0,
    Sync1,
)
from softiommu.hardware.smmuv3.registers import CmdqCons, CommandError, Ring
from softiommu.hardware.smmuv3.signals import Signals, Wire
from softiommu.memory.physical import BadAddressError

if TYPE_CHECKING:
    from collections.abc import Container

    from softiommu.hardware.smmuv3.presets import Identity
    from softiommu.hardware.smmuv3.registers import Registers
    from softiommu.memory.physical import PhysicalMemory

_ALL_STREAMS = 31
_LAST_STREAM = (1 << 32) - 1
#: So many commands go to the host at a time.
_BATCH = 4096
#: Commands of a stream that the host's SMMU carries out.
_OF_STREAMS = frozenset({Op.CFGI_CD, Op.CFGI_CD_ALL, Op.ATC_INV})
#: Nothing of the guest's waits for these: hints, and answers to transactions that stall.
_WITHOUT_EFFECT = frozenset({Op.PREFETCH_CONFIG, Op.PREFETCH_ADDR, Op.RESUME, Op.STALL_TERM, Op.PRI_RESP})
_LOOKED_AT = _OF_STREAMS | _WITHOUT_EFFECT | {Op.CFGI_STE, Op.CFGI_STE_RANGE, Op.SYNC}


class Front(Protocol):
    """Whose queue it is."""

    registers: Registers
    identity: Identity
    signals: Signals

    @property
    def passed(self) -> Container[int]:
        """The streams of the guest's devices."""
        ...

    def streams_changed(self, first: int, last: int, leaf: bool) -> list[int]:
        """STEs changed; the streams among them."""
        ...

    def forward(self, commands: list[tuple[int, int]]) -> tuple[int, CommandError]:
        """Hand commands to the host: how many were carried out, and what was wrong with the next."""
        ...


class _StopError(Exception):
    """The queue stops at a command."""

    def __init__(self, error: CommandError) -> None:
        super().__init__(error.name)
        self.error = error


class _Waiting(NamedTuple):
    """A command for the host, and where in the queue it came from."""

    pointer: int
    words: tuple[int, int]


class Commands:
    """The queue of one virtual SMMU."""

    def __init__(self, front: Front, memory: PhysicalMemory) -> None:
        self._front, self._memory = front, memory
        self._waiting: list[_Waiting] = []
        self._running = False
        #: Commands that only the host looks into, by opcode: their reserved bits.
        self._plain = {
            int(op): (layout.low.RESERVED, layout.high.RESERVED)
            for op, layout in LAYOUTS.items()
            if op not in _LOOKED_AT and layout.exists(front.identity.idr0)
        }

    def run(self) -> None:
        """Carry commands out until the queue is empty or one is wrong. What a command sets off may ring again."""
        if self._running:
            return
        self._running = True
        try:
            while self._batch():
                pass
        except _StopError as stop:
            registers = self._front.registers
            registers.CMDQ_CONS = registers.CMDQ_CONS.replace(ERR=stop.error)
            self._front.signals.error("CMDQ_ERR")
        finally:
            self._waiting.clear()
            self._running = False

    def _batch(self) -> bool:
        """Carry out what the doorbell told of; whether there was any."""
        registers = self._front.registers
        base, prod, cons = registers.CMDQ_BASE, registers.CMDQ_PROD.WR, registers.CMDQ_CONS.RD
        ring = Ring(min(base.LOG2SIZE, self._front.identity.idr1.CMDQS))
        if not registers.CR0ACK.CMDQEN or self._front.signals.active("CMDQ_ERR") or ring.empty(prod, cons):
            return False
        start = (base.ADDR << 5) & ~(max(32, COMMAND_BYTES << ring.lg2) - 1)
        # Pointers beyond the queue count round it: the guest's doing.
        cons &= (2 << ring.lg2) - 1
        # Who is told of a SYNC may turn the queue off.
        while registers.CR0ACK.CMDQEN and not ring.empty(prod, cons):
            self._carry_out(cons, start + COMMAND_BYTES * ring.slot(cons))
            cons = ring.next(cons)
            if not self._waiting or len(self._waiting) >= _BATCH:
                self._flush()
                self._consumed(cons)
        self._flush()
        self._consumed(cons)
        return True

    def _consumed(self, cons: int) -> None:
        registers = self._front.registers
        registers.CMDQ_CONS = CmdqCons(registers.CMDQ_CONS & CmdqCons.ERR.mask | cons)

    def _carry_out(self, pointer: int, at: int) -> None:
        try:
            words = self._memory.read_u64(at), self._memory.read_u64(at + 8)
        except BadAddressError as error:
            raise self._stop(pointer, CommandError.ABT) from error
        reserved = self._plain.get(words[0] & 0xFF)
        if reserved is not None and not words[0] & reserved[0] and not words[1] & reserved[1]:
            self._waiting.append(_Waiting(pointer, words))
            return
        try:
            op = Op(words[0] & 0xFF)
        except ValueError as error:
            raise self._stop(pointer, CommandError.ILL) from error
        layout = LAYOUTS[op]
        low, high = layout.low(words[0]), layout.high(words[1])
        if not layout.exists(self._front.identity.idr0) or low.reserved or high.reserved:
            raise self._stop(pointer, CommandError.ILL)
        self._execute(pointer, op, (low, high))

    def _execute(self, pointer: int, op: Op, words: tuple[Any, Any]) -> None:
        low, high = words
        if op in (Op.CFGI_STE, Op.CFGI_STE_RANGE):
            self._flush()
            self._streams(pointer, op, low, high)
        elif op is Op.SYNC:
            self._flush()
            self._sync(pointer, low, high)
        elif op in _OF_STREAMS and low.SID in self._front.passed:  # else there is nothing cached
            self._waiting.append(_Waiting(pointer, (int(low), int(high))))

    def _streams(self, pointer: int, op: Op, low: Stream0, high: Any) -> None:
        first = last = low.SID
        leaf = isinstance(high, Leaf1) and bool(high.LEAF)
        if isinstance(high, Range1):
            size = 2 << high.RANGE
            first = low.SID & ~(size - 1)
            last = first + size - 1
            if high.RANGE == _ALL_STREAMS:
                first, last = 0, _LAST_STREAM
        # With an STE goes what was read through it (4.3.1).
        for sid in self._front.streams_changed(first, last, leaf):
            contexts = Stream0.of(OPCODE=Op.CFGI_CD_ALL, SID=sid)
            self._waiting.append(_Waiting(pointer, (int(contexts), 0)))

    def _sync(self, pointer: int, low: Sync0, high: Sync1) -> None:
        if low.CS == Signal.IRQ:
            # Who is told must find the pointer past what is done.
            self._consumed(pointer)
            self._front.signals.send(Wire.CMD_SYNC, high.MSIADDR << 2, low.MSIDATA)
        elif low.CS == Signal.SEV:
            self._front.signals.wake()
        elif low.CS != Signal.NONE:
            raise self._stop(pointer, CommandError.ILL)

    def _flush(self) -> None:
        """Hand what waits to the host."""
        waiting = self._waiting[:]
        self._waiting.clear()
        if not waiting:
            return
        done, error = self._front.forward([command.words for command in waiting])
        if error is not CommandError.NONE:
            self._consumed(waiting[min(done, len(waiting) - 1)].pointer)
            raise _StopError(error)

    def _stop(self, pointer: int, error: CommandError) -> _StopError:
        """The queue stops here, or at one before it that the host refuses."""
        try:
            self._flush()
        except _StopError as earlier:
            return earlier
        self._consumed(pointer)
        return _StopError(error)
