"""A user-space driver of an Intel I/OAT DMA engine, as it would be for real hardware: nothing here knows of softiommu.

    softiommu run --machine examples/ioat.toml -- python3 examples/ioat_copy.py

It takes the engine through VFIO, and maps one buffer for it: a chain of descriptors, a word for completions, and data.
The engine fills and copies, tells by an interrupt that it has ended, and is then sent to an address where nothing is.
Standard library only; the numbers are those of linux/vfio.h, linux/iommufd.h and Linux's ioatdma driver.
"""

import ctypes
import fcntl
import mmap
import os
import select
import struct
import sys
from pathlib import Path

IOAS_ALLOC, IOAS_MAP = 0x3B81, 0x3B85
REGION_INFO, SET_IRQS, BIND, ATTACH = 0x3B6C, 0x3B6E, 0x3B76, 0x3B77
FIXED_IOVA, WRITEABLE, READABLE = 1, 2, 4
BAR0, CONFIG, MSIX, EVENTFD_TRIGGER = 0, 7, 2, 0x24

INTRCTRL, CHANCTRL, CHANCMD, DMACOUNT, CHANSTS, CHAINADDR, CHANCMP, CHANERR = (
    *(0x03, 0x80, 0x84, 0x86, 0x88, 0x90, 0x98, 0xA8),
)
RESET, ON_ERROR_COMPLETE_AND_INTERRUPT, REARM = 0x20, 0x14, 0x01
COPY, FILL, INTERRUPT, COMPLETE = 0, 1 << 24, 1, 8
STATES = ("active", "idle", "suspended", "halted", "armed")
ERRORS = ("source address", "destination address", "next address", "next alignment", "chain address", "command",
          "chipset", "DMA integrity", "read data", "write data", "control", "length", "completion address")  # fmt: skip

IOVA, SIZE, PAGE = 0x100000, 64 * 1024, 4096
CHAIN, DONE, DATA = 0x0000, 0x1000, 0x2000  # in the buffer


def call(fd: int, command: int, layout: str, *values: int) -> tuple[int, ...]:
    """One ioctl: its structure starts with its own size. The fields as the kernel left them."""
    data = bytearray(struct.pack(layout, struct.calcsize(layout), *values))
    fcntl.ioctl(fd, command, data)
    return struct.unpack(layout, data)


def find_ioat() -> str:
    """The device node of the first engine (8086:2021) that vfio-pci has."""
    for folder in sorted(Path("/sys/bus/pci/devices").glob("*")):
        nodes = list(folder.glob("vfio-dev/vfio*"))
        if nodes and (folder / "vendor").read_text() == "0x8086\n" and (folder / "device").read_text() == "0x2021\n":
            print(f"found an I/OAT engine at PCI address {folder.name}")
            return f"/dev/vfio/devices/{nodes[0].name}"
    sys.exit("there is no I/OAT engine here that VFIO has")


