"""C structs of the user ABI, declared once: bytes for the ioctl path, a dtype for NumPy."""

from __future__ import annotations

import struct
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self, dataclass_transform, get_type_hints

if TYPE_CHECKING:
    import numpy as np

u8 = Annotated[int, "B"]
u16 = Annotated[int, "H"]
u32 = Annotated[int, "I"]
u64 = Annotated[int, "Q"]
s32 = Annotated[int, "i"]
s64 = Annotated[int, "q"]
bytes2 = Annotated[bytes, "2s"]
bytes3 = Annotated[bytes, "3s"]
bytes12 = Annotated[bytes, "12s"]
bytes16 = Annotated[bytes, "16s"]
bytes4 = Annotated[bytes, "4s"]
bytes48 = Annotated[bytes, "48s"]


@dataclass_transform()
class UserStruct:
    """A C struct, little-endian, without holes. Subclass with annotated fields.

    `last` names the last field of the first kernel release that had the struct: a caller may stop there (MIN_SIZE).
    """

    SIZE: ClassVar[int]
    MIN_SIZE: ClassVar[int]
    #: Field name to (offset, size), in order.
    FIELDS: ClassVar[dict[str, tuple[int, int]]]

    def __init_subclass__(cls, *, last: str | None = None) -> None:
        dataclass(cls)
        hints = get_type_hints(cls, include_extras=True)
        codes = {f.name: str(hints[f.name].__metadata__[0]) for f in fields(cls)}  # type: ignore[arg-type]  # cls is a dataclass from here on
        names = list(codes)
        layout = struct.Struct("<" + "".join(codes.values()))
        cls.SIZE = layout.size
        if struct.calcsize("@" + "".join(codes.values())) != cls.SIZE:
            raise TypeError(f"{cls.__name__} has a hole: name every padding field")
        at = 0
        cls.FIELDS = {}
        for name, code in codes.items():
            cls.FIELDS[name] = (at, struct.calcsize("<" + code))
            at += cls.FIELDS[name][1]
        cls.MIN_SIZE = sum(cls.FIELDS[last or names[-1]])
        _generate(cls, names, layout)

    def to_bytes(self) -> bytes:
        """The struct as it lies in memory."""
        raise TypeError("UserStruct itself has no fields")

    @classmethod
    def from_bytes(cls, raw: bytes | bytearray | memoryview, at: int = 0) -> Self:
        """The struct at byte `at` of `raw`, which must hold all of it."""
        raise TypeError("UserStruct itself has no fields")

    @classmethod
    def dtype(cls) -> np.dtype[Any]:
        """The same layout for NumPy."""
        import numpy as np

        hints = get_type_hints(cls, include_extras=True)
        codes = {name: str(hints[name].__metadata__[0]) for name in cls.FIELDS}
        kinds = {"B": "u1", "H": "<u2", "I": "<u4", "Q": "<u8", "i": "<i4", "q": "<i8"}
        return np.dtype([(name, kinds.get(code, "V" + code[:-1])) for name, code in codes.items()])


def _generate(cls: type[UserStruct], names: list[str], layout: struct.Struct) -> None:
    """Straight-line pack and unpack: half the cost of loops over the fields."""
    scope: dict[str, Any] = {"pack": layout.pack, "unpack": layout.unpack_from, "new": object.__new__}
    exec(
        f"def to_bytes(self): return pack({', '.join('self.' + name for name in names)})\n"
        "def from_bytes(cls, raw, at=0):\n"
        f"    o = new(cls); {', '.join('o.' + name for name in names)}, = unpack(raw, at); return o\n",
        scope,
    )
    for name in ("to_bytes", "from_bytes"):
        scope[name].__doc__ = getattr(UserStruct, name).__doc__
        scope[name].__qualname__ = f"{cls.__qualname__}.{name}"
    cls.to_bytes = scope["to_bytes"]  # type: ignore[method-assign]  # generated above with the same signature
    cls.from_bytes = classmethod(scope["from_bytes"])  # type: ignore[assignment,method-assign]  # likewise
