"""Instructions of x86-64 that load from a device's registers and store to them: understood, and carried out.

iced-x86 decodes; here is what the moves, the arithmetic and the tests do that compilers make of a volatile access. What
reads and writes is carried out as a load and a store, one after the other: no device knows a locked access.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from softiommu.run.ptrace import REGISTERS

if TYPE_CHECKING:
    from iced_x86 import Instruction, Register_

    from softiommu.run.ptrace import Registers

LONGEST = 15
_SLOTS = {name: slot for slot, name in enumerate(REGISTERS)}
RIP, EFLAGS = _SLOTS["rip"], _SLOTS["eflags"]
_WHOLE = (1 << 64) - 1
_CF, _PF, _AF, _ZF, _SF, _OF = (1 << bit for bit in (0, 2, 4, 6, 7, 11))
_ARITHMETIC = _CF | _PF | _AF | _ZF | _SF | _OF


class NotCarriedOutError(Exception):
    """An instruction that only a device on a real bus would serve. The text names it."""


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


class Bus(NamedTuple):
    """Memory of `width` bytes at the address: how it is loaded and stored."""

    load: Callable[[], int]
    store: Callable[[int], None]


#: What an instruction does to registers and memory.
Effect = Callable[["Registers", Bus], None]


class Operation(NamedTuple):
    """An instruction that accesses memory once, or loads and then stores it."""

    length: int
    address: Address
    width: int
    effect: Effect


def decode(code: bytes) -> Operation:
    """What the instruction at the start of `code` does. NotCarriedOutError: nothing that is known here."""
    from iced_x86 import Decoder

    instruction = Decoder(64, code, ip=0).decode()
    make = _effects().get(instruction.mnemonic)
    effect = make(instruction) if make is not None and not instruction.has_rep_prefix else None
    if effect is None:
        text = str(instruction) if not instruction.is_invalid else code.hex(" ")
        raise NotCarriedOutError(f"`{text}` is no access of 1, 2, 4 or 8 bytes by a general register")
    return Operation(instruction.len, _address(instruction), _width(instruction), effect)


def _width(instruction: Instruction) -> int:
    from iced_x86 import MemorySizeExt

    return MemorySizeExt.size(instruction.memory_size)


def _address(instruction: Instruction) -> Address:
    from iced_x86 import Register

    displacement, mask = instruction.memory_displacement, _WHOLE
    base, scaled = _general(instruction.memory_base), _general(instruction.memory_index)
    if instruction.is_ip_rel_memory_operand:
        base = Part(RIP, 0, 8)  # the displacement is that from the start of the instruction
    for part in (base, scaled):
        if part is not None and part.size == 4:
            mask = (1 << 32) - 1
    segment = {Register.FS: "fs_base", Register.GS: "gs_base"}.get(instruction.memory_segment)
    return Address(
        base.slot if base else None,
        scaled.slot if scaled else None,
        instruction.memory_index_scale,
        displacement,
        _SLOTS[segment] if segment else None,
        mask,
    )


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


# Operands

#: Reads an operand: the registers, and the memory's value where it is the memory.
Source = Callable[["Registers", int], int]


def _register(instruction: Instruction, operand: int) -> Part | None:
    from iced_x86 import OpKind

    return _general(instruction.op_register(operand)) if instruction.op_kind(operand) == OpKind.REGISTER else None


def _is_memory(instruction: Instruction, operand: int) -> bool:
    from iced_x86 import OpKind

    return instruction.op_kind(operand) == OpKind.MEMORY and _width(instruction) in (1, 2, 4, 8)


def _source(instruction: Instruction, operand: int, width: int) -> Source | None:
    """How an operand is read, in `width` bytes."""
    from iced_x86 import OpKind

    mask = (1 << 8 * width) - 1
    if _is_memory(instruction, operand):
        return lambda registers, memory: memory
    part = _register(instruction, operand)
    if part is not None:
        return lambda registers, memory: part.get(registers)
    if OpKind.IMMEDIATE8 <= instruction.op_kind(operand) <= OpKind.IMMEDIATE32TO64:
        value = instruction.immediate(operand) & mask
        return lambda registers, memory: value
    return None


# Moves


def _move(instruction: Instruction) -> Effect | None:
    """MOV, MOVNTI, MOVZX: a load fills the register with zeros above."""
    part = _register(instruction, 0)
    if part is not None and _is_memory(instruction, 1):
        return lambda registers, bus: part.set(registers, bus.load())
    source = _source(instruction, 1, _width(instruction))
    if source is not None and _is_memory(instruction, 0):
        return lambda registers, bus: bus.store(source(registers, 0))
    return None


def _move_signed(instruction: Instruction) -> Effect | None:
    """MOVSX, MOVSXD."""
    part, width = _register(instruction, 0), _width(instruction)
    if part is None or not _is_memory(instruction, 1):
        return None
    sign = 1 << 8 * width - 1
    return lambda registers, bus: part.set(registers, (bus.load() ^ sign) - sign)


def _exchange(instruction: Instruction) -> Effect | None:
    part = _register(instruction, 1)
    if part is None or not _is_memory(instruction, 0):
        return None

    def effect(registers: Registers, bus: Bus) -> None:
        old = bus.load()
        bus.store(part.get(registers))
        part.set(registers, old)

    return effect


# Arithmetic: what becomes of two values, and the flags

Flags = tuple[int, int]


def _common(value: int, width: int) -> int:
    even = not bin(value & 0xFF).count("1") & 1
    return (_PF if even else 0) | (0 if value else _ZF) | (_SF if value >> 8 * width - 1 else 0)


def _logic(value: int, width: int) -> Flags:
    return value, _common(value, width)


def _add(a: int, b: int, width: int) -> Flags:
    mask = (1 << 8 * width) - 1
    value = a + b & mask
    flags = _CF if a + b > mask else 0
    flags |= _AF if (a ^ b ^ value) & 0x10 else 0
    flags |= _OF if ((a ^ value) & (b ^ value)) >> 8 * width - 1 & 1 else 0
    return value, flags | _common(value, width)


def _subtract(a: int, b: int, width: int) -> Flags:
    mask = (1 << 8 * width) - 1
    value = a - b & mask
    flags = _CF if a < b else 0
    flags |= _AF if (a ^ b ^ value) & 0x10 else 0
    flags |= _OF if ((a ^ b) & (a ^ value)) >> 8 * width - 1 & 1 else 0
    return value, flags | _common(value, width)


def _set_flags(registers: Registers, flags: int, mask: int = _ARITHMETIC) -> None:
    registers[EFLAGS] = registers[EFLAGS] & ~mask | flags & mask


def _compute(compute: Callable[[int, int, int], Flags], keeps: bool) -> Callable[[Instruction], Effect | None]:
    """An instruction of two operands; `keeps`: the result goes to the first, else only the flags are wanted."""

    def make(instruction: Instruction) -> Effect | None:
        width = _width(instruction)
        first, second = _source(instruction, 0, width), _source(instruction, 1, width)
        if first is None or second is None or not (_is_memory(instruction, 0) or _is_memory(instruction, 1)):
            return None
        target = _register(instruction, 0)

        def effect(registers: Registers, bus: Bus) -> None:
            memory = bus.load()
            value, flags = compute(first(registers, memory), second(registers, memory), width)
            if keeps and target is None:
                bus.store(value)
            elif keeps and target is not None:
                target.set(registers, value)
            _set_flags(registers, flags)

        return effect

    return make


def _step(compute: Callable[[int, int, int], Flags]) -> Callable[[Instruction], Effect | None]:
    """INC, DEC: CF stays."""

    def make(instruction: Instruction) -> Effect | None:
        width = _width(instruction)

        def effect(registers: Registers, bus: Bus) -> None:
            value, flags = compute(bus.load(), 1, width)
            bus.store(value)
            _set_flags(registers, flags, _ARITHMETIC & ~_CF)

        return effect if _is_memory(instruction, 0) else None

    return make


def _invert(instruction: Instruction) -> Effect | None:
    """NOT: no flags."""
    mask = (1 << 8 * _width(instruction)) - 1

    def effect(registers: Registers, bus: Bus) -> None:
        bus.store(~bus.load() & mask)

    return effect if _is_memory(instruction, 0) else None


def _test_bit(instruction: Instruction) -> Effect | None:
    """BT with a number: the bit goes to CF. With a register it reaches beyond the operand, which is no one access."""
    from iced_x86 import OpKind

    if not _is_memory(instruction, 0) or instruction.op_kind(1) != OpKind.IMMEDIATE8:
        return None
    bit = instruction.immediate(1) % (8 * _width(instruction))
    return lambda registers, bus: _set_flags(registers, _CF if bus.load() >> bit & 1 else 0, _CF)


@cache
def _effects() -> dict[int, Callable[[Instruction], Effect | None]]:
    from iced_x86 import Mnemonic

    return {
        Mnemonic.MOV: _move,
        Mnemonic.MOVNTI: _move,
        Mnemonic.MOVZX: _move,
        Mnemonic.MOVSX: _move_signed,
        Mnemonic.MOVSXD: _move_signed,
        Mnemonic.XCHG: _exchange,
        Mnemonic.AND: _compute(lambda a, b, width: _logic(a & b, width), keeps=True),
        Mnemonic.OR: _compute(lambda a, b, width: _logic(a | b, width), keeps=True),
        Mnemonic.XOR: _compute(lambda a, b, width: _logic(a ^ b, width), keeps=True),
        Mnemonic.ADD: _compute(_add, keeps=True),
        Mnemonic.SUB: _compute(_subtract, keeps=True),
        Mnemonic.TEST: _compute(lambda a, b, width: _logic(a & b, width), keeps=False),
        Mnemonic.CMP: _compute(_subtract, keeps=False),
        Mnemonic.INC: _step(_add),
        Mnemonic.DEC: _step(_subtract),
        Mnemonic.NOT: _invert,
        Mnemonic.BT: _test_bit,
    }
