"""Vector registers in the image that XSAVE makes of a thread's registers (Intel SDM volume 1, section 13.4).

Where its parts lie differs between processors, and CPUID says it: an instruction that only machine code can ask.
"""

from __future__ import annotations

import ctypes
import mmap
from functools import cache
from typing import NamedTuple

_HEADER, _SSE, _YMM, _MASKS, _ZMM, _HIGH_ZMM = 512, 1, 2, 5, 6, 7
_MASK_SIZE = 8
_XMM_AT = 160
#: Registers 16 to 31 are a part of their own.
_FIRST_HIGH = 16
#: push rbx; mov eax, 0Dh; mov ecx, edi; cpuid; mov [rsi], eax; mov [rsi+4], ebx; pop rbx; ret
_CPUID_0D = bytes.fromhex("53 B80D000000 89F9 0FA2 8906 895E04 5B C3")


class _Part(NamedTuple):
    """Bytes of a register: where in the image, how many, and of which component of it."""

    at: int
    size: int
    component: int


@cache
def _places() -> dict[int, int]:
    """Where the components begin that this processor has. OSError: no machine code of our own can run here."""
    sizes, found = (ctypes.c_uint32 * 2)(), {}
    with mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as page:
        page.write(_CPUID_0D)
        view = ctypes.c_char.from_buffer(page)
        ask = ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_void_p)(ctypes.addressof(view))
        for component in (_YMM, _MASKS, _ZMM, _HIGH_ZMM):
            ask(component, ctypes.addressof(sizes))
            size, at = sizes
            if size:
                found[component] = at
        del view
    return found


@cache
def _parts(number: int) -> tuple[_Part, ...]:
    """The parts of a register, lowest first."""
    places = _places()
    if number >= _FIRST_HIGH:
        return (_Part(places[_HIGH_ZMM] + 64 * (number - _FIRST_HIGH), 64, _HIGH_ZMM),)
    parts = [_Part(_XMM_AT + 16 * number, 16, _SSE)]
    parts += [_Part(places[_YMM] + 16 * number, 16, _YMM)] if _YMM in places else []
    parts += [_Part(places[_ZMM] + 32 * number, 32, _ZMM)] if _ZMM in places else []
    return tuple(parts)


class Vectors:
    """The vector registers in an image. What it holds of a component that is not in use is zeros."""

    def __init__(self, image: bytearray) -> None:
        self.image = image
        self.changed = False

    def get(self, number: int, size: int) -> int:
        """The lowest `size` bytes of a register."""
        data = b"".join(self.image[part.at : part.at + part.size] for part in _parts(number))
        return int.from_bytes(data[:size], "little")

    def mask(self, number: int) -> int:
        """A mask register."""
        at = _places()[_MASKS] + _MASK_SIZE * number
        return int.from_bytes(self.image[at : at + _MASK_SIZE], "little")

    def set(self, number: int, value: int, keep_above: bool) -> None:
        """Set a register: its lowest 16 bytes, or all of it, with zeros above the value."""
        for part in _parts(number):
            self.image[part.at : part.at + part.size] = (value & (1 << 8 * part.size) - 1).to_bytes(part.size, "little")
            self.image[_HEADER + part.component // 8] |= 1 << part.component % 8
            value >>= 8 * part.size
            if keep_above:
                break
        self.changed = True
