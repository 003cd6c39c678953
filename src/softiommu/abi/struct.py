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
bytes3 = Annotated[bytes, "3s"]
bytes4 = Annotated[bytes, "4s"]
bytes16 = Annotated[bytes, "16s"]
bytes48 = Annotated[bytes, "48s"]


@dataclass_transform()
class UserStruct:
    """A C struct, little-endian, without holes. Subclass with annotated fields, each with a default.

    `last` names the last field of the first kernel release that had the struct: a caller may stop there (MIN_SIZE).
    The methods are generated as straight-line code: half the cost of loops over the fields.
    """

    SIZE: ClassVar[int]
    MIN_SIZE: ClassVar[int]
    #: Field name to (offset, size), in order.
    FIELDS: ClassVar[dict[str, tuple[int, int]]]
    #: Field name to struct code.
    CODES: ClassVar[dict[str, str]]

    def __init_subclass__(cls, *, last: str | None = None) -> None:
        cls.CODES = {name: _code(cls, hint) for name, hint in cls.__annotations__.items()}
        layout = struct.Struct("<" + "".join(cls.CODES.values()))
        cls.SIZE = layout.size
        if struct.calcsize("@" + "".join(cls.CODES.values())) != cls.SIZE:
            raise TypeError(f"{cls.__name__} has a hole: name every padding field")
        at = 0
        cls.FIELDS = {}
        for name, code in cls.CODES.items():
            cls.FIELDS[name] = (at, struct.calcsize("<" + code))
            at += cls.FIELDS[name][1]
        cls.MIN_SIZE = sum(cls.FIELDS[last or list(cls.FIELDS)[-1]])
        _generate(cls, layout)

    def to_bytes(self) -> bytes:
        """The struct as it lies in memory. struct.error: a value does not fit its field."""
        raise TypeError("UserStruct itself has no fields")

    @classmethod
    def from_bytes(cls, raw: bytes | bytearray | memoryview, at: int = 0) -> Self:
        """The struct at byte `at` of `raw`, which must hold all of it."""
        raise TypeError("UserStruct itself has no fields")

    @classmethod
    def dtype(cls) -> np.dtype[Any]:
        """The same layout for NumPy."""
        import numpy as np

        kinds = {"B": "u1", "H": "<u2", "I": "<u4", "Q": "<u8", "i": "<i4", "q": "<i8"}
        return np.dtype([(name, kinds.get(code, "V" + code[:-1])) for name, code in cls.CODES.items()])

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and all(getattr(self, n) == getattr(other, n) for n in self.FIELDS)

    def __hash__(self) -> int:
        return hash((type(self), self.to_bytes()))

    def __repr__(self) -> str:
        values = ((name, getattr(self, name)) for name in self.FIELDS)
        shown = (f"{name}={value:#x}" if isinstance(value, int) else f"{name}={value!r}" for name, value in values)
        return f"{type(self).__name__}({', '.join(shown)})"


def _code(cls: type[UserStruct], hint: object) -> str:
    """The struct code of an annotation, which is one of the names above (as text, with postponed annotations)."""
    kind = getattr(sys.modules[__name__], hint) if isinstance(hint, str) else hint
    return str(get_args(kind)[1])


def _generate(cls: type[UserStruct], layout: struct.Struct) -> None:
    names = list(cls.FIELDS)
    scope: dict[str, Any] = {"pack": layout.pack, "unpack": layout.unpack_from, "new": object.__new__}
    scope |= {f"default_{name}": cls.__dict__[name] for name in names}
    arguments = ", ".join(f"{name}=default_{name}" for name in names)
    stores = "; ".join(f"self.{name} = {name}" for name in names)
    values = ", ".join(f"self.{name}" for name in names)
    targets = ", ".join(f"o.{name}" for name in names)
    exec(
        f"def __init__(self, {arguments}): {stores}\n"
        f"def to_bytes(self): return pack({values})\n"
        f"def from_bytes(cls, raw, at=0): o = new(cls); {targets}, = unpack(raw, at); return o\n",
        scope,
    )
    for name in ("to_bytes", "from_bytes"):
        scope[name].__doc__ = getattr(UserStruct, name).__doc__
        scope[name].__qualname__ = f"{cls.__qualname__}.{name}"
    type.__setattr__(cls, "__init__", scope["__init__"])
    type.__setattr__(cls, "to_bytes", scope["to_bytes"])
    type.__setattr__(cls, "from_bytes", classmethod(scope["from_bytes"]))
