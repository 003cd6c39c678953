"""The same small guest on IOMMUs of every make, and on one that has one stage only: a page, a table, a device."""

import softiommu
from api.smmuv3_vm import Vm as ArmVm
from api.test_software_nesting import DATA, Vm as SoftwareVm, machine
from nesting.guest import Edu
from nesting.test_amd_guest import AmdVm
from nesting.test_riscv_guest import RiscvVm
from nesting.test_vtd_guest import EDU, RW, Vm as IntelVm

IOVA, TARGET, PAGE = 0x7_0000_0000, 0x10_0000, 4096


class Arm:
    """Context descriptors and VMSAv8-64 tables under a vIOMMU."""

    def __init__(self):
        self.vm = ArmVm()
        self.pages = self.vm.table()
        self.vm.use(0, self.pages, 5)
        self.vm.edu.attach(self.vm.nested(self.vm.edu))
        self.cache = self.vm.viommu

    def page(self, content):
        """A page of the guest's RAM."""
        return self.vm.page(content)

    def map(self, page):
        """IOVA leads there now. The hardware is told nothing."""
        self.pages.unmap(IOVA, PAGE)
        self.pages.map(IOVA, page, PAGE, RW)

    def read(self):
        """What the device reads at IOVA."""
        return self.vm.read_by_edu(IOVA)

    def close(self):
        """Let go of everything."""
        self.vm.close()


class _Tables:
    """What the other makes share: a page table of the guest's, and one page that the device writes to."""

    def __init__(self, vm, table, cache, edu):
        self.vm, self.pages, self.cache, self.edu = vm, table, cache, edu
        self.target = self.page(b"")
        table.map(TARGET, self.target, PAGE, RW)

    def page(self, content):
        """A page of the guest's RAM."""
        pa = self.vm.ram.alloc(PAGE)
        self.vm.ram.write(pa, content)
        return pa

    def map(self, page):
        """IOVA leads there now. The hardware is told nothing."""
        self.pages.unmap(IOVA, PAGE)
        self.pages.map(IOVA, page, PAGE, RW)

    def read(self):
        """What the device reads at IOVA."""
        self.vm.ram.write(self.target, bytes(8))
        self.edu.move(IOVA, TARGET, 8)
        return self.vm.ram.read(self.target, 8)

    def close(self):
        """Let go of everything."""
        self.vm.close()


class Intel(_Tables):
    """A first stage over a second one."""

    def __init__(self):
        vm = IntelVm(EDU)
        table = vm.ram.table("x86-64-4level")
        nested = vm.nest(table)
        vm.device.attach(nested)
        super().__init__(vm, table, nested, Edu(vm.device))


class Amd(_Tables):
    """A GCR3 table and guest tables over the host's."""

    def __init__(self):
        vm = AmdVm()
        super().__init__(vm, vm.table, vm.viommu, vm.edu)


class Riscv(_Tables):
    """A first stage over a second one."""

    def __init__(self):
        vm = RiscvVm()
        super().__init__(vm, vm.table, vm.viommu, vm.edu)


class Software:
    """x86-64 tables of a guest in caching mode, merged with its host's: on an IOMMU with one stage."""

    IOMMU = "vtd"

    def __init__(self):
        self.iommufd = softiommu.open(machine(self.IOMMU))
        self.device = self.iommufd.device("edu0")
        self.vm = SoftwareVm(self.iommufd, self.iommufd.ioas(), self.device)
        self.cache, self.edu = self.vm.child, Edu(self.device)
        self._next = DATA
        self.target = self.page(b"")
        self._point(TARGET, self.target)

    def page(self, content):
        """A page of the guest's RAM."""
        self._next += PAGE
        self.vm.ram[self._next : self._next + len(content)] = content
        return self._next

    def _point(self, iova, page):
        self.vm.store(self.vm.entry(iova), page | 0x67)

    def map(self, page):
        """IOVA leads there now. The shadow is told nothing."""
        self._point(IOVA, page)

    def read(self):
        """What the device reads at IOVA."""
        self.vm.ram[self.target : self.target + 8] = bytes(8)
        self.edu.move(IOVA, TARGET, 8)
        return self.vm.ram[self.target : self.target + 8]

    def close(self):
        """Let go of everything."""
        self.device.close()
        self.iommufd.close()


class OnArm(Software):
    """The same over an SMMUv3: the guest's IOMMU is of another make than the host's."""

    IOMMU = "smmuv3"


GUESTS = (Intel, Arm, Amd, Riscv, Software, OnArm)
