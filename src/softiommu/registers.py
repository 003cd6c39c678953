"""Register files: each register has its offset, its word, its reset value and its access, as a datasheet says.

class Registers(RegisterFile):
    CR0 = reg(0x20, Cr0, rw)
    GERROR = reg(0x60, Gerror, ro)
    FRCD = array(reg(0x400, Frcd, rw, F=w1c), count=8, stride=16)

`regs.CR0` is the word, `regs.FRCD[3]` the fourth of an array; the model assigns to both freely. A program's access goes
by `read(offset, size)` and `write(offset, size, value)`, in any size, so also to one half of a 64-bit register.

Behaviour is a method of the file's owner with the register's name. `on_write_CR0(old, new)` runs when `new` is in
place; `on_read_CR0()` gives the word to be read; `on_show_CR0()` the word that software finds in memory that stands
for the register. For arrays all take the index first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum
from functools import partial
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar, overload

from softiommu.errors import ModelError
from softiommu.events import EventBus
from softiommu.words import Word

W = TypeVar("W", bound=Word)


class Access(Enum):
    """What a program's write does: change the bits; nothing; clear those written as 1; change what reads as 0."""

    RW = "rw"
    RO = "ro"
    W1C = "w1c"
    WO = "wo"


rw, ro, w1c, wo = Access.RW, Access.RO, Access.W1C, Access.WO


class ReservedBitsWritten(NamedTuple):
    """A program wrote 1 to bits that no field names."""

    register: str
    offset: int
    bits: int


class UnknownRegisterRead(NamedTuple):
    """A program read bytes that belong to no register: they are 0."""

    file: str
    offset: int


class UnknownRegisterWritten(NamedTuple):
    """A program wrote a byte that belongs to no register: nothing happened."""

    file: str
    offset: int
    value: int


class Register(Generic[W]):
    """One register of a file. On the class it is this object; on a file it is the current word."""

    def __init__(self, offset: int, word: type[W], access: Access, reset: int, fields: dict[str, Access]) -> None:
        self.offset, self.word, self.access, self.reset = offset, word, access, word(reset)
        self.size = word.WIDTH // 8
        self.name = ""
        self._fields = fields
        self._masks = dict.fromkeys(Access, 0)
        for name in fields:
            if name not in word.FIELDS:
                raise TypeError(f"{word.__name__} has no field {name}")
        for name, field in word.FIELDS.items():
            self._masks[fields.get(name, access)] |= field.mask
        self._writable = self._masks[rw] | self._masks[wo]
        self._readable = ~self._masks[wo]

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, file: None, owner: Any = ...) -> Register[W]: ...
    @overload
    def __get__(self, file: RegisterFile, owner: Any = ...) -> W: ...
    def __get__(self, file: Any, owner: Any = None) -> Any:
        return self if file is None else file.values[self.offset]

    def __set__(self, file: RegisterFile, value: int) -> None:
        file.values[self.offset] = self.word(value)

    def written(self, old: int, new: int, lanes: int) -> W:
        """What a program's write of `new` to the bits `lanes` makes of `old`."""
        writable = self._writable & lanes
        return self.word((old & ~writable | new & writable) & ~(new & lanes & self._masks[w1c]))

    def readable(self, value: int) -> int:
        """What a program reads: write-only fields as 0."""
        return value & self._readable

    def slots(self) -> Iterator[Slot]:
        """Where the register lies."""
        yield Slot(self, self.offset, (), self.name)


class RegisterArray(Generic[W]):
    """`count` registers alike, one every `stride` bytes. On the class it is this object; on a file, their words."""

    def __init__(self, first: Register[W], count: int, stride: int) -> None:
        if count < 1 or stride < first.size:
            raise TypeError(f"{count} registers of {first.size} bytes, one every {stride}")
        self.first, self.count, self.stride = first, count, stride

    def __set_name__(self, owner: type, name: str) -> None:
        self.first.name = name

    @overload
    def __get__(self, file: None, owner: Any = ...) -> RegisterArray[W]: ...
    @overload
    def __get__(self, file: RegisterFile, owner: Any = ...) -> Words[W]: ...
    def __get__(self, file: Any, owner: Any = None) -> Any:
        return self if file is None else Words(self, file)

    def at(self, index: int) -> int:
        """The offset of a register. IndexError: there are not so many."""
        if not 0 <= index < self.count:
            raise IndexError(f"{self.first.name} has {self.count} registers, and no number {index}")
        return self.first.offset + index * self.stride

    def slots(self) -> Iterator[Slot]:
        """Where the registers lie."""
        for index in range(self.count):
            yield Slot(self.first, self.at(index), (index,), f"{self.first.name}[{index}]")


class Words(Generic[W]):
    """The words of an array of registers of one file."""

    def __init__(self, array: RegisterArray[W], file: RegisterFile) -> None:
        self._array, self._file = array, file

    def __len__(self) -> int:
        return self._array.count

    def __getitem__(self, index: int) -> W:
        word: W = self._file.values[self._array.at(index)]
        return word

    def __setitem__(self, index: int, value: int) -> None:
        self._file.values[self._array.at(index)] = self._array.first.word(value)


class Slot:
    """One register in its place: `index` is empty, or its number in an array."""

    def __init__(self, register: Register[Any], offset: int, index: tuple[int, ...], name: str) -> None:
        self.register, self.offset, self.index, self.name = register, offset, index, name


def reg(offset: int, word: type[W], access: Access = rw, reset: int = 0, **fields: Access) -> Register[W]:
    """A register at `offset`: its word, its access (and that of single fields), and its value after reset."""
    return Register(offset, word, access, reset, fields)


