"""A guest on a machine with an IOMMU of two stages, all through the Python face: its RAM, a file, is at address 0."""

import fcntl
import os

import softiommu
from softiommu.abi.generic_invalidation import GENERIC, InvalidateV2
from softiommu.abi.iommufd import HwptAllocFlags
from softiommu.hardware.bus import DmaError
from softiommu.hardware.iommu import TranslationFaultError
from softiommu.memory.physical import PhysicalMemory
from softiommu.memory.shared import SharedMemory
from softiommu.pagetable.kinds import READ

PAGE = 4096
#: Tables and directories lie from LOW to DATA, pages that devices read from there on.
DATA, PAGES = 4 << 20, 16
LOW, RAM_SIZE = 2 << 20, 6 << 20


class GuestMemory(PhysicalMemory):
    """A guest's RAM by the guest's addresses, which are offsets in a file. Each is given out once."""

    def __init__(self):
        super().__init__(LOW, reach=RAM_SIZE)
        self.fd = os.memfd_create("guest", os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, RAM_SIZE)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        self.map_window(LOW, SharedMemory(os.dup(self.fd)), LOW, RAM_SIZE - LOW)
        self._at = LOW
        for number in range(PAGES):
            self.write_u64(page(number), number)

    def alloc(self, size, align=PAGE):
        pa = -(-self._at // align) * align
        if pa + size > DATA:
            raise MemoryError
        self._at = pa + -(-size // PAGE) * PAGE
        return pa

    def free(self, pa):
        """It is never given again."""


def page(number):
    """Where the guest has a page of data. Each tells its number."""
    return DATA + number * PAGE


class Host:
    """A machine, a device of it, and a nesting parent that shows the guest's RAM."""

    def __init__(self, machine, viommu_type=None, flags=0):
        self.iommufd = softiommu.open(machine)
        self.machine = self.iommufd.backend.machine
        self.device = self.iommufd.device(self.machine.description.devices[0].name)
        self.device.enable()
        self.wired = self.machine.hardware.devices[0]
        self.memory = GuestMemory()
        self.ioas = self.iommufd.ioas()
        self.ioas.map_file(self.memory.fd, 0, DATA, 0)
        for number in range(PAGES):
            self.show(number)
        self.parent = self.device.hwpt(self.ioas, int(HwptAllocFlags.ALLOC_NEST_PARENT) | flags)
        self.viommu = None if viommu_type is None else self.device.viommu(viommu_type, self.parent)

    def show(self, number):
        """Map a page of data in the parent."""
        self.ioas.map_file(self.memory.fd, page(number), PAGE, page(number))

    def hide(self, number):
        """Take it away."""
        self.ioas.unmap(page(number), PAGE)

    def other_parent(self):
        """A parent that shows the guest's tables where they are, and at each page of data the one after it."""
        ioas = self.iommufd.ioas()
        ioas.map_file(self.memory.fd, 0, DATA, 0)
        ioas.map_file(self.memory.fd, page(1), (PAGES - 1) * PAGE, page(0))
        return self.device.hwpt(ioas, int(HwptAllocFlags.ALLOC_NEST_PARENT))

    def reach(self, iova, pasid=None):
        """The number of the page of data that the device finds; None: its read is blocked."""
        try:
            return int.from_bytes(self.wired.function.port.read(iova, 8, pasid), "little")
        except DmaError:
            return None

    def leads_out(self, iova, pasid=None):
        """Whether the device gets to memory that is none of the guest's: of the host, whose RAM begins at 0."""
        hardware, sid = self.machine.hardware, self.wired.function.port.sid
        (unit, _driver), *_ = hardware.iommus.values()
        try:
            return unit.translate(sid, iova, READ, pasid).pa < hardware.memory.size
        except TranslationFaultError:
            return False

    def commands(self, call, *args, **keys):
        """What a call has the driver put in its queue."""
        queue, told = self.wired.device.driver.queue, []
        submit = queue.submit

        def watched(*commands):
            told.extend(commands)
            return submit(*commands)

        queue.submit = watched
        call(*args, **keys)
        del queue.submit
        return told

    def close(self):
        self.iommufd.close()
        os.close(self.memory.fd)


def refusal(call, *args, **keys):
    """The errno of what is refused, and how many entries of an array were carried out before."""
    try:
        call(*args, **keys)
    except OSError as error:
        return error.errno, getattr(error, "handled", None)
    return 0, None


def generic(target, **fields):
    """One generic entry."""
    return target.invalidate(GENERIC, [InvalidateV2(**fields)])


class Raw:
    """A structure of any bytes."""

    FIELDS = ()

    def __init__(self, raw):
        self._raw, self.SIZE = raw, len(raw)

    def __str__(self):
        return f"{self.SIZE} bytes"

    def to_bytes(self):
        return self._raw
