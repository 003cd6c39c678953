"""One guest, nested twice: by an IOMMU with two stages, and in software on one with a single stage.

The guest keeps x86-64 tables in its own memory. It maps, unmaps and invalidates; the host takes a page away and gives
another. A device copies what it finds at the guest's addresses. Both machines must show the same; what the software had
to do for it is counted. Guests in caching mode are served alike; docs/nesting.md tells what others may see.
"""

import mmap
import struct
import sys

import softiommu
from softiommu.abi import iommufd as abi
from softiommu.abi.software_nesting import BOUND, BoundFlags, HwptBound
from softiommu.machine.assemble import Machine
from softiommu.machine.description import load

PAGE, LARGE = 4096, 2 << 20
RAM = 4 * LARGE
#: A page that the host takes away and replaces: beyond the rest of the guest's memory.
MOVED = RAM
OUTPUT = 0x80000
INNER, SOURCE, TARGET, COUNT, COMMAND = 0x40000, 0x80, 0x88, 0x90, 0x98


class Guest:
    """Memory, and a table of four levels in it."""

    root = PAGE

    def __init__(self) -> None:
        self.ram = mmap.mmap(-1, RAM)
        self._next = 2 * PAGE

    def map(self, iova: int, gpa: int, writable: bool = True, large: bool = False) -> None:
        """A leaf; tables on the way are made."""
        self._store(self._entry(iova, int(large)), gpa | 0x85 * large | 5 | 2 * writable)

    def unmap(self, iova: int, large: bool = False) -> None:
        """No leaf."""
        self._store(self._entry(iova, int(large)), 0)

    def _entry(self, iova: int, level: int) -> int:
        table = self.root
        for above in range(3, level, -1):
            at = table + 8 * (iova >> 12 + 9 * above & 511)
            (entry,) = struct.unpack_from("<Q", self.ram, at)
            if not entry & 1:
                entry, self._next = self._next | 7, self._next + PAGE
                self._store(at, entry)
            table = entry & -PAGE
        return table + 8 * (iova >> 12 + 9 * level & 511)

    def _store(self, at: int, entry: int) -> None:
        struct.pack_into("<Q", self.ram, at, entry)


class Host:
    """A VMM: the guest's memory under a device, and the guest's table over that."""

    def __init__(self, machine: Machine, guest: Guest, software: bool) -> None:
        self.iommufd = softiommu.open(machine)
        self.ioas = self.iommufd.ioas()
        self.device = self.iommufd.device("edu0")
        self.parent = self.device.hwpt(self.ioas, abi.HwptAllocFlags.ALLOC_NEST_PARENT)
        self.ioas.map(guest.ram, iova=0)
        if software:
            data: tuple[int, HwptBound | abi.HwptVtdS1] = BOUND, HwptBound(BoundFlags.CACHING_MODE, guest.root, 48)
        else:
            data = abi.HwptDataType.VTD_S1, abi.HwptVtdS1(0, guest.root, 48)
        self.child = self.device.hwpt(self.parent, data=data)
        self.device.attach(self.child)
        self.device.enable()
        self._ram = guest.ram

    def invalidate(self, iova: int, pages: int) -> None:
        """What the guest's IOMMU was told."""
        self.child.invalidate(0, [abi.HwptVtdS1Invalidate(iova, pages)])

    def peek(self, iova: int) -> str:
        """Four bytes that the device reads at an address, or dots where it may not."""
        for source, target, command in ((iova, INNER, 1), (INNER, OUTPUT, 3)):
            for register, value in ((SOURCE, source), (TARGET, target), (COUNT, 4), (COMMAND, command)):
                self.device.write(0, register, 8, value)
        return self._ram[OUTPUT : OUTPUT + 4].replace(b"\0", b".").decode()


def play(machine: Machine, software: bool) -> list[str]:
    """The guest's life: what its device sees, line by line."""
    guest, seen = Guest(), []
    for number in range(16):
        at = LARGE + number * PAGE
        guest.ram[at : at + 4] = f"p{number:03}".encode()
    guest.ram[2 * LARGE : 2 * LARGE + 4] = b"2MiB"
    guest.map(OUTPUT, OUTPUT)
    host = Host(machine, guest, software)

    def look(what: str, *iovas: int) -> None:
        seen.append(f"{what}: " + " ".join(host.peek(iova) for iova in iovas))

    pages = [0x100000 + number * PAGE for number in range(16)]
    look("before anything is mapped", *pages[:4])
    for number, iova in enumerate(pages):
        guest.map(iova, LARGE + number * PAGE)
    guest.map(4 * LARGE, 2 * LARGE, large=True)
    host.invalidate(pages[0], len(pages))
    host.invalidate(4 * LARGE, 512)
    look("16 pages and a leaf of 2 MiB mapped", *pages[:4], 4 * LARGE)
    guest.map(pages[1], LARGE + 9 * PAGE)
    look("page 1 leads elsewhere, not invalidated", *pages[:4])
    host.invalidate(pages[1], 1)
    look("page 1 invalidated", *pages[:4])
    guest.unmap(4 * LARGE, large=True)
    host.invalidate(4 * LARGE, 512)
    look("the large leaf is gone", 4 * LARGE)
    guest.map(pages[0], MOVED)
    host.invalidate(pages[0], 1)
    look("page 0 leads to where the host has nothing", *pages[:2])
    fresh = mmap.mmap(-1, PAGE)
    fresh[:4] = b"new!"
    host.ioas.map(fresh, iova=MOVED)
    look("the host gives memory there", *pages[:2])
    host.ioas.unmap(MOVED, PAGE)
    look("and takes it away", *pages[:2])
    host.iommufd.close()
    return seen


def main() -> int:
    """Play it on both, and compare."""
    hardware, software = Machine(load("vtd-nested")), Machine(load("vtd-shadow"))
    by_hardware, by_software = play(hardware, False), play(software, True)
    for one, other in zip(by_hardware, by_software, strict=True):
        print(one if one == other else f"DIFFERENT: by hardware {one}; by software {other}")
    assert software.hardware is not None
    work = software.hardware.iommus["dmar0"].driver.work  # type: ignore[attr-defined]  # a driver that nests
    print(f"for that, software read {work.ranges} ranges with {work.entries} entries of the guest's tables,")
    print(f"merged {work.merged} leaves, dropped {work.dropped}, and was reached by {work.reached} changes of the host")
    return int(by_hardware != by_software)


if __name__ == "__main__":
    sys.exit(main())
