"""Hardware words: immutable ints whose bit fields have the names and the types that the manual gives them.

class Ste0(Word):
    V = bit(0)
    CONFIG = bits(3, 1, SteConfig)

A word is made from its raw value (`Ste0(raw)`) or from its fields (`Ste0.of(V=1)`); `ste.CONFIG` reads a field,
`ste.replace(V=0)` gives a changed copy, and `Ste0.V.mask` is for kernels that work on plain ints.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar, overload

T = TypeVar("T", bound=int)


class Field(property, Generic[T]):
    """A named run of bits. On the class it is this object; on a value it is the field's content.

    It is a property, since the interpreter reads those twice as fast as a `__get__` of ours.
    """

    def __init__(self, high: int, low: int, type: type[T]) -> None:
        if low < 0 or high < low:
            raise ValueError(f"bits({high}, {low}) are written as (high, low)")
        self.high, self.low, self.type, self.name = high, low, type, ""
        self.width = high - low + 1
        self.mask = ((1 << self.width) - 1) << low
        super().__init__(_plain(self.mask, low) if type is int else _typed(self.mask, low, type))

    def __set_name__(self, owner: Any, name: str) -> None:
        self.name = name

    if TYPE_CHECKING:

        @overload
        def __get__(self, word: None, owner: Any = ...) -> Self: ...
        @overload
        def __get__(self, word: Word, owner: Any = ...) -> T: ...
        def __get__(self, word: Any, owner: Any = None) -> Any: ...

    def __set__(self, word: Any, value: Any) -> None:
        raise AttributeError(f"a word does not change: use replace({self.name}=...)")

    def __repr__(self) -> str:
        where = f"bit({self.low})" if self.width == 1 else f"bits({self.high}, {self.low})"
        return f"<{self.name} {where}>"


def _plain(mask: int, low: int) -> Callable[[int], int]:
    return lambda word: (word & mask) >> low


def _typed(mask: int, low: int, kind: type[int]) -> Callable[[int], int]:
    if issubclass(kind, IntEnum):
        # A look here takes a tenth of the time of `kind(value)`.
        members: dict[int, int] = {int(member): member for member in kind}

        def look(word: int) -> int:
            value = (word & mask) >> low
            return members.get(value, value)  # an encoding that the manual reserves is a plain number

        return look

    def read(word: int) -> int:
        value = (word & mask) >> low
        try:
            return kind(value)
        except ValueError:
            return value

    return read


def bit(number: int) -> Field[int]:
    """One bit."""
    return Field(number, number, int)


@overload
def bits(high: int, low: int) -> Field[int]: ...
@overload
def bits(high: int, low: int, type: type[T]) -> Field[T]: ...
def bits(high: int, low: int, type: Any = int) -> Any:
    """Bits `high` down to `low`, as manuals write them; read as `type` (an IntEnum, say)."""
    return Field(high, low, type)


class Word(int):
    """A register or a table entry. Subclass with fields; `width` is 64 unless said otherwise."""

    __slots__ = ()
    WIDTH: ClassVar[int] = 64
    FIELDS: ClassVar[dict[str, Field[Any]]] = {}
    #: The bits that no field names.
    RESERVED: ClassVar[int] = (1 << 64) - 1
    #: Of each field the bits that are not its, its lowest bit, and its width.
    _PLACES: ClassVar[dict[str, tuple[int, int, int]]] = {}

    def __init_subclass__(cls, *, width: int = 64) -> None:
        cls.WIDTH = width
        cls.FIELDS = {name: value for name, value in vars(cls).items() if isinstance(value, Field)}
        named = 0
        for name, field in cls.FIELDS.items():
            if named & field.mask:
                raise TypeError(f"{cls.__name__}.{name} overlaps another field")
            if field.high >= width:
                raise TypeError(f"{cls.__name__}.{name} leaves the {width} bits of the word")
            named |= field.mask
        cls._PLACES = {name: (~field.mask, field.low, field.width) for name, field in cls.FIELDS.items()}
        cls.RESERVED = ~named & (1 << width) - 1

    def __new__(cls, raw: int = 0) -> Self:
        """The word with these bits. ValueError: more bits than it has."""
        if raw >> cls.WIDTH:  # negative numbers, too
            raise ValueError(f"{raw:#x} is no {cls.WIDTH}-bit {cls.__name__}")
        return int.__new__(cls, raw)

    @classmethod
    def of(cls, **fields: int) -> Self:
        """A word with these fields, the rest 0. ValueError: a value too wide; AttributeError: no such field."""
        return int.__new__(cls, cls._with(0, fields))

    def replace(self, **fields: int) -> Self:
        """A copy with these fields changed. ValueError: a value too wide; AttributeError: no such field."""
        return int.__new__(type(self), self._with(int(self), fields))

    @classmethod
    def _with(cls, raw: int, fields: dict[str, int]) -> int:
        places = cls._PLACES
        for name, value in fields.items():
            place = places.get(name)
            if place is None:
                raise AttributeError(f"{cls.__name__} has no field {name}")
            others, low, width = place
            if value < 0 or value >> width:
                raise ValueError(f"{cls.__name__}.{name} has {width} bits: {value:#x} does not fit")
            raw = raw & others | value << low
        return raw

    @property
    def reserved(self) -> int:
        """The bits set that no field names."""
        return int(self) & self.RESERVED

    def __repr__(self) -> str:
        parts = [
            f"{name}={_show(getattr(self, name))}" for name, field in self.FIELDS.items() if int(self) & field.mask
        ]
        rest = [f"reserved={self.reserved:#x}"] if self.reserved else []
        return f"<{' '.join([type(self).__name__, f'{int(self):#x}', *parts, *rest])}>"


def _show(value: int) -> str:
    name = getattr(value, "name", None)
    if name is not None:
        return str(name)
    return str(value) if value < 10 else f"{value:#x}"
