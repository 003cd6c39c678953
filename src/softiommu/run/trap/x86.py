"""Instructions of x86-64 that load from a device's registers and store to them: understood, and carried out.

iced-x86 decodes; here is what the moves, the arithmetic and the tests do that compilers make of a volatile access, and
what a copy of memory is made of. What reads and writes is carried out as a load and a store, one after the other: no
device knows a locked access.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from softiommu.run.trap import x86_flags
from softiommu.run.trap.x86_operands import (
    EFLAGS,
    Address,
    Bus,
    Effect,
    address_of,
    is_memory,
    register_of,
    segment_of,
    source_of,
    width_of,
)

if TYPE_CHECKING:
    from iced_x86 import Instruction

    from softiommu.run.trap.ptrace import Registers

LONGEST = 15
_MOVE_OPERANDS = 2
#: Moves between memory and a vector register, old and with a V before.
_VECTOR_MOVES = (
    "MOVUPS", "MOVAPS", "MOVUPD", "MOVAPD", "MOVDQU", "MOVDQA", "LDDQU", "MOVNTDQA", "MOVNTDQ", "MOVNTPS", "MOVNTPD",
    "MOVD", "MOVQ", "MOVSS", "MOVSD",
)  # fmt: skip
#: Those that AVX-512 alone has.
_MASKABLE_MOVES = ("VMOVDQU8", "VMOVDQU16", "VMOVDQU32", "VMOVDQU64", "VMOVDQA32", "VMOVDQA64")
_CONDITIONS = ("O", "NO", "B", "AE", "E", "NE", "BE", "A", "S", "NS", "P", "NP", "L", "GE", "LE", "G")


#: What becomes of two values of some bytes.
Compute = Callable[[int, int, int], x86_flags.Result]
#: Understands an instruction; None: not in this form.
Make = Callable[["Instruction"], "Effect | None"]


class NotCarriedOutError(Exception):
    """An instruction that only a device on a real bus would serve. The text names it."""


class Repeat(NamedTuple):
    """MOVS or STOS: elements of `width` bytes, from [rsi] (`loads`) or rax to [rdi], one, or as many as rcx says."""

    length: int
    width: int
    loads: bool
    counts: bool
    #: Of the source.
    segment: int | None
    #: Of rsi, rdi and rcx.
    mask: int


class Operation(NamedTuple):
    """An instruction that accesses memory once, or loads and then stores it."""

    length: int
    address: Address
    width: int
    effect: Effect


def decode(code: bytes) -> Operation | Repeat:
    """What the instruction at the start of `code` does. NotCarriedOutError: nothing that is known here."""
    from iced_x86 import Decoder

    instruction = Decoder(64, code, ip=0).decode()
    if instruction.is_string_instruction:
        repeat = _repeat(instruction)
        if repeat is not None:
            return repeat
    make = _effects().get(instruction.mnemonic)
    effect = make(instruction) if make is not None and not instruction.has_rep_prefix else None
    if effect is None:
        text = str(instruction) if not instruction.is_invalid else code.hex(" ")
        raise NotCarriedOutError(f"`{text}` is no access that is carried out on a device")
    return Operation(instruction.len, address_of(instruction), width_of(instruction), effect)


# Moves


def _move(instruction: Instruction) -> Effect | None:
    """MOV, MOVNTI, MOVZX: a load fills the register with zeros above."""
    part = register_of(instruction, 0)
    if part is not None and is_memory(instruction, 1):
        return lambda registers, bus: part.set(registers, bus.load())
    source = source_of(instruction, 1, width_of(instruction))
    if source is not None and is_memory(instruction, 0):
        return lambda registers, bus: bus.store(source(registers, 0))
    return None


def _move_signed(instruction: Instruction) -> Effect | None:
    """MOVSX, MOVSXD."""
    part, width = register_of(instruction, 0), width_of(instruction)
    if part is None or not is_memory(instruction, 1):
        return None
    sign = 1 << 8 * width - 1
    return lambda registers, bus: part.set(registers, (bus.load() ^ sign) - sign)


def _exchange(instruction: Instruction) -> Effect | None:
    part = register_of(instruction, 1)
    if part is None or not is_memory(instruction, 0):
        return None

    def effect(registers: Registers, bus: Bus) -> None:
        old = bus.load()
        bus.store(part.get(registers))
        part.set(registers, old)

    return effect


def _move_swapped(instruction: Instruction) -> Effect | None:
    """MOVBE: the bytes in the opposite order."""
    width = width_of(instruction)
    target, source = register_of(instruction, 0), register_of(instruction, 1)

    def swapped(value: int) -> int:
        return int.from_bytes(value.to_bytes(width, "little"), "big")

    if target is not None:
        return lambda registers, bus: target.set(registers, swapped(bus.load()))
    if source is not None:
        return lambda registers, bus: bus.store(swapped(source.get(registers)))
    return None


def _move_if(instruction: Instruction) -> Effect | None:
    """CMOV: the memory is loaded whatever the condition says."""
    part, condition = register_of(instruction, 0), instruction.condition_code - 1
    if part is None or not is_memory(instruction, 1):
        return None

    def effect(registers: Registers, bus: Bus) -> None:
        value = bus.load()
        part.set(registers, value if x86_flags.holds(condition, registers[EFLAGS]) else part.get(registers))

    return effect


def _store_condition(instruction: Instruction) -> Effect | None:
    """SET: 1 or 0."""
    condition = instruction.condition_code - 1
    if not is_memory(instruction, 0):
        return None
    return lambda registers, bus: bus.store(int(x86_flags.holds(condition, registers[EFLAGS])))


def _move_vector(instruction: Instruction) -> Effect | None:
    """MOVUPS and its kin. Old forms leave what lies above 16 bytes, the others clear it."""
    from iced_x86 import EncodingKind, OpKind, RegisterExt

    if instruction.op_count != _MOVE_OPERANDS or instruction.is_broadcast:
        return None
    kinds, width = [instruction.op_kind(operand) for operand in range(_MOVE_OPERANDS)], width_of(instruction)
    if sorted(kinds) != [OpKind.REGISTER, OpKind.MEMORY]:
        return None
    loads = kinds[0] == OpKind.REGISTER
    register = instruction.op_register(0 if loads else 1)
    if not RegisterExt.is_vector_register(register):
        return None
    number, old = RegisterExt.number(register), instruction.op_code().encoding == EncodingKind.LEGACY
    if instruction.has_op_mask:
        return _move_masked(instruction, number, loads)
    if loads:
        return lambda registers, bus: bus.vectors.set(number, bus.load(), old)
    return lambda registers, bus: bus.store(bus.vectors.get(number, width))


def _move_masked(instruction: Instruction, number: int, loads: bool) -> Effect:
    """The elements that a mask register chooses; the others are not accessed, and keep their value or become zeros."""
    from iced_x86 import MemorySizeExt, RegisterExt

    width, element = width_of(instruction), MemorySizeExt.element_size(instruction.memory_size)
    mask, clears = RegisterExt.number(instruction.op_mask), instruction.zeroing_masking

    def chosen(bus: Bus) -> int:
        bits, ones = bus.vectors.mask(mask), (1 << element) - 1
        return sum(ones << at for at in range(0, width, element) if bits >> at // element & 1)

    def load(registers: Registers, bus: Bus) -> None:
        kept = 0 if clears else bus.vectors.get(number, width) & ~_bytes(chosen(bus))
        bus.vectors.set(number, bus.load_some(chosen(bus)) | kept, False)

    def store(registers: Registers, bus: Bus) -> None:
        bus.store_some(bus.vectors.get(number, width), chosen(bus))

    return load if loads else store


def _bytes(chosen: int) -> int:
    """All bits of the bytes that have a bit each."""
    return sum(0xFF << 8 * at for at in range(chosen.bit_length()) if chosen >> at & 1)


def _repeat(instruction: Instruction) -> Repeat | None:
    """MOVS, STOS. Repetition of them has one meaning, whichever prefix asks for it."""
    from iced_x86 import Mnemonic, OpKind

    moves = (Mnemonic.MOVSB, Mnemonic.MOVSW, Mnemonic.MOVSD, Mnemonic.MOVSQ)
    fills = (Mnemonic.STOSB, Mnemonic.STOSW, Mnemonic.STOSD, Mnemonic.STOSQ)
    if instruction.mnemonic not in (*moves, *fills):
        return None
    counts = instruction.has_rep_prefix or instruction.has_repne_prefix
    bits = 64 if instruction.op_kind(0) == OpKind.MEMORY_ESRDI else 32
    width, loads = width_of(instruction), instruction.mnemonic in moves
    return Repeat(instruction.len, width, loads, counts, segment_of(instruction) if loads else None, (1 << bits) - 1)


# Arithmetic


def _set_flags(registers: Registers, flags: int, mask: int = x86_flags.ARITHMETIC) -> None:
    registers[EFLAGS] = registers[EFLAGS] & ~mask | flags & mask


def _compute(
    compute: Callable[[int, int, int], x86_flags.Result], keeps: bool
) -> Callable[[Instruction], Effect | None]:
    """An instruction of two operands; `keeps`: the result goes to the first, else only the flags are wanted."""

    def make(instruction: Instruction) -> Effect | None:
        width = width_of(instruction)
        first, second = source_of(instruction, 0, width), source_of(instruction, 1, width)
        if first is None or second is None or not (is_memory(instruction, 0) or is_memory(instruction, 1)):
            return None
        target = register_of(instruction, 0)

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


def _step(compute: Compute) -> Make:
    """INC, DEC: CF stays."""

    def make(instruction: Instruction) -> Effect | None:
        width = width_of(instruction)

        def effect(registers: Registers, bus: Bus) -> None:
            value, flags = compute(bus.load(), 1, width)
            bus.store(value)
            _set_flags(registers, flags, x86_flags.ARITHMETIC & ~x86_flags.CF)

        return effect if is_memory(instruction, 0) else None

    return make


def _invert(instruction: Instruction) -> Effect | None:
    """NOT: no flags."""
    mask = (1 << 8 * width_of(instruction)) - 1

    def effect(registers: Registers, bus: Bus) -> None:
        bus.store(~bus.load() & mask)

    return effect if is_memory(instruction, 0) else None


def _test_bit(instruction: Instruction) -> Effect | None:
    """BT with a number: the bit goes to CF. With a register it reaches beyond the operand, which is no one access."""
    from iced_x86 import OpKind

    if not is_memory(instruction, 0) or instruction.op_kind(1) != OpKind.IMMEDIATE8:
        return None
    bit = instruction.immediate(1) % (8 * width_of(instruction))
    return lambda registers, bus: _set_flags(registers, x86_flags.CF if bus.load() >> bit & 1 else 0, x86_flags.CF)


@cache
def _effects() -> dict[int, Make]:
    from iced_x86 import Mnemonic

    vectors = [getattr(Mnemonic, prefix + name) for name in _VECTOR_MOVES for prefix in ("", "V")]
    vectors += [getattr(Mnemonic, name) for name in _MASKABLE_MOVES]
    return {
        **dict.fromkeys(vectors, _move_vector),
        **{getattr(Mnemonic, "CMOV" + name): _move_if for name in _CONDITIONS},
        **{getattr(Mnemonic, "SET" + name): _store_condition for name in _CONDITIONS},
        Mnemonic.MOVBE: _move_swapped,
        Mnemonic.MOV: _move,
        Mnemonic.MOVNTI: _move,
        Mnemonic.MOVZX: _move,
        Mnemonic.MOVSX: _move_signed,
        Mnemonic.MOVSXD: _move_signed,
        Mnemonic.XCHG: _exchange,
        Mnemonic.AND: _compute(lambda a, b, width: x86_flags.logic(a & b, width), keeps=True),
        Mnemonic.OR: _compute(lambda a, b, width: x86_flags.logic(a | b, width), keeps=True),
        Mnemonic.XOR: _compute(lambda a, b, width: x86_flags.logic(a ^ b, width), keeps=True),
        Mnemonic.ADD: _compute(x86_flags.add, keeps=True),
        Mnemonic.SUB: _compute(x86_flags.subtract, keeps=True),
        Mnemonic.TEST: _compute(lambda a, b, width: x86_flags.logic(a & b, width), keeps=False),
        Mnemonic.CMP: _compute(x86_flags.subtract, keeps=False),
        Mnemonic.INC: _step(x86_flags.add),
        Mnemonic.DEC: _step(x86_flags.subtract),
        Mnemonic.NOT: _invert,
        Mnemonic.BT: _test_bit,
    }
