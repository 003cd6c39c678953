"""Tegra241's CMDQV beside an SMMUv3: guests' own queues of commands, which are carried out without any software.

A guest's queue takes the invalidations that a guest needs at every unmap, with the interface's VMID and its pairs of
stream ids in place of what the guest says. Anything else is illegal (CERROR_ILL), as is a SYNC that signals.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from softiommu.errors import ModelError
from softiommu.hardware.smmuv3 import cmdqv_registers as regs
from softiommu.hardware.smmuv3.cmdqv_registers import (
    LOGICAL_BASE,
    LOGICAL_STRIDE,
    MOST_QUEUES,
    MOST_SIDS,
    PAGE0_BASE,
    PAGE1_BASE,
    PAGE_SIZE,
    QUEUE_STRIDE,
    VINTF_BASE,
    VINTF_STRIDE,
    Allocation,
    Enable,
    Enabled,
    Param,
    VintfConfig,
)
from softiommu.hardware.smmuv3.commands import COMMAND_BYTES, Op, Stream0, Sync0, Vmid0
from softiommu.hardware.smmuv3.queue import CommandQueue
from softiommu.hardware.smmuv3.registers import CmdqCons, CommandError, Gerror, Ring
from softiommu.memory.physical import BadAddressError

if TYPE_CHECKING:
    from softiommu.hardware.smmuv3.model import Smmu
    from softiommu.memory.physical import PhysicalMemory
    from softiommu.registers import RegisterFile

#: What a guest may give.
_BY_VMID, _BY_STREAM = frozenset({Op.TLBI_NH_ASID, Op.TLBI_NH_VA}), frozenset({Op.ATC_INV})

#: As many as Tegra241 has: 64 interfaces of two queues and 16 streams each.
TEGRA241 = Param.of(VER=1, NUM_VCMDQ_LOG2=7, NUM_VINTF_LOG2=6, NUM_SID_PER_VM_LOG2=4)


def check(param: Param) -> None:
    """ModelError: no hardware is so; the message names the rule."""
    if param.NUM_VCMDQ_LOG2 < param.NUM_VINTF_LOG2:
        raise ModelError("PARAM.NUM_VCMDQ_LOG2: every interface has a queue")
    if (
        param.NUM_VINTF_LOG2 > 6
        or 1 << param.NUM_VCMDQ_LOG2 > MOST_QUEUES
        or 1 << param.NUM_SID_PER_VM_LOG2 > MOST_SIDS
    ):
        raise ModelError(f"PARAM: at most 64 interfaces, {MOST_QUEUES} queues and {MOST_SIDS} streams are modelled")


class Vintf:
    """An interface: a guest's, or the host's own."""

    def __init__(self) -> None:
        self.registers = regs.VintfRegisters(self)

    def on_write_CONFIG(self, old: VintfConfig, new: VintfConfig) -> None:
        """It takes effect at once."""
        self.registers.STATUS = Enabled.of(ENABLED=new.EN)

    def stream(self, sid: int) -> int | None:
        """The stream that the guest calls so."""
        for number in range(MOST_SIDS):
            match = self.registers.SID_MATCH[number]
            if match.EN and sid == match.SID:
                return int(self.registers.SID_REPLACE[number])
        return None

    def convert(self, low: int) -> int | None:
        """A guest's command for the hardware. None: it is illegal."""
        op = low & 0xFF
        if op in _BY_VMID:
            return low & ~Vmid0.VMID.mask | self.registers.CONFIG.VMID << Vmid0.VMID.low
        if op in _BY_STREAM:
            sid = self.stream(low >> Stream0.SID.low)
            return None if sid is None else low & ~Stream0.SID.mask | sid << Stream0.SID.low
        return low if op == Op.SYNC and not Sync0(low).CS else None


class Vcmdq:
    """A queue. `cmdqv` tells whose it is, and hears of its errors."""

    def __init__(self, number: int, cmdqv: Cmdqv, smmu: Smmu, memory: PhysicalMemory) -> None:
        self.number, self._cmdqv, self._memory = number, cmdqv, memory
        self._most_lg2 = smmu.identity.idr1.CMDQS
        self._commands = CommandQueue(smmu, memory)
        self.page0, self.page1 = regs.Page0(self), regs.Page1(self)
        self._running = False

    def on_write_CONFIG(self, old: Enable, new: Enable) -> None:
        """Enabled, it carries out what is in it."""
        self.page0.STATUS = Enabled.of(ENABLED=new.EN)
        self.run()

    def on_write_PROD(self, old: int, new: int) -> None:
        """The doorbell."""
        self.run()

    def on_write_GERRORN(self, old: Gerror, new: Gerror) -> None:
        """An error that is acknowledged lets it go on."""
        self._cmdqv.errors_changed(self)
        self.run()

    @property
    def failed(self) -> bool:
        """Whether an error is not acknowledged yet."""
        return bool((self.page0.GERROR ^ self.page0.GERRORN) & Gerror.CMDQ_ERR.mask)

    def run(self) -> None:
        """Carry commands out until the queue is empty, or one is wrong."""
        vintf = self._cmdqv.owner(self.number)
        if vintf is None or not self.page0.CONFIG.EN or self.failed or self._running:
            return
        self._running = True
        try:
            self._batch(vintf)
        finally:
            self._running = False

    def _batch(self, vintf: Vintf) -> None:
        """Carry out what the doorbell told of."""
        base, prod, cons = self.page1.BASE, self.page0.PROD.WR, self.page0.CONS.RD
        ring = Ring(min(base.LOG2SIZE, self._most_lg2))
        start = (base.ADDR << 5) & ~(max(32, COMMAND_BYTES << ring.lg2) - 1)
        error = CommandError.NONE
        config = vintf.registers.CONFIG
        vmid = None if config.HYP_OWN else config.VMID
        while not ring.empty(prod, cons):
            done = self._commands.at_once(start, ring, prod, cons, vmid)
            if done:
                cons = ring.skip(cons, done)
                continue
            error = self._carry_out(vintf, start + COMMAND_BYTES * ring.slot(cons))
            if error is not CommandError.NONE:
                break
            cons = ring.next(cons)
        self.page0.CONS = CmdqCons.of(RD=cons, ERR=error)
        if error is not CommandError.NONE:
            self.page0.GERROR = Gerror(self.page0.GERROR ^ Gerror.CMDQ_ERR.mask)
            self._cmdqv.errors_changed(self)

    def _carry_out(self, vintf: Vintf, at: int) -> CommandError:
        try:
            low, high = self._memory.read_u64(at), self._memory.read_u64(at + 8)
        except BadAddressError:
            return CommandError.ABT
        converted = low if vintf.registers.CONFIG.HYP_OWN else vintf.convert(low)
        return CommandError.ILL if converted is None else self._commands.execute(converted, high)


