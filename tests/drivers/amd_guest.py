"""A guest of an AMD IOMMU: its guest tables, its GCR3 table, and its device table entry."""

from drivers.nested_host import PAGE, Host
from softiommu.abi.amd_extension import PROCESS, VIOMMU, HwptAmdProcess
from softiommu.abi.iommufd import HwptAllocFlags, HwptAmdGuest, HwptDataType
from softiommu.hardware.amd.tables import Dte, Dte0, Dte1, Dte2, Gcr3Entry
from softiommu.pagetable.engine import PageTable
from softiommu.pagetable.formats import VARIANTS

RW = 3
#: The guest's names for the device, and for its domain.
NAME, DOMAIN = 0x1234, 0xFFFF


class Guest(Host):
    """A guest with a vIOMMU, a name for the device, and a GCR3 table of one level."""

    def __init__(self, machine="amd", flags=0):
        super().__init__(machine, VIOMMU, flags)
        self.vdevice = self.viommu.vdevice(self.device, NAME)
        self.gcr3 = self.memory.alloc(PAGE)

    def table(self, levels=4):
        """An empty guest table."""
        return PageTable(self.memory, VARIANTS[f"x86-64-{levels}level"])

    def process(self, pasid, table):
        """Write a GCR3 entry; without a table it is not valid."""
        entry = Gcr3Entry(0) if table is None else Gcr3Entry.of(V=1, ADDR=table.root >> 12)
        self.memory.write_u64(self.gcr3 + 8 * pasid, entry)

    def stage(self, table, flags=0, levels=4, parent=None):
        """A nested HWPT of a table for one PASID."""
        data = PROCESS, HwptAmdProcess(table.root, levels, flags)
        return self.device.hwpt(parent or self.viommu, int(HwptAllocFlags.ALLOC_PASID), data)

    def entry(self, levels=4, domain=DOMAIN, gcr3=None, ats=0, **fields):
        """A device table entry with the guest's GCR3 table."""
        low = Dte0.of(V=1, TV=1, GV=1, GIoV=1, IR=1, IW=1).replace(**fields)
        mode = Dte2.of(GuestPagingMode=levels - 4)
        dte = Dte(low, Dte1.of(DomainID=domain, I=ats), mode).with_gcr3_root(self.gcr3 if gcr3 is None else gcr3)
        return HwptAmdGuest.from_bytes(dte.to_bytes())

    def nest(self, entry, flags=0, parent=None):
        """A nested HWPT of an entry."""
        return self.device.hwpt(parent or self.viommu, flags, (HwptDataType.AMD_GUEST, entry))
