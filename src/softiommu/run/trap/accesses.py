"""The access that raised a bus error: found, carried out on the file of ours that is mapped there, and told.

What an instruction accesses goes to the file in pieces that are aligned and not wider than a register, 8 bytes. Copies
and fills go element by element, and so many at a time: between them the program has its signals.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from softiommu.errors import UapiError
from softiommu.memory.client import PAGE_SIZE
from softiommu.run.seccomp import TaskGoneError
from softiommu.run.trap import ptrace, x86
from softiommu.run.trap.vmas import Mapped, Vmas
from softiommu.run.trap.x86_operands import EFLAGS, RAX, RCX, RDI, RIP, RSI
from softiommu.run.trap.xsave import Vectors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from softiommu.memory.files import File
    from softiommu.run.descriptors import OpenFile
    from softiommu.run.session import Session
    from softiommu.run.trap.ptrace import Registers

_MOST_DECODED, _MOST_TOLD = 4096, 100
_WIDTHS = (8, 4, 2, 1)
_DIRECTION = 1 << 10
_MOST_ELEMENTS = 256
_WHOLE = (1 << 64) - 1


class Memory:
    """The memory of a traced task and what is mapped there, opened when it first faults."""

    def __init__(self, tid: int) -> None:
        self._tid = tid
        self._memory = -1
        self._vmas: Vmas | None = None

    def code(self, at: int) -> bytes:
        """The bytes of the instruction at an address, and some behind it. OSError; ProcessLookupError: the task was
        killed, and its memory is gone."""
        if self._memory < 0:
            self._memory = os.open(f"/proc/{self._tid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        found = os.pread(self._memory, x86.LONGEST, at)
        if not found:
            raise ProcessLookupError(f"task {self._tid} has no memory any more")
        return found

    def mapped(self, address: int) -> Mapped | None:
        """Which file is mapped at an address. OSError."""
        if self._vmas is None:
            self._vmas = Vmas(self._tid)
        return self._vmas.find(address)

    def close(self) -> None:
        """Give the descriptors of our own back."""
        if self._memory >= 0:
            os.close(self._memory)
        if self._vmas is not None:
            self._vmas.close()


class Place(NamedTuple):
    """A byte of a file of ours whose accesses come one by one."""

    record: OpenFile
    offset: int


class Accesses:
    """Carries accesses out."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._decoded: dict[bytes, x86.Operation | x86.Repeat] = {}
        self._told = 0

    def carry_out(self, tid: int, memory: Memory) -> bool:
        """Make the access that a stopped task's bus error is about. False: it is the program's own, or failed."""
        fault = ptrace.fault(tid)
        if fault.code != ptrace.BUS_ADRERR:
            return False
        place = self.place(memory, fault.address)
        if place is None:
            return False
        registers = ptrace.registers(tid)
        try:
            operation = self._operation(memory.code(registers[RIP]))
            if isinstance(operation, x86.Operation):
                start = operation.address.of(registers)
                first = place if start == fault.address else self._masked(memory, start, operation, fault)
                access = _Access(self, tid, memory, start, first, operation.width)
                operation.effect(registers, access)
                registers[RIP] += operation.length
                access.finish()
                ptrace.set_registers(tid, registers)
            else:
                _Copy(self, tid, memory, registers).repeat(operation)
        except (x86.NotCarriedOutError, UapiError, TaskGoneError, OSError) as error:
            if isinstance(error, ProcessLookupError):
                raise
            self._tell(tid, place, error)
            return False
        return True

    def place(self, memory: Memory, address: int) -> Place | None:
        """What of a file of ours is at an address; None: nothing, or what has pages."""
        try:
            mapped = memory.mapped(address)
        except OSError:
            return None
        record = self._session.descriptors.by_inode.get(mapped.inode) if mapped else None
        if mapped is None or record is None or not record.file.is_trapped(mapped.offset):
            return None
        return Place(record, mapped.offset)

    def _masked(self, memory: Memory, start: int, operation: x86.Operation, fault: ptrace.Fault) -> Place:
        """Where an access begins whose first elements are masked, so that another one failed. NotCarriedOutError."""
        place = self.place(memory, start) if start < fault.address < start + operation.width else None
        if place is None:
            raise x86.NotCarriedOutError("the instruction does not begin at the BAR")
        return place

    def check_end(self, memory: Memory, address: int, width: int, place: Place | None) -> None:
        """NotCarriedOutError: the last byte of an access is not where its first one, at `place`, lets expect it."""
        if self.place(memory, address + width - 1) != (place and Place(place.record, place.offset + width - 1)):
            raise x86.NotCarriedOutError("the access crosses an end of the BAR")

    def _operation(self, code: bytes) -> x86.Operation | x86.Repeat:
        known = self._decoded.get(code)
        if known is None:
            if len(self._decoded) >= _MOST_DECODED:
                self._decoded.clear()
            known = self._decoded[code] = x86.decode(code)
        return known

    # Memory

    def load(self, tid: int, place: Place, width: int, chosen: int = _WHOLE) -> int:
        """A load from a file, or from some bytes of it: in pieces, where a device cannot be asked at once."""
        if width <= _WIDTHS[0] and chosen == _WHOLE:
            return self._load(tid, place.record.file, place.offset, width)
        value = 0
        for at, size in _pieces(place.offset, width, chosen):
            value |= self._load(tid, place.record.file, place.offset + at, size) << 8 * at
        return value

    def store(self, tid: int, place: Place, width: int, value: int, chosen: int = _WHOLE) -> None:
        """A store to a file, as `load`."""
        if width <= _WIDTHS[0] and chosen == _WHOLE:
            self._store(tid, place.record.file, place.offset, width, value)
            return
        for at, size in _pieces(place.offset, width, chosen):
            self._store(tid, place.record.file, place.offset + at, size, value >> 8 * at & (1 << 8 * size) - 1)

    def _load(self, tid: int, file: File, offset: int, width: int) -> int:
        """One access, which is a line of the log where there is one."""
        log = self._session.log
        if log is None:
            return file.load(offset, width)
        with log.noted(self._name(tid), file.kind, "load", {"width": width, "offset": hex(offset)}) as note:
            note.result = file.load(offset, width)
        return note.result

    def _store(self, tid: int, file: File, offset: int, width: int, value: int) -> None:
        log = self._session.log
        if log is None:
            file.store(offset, width, value)
            return
        fields = {"width": width, "offset": hex(offset), "value": hex(value)}
        with log.noted(self._name(tid), file.kind, "store", fields):
            file.store(offset, width, value)

    def own_memory(self, tid: int, address: int, width: int) -> int:
        """A load from the program's own memory. EFAULT."""
        return int.from_bytes(self._session.fresh(tid).read(address, width), "little")

    def set_own_memory(self, tid: int, address: int, width: int, value: int) -> None:
        """A store to the program's own memory. EFAULT."""
        self._session.fresh(tid).write(address, value.to_bytes(width, "little"))

    # Words

    def _name(self, tid: int) -> str:
        try:
            return self._session.fresh(tid).name
        except TaskGoneError:
            return f"?[{tid}]"

    def _tell(self, tid: int, place: Place, error: Exception) -> None:
        """Why the program gets its bus error."""
        self._told += 1
        if self._told > _MOST_TOLD:
            self._session.warn_once(f"more than {_MOST_TOLD} bus errors: no more of them are told")
            return
        why = error.why if isinstance(error, UapiError) else str(error)
        kind = place.record.file.kind
        self._session.warn_once(f"bus error of {self._name(tid)} at offset {place.offset:#x} of a {kind}: {why}")


