"""What happens when software reads and writes registers: each hook has its register's name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from softiommu.hardware.riscv.counters import Counters
from softiommu.hardware.riscv.interrupts import Interrupts
from softiommu.hardware.riscv.queue import CommandQueue, RecordQueue
from softiommu.hardware.riscv.registers import (
    Capabilities,
    Cqcsr,
    Cycles,
    Ddtp,
    DdtpMode,
    Fctl,
    HpmEvent,
    Icvec,
    Igs,
    Iocount,
    Ipsr,
    QueueBase,
    QueueIndex,
    RecordCsr,
    Registers,
    TrReqCtl,
)
from softiommu.hardware.riscv.tables import DDT_LEVELS

if TYPE_CHECKING:
    from softiommu.clock import Clock
    from softiommu.hardware.riscv.model import RiscvIommu
    from softiommu.memory.physical import PhysicalMemory
    from softiommu.words import Word

Callbacks = tuple[Callable[[int, int], None] | None, Callable[[int, bool], None] | None]


class Control:
    """The registers of an IOMMU with what stands behind them. Registers that its capabilities lack read as 0."""

    def __init__(
        self,
        iommu: RiscvIommu,
        memory: PhysicalMemory,
        capabilities: Capabilities,
        levels: int,
        callbacks: Callbacks,
        clock: Clock | None,
    ) -> None:
        self._iommu, self._levels = iommu, levels
        self.registers = registers = Registers(self)
        registers.CAPABILITIES = capabilities
        registers.FCTL = Fctl.of(WSI=int(capabilities.IGS == Igs.WSI))
        self.interrupts = Interrupts(registers, *callbacks, iommu.message_failed)
        self.counters = Counters(registers, self.interrupts, clock)
        self._commands = CommandQueue(iommu, registers, memory, self.interrupts)
        fault_registers = (Registers.FQB, Registers.FQH, Registers.FQT, Registers.FQCSR)
        self.faults = RecordQueue(registers, memory, fault_registers, Ipsr.FIP.mask, self.interrupts)
        request_registers = (Registers.PQB, Registers.PQH, Registers.PQT, Registers.PQCSR)
        self.requests = RecordQueue(registers, memory, request_registers, Ipsr.PIP.mask, self.interrupts)

    @property
    def _have(self) -> Capabilities:
        return self.registers.CAPABILITIES

    def on_write_FCTL(self, old: Fctl, new: Fctl) -> None:
        """One endianness and no Sv32: only WSI can change, where there are both kinds of interrupts."""
        self.registers.FCTL = Fctl.of(WSI=new.WSI if self._have.IGS == Igs.BOTH else old.WSI)
        self.interrupts.wires()

    def on_write_DDTP(self, old: Ddtp, new: Ddtp) -> None:
        """A mode that does not exist is not taken."""
        deep = DDT_LEVELS.get(new.MODE, 0)
        if deep > self._levels or new.MODE not in DdtpMode.__members__.values():
            self.registers.DDTP = new.replace(MODE=old.MODE)
        self._iommu.translator.directory_changed()

    # Queues

    def on_write_CQB(self, old: QueueBase, new: QueueBase) -> None:
        """Where the commands lie."""
        self._commands.resized()

    def on_write_CQT(self, old: QueueIndex, new: QueueIndex) -> None:
        """The doorbell."""
        self._commands.resized()
        self._commands.run()

    def on_write_CQCSR(self, old: Cqcsr, new: Cqcsr) -> None:
        """The command queue starts and stops; a cleared error lets it go on."""
        self._commands.controlled(old, new)

    def on_write_FQB(self, old: QueueBase, new: QueueBase) -> None:
        """Where fault records go."""
        self.faults.resized()

    def on_write_FQH(self, old: QueueIndex, new: QueueIndex) -> None:
        """Software has read fault records."""
        self.faults.resized()

    def on_write_FQCSR(self, old: RecordCsr, new: RecordCsr) -> None:
        """The fault queue starts and stops."""
        self.faults.controlled(old, new)

    def on_write_PQB(self, old: QueueBase, new: QueueBase) -> None:
        """Where page requests go."""
        if not self._have.ATS:
            self.registers.PQB = 0
        self.requests.resized()

    def on_write_PQH(self, old: QueueIndex, new: QueueIndex) -> None:
        """Software has read page requests."""
        if not self._have.ATS:
            self.registers.PQH = 0
        self.requests.resized()

    def on_write_PQCSR(self, old: RecordCsr, new: RecordCsr) -> None:
        """The page request queue starts and stops."""
        if self._have.ATS:
            self.requests.controlled(old, new)
        else:
            self.registers.PQCSR = 0

    # Interrupts

    def on_write_IPSR(self, old: Ipsr, new: Ipsr) -> None:
        """A cleared bit is set again when its reason is still there."""
        self.interrupts.wires()
        self._commands.tell()
        self.faults.tell()
        self.requests.tell()

    def on_write_ICVEC(self, old: Icvec, new: Icvec) -> None:
        """The vectors of the causes."""
        self.interrupts.icvec_written()

    def on_write_MSI_ADDR(self, index: int, old: Word, new: Word) -> None:
        """Where a vector's message goes."""
        self.interrupts.vector_written(index)

    on_write_MSI_DATA = on_write_MSI_VEC_CTL = on_write_MSI_ADDR

    # Performance monitor

    def on_write_IOCOUNTINH(self, old: Iocount, new: Iocount) -> None:
        """What has been counted until now stays."""
        self.registers.IOCOUNTINH = old
        self.counters.cycles()
        self.registers.IOCOUNTINH = new if self._have.HPM else 0

    def on_read_IOHPMCYCLES(self) -> Cycles:
        """Counted up to now."""
        return self.counters.cycles()

    def on_write_IOHPMCYCLES(self, old: Cycles, new: Cycles) -> None:
        """The cycle counter counts on from there."""
        self.counters.cycles_written()

    def on_write_IOHPMCTR(self, index: int, old: Word, new: Word) -> None:
        """A counter counts on from there."""
        if not self._have.HPM:
            self.registers.IOHPMCTR[index] = 0

    def on_write_IOHPMEVT(self, index: int, old: HpmEvent, new: HpmEvent) -> None:
        """A counter counts something else."""
        self.counters.event_written(index)

    # Debug and quality of service

    def on_write_TR_REQ_IOVA(self, old: Word, new: Word) -> None:
        """The address that is to be translated."""
        if not self._have.DBG:
            self.registers.TR_REQ_IOVA = 0

    def on_write_TR_REQ_CTL(self, old: TrReqCtl, new: TrReqCtl) -> None:
        """GO: translate."""
        if not self._have.DBG:
            self.registers.TR_REQ_CTL = 0
        elif new.GO:
            self.registers.TR_RESPONSE = self._iommu.debug_translate(new, self.registers.TR_REQ_IOVA)
            self.registers.TR_REQ_CTL = new.replace(GO=0)

    def on_write_IOMMU_QOSID(self, old: Word, new: Word) -> None:
        """The identifiers are kept; this IOMMU's traffic has no quality of service."""
        if not self._have.QOSID:
            self.registers.IOMMU_QOSID = 0
