"""The same guests on a machine of any make, whose IOMMU nests in software."""

from softiommu.abi.iommufd import HwptAllocFlags
from softiommu.machine.assemble import Machine
from softiommu.machine.description import parse
from softiommu.vmm.offers import smmuv3_in_software, vtd_in_software
from softiommu.vmm.smmuv3 import VirtualSmmu
from softiommu.vmm.smmuv3_software import InSoftware
from softiommu.vmm.vtd import VirtualVtd
from softiommu.vmm.vtd_forms import Nesting
from vmm import smmuv3_vm, vtd_vm

_MACHINE = """
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


class VtdVm(vtd_vm.Vm):
    """A VMM on such a machine. It offers PASIDs where the host has them."""

    def __init__(self, model):
        super().__init__(Machine(parse(_MACHINE.format(model=model), model)))

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


class SmmuVm(smmuv3_vm.Vm):
    """A VMM on a machine of Intel's, with a guest that knows nothing of that."""

    test_name = "test0"

    def __init__(self):
        super().__init__(Machine(parse(_MACHINE.format(model='vtd"\nunit = "full'), "vtd")))

    def make_unit(self):
        bits = self.test_device.hw_info().pasid_bits
        flags = HwptAllocFlags.ALLOC_NEST_PARENT | HwptAllocFlags.ALLOC_PASID
        self.parent, faults = self.test_device.hwpt(self.ioas, flags), self.iommufd.fault_queue()
        self.backing = InSoftware(self.parent, faults, self.notes.append)
        return VirtualSmmu(self.ram, self.backing, smmuv3_in_software(bits), self.heard)

    def read_by_test(self, iova, pasid=None):
        """The same; what the device asks for meanwhile is refused."""
        self.ram.write(self.result, b"untouchd")
        for at, command in ((smmuv3_vm.BLANK, 3), (iova, 3), (smmuv3_vm.RESULT, 1)):
            self.test.run(at, command, pasid)
            self.smmu.service()
            assert not self.test.busy
        return self.ram.read(self.result, 8)
