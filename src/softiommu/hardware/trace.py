"""The way of one request through an IOMMU: every register, structure and entry that it meets, decoded.

The model itself translates, over a memory that notes each access. What an access was of is told by a script of that
model (`hardware.MODEL.way`): a generator that says where the architecture looks next, is given what was found there,
and goes on. A script decides nothing: what the model reads elsewhere is noted as what it is, a word.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from softiommu.hardware.iommu import Request, Translation, TranslationFaultError
from softiommu.memory.physical import PhysicalMemory, Space
from softiommu.pagetable.formats import amdv1, arm64, load, riscv, vtdss, x86_64
from softiommu.pagetable.kinds import AMDV1, ARM64, DESCEND, OK, RISCV, TABLE, VTDSS, X86_64, Table
from softiommu.pagetable.walk import MASK, entry, index, outside, signed
from softiommu.words import Word, bits

if TYPE_CHECKING:
    from softiommu.hardware.iommu import Iommu
    from softiommu.pagetable.nested import Stage


class Access(NamedTuple):
    """A word of memory that was read, or stored."""

    is_store: bool
    pa: int
    value: int


class TracingMemory(PhysicalMemory):
    """Physical memory that can note what is done to it. Notes make it slower than the plain one."""

    _notes: list[Access] | None = None

    @contextmanager
    def noted(self) -> Iterator[list[Access]]:
        """A list of the accesses until the end of the block."""
        before, self._notes = self._notes, []
        try:
            yield self._notes
        finally:
            self._notes = before

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Accesses in the block are not noted."""
        before, self._notes = self._notes, None
        try:
            yield
        finally:
            self._notes = before

    def _note(self, is_store: bool, pa: int, data: bytes | memoryview) -> None:
        if self._notes is not None:
            for at in range(0, len(data), 8):
                self._notes.append(Access(is_store, pa + at, int.from_bytes(data[at : at + 8], "little")))

    def read(self, pa: int, length: int) -> bytes:
        """`length` bytes at `pa`. BadAddressError."""
        data = super().read(pa, length)
        self._note(False, pa, data)
        return data

    def write(self, pa: int, data: bytes | memoryview) -> None:
        """Store `data` at `pa`. BadAddressError."""
        super().write(pa, data)
        self._note(True, pa, data)

    def views(self, runs: Sequence[tuple[int, int, int, int]]) -> None:
        """Nothing is seen in place: it could not be noted."""

    def read_u32(self, pa: int) -> int:
        """The 32-bit word at `pa`. BadAddressError."""
        return int.from_bytes(self.read(pa, 4), "little")

    def write_u32(self, pa: int, value: int) -> None:
        """Store a 32-bit word at `pa`. BadAddressError."""
        self.write(pa, value.to_bytes(4, "little"))

    def read_u64(self, pa: int) -> int:
        """The 64-bit word at `pa`. BadAddressError."""
        return int.from_bytes(self.read(pa, 8), "little")

    def write_u64(self, pa: int, value: int) -> None:
        """Store a 64-bit word at `pa`. BadAddressError."""
        self.write(pa, value.to_bytes(8, "little"))

    @cached_property
    def anywhere(self) -> Space:
        """All memory. Asking whether a word is there is no access."""
        space = super().anywhere
        return space._replace(present=_Quiet(self, space.present))

    @property
    def space(self) -> Space:
        """While accesses are noted all memory: a walk that has to ask begins again, and reads everything twice."""
        return super().space if self._notes is None else self.anywhere


class _Quiet:
    """Whether words are there, asked without a note."""

    def __init__(self, memory: TracingMemory, present: Any) -> None:
        self._memory, self._present = memory, present

    def __getitem__(self, number: int) -> int:
        with self._memory.quiet():
            return int(self._present[number])


# Scripts


class Known(NamedTuple):
    """Something that the IOMMU has in itself: a register, say."""

    name: str
    word: Word


class Expect(NamedTuple):
    """Where the architecture looks next: `decode` makes a Word of what is there."""

    pa: int
    name: str
    decode: Callable[[int], Word]


#: What a script says; it is sent what was found at an address that it expects. Its value: an output address, or None.
Script = Generator[Known | Expect, int, int | None]


def structure(pa: int, *parts: tuple[str, Callable[[int], Word]]) -> Generator[Expect, int, list[int]]:
    """Words that follow one another; what they are."""
    found = []
    for number, (name, decode) in enumerate(parts):
        found.append((yield Expect(pa + 8 * number, name, decode)))
    return found


class Raw(Word):
    """A word whose bits have no names."""

    BITS = bits(63, 0)


_UNNAMED = "word"


_ENTRIES: dict[int, type[Word]] = {X86_64: x86_64.Pte, VTDSS: vtdss.Pte, AMDV1: amdv1.Pte, RISCV: riscv.Pte}
_LEVELS = {X86_64: ("PTE", "PDE", "PDPE", "PML4E", "PML5E"), VTDSS: ("PTE", "PDE", "PDPE", "PML4E", "PML5E")}


