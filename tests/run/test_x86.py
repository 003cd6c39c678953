"""Instructions as they are carried out on a device's register do what the processor does on memory."""

import ctypes
import mmap
import platform
import random
import re
from collections.abc import Callable
from typing import NamedTuple

import pytest
from hypothesis import given, settings, strategies as st

from softiommu.run.trap import ptrace as ptrace, x86 as x86
from softiommu.run.trap.x86_operands import EFLAGS, RIP

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="the processor is the oracle")

ARITHMETIC = 0x8D5
AUXILIARY = 0x10
RDI, RAX = ptrace.REGISTERS.index("rdi"), ptrace.REGISTERS.index("rax")
FS = ptrace.REGISTERS.index("fs_base")
RCX, R8 = ptrace.REGISTERS.index("rcx"), ptrace.REGISTERS.index("r8")
VALUES = st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 2**31, 2**63, 2**64 - 1])

#: Instructions on [rdi] and al, ah, ax, eax or rax; those whose auxiliary flag means nothing have a star.
FORMS = re.findall(
    r"\S+",
    """
8A07 668B07 8B07 488B07 8A27 448B07 4C8B07
8807 668907 8907 488907 8827 448907
C60712 66C7073412 C70778563412 48C70778563412 48C707FFFFFFFF
660FB607 0FB607 480FB607 0FB707 480FB707
660FBE07 0FBE07 480FBE07 0FBF07 480FBF07 486307
0FC307 480FC307
8607 668707 8707 488707 8627
0007 660107 0107 480107 0207 660307 0307 480307 800712 83071F 4883071F 830780 8107FFFFFF7F
2807 662907 2907 482907 2A07 662B07 2B07 482B07 802F12 832F1F 48832F80
3807 663907 3907 483907 3A07 663B07 3B07 483B07 803F12 833F1F 48833F80
*2007 *662107 *2107 *482107 *2207 *662307 *2307 *482307 *8027F0 *832780 *48832780
*0807 *660907 *0907 *480907 *0A07 *660B07 *0B07 *480B07 *800F12 *830F80 *48830F80 *F00907
*3007 *663107 *3107 *483107 *3207 *663307 *3307 *483307 *803712 *833780 *48833780
*8407 *668507 *8507 *488507 *F60712 *F70778563412 *48F70778563412
FE07 66FF07 FF07 48FF07 FE0F 66FF0F FF0F 48FF0F
F617 66F717 F717 48F717
660FBA2705 0FBA271F 480FBA273F 0FBA27FF
0F38F007 660F38F007 480F38F007 0F38F107 660F38F107 480F38F107
0F9007 0F9107 0F9207 0F9307 0F9407 0F9507 0F9607 0F9707 0F9807 0F9907 0F9A07 0F9B07 0F9C07 0F9D07 0F9E07 0F9F07
0F4007 0F4107 0F4207 0F4307 0F4407 0F4507 0F4607 0F4707 0F4807 0F4907 0F4A07 0F4B07 0F4C07 0F4D07 0F4E07 0F4F07
660F4407 480F4407 440F4707 660F4F07 480F4C07
""",
)


class Thunk:
    """One instruction as a function of an address, rax (and r8) and flags: rax, flags and r8 after it."""

    SIGNATURE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_void_p)

    def __init__(self, code):
        before = bytes.fromhex("4889F0 4989F0 529D")  # mov rax, rsi; mov r8, rsi; push rdx; popfq
        # pushfq; pop rdx; mov [rcx], rax; mov [rcx + 8], rdx; mov [rcx + 16], r8; ret
        after = bytes.fromhex("9C5A 488901 48895108 4C894110 C3")
        self.page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self.page.write(before + code + after)
        self.function = self.SIGNATURE(ctypes.addressof(ctypes.c_char.from_buffer(self.page)))

    def __call__(self, at, rax, flags):
        out = (ctypes.c_uint64 * 3)()
        self.function(at, rax, flags, ctypes.addressof(out))
        return out[0], out[1], out[2]


class Bus(NamedTuple):
    """What an operation reaches."""

    load: Callable[[], int]
    store: Callable[[int], None]
    vectors: object
    load_some: Callable[[int], int] = lambda chosen: 0
    store_some: Callable[[int, int], None] = lambda value, chosen: None


class Cell:
    """Eight bytes of memory, of which an operation sees those under the mask."""

    def __init__(self, value, mask):
        self.value, self.mask = value, mask

    def load(self):
        return self.value & self.mask

    def store(self, value):
        self.value = self.value & ~self.mask | value


