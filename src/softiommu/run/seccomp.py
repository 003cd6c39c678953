"""The kernel's user notification of seccomp: the filter, the listener, and what is missing where it does not work.

The filter decides by constants: a call's number, an ioctl's type byte, whether a descriptor is in the high range.
All else runs at native speed. Layouts are those of linux/seccomp.h.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import struct
from contextlib import suppress
from errno import EACCES, EBUSY, EINTR, EINVAL, EMFILE, ENOENT, ENOSYS, EPERM, ESRCH

from softiommu.errors import ConfigError, UapiError
from softiommu.run.syscalls import ALWAYS, AT_OFFSET, AUDIT_ARCH, BETWEEN, HIGH_DESCRIPTOR, X32_BIT, Nr

_libc = ctypes.CDLL(None, use_errno=True)
_ioctl = fcntl.ioctl

_SECCOMP = 317
_SET_MODE_FILTER, _GET_NOTIF_SIZES = 1, 3
_NEW_LISTENER, _WAIT_KILLABLE_RECV = 1 << 3, 1 << 5
_PR_SET_NO_NEW_PRIVS = 38

_RECV, _SEND, _ADDFD, _SET_FLAGS = 0xC0502100, 0xC0182101, 0x40182103, 0x40082104
_SYNC_WAKE_UP = 1
_CONTINUE = 1
_ADDFD_SETFD, _ADDFD_SEND = 1, 2
_NOTIFICATION = struct.Struct("=QIIiIQ6Q")
_NO_NOTIFICATION = bytes(_NOTIFICATION.size)
_RESPONSE = struct.Struct("=QqiI")
_ADDFD_REQUEST = struct.Struct("=QIIII")

_RET_ALLOW, _RET_NOTIFY = 0x7FFF0000, 0x7FC00000
_LD, _JEQ, _JGE, _JSET, _AND, _RET = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
MAP_FIXED, MAP_ANONYMOUS = 0x10, 0x20
MADV_REMOVE = 9
_READ_WRITE = 3
_F_DUPFD, _F_DUPFD_CLOEXEC = 0, 1030
#: KVM_SET_DEVICE_ATTR: how a VMM tells KVM of a VFIO file.
KVM_SET_DEVICE_ATTR = 0x4018AEE1
_IOMMUFD_TYPE = ord(";") << 8
#: Offsets from 1 TiB up are those of VFIO regions, also on a descriptor that was moved to a low number.
_REGION_OFFSET_HIGH = 1 << 8


def _op(code: int, k: int, yes: int = 0, no: int = 0) -> bytes:
    """One BPF instruction; `yes` and `no` are how many instructions a jump skips."""
    return struct.pack("=HBBI", code, yes, no, k)


def _load_argument(index: int, high: bool = False) -> bytes:
    return _op(_LD, 16 + 8 * index + 4 * high)


_ALLOW, _NOTIFY = _op(_RET, _RET_ALLOW), _op(_RET, _RET_NOTIFY)


def _when(number: Nr, body: list[bytes]) -> list[bytes]:
    """`body` (which ends by returning) for call `number`."""
    return [_op(_JEQ, number, 0, len(body)), *body]


def _descriptor_is_high(threshold: int, index: int = 0) -> list[bytes]:
    return [_load_argument(index), _op(_JGE, 1 << 31, 1), _op(_JGE, threshold, 1), _ALLOW, _NOTIFY]


def filter_program(threshold: int) -> bytes:
    """The filter: descriptors from `threshold` up are the high range."""
    high = _descriptor_is_high(threshold)
    program = [_op(_LD, 4), _op(_JEQ, AUDIT_ARCH, 1), _ALLOW]
    program += [_op(_LD, 0), _op(_JGE, X32_BIT, 0, 1), _ALLOW]
    program += _when(
        Nr.IOCTL,
        [
            _load_argument(1),
            _op(_JEQ, KVM_SET_DEVICE_ATTR, 5),
            _op(_AND, 0xFF00),
            # The kernel looks at the pointer before it looks at the type (EFAULT before ENOTTY): the neighbours too.
            _op(_JEQ, _IOMMUFD_TYPE, 3),
            _op(_JEQ, _IOMMUFD_TYPE + 0x100, 2),
            _op(_JEQ, 0, 1),
            _ALLOW,
            _NOTIFY,
        ],
    )
    for number in HIGH_DESCRIPTOR:
        program += _when(number, high)
    for number, argument in AT_OFFSET.items():
        # A negative offset skips to the descriptor's test, as a small one does.
        far = [_op(_JGE, 1 << 31, 2), _op(_JGE, _REGION_OFFSET_HIGH, 0, 1), _NOTIFY]
        program += _when(number, [_load_argument(argument, high=True), *far, *high])
    for number, (one, other) in BETWEEN.items():
        first = [_load_argument(one), _op(_JGE, 1 << 31, 2), _op(_JGE, threshold, 0, 1), _NOTIFY]
        program += _when(number, [*first, *_descriptor_is_high(threshold, other)])
    program += _when(Nr.MADVISE, [_load_argument(2), _op(_JEQ, MADV_REMOVE, 0, 1), _NOTIFY, _ALLOW])
    takes_permission = [_op(_AND, _READ_WRITE), _op(_JEQ, _READ_WRITE, 0, 1), _ALLOW, _NOTIFY]
    fixed = [_op(_JSET, MAP_FIXED, 1), _ALLOW, _load_argument(2), *takes_permission]
    program += _when(Nr.MMAP, [_load_argument(3), _op(_JSET, MAP_ANONYMOUS, 1), _NOTIFY, *fixed])
    for number in (Nr.MPROTECT, Nr.PKEY_MPROTECT):
        program += _when(number, [_load_argument(2), *takes_permission])
    duplicates = [_load_argument(1), _op(_JEQ, _F_DUPFD, 2), _op(_JEQ, _F_DUPFD_CLOEXEC, 1), _ALLOW]
    program += _when(Nr.FCNTL, [*duplicates, *high])
    for number in ALWAYS:
        program += _when(number, [_NOTIFY])
    return b"".join([*program, _ALLOW])


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def install(program: bytes) -> int:
    """Put the filter on this process; the listener's descriptor. Without privilege it sets no_new_privs. OSError."""
    code = ctypes.create_string_buffer(program)
    argument = _Program(len(program) // 8, ctypes.addressof(code))
    flags = _NEW_LISTENER | _WAIT_KILLABLE_RECV
    fd = _seccomp(_SET_MODE_FILTER, flags, argument)
    if fd < 0 and ctypes.get_errno() == EACCES:
        _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        fd = _seccomp(_SET_MODE_FILTER, flags, argument)
    if fd < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return fd


def _seccomp(operation: int, flags: int, argument: ctypes.Structure | ctypes.Array[ctypes.c_uint16]) -> int:
    return int(_libc.syscall(_SECCOMP, operation, flags, ctypes.byref(argument)))


def check_support() -> None:
    """ConfigError unless the kernel can notify a supervisor. Each cause is named."""
    if os.uname().machine != "x86_64":
        raise ConfigError(f"supervision needs an x86-64 machine, this is {os.uname().machine}")
    sizes = (ctypes.c_uint16 * 3)()
    if _seccomp(_GET_NOTIF_SIZES, 0, sizes) < 0:
        raise refusal(ctypes.get_errno())
    if sizes[0] > _NOTIFICATION.size or sizes[1] > _RESPONSE.size:
        raise ConfigError(f"this kernel's seccomp notifications have unknown sizes {list(sizes)}")


def refusal(number: int) -> ConfigError:
    """Why seccomp(2) refused to install the filter, and what to try."""
    kernel = os.uname().release
    reasons = {
        EBUSY: "this process already has a seccomp listener, and a program can have only one\n"
        "hint: start softiommu outside of the sandbox or supervisor that runs it",
        EPERM: "seccomp(2) is forbidden here\nhint: allow it in the container's seccomp profile "
        "(docker run --security-opt seccomp=unconfined)",
        ENOSYS: f"this kernel ({kernel}) has no seccomp user notification\nhint: Linux 5.19 or newer is needed, built "
        "with CONFIG_SECCOMP_FILTER",
        EINVAL: f"this kernel ({kernel}) does not know SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV\n"
        "hint: Linux 5.19 or newer is needed; gVisor and similar sandboxes lack it",
    }
    default = f"seccomp(2) failed: {os.strerror(number)}"
    return ConfigError(f"cannot supervise a program: {reasons.get(number, default)}")


#: A call that waits for its answer: struct seccomp_notif as it is: id, tid, flags, number, arch, address, 6 arguments.
Notification = tuple[int, ...]


class TaskGoneError(Exception):
    """The task that made the call died before the answer."""


class Listener:
    """The supervisor's end: calls come out, answers and descriptors go in."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._buffer = bytearray(_NOTIFICATION.size)
        self._response = bytearray(_RESPONSE.size)
        with suppress(OSError):  # before Linux 6.6
            # Both sides take turns, so the waker's CPU is the right one: 3.9 us a call instead of 62 and more.
            fcntl.ioctl(fd, _SET_FLAGS, _SYNC_WAKE_UP)

    def receive(self) -> Notification | None:
        """The next call; None when the caller died meanwhile, or a signal came."""
        buffer = self._buffer
        buffer[:] = _NO_NOTIFICATION
        try:
            _ioctl(self.fd, _RECV, buffer, True)
        except OSError as error:
            if error.errno in (ENOENT, EINTR):
                return None
            raise
        return _NOTIFICATION.unpack(buffer)

    def hung_up(self) -> bool:
        """Whether nobody is left who could make a call."""
        poller = select.poll()
        poller.register(self.fd, 0)
        return bool(poller.poll(0))

    def answer(self, call: int, value: int, errno: int = 0, flags: int = 0) -> bool:
        """Let the call return `value`, or fail with `errno`. False when the caller died."""
        response = self._response
        _RESPONSE.pack_into(response, 0, call, value, -errno, flags)
        try:
            _ioctl(self.fd, _SEND, response, True)
        except OSError as failure:
            if failure.errno != ENOENT:
                raise
            return False
        return True

    def let_through(self, call: int) -> bool:
        """Let the kernel carry the call out. False when the caller died."""
        return self.answer(call, 0, 0, _CONTINUE)

    def install(self, call: int, fd: int, number: int | None, cloexec: bool, answer: bool) -> int:
        """Give the caller our `fd`, at `number` or the lowest free one; with `answer` as the call's result.

        Returns the number. UapiError EMFILE when the caller's table is full; TaskGoneError when it died.
        """
        flags = (0 if number is None else _ADDFD_SETFD) | (_ADDFD_SEND if answer else 0)
        request = _ADDFD_REQUEST.pack(call, flags, fd, number or 0, os.O_CLOEXEC if cloexec else 0)
        while True:
            try:
                return int(fcntl.ioctl(self.fd, _ADDFD, bytearray(request), True))
            except OSError as error:
                if error.errno in (ENOENT, ESRCH):
                    raise TaskGoneError from error
                if error.errno != EINTR:
                    raise UapiError(error.errno or EMFILE, "the process has no free descriptor") from error
