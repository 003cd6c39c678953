"""An AMD IOMMU with its driver, and the device's side of ATS and PRI."""

from softiommu.drivers.amd.driver import USUAL_CAPABILITY, AmdDriver
from softiommu.drivers.driver import DomainFlags, Prot
from softiommu.hardware.amd.events import Code
from softiommu.hardware.amd.model import AmdIommu
from softiommu.hardware.amd.presets import FULL
from softiommu.hardware.amd.registers import Efr
from softiommu.hardware.iommu import TranslationFaultError
from softiommu.memory.physical import PhysicalMemory
from softiommu.pagetable.kinds import READ, WRITE

RAM = 32 << 20
RW = Prot.READ | Prot.WRITE
BOTH = READ | WRITE
LEAST = Efr.of(IASup=1)
PASID = DomainFlags.PASID


def rig(efr=FULL.efr, efr2=FULL.efr2, capability=USUAL_CAPABILITY):
    memory = PhysicalMemory(RAM)
    iommu = AmdIommu(memory, efr, efr2)
    return iommu, AmdDriver(memory, iommu, capability)


def reach(iommu, sid, iova, want=READ, pasid=None):
    try:
        return iommu.translate(sid, iova, want, pasid).pa
    except TranslationFaultError as fault:
        return Code(fault.reason)


class Endpoint:
    """A device TLB that keeps what it was told, until it is told to forget."""

    def __init__(self):
        self.invalidated, self.responses = [], []

    def invalidate(self, pasid, first, last):
        self.invalidated.append((pasid, first, last))
        return True

    def page_response(self, pasid, group, code):
        self.responses.append((pasid, group, code))
