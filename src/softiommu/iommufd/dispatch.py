"""One ioctl: which command it is, its structure in and out, and the object it makes.

Size rules, zero tails, unknown numbers and copying back are here, once. Handlers see a valid structure and answer by
changing its fields, or by raising a UapiError.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import E2BIG, EINVAL, ENOTTY
from typing import TYPE_CHECKING, Any, NamedTuple

from softiommu.errors import UapiError
from softiommu.iommufd.context import CallDone, Context

if TYPE_CHECKING:
    from softiommu.abi.struct import UserStruct
    from softiommu.memory.client import Caller
    from softiommu.memory.files import File

BASE = 0x80


class Answer(NamedTuple):
    """A handler's result for a command with a new descriptor: makes its file, as the reply goes out."""

    open: Callable[[], File]


class Command(NamedTuple):
    """A row of the ioctl table. `handler` may return the ioctl's result when that is not 0."""

    name: str
    struct: type[UserStruct]
    handler: Callable[[Context, Any], Answer | int | None]
    #: Whether the structure is copied back when the handler returns.
    replies: bool = True
    #: The field for the number of a new descriptor, where the command makes one.
    fd_field: str | None = None


def ioctl(ctx: Context, caller: Caller, cmd: int, arg: int) -> int:
    """Answer one ioctl of an iommufd file: its return value, or UapiError."""
    services = ctx.services
    command = services.commands.get(cmd)
    if command is not None and services.on_call is None:
        return _ioctl(ctx, caller, command, arg, None)
    nr = cmd & 0xFF
    if nr < BASE or nr > services.last_number:
        return services.vfio_ioctl(ctx, caller, cmd, arg)
    name = command.name if command else f"{cmd:#x}"
    seen: list[UserStruct] = []
    try:
        result = _ioctl(ctx, caller, command, arg, seen) if command else _unknown(caller, cmd, arg)
    except UapiError as error:
        _tell(ctx, caller, name, seen, -1, error)
        raise
    _tell(ctx, caller, name, seen, result, None)
    return result


def execute(ctx: Context, caller: Caller, cmd: int, struct: UserStruct) -> int:
    """Carry out a command whose structure is already here (the in-process face); fields are answered in place."""
    command = ctx.services.commands.get(cmd)
    if command is None or type(struct) is not command.struct:
        raise UapiError(ENOTTY, f"there is no command {cmd:#x} on a {ctx.kernel.name} kernel")
    if ctx.services.on_call is None:
        return ctx.run(caller, _carry_out, ctx, command, struct, None)
    try:
        result = ctx.run(caller, _carry_out, ctx, command, struct, None)
    except UapiError as error:
        _tell(ctx, caller, command.name, [struct], -1, error)
        raise
    _tell(ctx, caller, command.name, [struct], result, None)
    return result


def _ioctl(ctx: Context, caller: Caller, command: Command, arg: int, seen: list[UserStruct] | None) -> int:
    kind = command.struct
    struct, size = _copy_in(caller, kind, arg)
    if seen is not None:
        seen.append(struct)
    return ctx.run(caller, _carry_out, ctx, command, struct, (arg, min(size, kind.SIZE)))


def _carry_out(ctx: Context, command: Command, struct: UserStruct, reply: tuple[int, int] | None) -> int:
    ctx.reply_to = reply
    answer = command.handler(ctx, struct)
    if isinstance(answer, Answer):
        assert command.fd_field is not None, f"{command.name} makes no descriptor"
        # The reply is tried before the descriptor exists: an EFAULT must not leave one behind.
        ctx.respond(struct)
        setattr(struct, command.fd_field, _install(ctx.caller, answer.open()))
        answer = None
    if command.replies:
        ctx.respond(struct)
    return answer or 0


def _install(caller: Caller, file: File) -> int:
    try:
        return caller.install(file)
    except UapiError:
        file.release()
        raise


def _copy_in(caller: Caller, struct: type[UserStruct], arg: int) -> tuple[UserStruct, int]:
    """The caller's structure and its size. EFAULT; EINVAL: too short; E2BIG: unknown bytes that are not zero."""
    known = struct.SIZE
    try:
        raw = caller.read(arg, known)
    except UapiError:
        # A shorter structure may end at the end of a page.
        raw = caller.read(arg, 4)
    size = int.from_bytes(raw[:4], "little")
    if size < struct.MIN_SIZE:
        raise UapiError(EINVAL, f"{struct.__name__} has size {size}, at least {struct.MIN_SIZE} are needed")
    if size == known == len(raw):
        return struct.from_bytes(raw), size
    if size > known:
        _check_tail(caller, arg + known, size - known, struct)
    if len(raw) < min(size, known):
        raw = raw + caller.read(arg + len(raw), min(size, known) - len(raw))
    return struct.from_bytes(raw[: min(size, known)].ljust(known, b"\0")), size


_CHUNK = 1 << 16


def _check_tail(caller: Caller, va: int, length: int, struct: type[UserStruct]) -> None:
    """EFAULT, or E2BIG at the first byte that is not zero: in the order of the addresses."""
    while length:
        step = min(length, _CHUNK - va % _CHUNK)
        if any(_readable(caller, va, step)):
            raise UapiError(E2BIG, f"bytes after the {struct.SIZE} known ones of {struct.__name__} are not zero")
        va, length = va + step, length - step


def _readable(caller: Caller, va: int, length: int) -> bytes:
    """The bytes at `va`; when not all can be read, those before the first bad page if they decide the matter."""
    try:
        return caller.read(va, length)
    except UapiError:
        head = min(length, -va % 4096 or 4096)
        first = caller.read(va, head)
        if any(first) or head == length:
            return first
        return _readable(caller, va + head, length - head)


def _unknown(caller: Caller, cmd: int, arg: int) -> int:
    caller.read(arg, 4)
    raise UapiError(ENOTTY, f"there is no iommufd command {cmd:#x}")


def _tell(
    ctx: Context, caller: Caller, name: str, seen: list[UserStruct], result: int, error: UapiError | None
) -> None:
    listener = ctx.services.on_call
    if listener is not None:
        listener(CallDone(ctx.number, caller, name, seen[0] if seen else None, result, error))
