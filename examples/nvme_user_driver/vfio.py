"""A PCI device in the hands of a program: VFIO for its registers and interrupts, iommufd for what it may reach.

The numbers are those of linux/vfio.h and linux/iommufd.h; every structure begins with its own size. A device is found
by its PCI address in sysfs, and taken by its own node (`/dev/vfio/devices/vfioN`), not by its group.
"""

import ctypes
import fcntl
import mmap
import os
import select
import struct
from pathlib import Path

IOAS_ALLOC, IOAS_MAP = 0x3B81, 0x3B85
READABLE, WRITEABLE = 4, 2
BIND, ATTACH = 0x3B76, 0x3B77
GET_REGION_INFO, GET_IRQ_INFO, SET_IRQS = 0x3B6C, 0x3B6D, 0x3B6E
REGION_MMAP, REGION_CAPS, SPARSE_MMAP = 4, 8, 1
MSIX = 2
DATA_NONE, DATA_EVENTFD, TRIGGER = 1, 4, 0x20
CONFIG = 7
COMMAND, MEMORY_SPACE, BUS_MASTER, CLASS = 4, 2, 4, 8
PAGE = 4096
WORDS = {1: ctypes.c_uint8, 2: ctypes.c_uint16, 4: ctypes.c_uint32, 8: ctypes.c_uint64}


class DriverError(Exception):
    """What went wrong, in a sentence for whoever started the driver."""


def call(fd: int, command: int, layout: str, *values: int, what: str) -> tuple[int, ...]:
    """One ioctl: its structure starts with its own size. The fields as the kernel left them."""
    data = bytearray(struct.pack(layout, struct.calcsize(layout), *values))
    try:
        fcntl.ioctl(fd, command, data)
    except OSError as error:
        raise DriverError(f"cannot {what}: {error.strerror}") from error
    return struct.unpack(layout, data)


def open_node(path: str) -> int:
    """A device node, open for reading and writing."""
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise DriverError(f"cannot open {path}: {error.strerror}") from error


class Dma:
    """Memory that the program and its devices share: `memory` for the one, `iova` for the others."""

    def __init__(self, memory: mmap.mmap, iova: int) -> None:
        self.memory, self.iova = memory, iova


