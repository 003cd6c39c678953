"""What of a program's memory belongs to a driver: typed structures and arrays of entries, copied once and checked."""

from __future__ import annotations

from errno import E2BIG, EINVAL
from typing import NamedTuple, TypeVar

from softiommu.abi.struct import UserStruct
from softiommu.errors import UapiError
from softiommu.memory.client import Caller

S = TypeVar("S", bound=UserStruct)


class UserData:
    """A typed, sized structure in the caller's memory that belongs to the driver (iommu_user_data)."""

    def __init__(self, caller: Caller, uptr: int, length: int, data_type: int) -> None:
        self.caller, self.uptr, self.length, self.data_type = caller, uptr, length, data_type

    def copy(self, struct: type[S], data_type: int, min_length: int | None = None) -> S:
        """The caller's structure, zero-extended. EINVAL: another type, shorter than the first version, or longer
        than the structure we know."""
        if self.data_type != data_type:
            raise UapiError(EINVAL, f"data type {self.data_type:#x} is not {data_type:#x} ({struct.__name__})")
        least = struct.MIN_SIZE if min_length is None else min_length
        if not least <= self.length <= struct.SIZE:
            raise UapiError(EINVAL, f"{struct.__name__} has {self.length} bytes, not {least}..{struct.SIZE}")
        return copy_struct(self.caller, self.uptr, self.length, struct)

    def reply(self, data: bytes) -> None:
        """Write as much of `data` as the caller's structure holds back to it."""
        self.caller.write(self.uptr, data[: self.length])


class UserArray(NamedTuple):
    """An array of typed entries in the caller's memory (iommu_user_data_array)."""

    caller: Caller
    uptr: int
    data_type: int
    entry_len: int
    entry_num: int

    def entry(self, index: int, struct: type[S], data_type: int) -> S:
        """Entry `index`. EINVAL: other type, past the end, or shorter than the first version; E2BIG: non-zero tail."""
        if self.data_type != data_type:
            raise UapiError(EINVAL, f"entry type {self.data_type:#x} is not {data_type:#x} ({struct.__name__})")
        if index >= self.entry_num or self.entry_len < struct.MIN_SIZE:
            raise UapiError(EINVAL, f"an entry of {self.entry_len} bytes is too short for {struct.__name__}")
        return copy_struct(self.caller, self.uptr + index * self.entry_len, self.entry_len, struct)

    def entries(self, struct: type[S], data_type: int) -> list[S]:
        """Every entry, whatever its length: short ones are zero-extended. EINVAL: other type; E2BIG: non-zero tail."""
        if self.data_type != data_type:
            raise UapiError(EINVAL, f"entry type {self.data_type:#x} is not {data_type:#x} ({struct.__name__})")
        step = self.entry_len
        return [copy_struct(self.caller, self.uptr + n * step, step, struct) for n in range(self.entry_num)]

    def packed(self, struct: type[S], data_type: int) -> bytes:
        """The bytes of every entry as `entries` has them, one after the other."""
        if self.data_type == data_type and self.entry_len == struct.SIZE:
            return self.caller.read(self.uptr, self.entry_num * self.entry_len)
        return b"".join(entry.to_bytes() for entry in self.entries(struct, data_type))


class Handled:
    """How many entries of an array were carried out: the driver counts, also when it then raises."""

    def __init__(self) -> None:
        self.count = 0


def copy_struct(caller: Caller, va: int, length: int, struct: type[S]) -> S:
    """A structure of `length` bytes at `va`, of which we know `struct.SIZE`. E2BIG: unknown bytes that are not zero."""
    if length > struct.SIZE and any(caller.read(va + struct.SIZE, length - struct.SIZE)):
        raise UapiError(E2BIG, f"bytes after the {struct.SIZE} known ones of {struct.__name__} are not zero")
    raw = caller.read(va, min(length, struct.SIZE))
    return struct.from_bytes(raw.ljust(struct.SIZE, b"\0"))
