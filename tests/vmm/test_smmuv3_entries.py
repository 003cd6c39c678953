"""What a virtual SMMUv3 makes of an STE is what an SMMU with its ID registers makes of it: a passed device gets where
it would behind one, and nowhere else."""

from copy import copy

from hypothesis import example, given, settings, strategies as st

from softiommu.hardware.iommu import TranslationFaultError
from softiommu.hardware.smmuv3.model import Smmu
from softiommu.pagetable.kinds import WRITE
from vmm.rig import BASE, SIZE
from vmm.smmuv3_vm import IOVA, RW, SPLIT, TEST, Vm

MARKER = b"marker!!"
flips = st.lists(st.tuples(st.sampled_from(["ste", "ste", "descriptor"]), st.integers(0, 511)), max_size=3)


@example(flips=[("ste", 56)], pasid=None)
@given(flips=flips, pasid=st.sampled_from([None, 1]))
@settings(max_examples=50, deadline=None)
def test_a_passed_device_gets_where_it_would_behind_an_smmu(flips, pasid):
    vm = Vm()
    guest, pages = vm.guest, vm.table()
    source, data = vm.ram.page(MARKER), vm.ram.page()
    pages.map(IOVA, data, 4096, RW)
    vm.test.run(source, 3)  # the device's buffer, while its addresses are physical
    guest.stream(TEST, EATS=0)
    guest.use(TEST, pages, 5)
    guest.use(TEST, pages, 6, 1)
    places = {"ste": (guest.ste_at(TEST), 512), "descriptor": (guest.streams + 8 * (TEST >> SPLIT), 64)}
    for name, bit in flips:
        at, bits = places[name]
        at, bit = at + bit % bits // 64 * 8, bit % 64
        vm.ram.write_u64(at, vm.ram.read_u64(at) ^ 1 << bit)
    other = copy(guest)
    other.smmu = Smmu(vm.ram, vm.smmu.identity)
    guest.boot()
    other.boot()
    try:
        expected = other.smmu.translate(TEST, IOVA, WRITE, pasid).pa
    except TranslationFaultError:
        expected = None
    vm.test.run(IOVA, 1, pasid)
    vm.smmu.service()
    assert vm.notes == []
    assert (vm.ram.read(data, 8) == MARKER) == (expected == data)
    if expected is not None and BASE <= expected < BASE + SIZE:
        assert vm.ram.read(expected, 8) == MARKER
    vm.close()
