"""A guest for tests of nesting: its RAM is a file, in which the tables lie that `PageTable` makes for it."""

import fcntl
import os

from softiommu.memory.physical import CHUNK, PAGE, PhysicalMemory
from softiommu.memory.shared import SharedMemory
from softiommu.pagetable.engine import PageTable
from softiommu.pagetable.formats import VARIANTS


class GuestRam(PhysicalMemory):
    """`size` bytes from guest-physical address 0 on, in the memfd `fd`. The guest leaves the lowest 2 MiB alone."""

    def __init__(self, size=4 * CHUNK):
        super().__init__(CHUNK, reach=size)
        self.fd, self.end = os.memfd_create("guest", os.MFD_ALLOW_SEALING), size
        os.ftruncate(self.fd, size)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)  # so that it can be shown directly
        self.map_window(CHUNK, SharedMemory(os.dup(self.fd)), CHUNK, size - CHUNK)
        self._fresh, self._old = CHUNK, []

    def alloc(self, size, align=PAGE):
        """The guest-physical address of zeroed pages."""
        if size == align == PAGE and self._old:
            pa = self._old.pop()
        else:
            pa = -(-self._fresh // align) * align
            self._fresh = pa + size
            assert self._fresh <= self.end, "the guest has no RAM left"
        self.write(pa, bytes(size))
        return pa

    def free(self, pa):
        """The page may be used again."""
        self._old.append(pa)

    def table(self, variant):
        """An empty page table."""
        return PageTable(self, VARIANTS[variant])

    def close(self):
        """Let go of the file."""
        os.close(self.fd)


class Edu:
    """The teaching device, driven by I/O addresses."""

    SOURCE, TARGET, COUNT, COMMAND = 0x80, 0x88, 0x90, 0x98
    BUFFER = 0x40000

    def __init__(self, device):
        self.device = device
        device.enable()

    def _copy(self, source, target, count, command):
        places = ((self.SOURCE, source), (self.TARGET, target), (self.COUNT, count), (self.COMMAND, command))
        for register, value in places:
            self.device.write(0, register, 8, value)
        assert not self.device.read(0, self.COMMAND, 8) & 1

    def move(self, source, target, count=16):
        """Copy from one I/O address to another, by the device's buffer."""
        self._copy(source, self.BUFFER, count, 1)
        self._copy(self.BUFFER, target, count, 3)


class PciTest:
    """The test device with PASIDs, ATS and page requests."""

    ADDRESS, COMMAND, PASID = 0x00, 0x08, 0x10
    RUN, TO_DEVICE, VALID = 1, 2, 1 << 31

    def __init__(self, device):
        self.device = device
        device.enable()

    def _run(self, iova, pasid, command):
        self.device.write(0, self.ADDRESS, 8, iova)
        self.device.write(0, self.PASID, 4, 0 if pasid is None else self.VALID | pasid)
        self.device.write(0, self.COMMAND, 4, command)
        return self.busy

    @property
    def busy(self):
        """Whether it waits for a page."""
        return bool(self.device.read(0, self.COMMAND, 4) & self.RUN)

    def load(self, iova, pasid=None):
        """Read a page; whether it waits for it."""
        return self._run(iova, pasid, self.RUN | self.TO_DEVICE)

    def store(self, iova, pasid=None):
        """Write the page that was read; whether it waits."""
        return self._run(iova, pasid, self.RUN)
