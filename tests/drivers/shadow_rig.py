"""A guest on an IOMMU of any model, nested in software: its RAM, its tables, and what a DMA of the device reaches."""

from iommufd.fakes import BASE, FakeCaller, FakeMm
from softiommu.abi import iommufd as abi
from softiommu.abi.generic_invalidation import GENERIC
from softiommu.abi.software_nesting import BOUND, BoundFlags, HwptBound
from softiommu.drivers.driver import DomainFlags, Prot
from softiommu.drivers.function import Function
from softiommu.drivers.shadow.driver import ShadowDriver
from softiommu.drivers.user_data import Handled, UserArray, UserData
from softiommu.errors import UapiError
from softiommu.hardware.iommu import TranslationFaultError
from softiommu.iommufd.kernels import DEFAULT, kernel
from softiommu.machine import models
from softiommu.machine.description import parse
from softiommu.memory.physical import PhysicalMemory
from softiommu.pagetable.engine import PageTable
from softiommu.pagetable.formats import VARIANTS
from softiommu.pagetable.kinds import READ, WRITE

SID = 0x20
RW = Prot.READ | Prot.WRITE
RAM, GUEST_RAM = 32 << 20, 4 << 20
#: Where the host has the guest's RAM.
HOST = 64 << 20
CACHING = BoundFlags.CACHING_MODE
ALL = (1 << 64) - 1

#: IOMMUs that translate the addresses of a guest of 48 bits.
IOMMUS = {
    "vtd": 'model = "vtd"',
    "vtd-flts": 'model = "vtd"\nunit = "vtd-flts"',
    "smmuv3": 'model = "smmuv3"',
    "amd": 'model = "amd"',
    "riscv": 'model = "riscv"',
    "virtio": 'model = "virtio"\nunit = "full"',
}


class Rig:
    """A unit, its driver wrapped, one device, and a parent that shows the guest's RAM."""

    def __init__(self, written=IOMMUS["vtd"], function=None, mixed=False, whole=True):
        described = parse(f'name = "rig"\n[[iommu]]\nname = "unit"\n{written}\n', "rig").iommus[0]
        self.memory, self.guest = PhysicalMemory(RAM), PhysicalMemory(GUEST_RAM)
        self.memory.map_window(HOST, self.guest, 0, GUEST_RAM)
        self.messages = []
        site = models.Site(self.memory, kernel(DEFAULT), self.messages.append)
        built = models.iommu(described.model).build(described.features, site)
        self.unit, self.vendor = built.unit, built.driver
        self.driver = ShadowDriver(self.vendor, self.memory, mixed)
        self.device = self.driver.device(function or Function("edu", (SID,)))
        self.caller = FakeCaller(FakeMm(64))
        self.parent = self.device.alloc_paging(DomainFlags.NEST_PARENT, None)
        if whole:
            self.parent.map(0, HOST, GUEST_RAM, RW)

    def table(self, name="x86-64-4level"):
        """An empty table of the guest's."""
        return PageTable(self.guest, VARIANTS[name])

    def data(self, struct, data_type=BOUND):
        """A structure as the program hands it over."""
        raw = struct.to_bytes()
        self.caller.write(BASE, raw)
        return UserData(self.caller, BASE, len(raw), data_type)

    def bind(self, table, flags=CACHING, width=48, format=0, parent=None, pasids=False):
        """A nested domain of a guest's table, which PASIDs can have or not."""
        config = HwptBound(flags, table.root, width, format)
        made_for = int(abi.HwptAllocFlags.ALLOC_PASID) if pasids else 0
        return self.device.alloc_nested(parent or self.parent, made_for, self.data(config))

    def reach(self, iova, want=READ, pasid=None):
        """Where a request gets to in the guest's memory; None: it is blocked."""
        try:
            return self.unit.translate(SID, iova, want, pasid).pa - HOST
        except TranslationFaultError:
            return None

    def rights(self, iova, pasid=None):
        """Where requests get to, and what they may do there."""
        read, write = self.reach(iova, READ, pasid), self.reach(iova, WRITE, pasid)
        return (read if read is not None else write, (read is not None) * READ | (write is not None) * WRITE)

    def ask(self, domain, data_type, raw, count, length=None):
        """The errno of an array of entries (0 for none), and how many were carried out."""
        self.caller.write(BASE, raw)
        handled, size = Handled(), len(raw) // count if length is None else length
        try:
            domain.invalidate(UserArray(self.caller, BASE, data_type, size, count), handled)
        except UapiError as error:
            return error.errno, handled.count
        return 0, handled.count

    def invalidate(self, domain, *entries):
        """VT-d's entries: (address, pages, flags, reserved)."""
        raw = b"".join(abi.HwptVtdS1Invalidate(*entry).to_bytes() for entry in entries)
        return self.ask(domain, 0, raw, len(entries))

    def invalidate_generic(self, domain, *entries):
        """Generic entries of one version."""
        return self.ask(domain, GENERIC, b"".join(entry.to_bytes() for entry in entries), len(entries))
