"""What a guest's invalidations cost: a call for each, one call for many, and the guest's own queue.

    python bench/guests.py            # prints one line of JSON

On machine `tegra241`, in process. The commands are TLBI_NH_VA of 1,000 pages (through the queue: 65,536), against a
full IOTLB. Targets: one call of 1,000 commands at least 20 times cheaper than 1,000 calls, and a million commands
per second through the queue. Best of several runs.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import struct
import time
from collections.abc import Callable
from typing import Any

import softiommu
from softiommu.abi import iommufd as abi
from softiommu.hardware.cache import Entry
from softiommu.hardware.smmuv3.cmdqv_registers import Page0
from softiommu.hardware.smmuv3.commands import Address1, Op, Va0

RAM, RAM_SIZE = 1 << 30, 1 << 29
CALLS, QUEUE_LG2, ROUNDS = 1000, 16, 5
INVALIDATION = abi.InvalidateDataType.VIOMMU_INVALIDATE_DATA_ARM_SMMUV3


def best(work: Callable[[], object], prepare: Callable[[], object]) -> float:
    """Seconds of the fastest of several runs."""
    times = []
    for _ in range(ROUNDS):
        prepare()
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def command(number: int) -> bytes:
    """A guest's invalidation of a page."""
    return struct.pack("<QQ", Va0.of(OPCODE=Op.TLBI_NH_VA, ASID=number & 3), Address1.of(ADDR=number))


class Guest:
    """A guest's vIOMMU with one queue, and the hardware's IOTLB."""

    def __init__(self) -> None:
        self.iommufd: Any = softiommu.open("tegra241")
        fd = os.memfd_create("guest")
        os.ftruncate(fd, RAM_SIZE)
        self.ram = mmap.mmap(fd, RAM_SIZE)
        ioas, device = self.iommufd.ioas(), self.iommufd.device("edu0")
        ioas.map_file(fd, 0, RAM_SIZE, iova=RAM)
        parent = device.hwpt(ioas, abi.HwptAllocFlags.ALLOC_NEST_PARENT)
        answer = bytearray(abi.ViommuTegra241Cmdqv.SIZE)
        self.viommu = device.viommu(abi.ViommuType.TEGRA241_CMDQV, parent, answer)
        where = abi.ViommuTegra241Cmdqv.from_bytes(bytes(answer))
        self.page = self.iommufd.backend.mmap(where.out_vintf_mmap_offset, where.out_vintf_mmap_length)
        self.viommu.hw_queue(abi.HwQueueType.TEGRA241_CMDQV, 0, RAM, 16 << QUEUE_LG2)
        self.store(Page0.CONFIG.offset, 1)
        self.prod = 0
        unit: Any = self.iommufd.backend.machine.hardware.iommus["smmu0"].unit
        self.iotlb = unit.tlb.iotlb

    def store(self, register: int, value: int) -> None:
        """A store into the doorbell page."""
        struct.pack_into("<I", self.page, register, value)

    def fill(self) -> None:
        """A full IOTLB, of which the commands name nothing."""
        for number in range(256):
            self.iotlb.fill((0, 1, number & 3, 0), 1 << 40 | number << 12, 12, Entry(0, 7))

    def by_call(self, raw: bytes, size: int) -> Callable[[], None]:
        """The commands in calls of `size` commands each."""
        self.array = ctypes.create_string_buffer(raw)
        start = ctypes.addressof(self.array)
        calls = [
            abi.HwptInvalidate(32, self.viommu.id, start + at, INVALIDATION, 16, size, 0)
            for at in range(0, len(raw), 16 * size)
        ]

        def work() -> None:
            for call in calls:
                self.iommufd.backend.call("HWPT_INVALIDATE", abi.HWPT_INVALIDATE, call)

        return work

    def by_queue(self) -> None:
        """A full queue, from the doorbell until it is empty."""
        self.prod ^= 1 << QUEUE_LG2
        self.store(Page0.PROD.offset, self.prod)
        self.viommu.poll()
        assert struct.unpack_from("<I", self.page, Page0.CONS.offset)[0] == self.prod


def main() -> None:
    """Measure, and print."""
    guest = Guest()
    raw = b"".join(command(number) for number in range(CALLS))
    one = best(guest.by_call(raw, 1), guest.fill) / CALLS
    many = best(guest.by_call(raw, CALLS), guest.fill) / CALLS
    size = 1 << QUEUE_LG2
    guest.ram[: 16 * size] = b"".join(command(number) for number in range(size))
    queue = best(guest.by_queue, guest.fill) / size
    print(
        json.dumps(
            {
                "a call for each, us": round(one * 1e6, 2),
                "one call, us each": round(many * 1e6, 2),
                "ratio": round(one / many, 1),
                "own queue, commands per second": round(1 / queue),
            }
        )
    )


if __name__ == "__main__":
    main()
