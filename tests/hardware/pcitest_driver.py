"""The ATS/PRI test device and how it is driven: capabilities, registers, copies."""

from softiommu.hardware.bus import Port
from softiommu.hardware.devices.pcitest import PciTest
from softiommu.hardware.pci_config import ExtendedId

ADDRESS, COMMAND, PASID = 0x0, 0x8, 0x10
FROM_MEMORY, TO_MEMORY = 3, 1


class Rig:
    """The device, as its test programs drive it."""

    def __init__(self, memory, iommu, sid, ats=True):
        self.memory, self.iommu = memory, iommu
        self.device = PciTest(Port(memory, sid, iommu), iommu if ats else None, pasid_bits=20)
        self.function = self.device.function
        self.function.write_config(4, 2, 6)

    def enable(self, ats=True, pri=True, pasid=True, allocation=1):
        config, find = self.function.write_config, self.function.find_capability
        config(find(ExtendedId.PASID) + 6, 2, int(pasid))
        config(find(ExtendedId.PRI) + 12, 4, allocation)
        config(find(ExtendedId.PRI) + 4, 2, int(pri))
        config(find(ExtendedId.ATS) + 6, 2, ats << 15)

    def pri_status(self):
        return self.function.read_config(self.function.find_capability(ExtendedId.PRI) + 6, 2)

    def copy(self, iova, command, pasid=None):
        write = self.function.write_bar
        write(0, ADDRESS, 4, iova & 0xFFFFFFFF)
        write(0, ADDRESS + 4, 4, iova >> 32)
        write(0, PASID, 4, 0 if pasid is None else 1 << 31 | pasid)
        write(0, COMMAND, 4, command)
        return self.busy

    @property
    def busy(self):
        return bool(self.function.read_bar(0, COMMAND, 4) & 1)
