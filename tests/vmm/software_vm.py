"""The same guests on a machine of any make, whose IOMMU nests in software."""

from typing import NamedTuple

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
unsafe_interrupts = true

[[iommu]]
name = "iommu0"
{iommu}
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
{device}
"""


class Host(NamedTuple):
    """Lines of a description; and whether the test device asks for pages, or is held, and has PASIDs."""

    iommu: str
    device: str = "pasid_bits = 16"
    recovers: bool = True
    pasids: bool = True


_HELD = "pasid_bits = 16\nstalls = true"
HOSTS = {
    "vtd": Host('model = "vtd"\nunit = "full"'),
    "smmuv3": Host('model = "smmuv3"'),
    "smmuv3-stalls": Host('model = "smmuv3"', _HELD),
    "smmuv3-only-stalls": Host('model = "smmuv3"\nidr0 = { ATS = 0, PRI = 0, STALL_MODEL = 2 }', _HELD),
    "amd": Host('model = "amd"'),
    "riscv": Host('model = "riscv"'),
    # Nothing tells the kernel of these that a device found no page.
    "vtd-legacy": Host('model = "vtd"', recovers=False, pasids=False),
    "smmuv3-terminates": Host('model = "smmuv3"\nidr0 = { PRI = 0, STALL_MODEL = 1 }', recovers=False),
    "smmuv3-ats-without-pri": Host('model = "smmuv3"\nidr0 = { PRI = 0, STALL_MODEL = 2 }', recovers=False),
    "amd-without-ppr": Host('model = "amd"\nefr = { PPRSup = 0, PprAutoRspSup = 0 }', recovers=False),
    "riscv-without-ats": Host('model = "riscv"\ncapabilities = { ATS = 0, T2GPA = 0 }', recovers=False),
    "virtio": Host('model = "virtio"\nunit = "full"', recovers=False, pasids=False),
}


def machine(host):
    """A machine with such a host."""
    return Machine(parse(_MACHINE.format(**HOSTS[host]._asdict()), host))


class VtdVm(vtd_vm.Vm):
    """A VMM on such a machine. It offers PASIDs where the host has them."""

    def __init__(self, host):
        super().__init__(machine(host))

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
    """A VMM on such a machine, with a guest that knows nothing of that."""

    test_name = "test0"

    def __init__(self, host="vtd"):
        super().__init__(machine(host))

    def make_unit(self):
        bits = self.test_device.hw_info().pasid_bits
        flags = HwptAllocFlags.ALLOC_NEST_PARENT | (HwptAllocFlags.ALLOC_PASID if bits else 0)
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
