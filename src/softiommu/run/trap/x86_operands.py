"""Operands of instructions of x86-64: registers by their place among those of ptrace(2), and where memory is."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, NamedTuple, Protocol

from softiommu.run.trap.ptrace import REGISTERS

if TYPE_CHECKING:
    from iced_x86 import Instruction, Register_

    from softiommu.run.trap.ptrace import Registers

_SLOTS = {name: slot for slot, name in enumerate(REGISTERS)}
RIP, EFLAGS, RAX, RCX, RSI, RDI = (_SLOTS[name] for name in ("rip", "eflags", "rax", "rcx", "rsi", "rdi"))
_WHOLE = (1 << 64) - 1


class Part(NamedTuple):
    """A general register, or part of one: which, how many bits above its lowest, how many bytes."""

    slot: int
    shift: int
    size: int

    def get(self, registers: Registers) -> int:
        """Its value."""
        return registers[self.slot] >> self.shift & (1 << 8 * self.size) - 1

    def set(self, registers: Registers, value: int) -> None:
        """Set it. A half of 4 bytes clears the other; smaller parts leave the rest."""
        mask = (1 << 8 * self.size) - 1
        kept = 0 if self.size >= 4 else registers[self.slot] & ~(mask << self.shift)
        registers[self.slot] = kept | (value & mask) << self.shift


class Address(NamedTuple):
    """Where an instruction's memory is: base + register * scale + displacement + start of the segment."""

    base: int | None
    scaled: int | None
    scale: int
    displacement: int
    segment: int | None
    mask: int

    def of(self, registers: Registers) -> int:
        """The address."""
        at = self.displacement
        if self.base is not None:
            at += registers[self.base]
        if self.scaled is not None:
            at += registers[self.scaled] * self.scale
        at &= self.mask
        return at if self.segment is None else at + registers[self.segment] & _WHOLE


class VectorRegisters(Protocol):
    """The vector registers of a thread, by number."""

    def get(self, number: int, size: int) -> int:
        """The lowest `size` bytes of one."""
        ...

    def set(self, number: int, value: int, keep_above: bool) -> None:
        """Set one: its lowest 16 bytes, or all of it, with zeros above the value."""
        ...

    def mask(self, number: int) -> int:
        """A mask register: a bit for each element."""
        ...


class Bus(Protocol):
    """What an instruction reaches besides the general registers: memory of its width at its address, and vectors."""

    def load(self) -> int:
        """The memory's value."""
        ...

    def store(self, value: int) -> None:
        """Set it."""
        ...

    def load_some(self, chosen: int) -> int:
        """The memory's value where it is chosen, by a bit for each byte; zeros elsewhere."""
        ...

    def store_some(self, value: int, chosen: int) -> None:
        """Set some bytes."""
        ...

    @property
    def vectors(self) -> VectorRegisters:
        """The thread's."""
        ...


#: What an instruction does to registers and memory.
Effect = Callable[["Registers", Bus], None]


def width_of(instruction: Instruction) -> int:
    """How many bytes of memory it accesses."""
    from iced_x86 import MemorySizeExt

    return MemorySizeExt.size(instruction.memory_size)


def address_of(instruction: Instruction) -> Address:
    """Where they are."""
    displacement, mask = instruction.memory_displacement, _WHOLE
    base, scaled = _general(instruction.memory_base), _general(instruction.memory_index)
    if instruction.is_ip_rel_memory_operand:
        base = Part(RIP, 0, 8)  # the displacement is that from the start of the instruction
    for part in (base, scaled):
        if part is not None and part.size == 4:
            mask = (1 << 32) - 1
    return Address(
        base.slot if base else None,
        scaled.slot if scaled else None,
        instruction.memory_index_scale,
        displacement,
        segment_of(instruction),
        mask,
    )


def segment_of(instruction: Instruction) -> int | None:
    """The register with the start of the segment, where that is not 0."""
    from iced_x86 import Register

    segment = {Register.FS: "fs_base", Register.GS: "gs_base"}.get(instruction.memory_segment)
    return _SLOTS[segment] if segment else None


@cache
def _general(register: Register_) -> Part | None:
    """A general register by iced-x86's number; None: it is none."""
    from iced_x86 import Register, RegisterExt

    if not RegisterExt.is_gpr(register):
        return None
    names = [name for name in REGISTERS if hasattr(Register, name.upper())]
    full = RegisterExt.full_register(register)
    name = next(name for name in names if getattr(Register, name.upper()) == full)
    high = register in (Register.AH, Register.BH, Register.CH, Register.DH)
    return Part(_SLOTS[name], 8 if high else 0, RegisterExt.size(register))


#: Reads an operand: the registers, and the memory's value where it is the memory.
Source = Callable[["Registers", int], int]


def register_of(instruction: Instruction, operand: int) -> Part | None:
    """The general register that an operand is; None: it is none."""
    from iced_x86 import OpKind

    return _general(instruction.op_register(operand)) if instruction.op_kind(operand) == OpKind.REGISTER else None


def is_memory(instruction: Instruction, operand: int) -> bool:
    """Whether an operand is memory, as wide as a general register can be."""
    from iced_x86 import OpKind

    return instruction.op_kind(operand) == OpKind.MEMORY and width_of(instruction) in (1, 2, 4, 8)


def source_of(instruction: Instruction, operand: int, width: int) -> Source | None:
    """How an operand is read, in `width` bytes."""
    from iced_x86 import OpKind

    mask = (1 << 8 * width) - 1
    if is_memory(instruction, operand):
        return lambda registers, memory: memory
    part = register_of(instruction, operand)
    if part is not None:
        return lambda registers, memory: part.get(registers)
    if OpKind.IMMEDIATE8 <= instruction.op_kind(operand) <= OpKind.IMMEDIATE32TO64:
        value = instruction.immediate(operand) & mask
        return lambda registers, memory: value
    return None
