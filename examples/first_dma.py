"""A device copies memory by DMA, written as it would be for real hardware: nothing here knows of softiommu.

It takes QEMU's teaching device `edu` through VFIO, gives it an I/O address space with one buffer in it, lets the device
copy bytes from one end of the buffer to the other, and then takes the buffer away. Standard library only; the numbers
are those of linux/vfio.h and linux/iommufd.h.
"""

import ctypes
import fcntl
import mmap
import os
import struct
import sys
import time
from pathlib import Path

IOAS_ALLOC, IOAS_MAP, IOAS_UNMAP = 0x3B81, 0x3B85, 0x3B86
BIND, ATTACH, REGION_INFO = 0x3B76, 0x3B77, 0x3B6C
FIXED_IOVA, WRITEABLE, READABLE = 1, 2, 4
BAR0, CONFIG = 0, 7

DMA_SOURCE, DMA_TARGET, DMA_COUNT, DMA_COMMAND = 0x80, 0x88, 0x90, 0x98
FROM_MEMORY, TO_MEMORY = 1, 3
INNER = 0x40000  # the device's own 4 KiB
IOVA = 0x100000


def call(fd: int, command: int, layout: str, *values: int) -> tuple[int, ...]:
    """One ioctl: its structure starts with its own size. The fields as the kernel left them."""
    data = bytearray(struct.pack(layout, struct.calcsize(layout), *values))
    fcntl.ioctl(fd, command, data)
    return struct.unpack(layout, data)


def find_edu() -> str:
    """The device node of the first edu (1234:11e8) that vfio-pci has."""
    for folder in sorted(Path("/sys/bus/pci/devices").glob("*")):
        nodes = list(folder.glob("vfio-dev/vfio*"))
        if nodes and (folder / "device").read_text() == "0x11e8\n":
            print(f"found edu at PCI address {folder.name}, in IOMMU group {(folder / 'iommu_group').resolve().name}")
            return f"/dev/vfio/devices/{nodes[0].name}"
    sys.exit("there is no edu here that VFIO has")


class Edu:
    """The device, through its VFIO file."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.bar0, self.config = (call(fd, REGION_INFO, "=IIIIQQ", 0, n, 0, 0, 0)[5] for n in (BAR0, CONFIG))
        command = int.from_bytes(os.pread(fd, 2, self.config + 4), "little")
        os.pwrite(fd, (command | 6).to_bytes(2, "little"), self.config + 4)  # memory space, bus master

    def dma(self, source: int, target: int, count: int, command: int) -> None:
        """Let it move bytes, and wait until it has finished."""
        for register, value in ((DMA_SOURCE, source), (DMA_TARGET, target), (DMA_COUNT, count), (DMA_COMMAND, command)):
            os.pwrite(self.fd, value.to_bytes(8, "little"), self.bar0 + register)
        while os.pread(self.fd, 8, self.bar0 + DMA_COMMAND)[0] & 1:
            time.sleep(0.001)


def main() -> None:
    """Bind, attach, map, let the device copy, unmap, and let it try once more."""
    device = os.open(find_edu(), os.O_RDWR | os.O_CLOEXEC)
    iommu = os.open("/dev/iommu", os.O_RDWR | os.O_CLOEXEC)
    call(device, BIND, "=IIiI", 0, iommu, 0)
    ioas = call(iommu, IOAS_ALLOC, "=III", 0, 0)[2]
    call(device, ATTACH, "=III", 0, ioas)
    print("the device is bound to /dev/iommu, and attached to an I/O address space in which nothing is mapped")

    buffer = mmap.mmap(-1, 64 * 1024)
    buffer[:13] = b"hello, device"
    address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    call(iommu, IOAS_MAP, "=IIIIQQQ", FIXED_IOVA | READABLE | WRITEABLE, ioas, 0, address, len(buffer), IOVA)
    print(f"mapped 64 KiB of this program's memory: the device sees them at I/O address {IOVA:#x}")

    edu = Edu(device)
    edu.dma(IOVA, INNER, 13, FROM_MEMORY)
    edu.dma(INNER, IOVA + 0x8000, 13, TO_MEMORY)
    print(f"the device read {bytes(buffer[:13])!r} and wrote {bytes(buffer[0x8000:0x800D])!r} at {IOVA + 0x8000:#x}")

    call(iommu, IOAS_UNMAP, "=IIQQ", ioas, IOVA, len(buffer))
    print("unmapped it; now the device reads there once more, and the IOMMU stops it:", flush=True)
    edu.dma(IOVA, INNER, 13, FROM_MEMORY)
    print(f"the program's memory is as it was: {bytes(buffer[:13])!r}")


if __name__ == "__main__":
    main()
