"""ptrace(2) as far as accesses to mappings without pages need it: seize, look at a stopped task, let it go on.

Requests, events and layouts are those of linux/ptrace.h and sys/user.h for x86-64. Only the thread that seized a task
may make requests about it, and only while it is stopped; a task that was killed meanwhile answers ProcessLookupError.
"""

from __future__ import annotations

import ctypes
import os
import signal
from contextlib import suppress
from typing import NamedTuple

_libc = ctypes.CDLL(None, use_errno=True)
_ptrace = _libc.ptrace
_ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_ptrace.restype = ctypes.c_long

_CONT, _GETREGS, _SETREGS, _DETACH = 7, 12, 13, 17
_GETEVENTMSG, _GETSIGINFO, _SEIZE, _INTERRUPT, _LISTEN = 0x4201, 0x4202, 0x4206, 0x4207, 0x4208
_GETREGSET, _SETREGSET, _NT_X86_XSTATE = 0x4204, 0x4205, 0x202
#: Of the image that XSAVE makes, in bytes: 11 KiB where matrices have registers, too.
_MOST_SAVED = 1 << 16
#: Report fork, vfork, clone and exec, and seize what they make.
_OPTIONS = 2 | 4 | 8 | 16
EVENT_EXEC, EVENT_STOP = 4, 128
#: Of waitpid(2): children made by clone(2) as well.
WALL = 0x40000000
#: si_code of a SIGBUS that an access without a page raised.
BUS_ADRERR = 2

#: The general registers of struct user_regs_struct, in its order.
REGISTERS = (
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi",
    "orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs",
)  # fmt: skip
Registers = ctypes.Array[ctypes.c_uint64]
_REGISTERS = ctypes.c_uint64 * len(REGISTERS)
_SIGINFO_SIZE, _SI_CODE, _SI_ADDR = 128, 8, 16


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class Fault(NamedTuple):
    """What a signal says of itself: its cause, and the address where there is one."""

    code: int
    address: int


def _request(request: int, tid: int, address: int = 0, data: object = None) -> None:
    if _ptrace(request, tid, address, data) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def seize(tid: int) -> None:
    """Trace a task, and what it makes. It goes on running. OSError: EPERM where that is not allowed."""
    _request(_SEIZE, tid, 0, _OPTIONS)


def interrupt(tid: int) -> None:
    """Stop a traced task soon. ProcessLookupError."""
    _request(_INTERRUPT, tid)


def listen(tid: int) -> None:
    """Leave a task that job control stopped as it is, until that ends. ProcessLookupError."""
    _request(_LISTEN, tid)


def resume(tid: int, number: int) -> None:
    """Let a stopped task go on, with a signal where that is not 0. ProcessLookupError."""
    _request(_CONT, tid, 0, number)


def detach(tid: int, number: int) -> None:
    """Let a stopped task go on, and trace it no longer. ProcessLookupError."""
    _request(_DETACH, tid, 0, number)


def registers(tid: int) -> Registers:
    """The general registers of a stopped task. ProcessLookupError."""
    buffer = _REGISTERS()
    _request(_GETREGS, tid, 0, ctypes.addressof(buffer))
    return buffer


def set_registers(tid: int, values: Registers) -> None:
    """Set them. ProcessLookupError."""
    _request(_SETREGS, tid, 0, ctypes.addressof(values))


def vectors(tid: int) -> bytearray:
    """The image of all registers that XSAVE saves, of a stopped task. OSError: there is none."""
    image = bytearray(_MOST_SAVED)
    held = (ctypes.c_char * len(image)).from_buffer(image)
    vector = _Iovec(ctypes.addressof(held), len(image))
    _request(_GETREGSET, tid, _NT_X86_XSTATE, ctypes.addressof(vector))
    del held
    return image[: vector.length]


def set_vectors(tid: int, image: bytearray) -> None:
    """Set them. ProcessLookupError."""
    held = (ctypes.c_char * len(image)).from_buffer(image)
    vector = _Iovec(ctypes.addressof(held), len(image))
    _request(_SETREGSET, tid, _NT_X86_XSTATE, ctypes.addressof(vector))


def fault(tid: int) -> Fault:
    """The signal that a task is stopped for. ProcessLookupError."""
    buffer = ctypes.create_string_buffer(_SIGINFO_SIZE)
    _request(_GETSIGINFO, tid, 0, ctypes.addressof(buffer))
    code = int.from_bytes(buffer.raw[_SI_CODE : _SI_CODE + 4], "little", signed=True)
    return Fault(code, int.from_bytes(buffer.raw[_SI_ADDR : _SI_ADDR + 8], "little"))


def event_message(tid: int) -> int:
    """What belongs to an event: after an exec, the number that the task had before. ProcessLookupError."""
    message = ctypes.c_ulong()
    _request(_GETEVENTMSG, tid, 0, ctypes.addressof(message))
    return message.value


def refusal() -> str:
    """Why no process can be traced here; nothing where it can. Tried on a process of our own."""
    child = os.fork()
    if child == 0:
        try:
            signal.pause()
        finally:
            os._exit(0)
    try:
        seize(child)
    except OSError as error:
        return f"ptrace(2) is refused here: {error.strerror}" + _yama()
    finally:
        os.kill(child, signal.SIGKILL)
        with suppress(ChildProcessError):  # the watcher was first
            os.waitpid(child, WALL)
    return ""


def _yama() -> str:
    try:
        with open("/proc/sys/kernel/yama/ptrace_scope") as file:
            scope = file.read().strip()
    except OSError:
        scope = "0"
    if scope in ("0", "1"):
        return " (a container may forbid it: docker run --cap-add SYS_PTRACE)"
    return f" (kernel.yama.ptrace_scope is {scope}; 1 suffices)"