class Ioat:
    """The first channel of the engine, through its VFIO file; and the buffer that it shares with us."""

    def __init__(self, fd: int, buffer: mmap.mmap) -> None:
        self.fd, self.buffer, self.count = fd, buffer, 0
        self.bar0, self.config = (call(fd, REGION_INFO, "=IIIIQQ", 0, n, 0, 0, 0)[5] for n in (BAR0, CONFIG))
        command = int.from_bytes(os.pread(fd, 2, self.config + 4), "little")
        os.pwrite(fd, (command | 6).to_bytes(2, "little"), self.config + 4)  # memory space, bus master
        self.event = os.eventfd(0, os.EFD_CLOEXEC)
        call(fd, SET_IRQS, "=IIIIIi", EVENTFD_TRIGGER, MSIX, 0, 1, self.event)

    def read(self, register: int, width: int) -> int:
        """A register."""
        return int.from_bytes(os.pread(self.fd, width, self.bar0 + register), "little")

    def write(self, register: int, width: int, value: int) -> None:
        """Set a register."""
        os.pwrite(self.fd, value.to_bytes(width, "little"), self.bar0 + register)

    def start(self) -> None:
        """Reset the channel, and tell it where its chain is, and where to say that it has ended."""
        self.write(CHANERR, 4, self.read(CHANERR, 4))
        self.write(CHANCMD, 1, RESET)
        self.write(INTRCTRL, 1, 0x09)  # interrupts, one vector for each channel
        self.write(CHANCTRL, 2, ON_ERROR_COMPLETE_AND_INTERRUPT)
        self.write(CHANCMP, 8, IOVA + DONE)
        self.write(CHAINADDR, 8, IOVA + CHAIN)
        self.count = 0

    def add(self, operation: int, source: int, target: int, size: int) -> None:
        """Put a descriptor at the end of the chain."""
        here = CHAIN + 64 * self.count
        after = IOVA + here + 64
        self.buffer[here : here + 64] = struct.pack("<IIQQQ32x", size, operation, source, target, after)
        self.count += 1

    def run(self) -> tuple[str, str]:
        """Let it run what was added, and wait for its interrupt; -> its state, and its errors, as words."""
        self.write(DMACOUNT, 2, self.count)
        if not select.select([self.event], [], [], 5)[0]:
            sys.exit(f"no interrupt came: the channel is {STATES[self.read(CHANSTS, 8) & 7]}")
        os.eventfd_read(self.event)
        self.write(CHANCTRL, 2, REARM | ON_ERROR_COMPLETE_AND_INTERRUPT)
        (status,) = struct.unpack_from("<Q", self.buffer, DONE)
        errors = self.read(CHANERR, 4)
        return STATES[status & 7], ", ".join(name for bit, name in enumerate(ERRORS) if errors >> bit & 1) or "none"


def main() -> None:
    """Bind, attach, map, and let the engine work."""
    device = os.open(find_ioat(), os.O_RDWR | os.O_CLOEXEC)
    iommu = os.open("/dev/iommu", os.O_RDWR | os.O_CLOEXEC)
    call(device, BIND, "=IIiI", 0, iommu, 0)
    ioas = call(iommu, IOAS_ALLOC, "=III", 0, 0)[2]
    call(device, ATTACH, "=III", 0, ioas)
    buffer = mmap.mmap(-1, SIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    call(iommu, IOAS_MAP, "=IIIIQQQ", FIXED_IOVA | READABLE | WRITEABLE, ioas, 0, address, SIZE, IOVA)

    ioat = Ioat(device, buffer)
    version, channels, most = ioat.read(0x08, 1), ioat.read(0x00, 1), 1 << ioat.read(0x01, 1)
    print(f"version {version >> 4}.{version & 15}, channels: {channels}, bytes in a descriptor: up to {most}")

    ioat.start()
    ioat.add(FILL, int.from_bytes(b"I/OAT.. ", "little"), IOVA + DATA, PAGE)
    for number in range(1, 8):
        ioat.add(COPY, IOVA + DATA, IOVA + DATA + number * PAGE, PAGE)
    ioat.add(COPY | INTERRUPT | COMPLETE, IOVA + DATA + 7 * PAGE, IOVA + DATA + 8 * PAGE, 13)
    state, errors = ioat.run()
    print(f"it filled {PAGE} bytes and copied them seven times: the channel is {state}, errors: {errors}")
    print(f"the last copy is {bytes(buffer[DATA + 8 * PAGE : DATA + 8 * PAGE + 14])!r}")
    assert buffer[DATA : DATA + 8 * PAGE] == b"I/OAT.. " * PAGE

    ioat.add(COPY | INTERRUPT | COMPLETE, IOVA + DATA, IOVA + SIZE, 64)
    print("now it writes behind the buffer, where nothing is mapped:", flush=True)
    state, errors = ioat.run()
    print(f"the channel is {state}, errors: {errors}")
    ioat.start()
    ioat.add(COPY | INTERRUPT | COMPLETE, IOVA + DATA, IOVA + DATA + 8 * PAGE, 64)
    print(f"after a reset the channel is {ioat.run()[0]} again")


if __name__ == "__main__":
    main()
