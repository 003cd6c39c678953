"""The queues: commands that software puts, records that the IOMMU puts. RISC-V IOMMU 1.0, "In-memory queues"."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from softiommu.hardware.riscv.commands import (
    COMMAND_BYTES,
    LAYOUTS,
    Ats0,
    AtsPayload,
    Command,
    Inval,
    Iodir0,
    Iofence0,
    Iofence1,
    Iotinval0,
    Iotinval1,
    Layout,
    Prgr,
    napot,
)
from softiommu.hardware.riscv.registers import Cqcsr, Ipsr, QueueBase, QueueIndex, RecordCsr, Registers
from softiommu.memory.physical import BadAddressError
from softiommu.registers import Register

if TYPE_CHECKING:
    from softiommu.hardware.riscv.interrupts import Interrupts
    from softiommu.hardware.riscv.model import RiscvIommu
    from softiommu.memory.physical import PhysicalMemory

_ERRORS = Cqcsr.CQMF.mask | Cqcsr.CMD_TO.mask | Cqcsr.CMD_ILL.mask
_CAUSES = _ERRORS | Cqcsr.FENCE_W_IP.mask
#: The queue goes on while it is on and there is no error.
_ON = Cqcsr.CQON.mask
_GOES = _ON | _ERRORS
_LAYOUTS: dict[int, Layout] = {int(command): layout for command, layout in LAYOUTS.items()}


def entries_of(base: QueueBase) -> int:
    """How many entries a queue has."""
    return 2 << base.LOG2SZ_1


def entry_at(base: QueueBase, index: int, size: int) -> int:
    """The address of an entry of `size` bytes. A queue of more than a page lies at a multiple of its size."""
    length = entries_of(base) * size
    return (base.PPN << 12 & ~(length - 1) if length > 4096 else base.PPN << 12) + index * size


class Selection(NamedTuple):
    """Which cached translations a command names; None is any."""

    gscid: int | None
    pscid: int | None = None
    #: An inclusive range of addresses.
    window: tuple[int, int] | None = None
    #: Links to tables stay.
    leaves_only: bool = False


class CommandQueue:
    """Fetches commands, checks them, and carries them out in order."""

    def __init__(self, iommu: RiscvIommu, registers: Registers, memory: PhysicalMemory, interrupts: Interrupts) -> None:
        self._iommu, self._registers, self._memory, self._interrupts = iommu, registers, memory, interrupts
        self._have = registers.CAPABILITIES
        #: An invalidation request of ATS was not completed: the next fence tells.
        self._timed_out = False
        #: What a command does may reach software that rings the doorbell again.
        self._running = False

        self.resized()

    def resized(self) -> None:
        """The base or the tail was written: only its low bits are there."""
        base = self._registers.CQB
        self._mask, self._start = entries_of(base) - 1, entry_at(base, 0, COMMAND_BYTES)
        self._registers.CQT = self._registers.CQT & self._mask

    def controlled(self, old: Cqcsr, new: Cqcsr) -> None:
        """The control register was written."""
        if new.CQEN and not old.CQON:
            self._registers.CQH = 0
            new = Cqcsr(new & ~_CAUSES)
        self._registers.CQCSR = new.replace(CQON=new.CQEN)
        self.tell()
        self.run()

    def tell(self) -> None:
        """Interrupt, if there is a reason and it is wanted."""
        if self._registers.CQCSR.CIE and self._registers.CQCSR & _CAUSES:
            self._interrupts.pend(Ipsr.CIP.mask)

    def run(self) -> None:
        """Carry commands out until the queue is empty or one is wrong."""
        if self._running:
            return  # whoever runs it will come to what is new
        self._running = True
        try:
            while self._next():
                pass
        finally:
            self._running = False

    def _next(self) -> bool:
        """Carry the command at the head out; whether the next one may follow."""
        registers = self._registers
        head = registers.CQH & self._mask
        if registers.CQCSR & _GOES != _ON or head == registers.CQT & self._mask:
            return False
        error = self._step(self._start + head * COMMAND_BYTES)
        if error:
            registers.CQCSR = registers.CQCSR | error
        else:
            registers.CQH = head + 1 & self._mask
        if registers.CQCSR & _CAUSES:
            self.tell()
        return True

    def _step(self, at: int) -> int:
        """Carry the command at an address out; the bit of cqcsr that tells why not."""
        try:
            if at >> self._have.PAS:
                return Cqcsr.CQMF.mask
            words = self._memory.read_u64(at), self._memory.read_u64(at + 8)
        except BadAddressError:
            return Cqcsr.CQMF.mask
        layout = _LAYOUTS.get(words[0] & 0x3FF)
        if layout is None:
            return Cqcsr.CMD_ILL.mask
        low, high = layout.low(words[0]), layout.high(words[1])
        if low.reserved or high.reserved:
            return Cqcsr.CMD_ILL.mask
        if isinstance(low, Iofence0) and isinstance(high, Iofence1):
            return self._fence(low, high)
        if isinstance(low, Iotinval0) and isinstance(high, Iotinval1):
            done = self._iotinval(low, high)
        elif isinstance(low, Ats0) and isinstance(high, AtsPayload):
            done = self._ats(low, high.PAYLOAD)
        else:
            done = isinstance(low, Iodir0) and self._iodir(low)
        return 0 if done else Cqcsr.CMD_ILL.mask

    def _iotinval(self, low: Iotinval0, high: Iotinval1) -> bool:
        have = self._have
        guest = low.COMMAND == Command.IOTINVAL_GVMA
        if (low.NL and not have.NL) or (high.S and not have.S) or (guest and low.PSCV):
            return False
        page, lg2 = napot(high.PAGE) if high.S else (high.PAGE, 0)
        # A range of 2**52 pages and more is every address.
        window = (page << 12, (page << 12) + (4096 << lg2) - 1) if low.AV else None
        leaves_only = bool(low.AV) and not low.NL
        if guest:
            selection = Selection(low.GSCID, None, window, leaves_only) if low.GV else Selection(None)
            self._iommu.translator.forget_second(selection)
        else:
            pscid = low.PSCID if low.PSCV else None
            self._iommu.translator.forget_first(Selection(low.GSCID if low.GV else None, pscid, window, leaves_only))
        return True

    def _iodir(self, low: Iodir0) -> bool:
        if low.DV and low.DID >> self._iommu.translator.walker.device_bits(self._registers.DDTP):
            return False
        if low.COMMAND == Command.IODIR_INVAL_DDT:
            if low.PID:
                return False
            self._iommu.translator.forget_devices(low.DID if low.DV else None)
            return True
        if not low.DV or not self._iommu.translator.walker.fits_process(low.PID):
            return False
        self._iommu.translator.forget_process(low.DID, low.PID)
        return True

    def _fence(self, low: Iofence0, high: Iofence1) -> int:
        if low.WSI and not self._registers.FCTL.WSI:
            return Cqcsr.CMD_ILL.mask
        if self._timed_out:
            self._timed_out = False
            return Cqcsr.CMD_TO.mask
        if low.AV:
            try:
                self._memory.write_u32(high.ADDR << 2, low.DATA)
            except BadAddressError:
                return Cqcsr.CQMF.mask
        if low.WSI:
            self._registers.CQCSR = self._registers.CQCSR.replace(FENCE_W_IP=1)
        return 0

    def _ats(self, low: Ats0, payload: int) -> bool:
        if not self._have.ATS:
            return False
        sid = low.RID | (low.DSEG << 16 if low.DSV else 0)
        pasid = low.PID if low.PV else None
        if low.COMMAND == Command.ATS_PRGR:
            answer = Prgr(payload)
            self._iommu.respond(sid, pasid, answer.PRGI, answer.RESPONSE)
            return True
        what = Inval(payload)
        page, lg2 = napot(what.PAGE) if what.S else (what.PAGE, 0)
        first = page << 12
        if not self._iommu.invalidate_device(sid, pasid, first, min(first + (4096 << lg2), 1 << 64) - 1):
            self._timed_out = True
        return True


class RecordQueue:
    """A queue that the IOMMU fills: faults, or page requests."""

    def __init__(
        self,
        registers: Registers,
        memory: PhysicalMemory,
        names: tuple[Register[QueueBase], Register[QueueIndex], Register[QueueIndex], Register[RecordCsr]],
        pending: int,
        interrupts: Interrupts,
    ) -> None:
        self._registers, self._memory, self._interrupts, self._pending = registers, memory, interrupts, pending
        self._base, self._head, self._tail, self._csr = names

    @property
    def csr(self) -> RecordCsr:
        """The control and status register."""
        return self._csr.__get__(self._registers)

    def resized(self) -> None:
        """The base was written, or the head: only its low bits are there."""
        base, head = self._base.__get__(self._registers), self._head.__get__(self._registers)
        self._head.__set__(self._registers, head & entries_of(base) - 1)

    def controlled(self, old: RecordCsr, new: RecordCsr) -> None:
        """The control register was written."""
        if new.EN and not old.ON:
            self._tail.__set__(self._registers, 0)
            new = new.replace(MF=0, OF=0)
        self._csr.__set__(self._registers, new.replace(ON=new.EN))
        self.tell()

    def tell(self) -> None:
        """Interrupt, if an error is there and it is wanted."""
        if self.csr.IE and (self.csr.MF or self.csr.OF):
            self._interrupts.pend(self._pending)

    def put(self, words: tuple[int, ...]) -> bool:
        """Store a record; False: the queue is off, full, or not in memory."""
        csr = self.csr
        if not csr.ON or csr.MF or csr.OF:
            return False
        base = self._base.__get__(self._registers)
        mask = entries_of(base) - 1
        tail, head = self._tail.__get__(self._registers), self._head.__get__(self._registers)
        if tail + 1 & mask == head & mask:
            return self._failed(csr.replace(OF=1))
        at = entry_at(base, tail & mask, 8 * len(words))
        try:
            if at >> self._registers.CAPABILITIES.PAS:
                return self._failed(csr.replace(MF=1))
            for number, word in enumerate(words):
                self._memory.write_u64(at + 8 * number, word)
        except BadAddressError:
            return self._failed(csr.replace(MF=1))
        self._tail.__set__(self._registers, tail + 1 & mask)
        if csr.IE:
            self._interrupts.pend(self._pending)
        return True

    def _failed(self, csr: RecordCsr) -> bool:
        self._csr.__set__(self._registers, csr)
        self.tell()
        return False
