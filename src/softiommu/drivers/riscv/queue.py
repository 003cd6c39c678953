"""A driver's side of a RISC-V IOMMU's command queue: commands in, the doorbell, and the fence's word that says done."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from softiommu.drivers.function import Bus
from softiommu.errors import ModelError
from softiommu.hardware.riscv.commands import COMMAND_BYTES, Ats0, Command, Inval, Iofence0, Iofence1
from softiommu.hardware.riscv.registers import Cqcsr, QueueBase, Registers
from softiommu.memory.physical import PAGE, PhysicalMemory

#: All addresses, as a power of two.
EVERYWHERE = 64

_ENTRIES = PAGE // COMMAND_BYTES
#: Commands between fences: with the fence, fewer than the queue has room for.
_BATCH = _ENTRIES - 2


class CommandQueue:
    """One page of commands."""

    def __init__(self, memory: PhysicalMemory, bus: Bus) -> None:
        self._memory, self._bus = memory, bus
        self._base, self._status = memory.alloc(PAGE), memory.alloc(PAGE)
        self._tail = self._tickets = 0
        self._busy = False
        self._posted: list[tuple[int, int]] = []
        base = QueueBase.of(PPN=self._base >> 12, LOG2SZ_1=_ENTRIES.bit_length() - 2)
        bus.write(Registers.CQCSR.offset, 4, Cqcsr(0))  # whoever was here before may have left it on
        bus.write(Registers.CQB.offset, 8, base)
        bus.write(Registers.CQT.offset, 4, 0)
        bus.write(Registers.CQCSR.offset, 4, Cqcsr.of(CQEN=1))
        if not Cqcsr(bus.read(Registers.CQCSR.offset, 4)).CQON:
            raise ModelError("the command queue does not start")

    def submit(self, *commands: tuple[int, int]) -> bool:
        """Put commands in the queue, and return when the hardware has carried them out; False: a device TLB did not
        answer. If what others do that are waited for led here, they are carried out behind those."""
        if self._busy:
            self._posted.extend(commands)
            return True
        rest = iter(commands)
        answered = self._busy = True
        try:
            while batch := list(islice(rest, _BATCH)) or self._take_posted():
                answered = self._submit(batch) and answered
        finally:
            self._busy = False
        return answered

    def _take_posted(self) -> list[tuple[int, int]]:
        taken, self._posted = self._posted[:_BATCH], self._posted[_BATCH:]
        return taken

    def _submit(self, batch: Iterable[tuple[int, int]]) -> bool:
        for command in batch:
            self._put(*command)
        self._tickets = self._tickets % 0xFFFFFFFF + 1
        # Reads and writes that were translated before are done, too: their pages may be reused.
        fence = Iofence0.of(COMMAND=Command.IOFENCE_C, AV=1, PR=1, PW=1, DATA=self._tickets)
        self._put(fence, Iofence1.of(ADDR=self._status >> 2))
        self._bus.write(Registers.CQT.offset, 4, self._tail)
        if self._memory.read_u32(self._status) == self._tickets:
            return True
        self._recover()
        return False

    def _recover(self) -> None:
        """A device TLB did not answer: the queue goes on when that is acknowledged."""
        state = Cqcsr(self._bus.read(Registers.CQCSR.offset, 4))
        if state.CMD_TO:
            self._bus.write(Registers.CQCSR.offset, 4, Cqcsr.of(CQEN=1, CMD_TO=1))
        if self._memory.read_u32(self._status) != self._tickets:
            raise ModelError(f"the command queue stopped: {state!r}")

    def _put(self, low: int, high: int) -> None:
        at = self._base + COMMAND_BYTES * self._tail
        self._memory.write_u64(at, int(low))
        self._memory.write_u64(at + 8, int(high))
        self._tail = (self._tail + 1) % _ENTRIES


def device_tlb(sid: int, pasid: int | None, first: int, lg2: int) -> tuple[int, int]:
    """Forget the 2**lg2 bytes from `first` in a device's own TLB."""
    low = Ats0.of(COMMAND=Command.ATS_INVAL, RID=sid & 0xFFFF, DSEG=sid >> 16, DSV=int(sid >> 16 != 0))
    if pasid is not None:
        low = low.replace(PV=1, PID=pasid)
    page = first >> 12
    if lg2 == 12:
        return low, Inval.of(PAGE=page)
    return low, Inval.of(S=1, PAGE=page | (1 << lg2 - 13) - 1)
