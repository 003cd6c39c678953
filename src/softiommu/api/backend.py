"""The two back ends of the Python face: a soft machine in this process, and plain ioctls on a device node."""

from __future__ import annotations

import fcntl
import mmap
import os
import select
from errno import ENOENT
from typing import TYPE_CHECKING, Protocol, TypeVar

from softiommu.errors import UapiError
from softiommu.memory.files import MmapRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from softiommu.abi.struct import UserStruct
    from softiommu.iommufd.context import Context
    from softiommu.machine.assemble import Machine

T = TypeVar("T")
_PAGE = mmap.PAGESIZE
_RW_SHARED = (mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED)


class Backend(Protocol):
    """What the classes of this package need of an open iommufd. Every refusal is an OSError with a sentence."""

    @property
    def number(self) -> int:
        """The descriptor of the iommufd."""
        ...

    @property
    def nodes(self) -> dict[str, str]:
        """The nodes of the machine's devices, by their names; empty where nobody names them."""
        ...

    def call(self, name: str, cmd: int, struct: UserStruct) -> int:
        """Carry out a command; its answer is in `struct` and the return value."""
        ...

    def open_node(self, path: str) -> int:
        """Open another device node: its descriptor."""
        ...

    def ioctl(self, fd: int, name: str, cmd: int, struct: UserStruct | None) -> int:
        """The same as `call` on such a descriptor; without a structure the argument is 0."""
        ...

    def pread(self, fd: int, count: int, offset: int) -> bytes:
        """pread(2) of such a descriptor."""
        ...

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        """pwrite(2) to such a descriptor."""
        ...

    def read(self, fd: int, count: int) -> bytes:
        """read(2) of a descriptor that a command made."""
        ...

    def write(self, fd: int, data: bytes) -> int:
        """write(2) to a descriptor that a command made."""
        ...

    def poll(self, fd: int) -> int:
        """The ready events of a descriptor now (select.POLLIN | select.POLLOUT)."""
        ...

    def close_fd(self, fd: int) -> None:
        """Close a descriptor that a command made."""
        ...

    def mmap(self, offset: int, length: int) -> mmap.mmap:
        """Map a region of the iommufd file, shared, to read and write."""
        ...

    def close(self) -> None:
        """Close the iommufd."""
        ...


