"""A first look at iommufd, written as it would be for real hardware: nothing here knows of softiommu.

It opens /dev/iommu, makes an I/O address space, and maps, copies and unmaps a buffer in it, with the standard library
and the numbers of linux/iommufd.h.
"""

import ctypes
import fcntl
import mmap
import os
import struct
import sys

IOAS_ALLOC, IOAS_COPY, IOAS_IOVA_RANGES, IOAS_MAP, IOAS_UNMAP = 0x3B81, 0x3B83, 0x3B84, 0x3B85, 0x3B86
FIXED_IOVA, WRITEABLE, READABLE = 1, 2, 4


def call(fd: int, command: int, layout: str, *values: int) -> tuple[int, ...]:
    """One ioctl: its structure starts with its own size. The fields as the kernel left them."""
    data = bytearray(struct.pack(layout, struct.calcsize(layout), *values))
    fcntl.ioctl(fd, command, data)
    return struct.unpack(layout, data)


def main() -> None:
    """Map, copy, unmap, and say what happened."""
    try:
        fd = os.open("/dev/iommu", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        sys.exit("there is no /dev/iommu here")
    print("opened /dev/iommu")

    ioas = call(fd, IOAS_ALLOC, "=III", 0, 0)[2]
    print(f"made an I/O address space: devices that are attached to it see only what it maps (id {ioas})")

    ranges = ctypes.create_string_buffer(16)
    call(fd, IOAS_IOVA_RANGES, "=IIIIQQ", ioas, 1, 0, ctypes.addressof(ranges), 0)
    first, last = struct.unpack("=QQ", ranges.raw[:16])
    print(f"it can use the I/O addresses {first:#x} to {last:#x}")

    buffer = mmap.mmap(-1, 64 * 1024)
    buffer[:5] = b"hello"
    address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    length = len(buffer)
    iova = call(fd, IOAS_MAP, "=IIIIQQQ", READABLE | WRITEABLE, ioas, 0, address, length, 0)[6]
    print(f"mapped {length // 1024} KiB of this program's memory: devices see it at I/O address {iova:#x}")

    fixed = FIXED_IOVA | READABLE
    copy = call(fd, IOAS_COPY, "=IIIIQQQ", fixed, ioas, ioas, 4096, 0x40000000, iova)[5]
    print(f"showed its first page once more, read-only, at {copy:#x}: the same memory under two addresses")

    try:
        call(fd, IOAS_MAP, "=IIIIQQQ", fixed, ioas, 0, address, 4096, copy)
    except OSError as error:
        print(f"mapping something else there is refused ({error.strerror}): the address is taken")

    removed = call(fd, IOAS_UNMAP, "=IIQQ", ioas, 0, 2**64 - 1)[3]
    print(f"unmapped everything: {removed // 1024} KiB are out of the devices' sight again")
    os.close(fd)


if __name__ == "__main__":
    main()