def _decode(t: Table, level: int) -> Callable[[int], Word]:
    """How an entry of a level is read: Arm's tables and leaves have different fields."""
    if t.fmt != ARM64:
        return _ENTRIES[t.fmt]

    def descriptor(value: int) -> Word:
        is_table = load(t, level, signed(value))[0] == TABLE
        return arm64.TableDescriptor(value) if is_table else arm64.Pte(value)

    return descriptor


def _level(t: Table, level: int) -> str:
    """A level as the format's manual calls it."""
    names = _LEVELS.get(t.fmt)
    if names is not None:
        return names[level]
    number = 3 - level if t.fmt == ARM64 else level + 1 if t.fmt == AMDV1 else level
    return f"entry of level {number}"


def one(stage: Stage, iova: int, name: str) -> Script:
    """The walk of one stage; its output address, or None where it ends before."""
    t, table, level = stage.table, stage.root, stage.table.top
    if outside(t, signed(iova)):
        return None
    while True:
        at = table + (index(t, level, iova) << 3)
        pte = yield Expect(at, f"{name} {_level(t, level)}", _decode(t, level))
        status, oa, _, below = entry(t, level, signed(iova), signed(pte))
        if status == OK:
            return oa & MASK
        if status != DESCEND:
            return None
        table, level = oa, below


def intermediate(first: Stage, second: Stage, iova: int, names: tuple[str, str]) -> Script:
    """The walk of a first stage, each table of which lies where the second says; the address between the stages."""
    t, table, level = first.table, first.root, first.table.top
    if outside(t, signed(iova)):
        return None
    while True:
        at = yield from one(second, table + (index(t, level, iova) << 3), names[1])
        if at is None:
            return None
        pte = yield Expect(at, f"{names[0]} {_level(t, level)}", _decode(t, level))
        status, oa, _, below = entry(t, level, signed(iova), signed(pte))
        if status == OK:
            return oa & MASK
        if status != DESCEND:
            return None
        table, level = oa & MASK, below


def both(first: Stage, second: Stage, iova: int, names: tuple[str, str]) -> Script:
    """The walk of two stages."""
    ipa = yield from intermediate(first, second, iova, names)
    return None if ipa is None else (yield from one(second, ipa, names[1]))


def stages(first: Stage | None, second: Stage | None, iova: int, names: tuple[str, str]) -> Script:
    """The walk of the stages that there are."""
    if first is None:
        return iova if second is None else (yield from one(second, iova, names[1]))
    if second is None:
        return (yield from one(first, iova & _width(first.table), names[0]))
    return (yield from both(first, second, iova & _width(first.table), names))


def _width(t: Table) -> int:
    """The bits of an address that a first stage translates: those above only repeat the highest."""
    return (1 << t.input_bits) - 1


# The trace


class Step(NamedTuple):
    """One thing on the way. `pa` is None where it lies in no memory."""

    #: "held" by the IOMMU itself, "read" or "stored".
    kind: str
    name: str
    pa: int | None
    word: Word

    def fields(self) -> dict[str, int | str]:
        """The fields that are not 0, as names of their values where they have such."""
        found: dict[str, int | str] = {}
        for name, field in self.word.FIELDS.items():
            if int(self.word) & field.mask:
                value = getattr(self.word, name)
                found[name] = getattr(value, "name", int(value))
        if self.word.reserved:
            found["reserved"] = self.word.reserved
        return found


class Way(NamedTuple):
    """The steps of a request, and where it went, or why it did not."""

    request: Request
    steps: tuple[Step, ...]
    translation: Translation | None
    fault: TranslationFaultError | None


def follow(accesses: list[Access], script: Script) -> Iterator[Step]:
    """Name accesses by a script. One that it does not expect has the name that its place had before, or none."""
    known: dict[int, Expect] = {}
    value: int | None = None
    waiting: Expect | None = None
    done, ended = iter(accesses), False
    while not ended:
        try:
            said = next(script) if value is None else script.send(value)
        except StopIteration:
            break
        if isinstance(said, Known):
            yield Step("held", said.name, None, said.word)
            value = None
            continue
        waiting = said
        known[said.pa] = said
        for access in done:
            yield _step(access, known)
            if access.pa == waiting.pa and not access.is_store:
                value = access.value
                break
        else:
            ended = True
    for access in done:
        yield _step(access, known)


def _step(access: Access, known: dict[int, Expect]) -> Step:
    expected = known.get(access.pa)
    kind = "stored" if access.is_store else "read"
    if expected is None:
        return Step(kind, _UNNAMED, access.pa, Raw(access.value))
    return Step(kind, expected.name, access.pa, expected.decode(access.value))


def trace(unit: Iommu, memory: TracingMemory, script: Callable[[Request], Script], request: Request) -> Way:
    """Translate a request, and tell its way. What the IOMMU has cached is not read, and so not seen."""
    translation = fault = None
    with memory.noted() as accesses:
        try:
            translation = unit.translate(*request)
        except TranslationFaultError as error:
            fault = error
    steps = list(follow(accesses, script(request)))
    if fault is not None:
        # What comes last and has no name is the record of the fault, and the driver that reads it.
        while steps and isinstance(steps[-1].word, Raw) and steps[-1].name == _UNNAMED:
            steps.pop()
    return Way(request, tuple(steps), translation, fault)