class AddressSpace:
    """An I/O address space: devices that are attached to it reach what is mapped in it, and nothing else."""

    def __init__(self) -> None:
        self.iommufd = open_node("/dev/iommu")
        self.id = call(self.iommufd, IOAS_ALLOC, "=III", 0, 0, what="make an I/O address space")[2]

    def allocate(self, size: int) -> Dma:
        """Zeroed pages, mapped where the kernel finds room: it knows which addresses the hardware reserves."""
        size = -(-size // PAGE) * PAGE
        memory = mmap.mmap(-1, size)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        what = f"map {size >> 10} KiB for DMA"
        flags = READABLE | WRITEABLE
        return Dma(memory, call(self.iommufd, IOAS_MAP, "=IIIIQQQ", flags, self.id, 0, address, size, 0, what=what)[6])

    def close(self) -> None:
        """Everything in it goes with the file, once no device holds it."""
        os.close(self.iommufd)


def find_node(address: str) -> str:
    """The VFIO node of the device at a PCI address."""
    folder = Path("/sys/bus/pci/devices") / address
    if not folder.exists():
        raise DriverError(f"there is no PCI device at {address}: addresses look like 0000:00:07.0")
    driver = os.path.basename(os.readlink(folder / "driver")) if (folder / "driver").exists() else "no driver"
    nodes = sorted(folder.glob("vfio-dev/vfio*"))
    if not nodes:
        raise DriverError(
            f"VFIO does not have {address}: {driver} does\n"
            f"hint: echo vfio-pci > {folder}/driver_override; echo {address} > {folder}/driver/unbind; "
            f"echo {address} > /sys/bus/pci/drivers_probe"
        )
    return f"/dev/vfio/devices/{nodes[0].name}"


class Region:
    """A window of a device: a BAR or configuration space. What can be mapped, is; the rest takes a system call."""

    def __init__(self, fd: int, index: int) -> None:
        self._fd = fd
        layout, what = "=IIIIQQ", f"ask for region {index}"
        size, flags, _, _, self.size, self._offset = call(fd, GET_REGION_INFO, layout, 0, index, 0, 0, 0, what=what)
        if not self.size:
            raise DriverError(f"the device has no region {index}")
        self._maps: list[tuple[int, mmap.mmap]] = []
        areas = self._sparse_areas(index, size) if flags & REGION_CAPS else None
        if flags & REGION_MMAP:
            for first, length in [(0, self.size)] if areas is None else areas:
                self._maps.append((first, mmap.mmap(fd, length, offset=self._offset + first)))

    def _sparse_areas(self, index: int, size: int) -> list[tuple[int, int]] | None:
        """Which parts can be mapped, where the kernel says so: a chain of capabilities behind the structure."""
        raw = bytearray(struct.pack("=IIIIQQ", size, 0, index, 0, 0, 0).ljust(size, b"\0"))
        fcntl.ioctl(self._fd, GET_REGION_INFO, raw)
        at = struct.unpack_from("=I", raw, 12)[0]
        while at:
            kind, _, following = struct.unpack_from("=HHI", raw, at)
            if kind == SPARSE_MMAP:
                count = struct.unpack_from("=I", raw, at + 8)[0]
                return [struct.unpack_from("=QQ", raw, at + 16 + 16 * n) for n in range(count)]
            at = following
        return None

    @property
    def mapped(self) -> bool:
        """Whether any of it is in the program's own address space."""
        return bool(self._maps)

    def _word(self, at: int, width: int) -> ctypes._SimpleCData | None:
        """The register in a mapping: reading and writing its value is one access of `width` bytes."""
        for first, pages in self._maps:
            if first <= at and at + width <= first + len(pages):
                return WORDS[width].from_buffer(pages, at - first)
        return None

    def read(self, at: int, width: int) -> int:
        """The register of `width` bytes at an offset."""
        word = self._word(at, width)
        if word is not None:
            return word.value
        return int.from_bytes(os.pread(self._fd, width, self._offset + at), "little")

    def write(self, at: int, width: int, value: int) -> None:
        """Store to the register of `width` bytes at an offset."""
        word = self._word(at, width)
        if word is not None:
            word.value = value
        else:
            os.pwrite(self._fd, value.to_bytes(width, "little"), self._offset + at)


class PciDevice:
    """A PCI device that is bound to an address space, and may do DMA in it."""

    def __init__(self, address: str, space: AddressSpace) -> None:
        self.address, node = address, find_node(address)
        self.fd = open_node(node)
        call(self.fd, BIND, "=IIiI", 0, space.iommufd, 0, what=f"bind {address} to the iommufd")
        call(self.fd, ATTACH, "=III", 0, space.id, what=f"attach {address} to the I/O address space")
        self.config = Region(self.fd, CONFIG)
        #: Base class, subclass and programming interface.
        self.class_code = self.config.read(CLASS, 4) >> 8
        self.config.write(COMMAND, 2, self.config.read(COMMAND, 2) | MEMORY_SPACE | BUS_MASTER)
        self._events: list[int] = []

    def vectors(self) -> int:
        """How many MSI-X vectors it has."""
        return call(self.fd, GET_IRQ_INFO, "=IIII", 0, MSIX, 0, what="ask for interrupts")[3]

    def enable_vectors(self, count: int) -> list[int]:
        """Turn `count` MSI-X vectors on: an eventfd for each, which becomes readable when it fires."""
        self._events = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(count)]
        flags, what = DATA_EVENTFD | TRIGGER, f"enable {count} MSI-X vectors"
        call(self.fd, SET_IRQS, f"=IIIII{count}i", flags, MSIX, 0, count, *self._events, what=what)
        return self._events

    def close(self) -> None:
        """No interrupts, no DMA; closing the file detaches and unbinds the device, and the kernel resets it."""
        if self._events:
            call(self.fd, SET_IRQS, "=IIIII", DATA_NONE | TRIGGER, MSIX, 0, 0, what="disable MSI-X")
        self.config.write(COMMAND, 2, self.config.read(COMMAND, 2) & ~BUS_MASTER)
        os.close(self.fd)
        for event in self._events:
            os.close(event)


def wait_for_event(event: int, seconds: float) -> bool:
    """Sleep until an eventfd fires, at most so long; whether it did."""
    poller = select.poll()
    poller.register(event, select.POLLIN)
    if not poller.poll(seconds * 1000):
        return False
    os.eventfd_read(event)
    return True