class _Access:
    """The `Bus` of one instruction of a stopped thread. Its vector registers are fetched when they are asked for."""

    def __init__(self, accesses: Accesses, tid: int, memory: Memory, address: int, place: Place, width: int) -> None:
        self._accesses, self._tid, self._memory = accesses, tid, memory
        self._address, self._place, self._width = address, place, width
        self._vectors: Vectors | None = None

    def load(self) -> int:
        """The value at the place."""
        self._check(self._width)
        return self._accesses.load(self._tid, self._place, self._width)

    def store(self, value: int) -> None:
        """Set it."""
        self._check(self._width)
        self._accesses.store(self._tid, self._place, self._width, value)

    def load_some(self, chosen: int) -> int:
        """Some bytes of it."""
        self._check(chosen.bit_length())
        return self._accesses.load(self._tid, self._place, self._width, chosen)

    def store_some(self, value: int, chosen: int) -> None:
        """Set some bytes of it."""
        self._check(chosen.bit_length())
        self._accesses.store(self._tid, self._place, self._width, value, chosen)

    def _check(self, width: int) -> None:
        """NotCarriedOutError: so much of it is not all there."""
        if _crosses(self._address, width):
            self._accesses.check_end(self._memory, self._address, width, self._place)

    @property
    def vectors(self) -> Vectors:
        """The thread's vector registers. OSError: they cannot be had."""
        if self._vectors is None:
            self._vectors = Vectors(ptrace.vectors(self._tid))
        return self._vectors

    def finish(self) -> None:
        """Let the thread have the vector registers that were set."""
        if self._vectors is not None and self._vectors.changed:
            ptrace.set_vectors(self._tid, self._vectors.image)


