"""The arithmetic flags of x86-64: what becomes of two values, and what a condition says of the flags."""

from __future__ import annotations

CF, PF, AF, ZF, SF, OF = (1 << bit for bit in (0, 2, 4, 6, 7, 11))
ARITHMETIC = CF | PF | AF | ZF | SF | OF
#: The flags of which any makes a condition hold: overflow, below, equal, below or equal, sign, parity. Then come less,
#: and less or equal.
_TESTED = (OF, CF, ZF, CF | ZF, SF, PF)
_LESS_OR_EQUAL = 7

#: A value, and the flags that it leaves.
Result = tuple[int, int]


def _common(value: int, width: int) -> int:
    even = not bin(value & 0xFF).count("1") & 1
    return (PF if even else 0) | (0 if value else ZF) | (SF if value >> 8 * width - 1 else 0)


def logic(value: int, width: int) -> Result:
    """AND, OR, XOR, TEST: what they leave."""
    return value, _common(value, width)


def add(a: int, b: int, width: int) -> Result:
    """The sum of two values of `width` bytes."""
    mask = (1 << 8 * width) - 1
    value = a + b & mask
    flags = CF if a + b > mask else 0
    flags |= AF if (a ^ b ^ value) & 0x10 else 0
    flags |= OF if ((a ^ value) & (b ^ value)) >> 8 * width - 1 & 1 else 0
    return value, flags | _common(value, width)


def subtract(a: int, b: int, width: int) -> Result:
    """The difference of two values of `width` bytes."""
    mask = (1 << 8 * width) - 1
    value = a - b & mask
    flags = CF if a < b else 0
    flags |= AF if (a ^ b ^ value) & 0x10 else 0
    flags |= OF if ((a ^ b) & (a ^ value)) >> 8 * width - 1 & 1 else 0
    return value, flags | _common(value, width)


def holds(condition: int, flags: int) -> bool:
    """Whether a condition holds, by its number in opcodes (Intel SDM volume 1, appendix B): an odd one is the opposite
    of the one before it."""
    kind, opposite = divmod(condition, 2)
    if kind < len(_TESTED):
        said = bool(flags & _TESTED[kind])
    else:
        said = bool(flags & SF) != bool(flags & OF) or (kind == _LESS_OR_EQUAL and bool(flags & ZF))
    return said != bool(opposite)
