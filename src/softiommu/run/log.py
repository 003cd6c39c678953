"""The call log of `softiommu run --log FILE`: one line for each call that a file of ours answered.

12 dma_test[4711] IOAS_MAP(flags=7 iova=0x10000 length=0x1000) = 0
13 dma_test[4711] IOAS_MAP(...) = -EEXIST: iova 0x10000..0x10fff overlaps ...
14 nvme0: command 0x2 of queue 1 (opcode 0x02) fails: LBA_OUT_OF_RANGE: ...
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import IntEnum, IntFlag
from errno import errorcode
from typing import TYPE_CHECKING, Protocol, TextIO

from softiommu.abi import iommufd_enums as abi
from softiommu.abi.struct import UserStruct
from softiommu.errors import UapiError

if TYPE_CHECKING:
    from softiommu.memory.client import Caller
    from softiommu.memory.files import File


class Done(Protocol):
    """An ioctl as its file answered it: what a dispatcher's listener is given (iommufd's CallDone, for one)."""

    @property
    def caller(self) -> Caller:
        """Who made the call."""
        ...

    @property
    def name(self) -> str:
        """The command."""
        ...

    @property
    def cmd(self) -> object:
        """The structure, answered; None where it could not be read; or a number."""
        ...

    @property
    def result(self) -> int:
        """What the call returned, when it did not fail."""
        ...

    @property
    def error(self) -> UapiError | None:
        """Why it failed."""
        ...


class Note:
    """The result of a call in progress."""

    result = 0


class CallLog:
    """Writes the lines, numbered from 1."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._count = 0
        #: How many of the lines are of calls.
        self._calls = 0

    def call(
        self, caller: str, kind: str, command: str, fields: Mapping[str, object], outcome: int | UapiError
    ) -> None:
        """One call: who, on what kind of file, which command with which fields, and its result."""
        self._count += 1
        self._calls += 1
        text = " ".join(f"{name}={value}" for name, value in fields.items())
        prefix = "" if kind == "iommufd" else f"{kind}: "
        print(f"{self._count} {caller} {prefix}{command}({text}) = {_outcome(outcome)}", file=self._stream, flush=True)

    def on_call(self, done: Done) -> None:
        """The listener for a dispatcher that names its commands (`Services.on_call`)."""
        self.call(done.caller.name, "iommufd", done.name, describe(done.cmd), done.error or done.result)

    def refusal(self, device: str, why: str) -> None:
        """What a device refuses its driver: between the calls, since no call says it."""
        self._count += 1
        print(f"{self._count} {device}: {why}", file=self._stream, flush=True)

    def ioctl(self, caller: Caller, file: File, cmd: int, arg: int) -> int:
        """Carry out an ioctl; it gets a line of its own unless the file's dispatcher wrote one (`on_call`)."""
        before = self._calls
        outcome: int | UapiError = 0
        try:
            outcome = result = file.ioctl(caller, cmd, arg)
        except UapiError as error:
            outcome = error
            raise
        finally:
            if self._calls == before:
                self.call(caller.name, file.kind, "ioctl", {"cmd": hex(cmd), "arg": hex(arg)}, outcome)
        return result

    @contextmanager
    def noted(self, caller: str, kind: str, command: str, fields: Mapping[str, object]) -> Iterator[Note]:
        """Write the line of a call when the block ends; the block stores the result in the note."""
        note = Note()
        try:
            yield note
        except UapiError as error:
            self.call(caller, kind, command, fields, error)
            raise
        self.call(caller, kind, command, fields, note.result)


def _outcome(outcome: int | UapiError) -> str:
    if isinstance(outcome, UapiError):
        return f"-{errorcode.get(outcome.errno, outcome.errno)}: {outcome.why}"
    return str(outcome)


#: What the numbers of a field mean: a class of the ABI for a structure's field.
_MEANINGS: dict[tuple[str, str], type[IntEnum] | type[IntFlag]] = {
    ("IoasMap", "flags"): abi.IoasMapFlags,
    ("IoasMapFile", "flags"): abi.IoasMapFlags,
    ("IoasCopy", "flags"): abi.IoasMapFlags,
    ("HwptAlloc", "flags"): abi.HwptAllocFlags,
    ("HwptAlloc", "data_type"): abi.HwptDataType,
    ("HwInfo", "flags"): abi.HwInfoFlags,
    ("HwInfo", "data_type"): abi.HwInfoType,
    ("HwptSetDirtyTracking", "flags"): abi.SetDirtyTrackingFlags,
    ("HwptGetDirtyBitmap", "flags"): abi.GetDirtyBitmapFlags,
    ("HwptInvalidate", "data_type"): abi.InvalidateDataType,
    ("Option", "option_id"): abi.OptionId,
    ("Option", "op"): abi.OptionOp,
    ("VfioIoas", "op"): abi.VfioIoasOp,
}
_DECIMAL = ("id", "num", "fd", "len", "count", "depth", "index", "type")


def describe(cmd: object) -> dict[str, str]:
    """The fields of a structure that say something: those that are not 0 or have a name, without size and padding."""
    if not isinstance(cmd, UserStruct):
        return {}
    told, meanings = {}, _meanings(type(cmd))
    for name in cmd.FIELDS:
        value, meaning = getattr(cmd, name), meanings.get((type(cmd).__name__, name))
        if name in ("size", "argsz") or name.startswith(("reserved", "pad")):
            continue
        if meaning is not None and issubclass(meaning, IntEnum):
            told[name] = _member(meaning, value)
        elif value and meaning is not None:
            told[name] = _flags(meaning, value)
        elif value:
            told[name] = hex(value) if isinstance(value, int) and not name.endswith(_DECIMAL) else str(value)
    return told


def _meanings(kind: type[UserStruct]) -> Mapping[tuple[str, str], type[IntEnum] | type[IntFlag]]:
    if not kind.__module__.endswith(".vfio_structs"):
        return _MEANINGS
    from softiommu.run.log_vfio import MEANINGS

    return MEANINGS


def _member(meaning: type[IntEnum], value: int) -> str:
    return meaning(value).name if value in meaning.__members__.values() else hex(value)


def _flags(meaning: type[IntFlag], value: int) -> str:
    """The names of the bits, and what has none as a number."""
    names = [str(flag.name) for flag in meaning if flag & value]
    unknown = value & ~sum(meaning)
    return "|".join(names + [hex(unknown)] * bool(unknown))
