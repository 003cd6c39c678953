"""One ioctl of a VFIO file: its structure in, and word of it to whoever listens.

VFIO's structures begin with `argsz`, the room that the caller has, and grow at their end.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EINVAL
from typing import TYPE_CHECKING, TypeVar

from softiommu.abi.struct import UserStruct
from softiommu.errors import UapiError
from softiommu.iommufd.context import CallDone

if TYPE_CHECKING:
    from softiommu.iommufd.context import Services
    from softiommu.memory.client import Caller
    from softiommu.memory.files import File

S = TypeVar("S", bound=UserStruct)


class Call:
    """Who calls, and what with."""

    def __init__(self, caller: Caller, arg: int, file: File | None = None) -> None:
        self.caller, self.arg = caller, arg
        #: How to wait for eventfds of the program, where that is possible.
        self.watch = file.watch if file is not None else None
        #: Whether the program still has the eventfd that a descriptor of ours duplicates.
        self.is_held = file.is_held if file is not None else lambda fd: False
        #: Whether accesses of the caller to a mapping can be carried out one by one.
        self.can_trap: Callable[[], bool] = lambda: False
        #: What is told of it: the argument, or the structure that it points to.
        self.seen: UserStruct | int = arg

    def struct(self, kind: type[S]) -> S:
        """The caller's structure as far as every kernel knows it. EFAULT; EINVAL: argsz is less than that."""
        raw = self.caller.read(self.arg, kind.MIN_SIZE)
        cmd = kind.from_bytes(raw.ljust(kind.SIZE, b"\0"))
        self.seen = cmd
        argsz = int.from_bytes(raw[:4], "little")
        if argsz < kind.MIN_SIZE:
            raise UapiError(EINVAL, f"argsz {argsz} is less than the {kind.MIN_SIZE} bytes of {kind.__name__}")
        return cmd

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the structure. EFAULT."""
        return self.caller.read(self.arg + offset, length)

    def write(self, offset: int, data: bytes) -> None:
        """Change bytes of the structure. EFAULT."""
        self.caller.write(self.arg + offset, data)

    def reply(self, cmd: UserStruct, length: int | None = None) -> None:
        """Write the structure back, or its first `length` bytes. EFAULT."""
        self.write(0, cmd.to_bytes()[:length])


def carry_out(services: Services, number: int, name: str, call: Call, handler: Callable[[Call], int | None]) -> int:
    """One ioctl, told to the listener when it is done. `number` is that of the iommufd, 0 without one."""
    listener = services.on_call
    try:
        result = handler(call) or 0
    except UapiError as error:
        if listener is not None:
            listener(CallDone(number, call.caller, name, call.seen, -1, error))
        raise
    if listener is not None:
        listener(CallDone(number, call.caller, name, call.seen, result, None))
    return result
