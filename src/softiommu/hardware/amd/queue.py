"""The command buffer: commands are fetched, checked and carried out in order. AMD IOMMU 48882, 2.4."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from softiommu.hardware.amd.commands import (
    COMMAND_SIZE,
    LAYOUTS,
    Iotlb0,
    Iotlb1,
    OfDevice,
    Opcode,
    Pages0,
    Pages1,
    Plain,
    PprResponse0,
    PprResponse1,
    Prefetch0,
    Prefetch1,
    StoreData,
    Wait,
    window,
)
from softiommu.hardware.amd.events import Code, HardwareError
from softiommu.hardware.amd.faults import command_event
from softiommu.hardware.amd.logs import COMMANDS, ring_places
from softiommu.hardware.amd.registers import RingPointer
from softiommu.hardware.iommu import ResponseCode
from softiommu.memory.physical import BadAddressError
from softiommu.words import Word

if TYPE_CHECKING:
    from softiommu.hardware.amd.model import AmdIommu
    from softiommu.memory.physical import PhysicalMemory


class IllegalCommandError(Exception):
    """A reserved bit, an opcode that there is not, or a feature that the hardware has not."""


class _Form(NamedTuple):
    """The words of a command, their reserved bits, and what carries it out."""

    low: type[Word]
    high: type[Word]
    low_reserved: int
    high_reserved: int
    carry_out: Callable[[int, Any, Any], bool]


class CommandQueue:
    """The command buffer of one IOMMU."""

    def __init__(self, iommu: AmdIommu, memory: PhysicalMemory) -> None:
        self._iommu, self._memory = iommu, memory
        handlers: dict[Opcode, Callable[[int, Any, Any], bool]] = {
            Opcode.COMPLETION_WAIT: self._wait,
            Opcode.INVALIDATE_DEVTAB_ENTRY: self._device,
            Opcode.INVALIDATE_IOMMU_PAGES: self._pages,
            Opcode.INVALIDATE_IOTLB_PAGES: self._iotlb,
            Opcode.INVALIDATE_INTERRUPT_TABLE: self._interrupts,
            Opcode.PREFETCH_IOMMU_PAGES: self._prefetch,
            Opcode.COMPLETE_PPR_REQUEST: self._response,
            Opcode.INVALIDATE_IOMMU_ALL: self._all,
        }
        self._forms = {
            int(opcode): _Form(low, high or Word, low.RESERVED, (high or Word).RESERVED, handlers[opcode])
            for opcode, (low, high) in LAYOUTS.items()
        }

    def run(self) -> None:
        """Carry commands out until the buffer is empty, one is wrong, or one waits for a device.

        What a command does may ring the doorbell again (a device asks, an interrupt is served): what was queued then is
        carried out at once, since its software waits for it.
        """
        while self._iommu.registers.STATUS.CmdBufRun and self._step():
            pass

    def _step(self) -> bool:
        """Carry one command out; whether to go on. One that is wrong stops the buffer, and stays at the head."""
        registers = self._iommu.registers
        size, head, tail = ring_places(registers, COMMANDS)
        if head == tail:
            return False
        at = (registers.CMD_BASE.BASE << 12) + head
        after = registers.CMD_HEAD = RingPointer((head + COMMAND_SIZE) % size)
        record = None
        try:
            if self._command(at, self._memory.read_u64(at), self._memory.read_u64(at + 8)):
                return True
        except BadAddressError:
            record = command_event(Code.COMMAND_HARDWARE_ERROR, at, TYPE=HardwareError.MASTER_ABORT)
        except IllegalCommandError:
            record = command_event(Code.ILLEGAL_COMMAND_ERROR, at)
        if after == registers.CMD_HEAD:
            registers.CMD_HEAD = RingPointer(head)
        if record is not None:
            self._iommu.signals.set(CmdBufRun=0)
            self._iommu.log(record)
        return False

    def _command(self, at: int, low: int, high: int) -> bool:
        """Carry a command out; False: it waits. IllegalCommandError; BadAddressError: its store failed."""
        form = self._forms.get(low >> Plain.OPCODE.low)
        if form is None:
            raise IllegalCommandError(f"opcode {low >> Plain.OPCODE.low:#x}")
        first, second, low_reserved, high_reserved, carry_out = form
        if low & low_reserved | high & high_reserved:
            raise IllegalCommandError(f"reserved bits in {first(low)!r} {second(high)!r}")
        # What is read as 64 bits has no more: nothing is left to be checked.
        return carry_out(at, int.__new__(first, low), int.__new__(second, high))

    def _require(self, feature: int) -> None:
        if not feature:
            raise IllegalCommandError("the hardware has no such command")

    # Commands

    def _wait(self, at: int, command: Wait, operand: StoreData) -> bool:
        """COMPLETION_WAIT: what came before it is done."""
        if command.S:
            self._memory.write(command.StoreAddress << 3, operand.DATA.to_bytes(8, "little"))
        if command.I:
            self._iommu.signals.set(ComWaitInt=1)
        return True

    def _device(self, at: int, command: OfDevice, operand: Word) -> bool:
        """INVALIDATE_DEVTAB_ENTRY."""
        self._iommu.forget_device(command.DeviceID)
        return True

    def _pages(self, at: int, command: Pages0, operand: Pages1) -> bool:
        """INVALIDATE_IOMMU_PAGES."""
        if operand.GN:
            self._require(self._iommu.efr.GTSup)
        pasid = command.PASID if operand.GN else None
        self._iommu.forget_pages(command.DomainID, pasid, window(operand.S, operand.Address), upper=bool(operand.PDE))
        return True

    def _iotlb(self, at: int, command: Iotlb0, operand: Iotlb1) -> bool:
        """INVALIDATE_IOTLB_PAGES: the device says when it has forgotten; or after a time its event does (2.4.4)."""
        self._require(self._iommu.capability.HEADER.IotlbSup)
        if operand.Type:
            self._require(self._iommu.efr.InvIotlbTypeSup)
        pasid = None
        if operand.GN:
            pasid = command.PASID19_16 << 16 | command.PASID15_8 << 8 | command.PASID7_0
        if self._iommu.invalidate_device(command.DeviceID, pasid, window(operand.S, operand.Address)):
            return True
        if not self._iommu.registers.CONTROL.InvTimeOut:
            return False  # it waits for as long as it takes: until the next doorbell
        self._iommu.log(command_event(Code.IOTLB_INV_TIMEOUT, at, DeviceID=command.DeviceID))
        return True

    def _interrupts(self, at: int, command: OfDevice, operand: Word) -> bool:
        """INVALIDATE_INTERRUPT_TABLE."""
        self._iommu.forget_interrupts(command.DeviceID)
        return True

    def _prefetch(self, at: int, command: Prefetch0, operand: Prefetch1) -> bool:
        """PREFETCH_IOMMU_PAGES: a hint."""
        self._require(self._iommu.efr.PreFSup)
        pasid = None
        if operand.GN:
            pasid = command.PASID19_16 << 16 | command.PASID15_8 << 8 | command.PASID7_0
        self._iommu.prefetch(command.DeviceID, pasid, operand.Address << 12)
        return True

    def _response(self, at: int, command: PprResponse0, operand: PprResponse1) -> bool:
        """COMPLETE_PPR_REQUEST."""
        self._require(self._iommu.efr.PPRSup)
        code = ResponseCode.FAILURE
        if operand.Status in (ResponseCode.SUCCESS, ResponseCode.INVALID):
            code = ResponseCode(operand.Status)
        self._iommu.respond(command.DeviceID, command.PASID if operand.GN else None, operand.Tag, code)
        return True

    def _all(self, at: int, command: Plain, operand: Word) -> bool:
        """INVALIDATE_IOMMU_ALL."""
        self._require(self._iommu.efr.IASup)
        self._iommu.forget_all()
        return True