class Cmdqv:
    """The whole. `interrupt` is asserted when a queue fails."""

    def __init__(
        self,
        smmu: Smmu,
        memory: PhysicalMemory,
        param: Param = TEGRA241,
        interrupt: Callable[[], None] | None = None,
    ) -> None:
        check(param)
        self.registers = regs.Registers(self)
        self.registers.PARAM = param
        self._interrupt = interrupt
        self.vintfs = [Vintf() for _ in range(1 << param.NUM_VINTF_LOG2)]
        self.queues = [Vcmdq(number, self, smmu, memory) for number in range(1 << param.NUM_VCMDQ_LOG2)]

    def on_write_CONFIG(self, old: Enable, new: Enable) -> None:
        """It takes effect at once."""
        self.registers.STATUS = Enabled.of(ENABLED=new.EN)

    def on_write_CMDQ_ALLOC(self, number: int, old: Allocation, new: Allocation) -> None:
        """A queue that changes hands is as after a reset."""
        if number < len(self.queues):
            self.queues[number].page0.reset()
            self._show_errors(old)
            self._show_errors(new)

    # Whose a queue is

    def owner(self, number: int) -> Vintf | None:
        """The interface that has a queue, and may use it."""
        whose = self.registers.CMDQ_ALLOC[number]
        if not self.registers.CONFIG.EN or not whose.ALLOC or len(self.vintfs) <= whose.VINTF:
            return None
        vintf = self.vintfs[whose.VINTF]
        return vintf if vintf.registers.CONFIG.EN else None

    def _logical(self, vintf: int, logical: int) -> Vcmdq | None:
        """The queue that an interface calls so."""
        for queue in self.queues:
            whose = self.registers.CMDQ_ALLOC[queue.number]
            if whose.ALLOC and (vintf, logical) == (whose.VINTF, whose.LVCMDQ):
                return queue
        return None

    # Errors

    def errors_changed(self, queue: Vcmdq) -> None:
        """A queue failed, or its error was acknowledged."""
        self._show_errors(self.registers.CMDQ_ALLOC[queue.number])
        if queue.failed and self._interrupt is not None:
            self._interrupt()

    def _show_errors(self, whose: Allocation) -> None:
        """The maps of queues that failed, of an interface and of all."""
        if not whose.ALLOC or len(self.vintfs) <= whose.VINTF:
            return
        failed = 0
        for queue in self.queues:
            its = self.registers.CMDQ_ALLOC[queue.number]
            if queue.failed and its.ALLOC and its.VINTF == whose.VINTF:
                failed |= 1 << its.LVCMDQ
        shown = self.vintfs[whose.VINTF].registers.LVCMDQ_ERR_MAP
        shown[0], shown[1] = failed & (1 << 64) - 1, failed >> 64
        others = self.registers.VINTF_ERR_MAP & ~(1 << whose.VINTF)
        self.registers.VINTF_ERR_MAP = regs.WideBits(others | bool(failed) << whose.VINTF)

    # Registers

    def read(self, offset: int, width: int) -> int:
        """Software reads a register (4 or 8 bytes). What is not there reads as 0."""
        found = self._place(offset)
        return found[0].read(found[1], width) if found else 0

    def write(self, offset: int, width: int, value: int) -> None:
        """Software writes a register (4 or 8 bytes)."""
        found = self._place(offset)
        if found:
            found[0].write(found[1], width, value)

    def _place(self, offset: int) -> tuple[RegisterFile, int] | None:
        """The file that a register is in, and its offset there."""
        if offset < VINTF_BASE:
            return self.registers, offset
        if offset < VINTF_BASE + VINTF_STRIDE * len(self.vintfs):
            number, at = divmod(offset - VINTF_BASE, VINTF_STRIDE)
            return self.vintfs[number].registers, at
        if offset >= LOGICAL_BASE:
            vintf, at = divmod(offset - LOGICAL_BASE, LOGICAL_STRIDE)
            half, at = divmod(at, PAGE_SIZE)
            logical, at = divmod(at, QUEUE_STRIDE)
            queue = self._logical(vintf, logical)
        elif offset >= PAGE0_BASE:
            half = int(offset >= PAGE1_BASE)
            number, at = divmod(offset % PAGE_SIZE, QUEUE_STRIDE)
            queue = self.queues[number] if number < len(self.queues) else None
        else:
            return None
        if queue is None:
            return None
        return (queue.page1 if half else queue.page0), at