class Vectors:
    """Registers that all hold the same."""

    def __init__(self, value, masks=0):
        self.value, self.masks, self.changes = value, masks, []

    def mask(self, number):
        return self.masks

    def get(self, number, size):
        return self.value & (1 << 8 * size) - 1

    def set(self, number, value, keep_above):
        self.changes.append((number, value, keep_above))


def registers(at, rax, flags):
    values = (ctypes.c_uint64 * len(ptrace.REGISTERS))()
    values[RDI], values[RAX], values[R8], values[EFLAGS] = at, rax, rax, flags
    return values


@pytest.mark.parametrize("form", FORMS)
def test_what_an_instruction_does_is_what_the_processor_does(form):
    code, known = bytes.fromhex(form.lstrip("*")), ARITHMETIC & ~(AUXILIARY if form.startswith("*") else 0)
    thunk, operation = Thunk(code), x86.decode(code.ljust(x86.LONGEST, b"\xcc"))
    assert operation.length == len(code)
    chance = random.Random(form)
    values = [0, 1, 0x7F, 0x80, 0xFF, 2**31, 2**63 - 1, 2**63, 2**64 - 1, *(chance.getrandbits(64) for _ in range(20))]
    for memory in values:
        rax, flags = chance.choice(values), 0x202 | chance.getrandbits(12) & ARITHMETIC
        cell = ctypes.c_uint64(memory)
        expected, after, r8 = thunk(ctypes.addressof(cell), rax, flags)
        state, mask = registers(ctypes.addressof(cell), rax, flags), (1 << 8 * operation.width) - 1
        left = Cell(memory, mask)
        bus = Bus(left.load, left.store, None)
        operation.effect(state, bus)
        assert operation.address.of(state) == ctypes.addressof(cell)
        assert left.value == cell.value
        assert (state[EFLAGS] ^ after) & known == 0
        assert (state[RAX], state[R8]) == (expected, r8)


@given(base=VALUES, scaled=VALUES, displacement=st.integers(-(2**31), 2**31 - 1), scale=st.sampled_from([0, 1, 2, 3]))
def test_an_address_is_base_and_scaled_register_and_displacement(base, scaled, displacement, scale):
    code = bytes([0x8B, 0x84, scale << 6 | 1 << 3 | 7]) + displacement.to_bytes(4, "little", signed=True)
    state = registers(base, 0, 0)
    state[RCX] = scaled
    expected = base + scaled * (1 << scale) + displacement & 2**64 - 1
    assert x86.decode(code.ljust(x86.LONGEST, b"\x90")).address.of(state) == expected


@pytest.mark.parametrize(
    ("code", "address"),
    [
        ("678B07", 0x1000),  # mov eax, [edi]
        ("8B0510000000", 0x400016),  # mov eax, [rip + 16], 6 bytes long
        ("8B042578563412", 0x12345678),  # mov eax, [12345678h]
        ("A18877665544332211", 0x1122334455667788),  # mov eax, [1122334455667788h]
        ("648B07", 0x700100001000),  # mov eax, fs:[rdi]
        ("658B07", 0x700200001000),  # mov eax, gs:[rdi]
    ],
)
def test_every_way_to_name_an_address_is_known(code, address):
    state = registers(0x1000 if code != "678B07" else 0xFFFF00001000, 0, 0)
    state[RIP] = 0x400000
    state[ptrace.REGISTERS.index("fs_base")] = 0x700100000000
    state[ptrace.REGISTERS.index("gs_base")] = 0x700200000000
    assert x86.decode(bytes.fromhex(code).ljust(x86.LONGEST, b"\x90")).address.of(state) == address


@pytest.mark.parametrize(
    "code",
    [
        "F3AC",
        "A6",
        "F2AE",
        "FF17",
        "FF37",
        "8F07",
        "0FA307",
        "F00FC70F",
        "660FEF07",
        "C5FD7407",
        "62F17C585807",
        "0F6F07",
        "0F1207",
        "90",
        "06",
        "",
        "8B",
    ],
)
def test_what_is_not_carried_out_is_refused_by_name(code):
    with pytest.raises(x86.NotCarriedOutError, match="is no access that is carried out on a device"):
        x86.decode(bytes.fromhex(code))


