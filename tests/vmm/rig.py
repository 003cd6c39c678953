"""Guests for the front ends: RAM whose pages the guest gives out, and what both kinds of machine have."""

from softiommu.vmm.ram import GuestRam

#: Where a guest has its RAM, and how much.
BASE, SIZE = 1 << 30, 2 << 20


class Ram(GuestRam):
    """RAM with an allocator for tables; every page is given once."""

    def __init__(self):
        super().__init__(BASE, SIZE)
        self._at = BASE

    def alloc(self, size, align=4096):
        pa = -(-self._at // align) * align
        if pa + size > BASE + SIZE:
            raise MemoryError
        self._at = pa + size
        return pa

    def free(self, pa):
        """It is never given again."""

    def page(self, content=b""):
        at = self.alloc(4096)
        self.write(at, content)
        return at


class PciTest:
    """The test device: it reads and writes 4 KiB, also for one of its PASIDs."""

    def __init__(self, device):
        self.device = device
        device.enable()

    def run(self, iova, command, pasid=None):
        self.device.write(0, 0x10, 4, 0 if pasid is None else 1 << 31 | pasid)
        self.device.write(0, 0, 8, iova)
        self.device.write(0, 8, 4, command)

    @property
    def busy(self):
        return bool(self.device.read(0, 8, 4) & 1)


class Edu:
    """The teaching device: it copies eight bytes, from one address to another."""

    BUFFER = 0x40000

    def __init__(self, device):
        self.device = device
        device.enable()

    def copy(self, source, target):
        for at, to, command in ((source, self.BUFFER, 1), (self.BUFFER, target, 3)):
            for register, value in ((0x80, at), (0x88, to), (0x90, 8), (0x98, command)):
                self.device.write(0, register, 8, value)


def assert_nothing_left(iommufd):
    """Everything goes with the file."""
    iommufd.close()
    physical = iommufd.backend.machine.physical
    assert not physical.pinned
    assert physical.accounts.total == 0