def array(first: Register[W], count: int, stride: int) -> RegisterArray[W]:
    """Registers like `first`, `count` of them, one every `stride` bytes."""
    return RegisterArray(first, count, stride)


class Level(NamedTuple):
    """A register that software may have as plain memory."""

    offset: int
    width: int
    #: Its store makes the device look at others, so it counts after those that software made before it.
    starts: bool = False


class RegisterFile:
    """A file of registers. `owner` has the hooks; `events` hears of what a program should not have done."""

    SLOTS: ClassVar[tuple[Slot, ...]] = ()
    #: Names of the registers that make the device look at the others.
    STARTERS: ClassVar[frozenset[str]] = frozenset()
    _BY_BYTE: ClassVar[dict[int, Slot]] = {}
    _WHOLE: ClassVar[dict[tuple[int, int], Slot]] = {}

    def __init_subclass__(cls) -> None:
        inherited = [value for base in reversed(cls.__mro__) for value in vars(base).values()]
        members = [value for value in inherited if isinstance(value, Register | RegisterArray)]
        cls.SLOTS = tuple(slot for member in members for slot in member.slots())
        cls._WHOLE = {(slot.offset, slot.register.size): slot for slot in cls.SLOTS}
        cls._BY_BYTE = {}
        for slot in cls.SLOTS:
            for byte in range(slot.offset, slot.offset + slot.register.size):
                if byte in cls._BY_BYTE:
                    raise TypeError(f"{cls.__name__}.{slot.name} overlaps {cls._BY_BYTE[byte].name}")
                cls._BY_BYTE[byte] = slot

    def __init__(self, owner: object, events: EventBus | None = None) -> None:
        self._owner, self._events = owner, events if events is not None else EventBus()
        self.values: dict[int, Any] = {}
        #: What `shown` asks, by offset.
        self._showing: dict[int, Callable[[], int]] = {}
        self.reset()

    def reset(self) -> None:
        """Every register takes its reset value; no hook runs."""
        self.values = {slot.offset: slot.register.reset for slot in self.SLOTS}

    def read(self, offset: int, size: int) -> int:
        """What a program reads from `size` bytes. Bytes of no register are 0."""
        whole = self._WHOLE.get((offset, size))
        if whole is not None:
            return self._read(whole)
        value = 0
        for slot, skip, done, count in self._parts(offset, size):
            if slot is None:
                self._events.emit(UnknownRegisterRead(type(self).__name__, offset + done))
                continue
            value |= (self._read(slot) >> 8 * skip & (1 << 8 * count) - 1) << 8 * done
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        """A program's write of `size` bytes, to the registers that it meets in ascending order."""
        whole = self._WHOLE.get((offset, size))
        if whole is not None:
            mask = (1 << 8 * size) - 1
            return self._write(whole, value & mask, mask)
        for slot, skip, done, count in self._parts(offset, size):
            part = value >> 8 * done & (1 << 8 * count) - 1
            if slot is None:
                self._events.emit(UnknownRegisterWritten(type(self).__name__, offset + done, part))
                continue
            self._write(slot, part << 8 * skip, ((1 << 8 * count) - 1) << 8 * skip)
        return None

    def levels(self) -> list[Level]:
        """The registers as plain memory, in the order in which stores that are seen together count."""
        found = [Level(s.offset, s.register.size, s.register.name in self.STARTERS) for s in self.SLOTS]
        return sorted(found, key=lambda level: level.starts)

    def shown(self, offset: int, size: int) -> int:
        """What memory that stands for a register holds: what `on_show_NAME` of the owner says, else what is read."""
        known = self._showing.get(offset)
        if known is None:
            slot = self._WHOLE[offset, size]
            hook = getattr(self._owner, "on_show_" + slot.register.name, None)
            known = self._showing[offset] = partial(self._read, slot) if hook is None else partial(hook, *slot.index)
        return int(known())

    def _parts(self, offset: int, size: int) -> Iterator[tuple[Slot | None, int, int, int]]:
        """An access cut at the registers' ends: the slot, bytes skipped in it, bytes done before, bytes of it."""
        if offset < 0 or size < 1:
            raise ModelError(f"an access of {size} bytes at offset {offset:#x}")
        done = 0
        while done < size:
            slot = self._BY_BYTE.get(offset + done)
            skip = offset + done - slot.offset if slot else 0
            count = min(slot.register.size - skip, size - done) if slot else self._gap(offset + done, size - done)
            yield slot, skip, done, count
            done += count

    def _gap(self, offset: int, size: int) -> int:
        """How many of `size` bytes from `offset` belong to no register."""
        count = 1
        while count < size and offset + count not in self._BY_BYTE:
            count += 1
        return count

    def _read(self, slot: Slot) -> int:
        hook = getattr(self._owner, "on_read_" + slot.register.name, None)
        word = hook(*slot.index) if hook is not None else self.values[slot.offset]
        return slot.register.readable(int(word))

    def _write(self, slot: Slot, new: int, lanes: int) -> None:
        register = slot.register
        reserved = new & register.word.RESERVED
        if reserved:
            self._events.emit(ReservedBitsWritten(slot.name, slot.offset, reserved))
        old = self.values[slot.offset]
        changed = register.written(int(old), new, lanes)
        self.values[slot.offset] = changed
        hook = getattr(self._owner, "on_write_" + register.name, None)
        if hook is not None:
            hook(*slot.index, old, changed)