@pytest.mark.parametrize(
    ("code", "number", "width", "keeps"),
    [
        ("0F1007", 0, 16, True),  # movups xmm0, [rdi]
        ("F3440F6F0F", 9, 16, True),  # movdqu xmm9, [rdi]
        ("F20F1007", 0, 8, True),  # movsd xmm0, [rdi]
        ("660F6E07", 0, 4, True),  # movd xmm0, [rdi]
        ("C5FE6F07", 0, 32, False),  # vmovdqu ymm0, [rdi]
        ("C5FB1007", 0, 8, False),  # vmovsd xmm0, [rdi]
        ("62E1FE286F0F", 17, 32, False),  # vmovdqu64 ymm17, [rdi]
        ("62F1FE486F07", 0, 64, False),  # vmovdqu64 zmm0, [rdi]
    ],
)
def test_a_load_of_a_vector_clears_what_lies_above_unless_the_form_is_old(code, number, width, keeps):
    operation, vectors = x86.decode(bytes.fromhex(code).ljust(x86.LONGEST, b"\x90")), Vectors(0)
    assert operation.width == width
    operation.effect(registers(0, 0, 0), Bus(lambda: 1234, None, vectors))
    assert vectors.changes == [(number, 1234, keeps)]


@pytest.mark.parametrize(
    ("code", "masks", "chosen", "kept"),
    [
        ("62F17F496F07", 0b101, 0b101, ~0xFF00FF),  # vmovdqu8 zmm0{k1}, [rdi]
        ("62F17FC96F07", 0b101, 0b101, 0),  # vmovdqu8 zmm0{k1}{z}, [rdi]
        ("62F1FE496F07", 0b10, 0xFF00, ~(2**128 - 2**64)),  # vmovdqu64 zmm0{k1}, [rdi]
        ("62F17E096F07", 0b11111, 0xFFFF, ~(2**128 - 1)),  # vmovdqu32 xmm0{k1}, [rdi]
    ],
)
def test_a_masked_load_has_the_elements_that_are_chosen_and_clears_the_others_or_keeps_them(code, masks, chosen, kept):
    operation = x86.decode(bytes.fromhex(code).ljust(x86.LONGEST, b"\x90"))
    ones, asked, vectors = (1 << 8 * operation.width) - 1, [], Vectors(2**512 - 1, masks)
    operation.effect(registers(0, 0, 0), Bus(None, None, vectors, lambda chosen: asked.append(chosen) or 0))
    assert asked == [chosen]
    assert vectors.changes == [(0, kept & ones, False)]


def test_a_masked_store_stores_the_elements_that_are_chosen():
    stored = []
    for code in ("62E17F497F07", "62E1FE497F07"):  # vmovdqu8, vmovdqu64 [rdi]{k1}, zmm16
        bus = Bus(None, None, Vectors(77, 0b110), store_some=lambda *what: stored.append(what))
        x86.decode(bytes.fromhex(code).ljust(x86.LONGEST, b"\x90")).effect(registers(0, 0, 0), bus)
    assert stored == [(77, 0b110), (77, 0xFFFF00)]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("A4", x86.Repeat(1, 1, True, False, None, 2**64 - 1)),  # movsb
        ("F3A5", x86.Repeat(2, 4, True, True, None, 2**64 - 1)),  # rep movsd
        ("F348A5", x86.Repeat(3, 8, True, True, None, 2**64 - 1)),  # rep movsq
        ("67F366A5", x86.Repeat(4, 2, True, True, None, 2**32 - 1)),  # rep movsw [edi], [esi]
        ("64F3A4", x86.Repeat(3, 1, True, True, FS, 2**64 - 1)),  # rep movsb [rdi], fs:[rsi]
        ("64F3AB", x86.Repeat(3, 4, False, True, None, 2**64 - 1)),  # rep stosd, always to es
    ],
)
def test_copies_and_fills_are_known_by_width_count_and_segment(code, expected):
    assert x86.decode(bytes.fromhex(code).ljust(x86.LONGEST, b"\x90")) == expected


@settings(max_examples=2000)
@given(code=st.binary(max_size=x86.LONGEST), memory=VALUES, rax=VALUES)
def test_any_bytes_are_refused_or_carried_out_within_their_width(code, memory, rax):
    try:
        operation = x86.decode(code)
    except x86.NotCarriedOutError:
        return
    assert 1 <= operation.length <= len(code)
    if isinstance(operation, x86.Repeat):
        assert operation.width in (1, 2, 4, 8)
        return
    assert operation.width in (1, 2, 4, 8, 16, 32, 64)
    mask, stored, vectors = (1 << 8 * operation.width) - 1, [], Vectors(memory)
    operation.effect(registers(rax, rax, 0x202), Bus(lambda: memory & mask, stored.append, vectors))
    assert all(0 <= value <= mask for value in stored)
    assert len(stored) <= 1
