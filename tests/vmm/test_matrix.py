"""A guest of each make over a host of each make, nested by hardware and in software: all do what the architecture of
the guest's IOMMU allows, or the host says why its device is refused.

What a cell needs: a guest of a VT-d invalidates what it maps (caching mode), so any host that translates will do. A
guest of an SMMUv3 does not, so a shadow learns of new mappings by faults alone: the device must ask again for pages
(PRI), or be held (stall).
"""

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from drivers.smmuv3_guest import tlbi_va
from vmm import smmuv3_vm, vtd_vm
from vmm.smmuv3_vm import IOVA, RW
from vmm.software_vm import HOSTS, SmmuVm, VtdVm
from vmm.test_any_guest import SmmuGuest, VtdGuest

BLOCKED, UNTOUCHED = bytes(8), b"untouchd"
RECOVERS = [name for name, host in HOSTS.items() if host.recovers]
#: (guest, host): how to make it.
WORKS = {
    ("smmuv3", "smmuv3, hardware"): smmuv3_vm.Vm,
    ("vtd", "vtd, hardware"): vtd_vm.Vm,
    **{("smmuv3", name): SmmuVm for name in RECOVERS},
    **{("vtd", name): VtdVm for name in HOSTS},
}
REFUSED = [name for name in HOSTS if name not in RECOVERS]
WITH_PASIDS = [cell for cell in WORKS if cell[1] in HOSTS and HOSTS[cell[1]].pasids]


def vm_of(cell):
    _, host = cell
    return WORKS[cell]() if "hardware" in host else WORKS[cell](host)


class Smmu:
    """How a guest of an SMMUv3 tells of a table, and of a page that changed."""

    def __init__(self, vm):
        self.vm, self.pages = vm, vm.table()
        vm.guest.stream(smmuv3_vm.TEST, EATS=0)

    def boot(self):
        self.vm.guest.use(smmuv3_vm.TEST, self.pages, 5)
        self.vm.guest.boot()

    def forget(self, iova):
        assert self.vm.guest.submit(tlbi_va(iova, 5)) == 0

    def mapped(self, iova):
        """Nothing is told."""


class Vtd:
    """The same of a VT-d in caching mode."""

    def __init__(self, vm):
        self.vm, self.pages = vm, vm.table()

    def boot(self):
        self.vm.guest.context(vtd_vm.TEST, PASIDE=0)
        self.vm.guest.first(vtd_vm.TEST, self.pages, 1)
        self.vm.guest.boot()

    def forget(self, iova):
        assert self.vm.guest.submit(vtd_vm.forget_pages(1, iova=iova))

    mapped = forget


@pytest.mark.parametrize("cell", WORKS, ids=" over ".join)
def test_a_guest_maps_unmaps_and_invalidates(cell):
    vm = vm_of(cell)
    guest = (Smmu if cell[0] == "smmuv3" else Vtd)(vm)
    old, new = vm.ram.page(b"old page"), vm.ram.page(b"new page")
    guest.pages.map(IOVA, old, 4096, RW)
    guest.boot()
    assert vm.read_by_test(IOVA) == b"old page"
    assert vm.read_by_test(IOVA + 4096) == BLOCKED
    guest.pages.map(IOVA + 4096, new, 4096, RW)
    guest.mapped(IOVA + 4096)
    assert vm.read_by_test(IOVA + 4096) == b"new page"
    guest.pages.unmap(IOVA, 4096)
    guest.pages.map(IOVA, new, 4096, RW)
    assert vm.read_by_test(IOVA) == b"old page"  # nobody invalidated
    guest.forget(IOVA)
    assert vm.read_by_test(IOVA) == b"new page"
    guest.pages.unmap(IOVA, 4096)
    guest.forget(IOVA)
    assert vm.read_by_test(IOVA) == BLOCKED
    assert vm.notes == []
    vm.close()


@pytest.mark.parametrize("host", REFUSED)
def test_without_recoverable_faults_a_guest_of_an_smmuv3_is_refused_and_why(host):
    vm = SmmuVm(host)
    guest = Smmu(vm)
    guest.pages.map(IOVA, vm.ram.page(b"old page"), 4096, RW)
    guest.boot()
    (note,) = vm.notes
    assert "is blocked, since the host refuses" in note
    assert vm.read_by_test(IOVA) == UNTOUCHED
    vm.close()


@pytest.mark.parametrize("cell", WITH_PASIDS, ids=" over ".join)
def test_random_guests_see_what_their_architecture_allows(cell):
    """Those of hardware nesting are in test_any_guest.py; guests have PASIDs, which some hosts have not."""
    kind = SmmuGuest if cell[0] == "smmuv3" else VtdGuest

    class Guest(kind):
        def make_vm(self):
            return vm_of(cell)

    run_state_machine_as_test(Guest, settings=settings(max_examples=5, stateful_step_count=25, deadline=None))
