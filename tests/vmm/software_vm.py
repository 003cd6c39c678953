"""The same guest on a machine of any make, whose IOMMU nests in software."""

from softiommu.abi.iommufd import HwptAllocFlags
from softiommu.machine.assemble import Machine
from softiommu.machine.description import parse
from softiommu.vmm.offers import vtd_in_software
from softiommu.vmm.vtd import VirtualVtd
from softiommu.vmm.vtd_forms import Nesting
from vmm import vtd_vm

MACHINE = """
name = "any"

[[iommu]]
name = "iommu0"
model = "{model}"
nesting = "software"

[[device]]
name = "edu0"
address = "0000:00:04.0"
model = "edu"
dma_bits = 64

[[device]]
name = "test0"
address = "0000:00:05.0"
model = "pcitest"
pasid_bits = 16
"""


class Vm(vtd_vm.Vm):
    """A VMM on such a machine. It offers PASIDs where the host has them."""

    def __init__(self, model):
        super().__init__(Machine(parse(MACHINE.format(model=model), model)))

    def make_unit(self):
        bits = self.test_device.hw_info().pasid_bits
        flags = HwptAllocFlags.ALLOC_NEST_PARENT | (HwptAllocFlags.ALLOC_PASID if bits else 0)
        self.parent = self.test_device.hwpt(self.ioas, flags)
        return VirtualVtd(
            self.ram,
            self.parent,
            vtd_in_software(bits),
            lambda address, data: self.interrupts.append((address, data)),
            nesting=Nesting.SOFTWARE,
            note=self.notes.append,
        )
