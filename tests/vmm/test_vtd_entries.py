"""What a virtual VT-d makes of an entry is what the unit itself makes of it: a passed device gets where an emulated one
would, and nowhere else."""

from hypothesis import given, settings, strategies as st

from softiommu.hardware.iommu import TranslationFaultError
from softiommu.hardware.vtd.tables import Pasid1
from softiommu.pagetable.kinds import WRITE
from vmm.rig import BASE, SIZE
from vmm.vtd_vm import IOVA, RW, TEST, Vm

MARKER = b"marker!!"
flips = st.lists(st.tuples(st.sampled_from(["context", "directory", "pasid", "root"]), st.integers(0, 511)), max_size=3)


@given(flips=flips, pasid=st.sampled_from([None, 1]))
@settings(max_examples=50, deadline=None)
def test_a_passed_device_gets_where_an_emulated_one_would(flips, pasid):
    vm = Vm()
    guest, pages = vm.guest, vm.table()
    source, data = vm.ram.page(MARKER), vm.ram.page()
    pages.map(IOVA, data, 4096, RW)
    vm.test.run(source, 3)  # the device's buffer, while its addresses are physical
    guest.context(TEST)
    guest.first(TEST, pages, 1)
    guest.first(TEST, pages, 2, 1)
    entry = guest.entry_at(TEST, pasid)
    places = {
        "context": (guest.contexts + 32 * TEST, 256),
        "directory": (guest.directories[TEST], 64),
        "pasid": (entry, 512),
        "root": (guest.root, 64),
    }
    for name, bit in flips:
        at, bits = places[name]
        at, bit = at + bit % bits // 64 * 8, bit % 64
        vm.ram.write_u64(at, vm.ram.read_u64(at) ^ 1 << bit)
    # The host's walks snoop, whatever the guest says.
    vm.ram.write_u64(entry + 8, vm.ram.read_u64(entry + 8) | Pasid1.PWSNP.mask)
    guest.boot()
    try:
        expected = vm.unit.translate(TEST, IOVA, WRITE, pasid).pa
    except TranslationFaultError:
        expected = None
    vm.test.run(IOVA, 1, pasid)
    vm.unit.service()
    assert (vm.ram.read(data, 8) == MARKER) == (expected == data), vm.notes
    if expected is not None and BASE <= expected < BASE + SIZE:
        assert vm.ram.read(expected, 8) == MARKER
    vm.close()
