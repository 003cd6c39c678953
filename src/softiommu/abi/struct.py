"""C structs of the user ABI, declared once: bytes for the ioctl path, a dtype for NumPy."""

from __future__ import annotations

import struct
import sys
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self, dataclass_transform, get_args

if TYPE_CHECKING:
    import numpy as np

u8 = Annotated[int, "B"]
u16 = Annotated[int, "H"]
u32 = Annotated[int, "I"]
u64 = Annotated[int, "Q"]
s32 = Annotated[int, "i"]
s64 = Annotated[int, "q"]
# Bytes of another length: name one more here, or in the module that uses it.
bytes3 = Annotated[bytes, "3s"]
bytes4 = Annotated[bytes, "4s"]
bytes16 = Annotated[bytes, "16s"]
bytes48 = Annotated[bytes, "48s"]

_DTYPES = {"B": "u1", "H": "<u2", "I": "<u4", "Q": "<u8", "i": "<i4", "q": "<i8"}


@dataclass_transform()
class _Layout(type):
    """Makes the class of a struct. A metaclass, since slots must be known before the class is made.

    Slots make a misspelt field an AttributeError, and each generated method 5 to 10 % faster.
    """

    def __new__(mcs, name: str, bases: tuple[type, ...], space: dict[str, Any], *, last: str | None = None) -> _Layout:
        if not bases:
            return super().__new__(mcs, name, bases, space)
        hints = space.get("__annotations__")
        if not hints:
            raise TypeError(f"{name} has no fields (its module needs `from __future__ import annotations`)")
        codes = {field: _code(name, space["__module__"], hint) for field, hint in hints.items()}
        if missing := [field for field in codes if field not in space]:
            raise TypeError(f"{name} has no default for {', '.join(missing)}")
        defaults = {field: space.pop(field) for field in codes}
        space |= _facts(name, codes, last)
        space |= _methods(space["__qualname__"], space["LAYOUT"], defaults)
        space["__slots__"] = tuple(codes)
        return super().__new__(mcs, name, bases, space)


class UserStruct(metaclass=_Layout):
    """A C struct, little-endian, without holes. Subclass with annotated fields, each with a default.

    `last` names the last field of the first kernel release that had the struct: a caller may stop there (MIN_SIZE).
    """

    __slots__ = ()

    SIZE: ClassVar[int]
    MIN_SIZE: ClassVar[int]
    LAYOUT: ClassVar[struct.Struct]
    #: Field name to its struct code, in order.
    CODES: ClassVar[dict[str, str]]
    #: Field name to (offset, size), in order; and each by itself.
    FIELDS: ClassVar[dict[str, tuple[int, int]]]
    OFFSETS: ClassVar[dict[str, int]]
    SIZES: ClassVar[dict[str, int]]

    def to_bytes(self) -> bytes:
        """The struct as it lies in memory. struct.error: a value does not fit its field."""
        raise TypeError("UserStruct itself has no fields")

    @classmethod
    def from_bytes(cls, raw: bytes | bytearray | memoryview, at: int = 0) -> Self:
        """The struct at byte `at` of `raw`. struct.error: `raw` does not hold all of it."""
        raise TypeError("UserStruct itself has no fields")

    @classmethod
    def dtype(cls) -> np.dtype[Any]:
        """The same layout for NumPy."""
        import numpy as np

        return np.dtype([(name, _DTYPES.get(code, "V" + code[:-1])) for name, code in cls.CODES.items()])

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and all(getattr(self, n) == getattr(other, n) for n in self.FIELDS)

    def __repr__(self) -> str:
        values = ((name, getattr(self, name)) for name in self.FIELDS)
        shown = (f"{name}={value:#x}" if isinstance(value, int) else f"{name}={value!r}" for name, value in values)
        return f"{type(self).__name__}({', '.join(shown)})"


def _code(name: str, module: str, hint: object) -> str:
    """The struct code of an annotation: one of the types above, by name where annotations are postponed."""
    kind = vars(sys.modules[module]).get(hint) if isinstance(hint, str) else hint
    arguments = get_args(kind)
    if len(arguments) != 2 or not isinstance(arguments[1], str):
        raise TypeError(f"{name} has a field of type {hint}, which is none of a C struct")
    return arguments[1]


def _facts(name: str, codes: dict[str, str], last: str | None) -> dict[str, Any]:
    """What the class variables say. TypeError: a C compiler would put a hole between or after the fields."""
    layout = struct.Struct("<" + "".join(codes.values()))
    sizes = {field: struct.calcsize("<" + code) for field, code in codes.items()}
    offsets, at = {}, 0
    for field, size in sizes.items():
        offsets[field], at = at, at + size
    aligns = {field: 1 if code.endswith("s") else sizes[field] for field, code in codes.items()}
    before = [field for field, at in offsets.items() if at % aligns[field]]
    if before or layout.size % max(aligns.values()):
        where = f"before {before[0]}" if before else "at its end"
        raise TypeError(f"{name} has a hole {where}: name every padding field")
    if last is not None and last not in codes:
        raise TypeError(f"{name} has no field {last}")
    end = last or list(codes)[-1]
    fields = {field: (offsets[field], sizes[field]) for field in codes}
    facts: dict[str, Any] = {"CODES": codes, "FIELDS": fields, "OFFSETS": offsets, "SIZES": sizes, "LAYOUT": layout}
    return facts | {"SIZE": layout.size, "MIN_SIZE": sum(fields[end])}


def _methods(qualname: str, layout: struct.Struct, defaults: dict[str, Any]) -> dict[str, Any]:
    """Straight-line code: half the cost of loops over the fields."""

    def each(form: str, between: str = ", ") -> str:
        return between.join(form.format(name) for name in defaults)

    scope: dict[str, Any] = {"pack": layout.pack, "unpack": layout.unpack_from, "new": object.__new__}
    scope |= {f"default_{name}": value for name, value in defaults.items()}
    exec(
        f"def __init__(self, {each('{0}=default_{0}')}): {each('self.{0} = {0}', '; ')}\n"
        f"def to_bytes(self): return pack({each('self.{0}')})\n"
        f"def from_bytes(cls, raw, at=0): o = new(cls); {each('o.{0}')}, = unpack(raw, at); return o\n",
        scope,
    )
    methods = {name: scope[name] for name in ("__init__", "to_bytes", "from_bytes")}
    for name, method in methods.items():
        method.__qualname__ = f"{qualname}.{name}"
        method.__doc__ = vars(UserStruct)[name].__doc__ if name in vars(UserStruct) else None
    return methods | {"from_bytes": classmethod(methods["from_bytes"])}
