"""A guest of a VT-d unit: its RAM at guest-physical 0, its first-stage tables, and what it asks to forget."""

from iommufd.fakes import BASE, FakeCaller, FakeMm
from softiommu.abi import iommufd as abi
from softiommu.abi.generic_invalidation import GENERIC
from softiommu.drivers.driver import DomainFlags, Prot
from softiommu.drivers.function import Function
from softiommu.drivers.user_data import Handled, UserArray, UserData
from softiommu.drivers.vtd.driver import VtdDriver
from softiommu.errors import UapiError
from softiommu.hardware.iommu import TranslationFaultError
from softiommu.hardware.vtd.events import Reason
from softiommu.hardware.vtd.model import Unit
from softiommu.hardware.vtd.presets import FULL
from softiommu.memory.physical import PhysicalMemory
from softiommu.pagetable.engine import PageTable
from softiommu.pagetable.formats import VARIANTS
from softiommu.pagetable.kinds import READ

SID = 0x20
GPU = Function("gpu", (SID,), pasid_bits=10, ats=True, pri=True)
RW = Prot.READ | Prot.WRITE
RAM, GUEST_RAM = 16 << 20, 4 << 20
#: Where the host has the guest's RAM.
HOST = 64 << 20
VTD_S1 = abi.HwptDataType.VTD_S1
ALL = (1 << 64) - 1


class Rig:
    """A unit, its driver, one device, and a nest parent that shows a guest's RAM."""

    def __init__(self, unit=FULL, function=GPU, flags=DomainFlags.NEST_PARENT | DomainFlags.PASID, shapes=None):
        self.memory, self.guest = PhysicalMemory(RAM), PhysicalMemory(GUEST_RAM)
        self.memory.map_window(HOST, self.guest, 0, GUEST_RAM)
        self.unit = Unit(self.memory, *unit, shapes=shapes)
        self.driver = VtdDriver(self.memory, self.unit)
        self.device = self.driver.device(function)
        self.parent = self.device.alloc_paging(flags, None)
        self.parent.map(0, HOST, GUEST_RAM, RW)
        self.caller = FakeCaller(FakeMm(64))

    def table(self, levels=4):
        """An empty table of the guest's."""
        return PageTable(self.guest, VARIANTS[f"x86-64-{levels}level"])

    def data(self, raw, data_type=VTD_S1):
        """A structure as the program hands it over."""
        self.caller.write(BASE, raw)
        return UserData(self.caller, BASE, len(raw), data_type)

    def nest(self, table, flags=0, width=48, parent=None):
        """A nested domain of a table."""
        config = abi.HwptVtdS1(flags, table.root, width)
        return self.device.alloc_nested(parent or self.parent, 0, self.data(config.to_bytes()))

    def reach(self, iova, pasid=None, want=READ):
        """Where a request gets to in the guest's memory; or the reason why not."""
        try:
            return self.unit.translate(SID, iova, want, pasid).pa - HOST
        except TranslationFaultError as fault:
            return Reason(fault.reason)

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


class DeviceTlb:
    """A device that caches every translation that it asked for, until it is told to forget."""

    def __init__(self, unit, answers=True):
        self.unit, self.answers, self.held = unit, answers, {}
        unit.connect(SID, self)

    def read(self, iova, pasid=None):
        """Where a read gets to in the guest's memory, or None."""
        page = iova >> 12
        if (pasid, page) not in self.held:
            answer = self.unit.ats_translate(SID, iova, READ, pasid)
            if not answer.allowed & READ:
                return None
            self.held[pasid, page] = answer.pa >> 12
        pa = self.held[pasid, page] << 12 | iova & 0xFFF
        return self.unit.admit_translated(SID, pa, READ, pasid).pa - HOST

    def invalidate(self, pasid, first, last):
        for key in [key for key in self.held if key[0] == pasid and first >> 12 <= key[1] <= last >> 12]:
            del self.held[key]
        return self.answers

    def page_response(self, pasid, group, code):
        """Nothing was asked."""