class _Copy:
    """A copy or a fill of a stopped thread."""

    def __init__(self, accesses: Accesses, tid: int, memory: Memory, registers: Registers) -> None:
        self._accesses, self._tid, self._memory, self._registers = accesses, tid, memory, registers
        #: What is at the start of a page.
        self._pages: dict[int, Place | None] = {}

    def repeat(self, repeat: x86.Repeat) -> None:
        """Elements of a copy or a fill; what is done of them is done, also when one fails."""
        registers, mask = self._registers, repeat.mask
        left = registers[RCX] & mask if repeat.counts else 1
        step = -repeat.width if registers[EFLAGS] & _DIRECTION else repeat.width
        try:
            for _ in range(min(left, _MOST_ELEMENTS)):
                self._element(repeat)
                registers[RDI] = registers[RDI] + step & mask
                if repeat.loads:
                    registers[RSI] = registers[RSI] + step & mask
                left -= 1
                if repeat.counts:
                    registers[RCX] = left
            if not left:
                registers[RIP] += repeat.length
        finally:
            ptrace.set_registers(self._tid, registers)

    def _element(self, repeat: x86.Repeat) -> None:
        registers, width, tid, accesses = self._registers, repeat.width, self._tid, self._accesses
        value = registers[RAX] & (1 << 8 * width) - 1
        if repeat.loads:
            source = registers[RSI] & repeat.mask
            if repeat.segment is not None:
                source = source + registers[repeat.segment] & _WHOLE
            place = self._span(source, width)
            value = accesses.load(tid, place, width) if place else accesses.own_memory(tid, source, width)
        target = registers[RDI] & repeat.mask
        place = self._span(target, width)
        if place is not None:
            accesses.store(tid, place, width, value)
        else:
            accesses.set_own_memory(tid, target, width, value)

    def _span(self, address: int, width: int) -> Place | None:
        """Where `width` bytes at an address are, when they are a file's. NotCarriedOutError: not all of them are."""
        place = self._at(address)
        if _crosses(address, width):
            self._accesses.check_end(self._memory, address, width, place)
        return place

    def _at(self, address: int) -> Place | None:
        start = address - address % PAGE_SIZE
        if start not in self._pages:
            self._pages[start] = self._accesses.place(self._memory, start)
        page = self._pages[start]
        return page and Place(page.record, page.offset + address - start)


def _crosses(address: int, width: int) -> bool:
    """Whether an access ends on another page."""
    return address % PAGE_SIZE + width > PAGE_SIZE


def _pieces(offset: int, width: int, chosen: int) -> Iterator[tuple[int, int]]:
    """Where the pieces of a wide access begin, and their widths: aligned, and of bytes that are chosen only."""
    at = 0
    while at < width:
        if not chosen >> at & 1:
            at += 1
            continue
        size = next(
            size
            for size in _WIDTHS
            if not (offset + at) % size and at + size <= width and not ~chosen >> at & (1 << size) - 1
        )
        yield at, size
        at += size