class SoftBackend:
    """An open `/dev/iommu` of a machine in this process. Structures are handed over without a copy."""

    def __init__(self, machine: Machine) -> None:
        from softiommu.iommufd.dispatch import execute
        from softiommu.memory.local import LocalCaller

        self.machine = machine
        self._caller = LocalCaller()
        self._file = machine.open_iommu(self._caller, os.O_RDWR)
        #: Taken when a device is bound.
        self._number: int | None = None
        self._context = self._file.context
        #: What comes before the end of the file: devices that have no descriptor are given back.
        self.on_close: list[Callable[[], None]] = []
        self._execute = execute

    def call(self, name: str, cmd: int, struct: UserStruct) -> int:
        """Carry out a command. UapiError says why one is refused."""
        return self._execute(self._context, self._caller, cmd, struct)

    @property
    def number(self) -> int:
        """A descriptor of the iommufd."""
        if self._number is None:
            self._number = self._caller.install(self._file)
        return self._number

    @property
    def nodes(self) -> dict[str, str]:
        """The nodes of the machine's devices, by name and by PCI address."""
        return self.machine.device_nodes()

    def open_node(self, path: str) -> int:
        """Open a node of the machine. ENOENT."""
        from softiommu.machine.nodes import Node

        entry = self.machine.entries.get(path)
        if not isinstance(entry, Node):
            raise UapiError(ENOENT, f"machine {self.machine.description.name} has no node {path}")
        return self._caller.install(entry.open(self._caller, os.O_RDWR))

    def ioctl(self, fd: int, name: str, cmd: int, struct: UserStruct | None) -> int:
        """An ioctl of a file that `open_node` gave."""
        file = self._caller.files[fd]
        if struct is None:
            return file.ioctl(self._caller, cmd, 0)
        raw = bytearray(struct.to_bytes())
        try:
            return file.ioctl(self._caller, cmd, address_of(raw))
        finally:
            _take_over(struct, raw)

    def pread(self, fd: int, count: int, offset: int) -> bytes:
        """Read a file that `open_node` gave."""
        buffer = mmap.mmap(-1, max(count, 1))
        done = self._caller.files[fd].read(self._caller, address_of(buffer), count, offset)
        return buffer[:done]

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        """Write a file that `open_node` gave."""
        buffer = mmap.mmap(-1, max(len(data), 1))
        buffer[: len(data)] = data
        return self._caller.files[fd].write(self._caller, address_of(buffer), len(data), offset)

    def read(self, fd: int, count: int) -> bytes:
        """What a queue holds now, in a buffer of `count` bytes."""
        buffer = mmap.mmap(-1, max(count, 1))
        done = self._caller.files[fd].read(self._caller, address_of(buffer), count)
        return buffer[:done]

    def write(self, fd: int, data: bytes) -> int:
        """Answer a queue."""
        buffer = mmap.mmap(-1, max(len(data), 1))
        buffer[: len(data)] = data
        return self._caller.files[fd].write(self._caller, address_of(buffer), len(data))

    def poll(self, fd: int) -> int:
        """The ready events now."""
        return self._caller.files[fd].poll()

    def close_fd(self, fd: int) -> None:
        """Close a queue's descriptor."""
        self._caller.close(fd)

    def mmap(self, offset: int, length: int) -> mmap.mmap:
        """A region's pages. Close the result before the object that the region belongs to is destroyed."""
        rounded = -(-length // _PAGE) * _PAGE
        self._file.mmap(self._caller, MmapRequest(rounded, offset, *_RW_SHARED))
        fd = self._file.pages_fd()
        self._file.is_mapped = self._caller.maps_file(fd)
        return mmap.mmap(fd, length, mmap.MAP_SHARED, offset=offset)

    def run(self, handler: Callable[[Context], T]) -> T:
        """Carry something out as a call on the iommufd. UapiError."""
        return self._context.run(self._caller, handler, self._context)

    def close(self) -> None:
        """Close every descriptor, and so the machine's objects of this file."""
        for give_back in list(self.on_close):
            give_back()
        for fd in list(self._caller.files):
            self._caller.close(fd)
        if self._number is None:
            self._file.release()


class KernelBackend:
    """A device node, by system calls: a real kernel's, or one that `softiommu run` shows."""

    def __init__(self, path: str = "/dev/iommu") -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def call(self, name: str, cmd: int, struct: UserStruct) -> int:
        """ioctl(2). The kernel gives no sentence, so the error names the command and its arguments."""
        return self.ioctl(self._fd, name, cmd, struct)

    @property
    def number(self) -> int:
        """The descriptor of the iommufd."""
        return self._fd

    @property
    def nodes(self) -> dict[str, str]:
        """A kernel names devices by their PCI addresses alone."""
        return {}

    def open_node(self, path: str) -> int:
        """open(2)"""
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def ioctl(self, fd: int, name: str, cmd: int, struct: UserStruct | None) -> int:
        """ioctl(2)"""
        raw = bytearray(struct.to_bytes() if struct is not None else b"")
        try:
            result = fcntl.ioctl(fd, cmd, raw if struct is not None else 0)
        except OSError as error:
            raise UapiError(error.errno or 0, f"{name} refused: {error.strerror}: {struct}") from error
        finally:
            if struct is not None:
                _take_over(struct, raw)
        return int(result)

    def pread(self, fd: int, count: int, offset: int) -> bytes:
        """pread(2)"""
        return os.pread(fd, count, offset)

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        """pwrite(2)"""
        return os.pwrite(fd, data, offset)

    def read(self, fd: int, count: int) -> bytes:
        """read(2)"""
        return os.read(fd, count)

    def write(self, fd: int, data: bytes) -> int:
        """write(2)"""
        return os.write(fd, data)

    def poll(self, fd: int) -> int:
        """poll(2) without waiting"""
        poller = select.poll()
        poller.register(fd, select.POLLIN | select.POLLOUT)
        return dict(poller.poll(0)).get(fd, 0)

    def close_fd(self, fd: int) -> None:
        """close(2)"""
        os.close(fd)

    def mmap(self, offset: int, length: int) -> mmap.mmap:
        """mmap(2)"""
        return mmap.mmap(self._fd, length, mmap.MAP_SHARED, offset=offset)

    def close(self) -> None:
        """close(2)"""
        os.close(self._fd)


def _take_over(struct: UserStruct, raw: bytearray) -> None:
    """Fill a structure with the bytes that a call left."""
    answer = type(struct).from_bytes(bytes(raw))
    for field in struct.FIELDS:
        setattr(struct, field, getattr(answer, field))


def address_of(buffer: object) -> int:
    """The address of a writable buffer's first byte."""
    import ctypes

    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))  # type: ignore[arg-type]  # any writable buffer
