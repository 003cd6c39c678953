"""A virtual VT-d over IOMMUs of other makes, whose nesting is done in software."""

import pytest

from softiommu.hardware.vtd.registers import Ttm
from softiommu.hardware.vtd.tables import WIDTHS
from vmm.software_vm import VtdVm
from vmm.vtd_vm import EDU, IOVA, RW, TEST, forget_context, forget_domain, forget_pages, forget_pasid

BLOCKED, UNTOUCHED = bytes(8), b"untouchd"
MODELS = ["smmuv3", "amd", "riscv", "vtd"]


@pytest.fixture(params=MODELS)
def vm(request):
    made = VtdVm(request.param)
    yield made
    assert made.notes == []
    made.close()


def move(vm, pages, content):
    pages.unmap(IOVA, 4096)
    pages.map(IOVA, vm.ram.page(content), 4096, RW)


def pages_of(vm, variant="x86-64-4level"):
    pages = vm.table(variant)
    pages.map(IOVA, vm.ram.page(b"old page"), 4096, RW)
    return pages


def test_a_first_stage(vm):
    pages = pages_of(vm)
    for sid in (TEST, EDU):
        vm.guest.context(sid, PASIDE=0)
        vm.guest.first(sid, pages, 1)
    vm.guest.boot()
    assert vm.read_by_test(IOVA) == vm.read_by_edu(IOVA) == b"old page"
    move(vm, pages, b"new page")
    assert vm.read_by_test(IOVA) == vm.read_by_edu(IOVA) == b"old page"
    assert vm.guest.submit(forget_pages(1, iova=IOVA))
    assert vm.read_by_test(IOVA) == vm.read_by_edu(IOVA) == b"new page"
    assert vm.read_by_test(IOVA + 4096) == vm.read_by_edu(IOVA + 4096) == BLOCKED
    vm.guest.absent(TEST)
    assert vm.guest.submit(forget_pasid(1))
    assert (vm.read_by_test(IOVA), vm.read_by_edu(IOVA)) == (UNTOUCHED, b"new page")


@pytest.mark.parametrize("aw", [1, 2])
@pytest.mark.parametrize("mode", [Ttm.SCALABLE, Ttm.LEGACY])
def test_a_second_stage(vm, aw, mode):
    pages = pages_of(vm, WIDTHS[aw])
    if mode is Ttm.LEGACY:
        vm.guest.legacy(TEST, pages, 4, aw)
    else:
        vm.guest.context(TEST, PASIDE=0)
        vm.guest.second(TEST, pages, 4, aw)
    vm.guest.boot(mode)
    assert vm.read_by_test(IOVA) == b"old page"
    move(vm, pages, b"new page")
    assert vm.guest.submit(forget_domain(5), forget_domain(4, IOVA + 4096), forget_context(EDU))
    assert vm.read_by_test(IOVA) == b"old page"
    assert vm.guest.submit(forget_domain(4, IOVA))
    assert vm.read_by_test(IOVA) == b"new page"
