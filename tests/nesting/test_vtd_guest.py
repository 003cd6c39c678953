"""A guest on a machine whose VT-d nests, through iommufd: its tables, DMA by its addresses, invalidations, faults.

The same on a soft machine and on device nodes: test_on_device_nodes.py does that.
"""

import errno
import mmap
import os

import pytest

import softiommu
from nesting.guest import Edu, GuestRam, PciTest
from softiommu.abi import iommufd as abi
from softiommu.abi.generic_invalidation import GENERIC, InvalidateV1, InvalidateV2, Scope, Target

NEST_PARENT, ALLOC_PASID = int(abi.HwptAllocFlags.ALLOC_NEST_PARENT), int(abi.HwptAllocFlags.ALLOC_PASID)
VTD_S1 = int(abi.HwptDataType.VTD_S1)
ALL = 2**64 - 1
RW = 3
NODE = os.environ.get("SOFTIOMMU_TEST_NODE")
EDU, TEST = "0000:00:04.0", "0000:00:05.0"
IOVA, TARGET = 0x7F_0000_0000, 0x10_0000


class Vm:
    """An iommufd, a guest whose RAM an address space shows from 0 on, and a device on a nest parent of that."""

    def __init__(self, name, flags=NEST_PARENT):
        self.iommufd = softiommu.open_kernel(NODE) if NODE else softiommu.open("vtd-nested")
        self.ram = GuestRam()
        self.ioas = self.iommufd.ioas()
        self.mapping = self.ioas.map_file(self.ram.fd, 0, self.ram.end, iova=0)
        self.device = self.iommufd.device(name)
        self.parent = self.device.hwpt(self.ioas, flags)

    def nest(self, table, flags=0, width=48, hwpt_flags=0, faults=None):
        """A nested HWPT of a guest's table."""
        config = abi.HwptVtdS1(flags, table.root, width)
        return self.device.hwpt(self.parent, hwpt_flags, (VTD_S1, config), faults)

    def blocked(self):
        """What the kernel printed of blocked DMA since it was asked before, where that can be seen."""
        printed = [] if NODE else self.iommufd.backend.machine.messages
        said = list(printed)
        printed.clear()
        return said

    def close(self):
        """Let go of everything; nothing stays pinned."""
        self.device.close()
        self.iommufd.close()
        self.ram.close()
        if not NODE:
            physical = self.iommufd.backend.machine.physical
            assert physical.accounts.total == 0
            assert not physical.pinned


@pytest.fixture
def vm():
    made = []

    def make(name=EDU, flags=NEST_PARENT):
        made.append(Vm(name, flags))
        return made[-1]

    yield make
    for one in made:
        one.close()


def page_of(vm, content=b""):
    """A page of the guest's RAM."""
    gpa = vm.ram.alloc(4096)
    vm.ram.write(gpa, content)
    return gpa


@pytest.mark.parametrize(("levels", "width"), [("4level", 48), ("5level", 57)])
def test_dma_goes_by_guest_addresses_and_stale_ones_until_they_are_invalidated(vm, levels, width):
    vm = vm()
    table, nested = vm.ram.table(f"x86-64-{levels}"), None
    source, target, other = page_of(vm, b"sixteen bytes. !"), page_of(vm), page_of(vm, b"the other page !")
    table.map(IOVA, source, 4096, RW)
    table.map(TARGET, target, 4096, RW)
    nested = vm.nest(table, width=width)
    vm.device.attach(nested)
    edu = Edu(vm.device)
    edu.move(IOVA, TARGET + 0x100)
    assert vm.ram.read(target + 0x100, 16) == b"sixteen bytes. !"

    table.unmap(IOVA, 4096)
    table.map(IOVA, other, 4096, RW)
    edu.move(IOVA, TARGET)
    assert vm.ram.read(target, 16) == b"sixteen bytes. !"  # nobody told the hardware
    assert nested.invalidate(0, [abi.HwptVtdS1Invalidate(IOVA, 1)]) == 1
    edu.move(IOVA, TARGET)
    assert vm.ram.read(target, 16) == b"the other page !"

    table.unmap(TARGET, 4096)
    nested.invalidate(GENERIC, [InvalidateV1(scope=Scope.DOMAIN, targets=Target.LEAF | Target.TABLES)])
    vm.ram.write(target, bytes(16))
    assert vm.blocked() == []
    edu.move(IOVA, TARGET)
    assert vm.ram.read(target, 16) == bytes(16)
    said = f"write by 00:04.0 at iova {TARGET:#x} is blocked: first not present"
    assert [said in message for message in vm.blocked()] == ([] if NODE else [True])


def test_the_hardware_marks_what_was_read_and_written_in_the_guests_table(vm):
    vm = vm()
    table = vm.ram.table("x86-64-4level")
    for iova in (IOVA, TARGET):
        table.map(iova, page_of(vm), 4096, RW)
    nested = vm.nest(table)
    vm.device.attach(nested)
    Edu(vm.device).move(IOVA, TARGET)
    flags = [leaf.pte >> 5 & 3 for leaf in table.leaves(0, 2**47)]
    assert flags == [3, 1]  # TARGET is accessed and dirty, IOVA accessed


def test_an_unmap_by_the_host_ends_a_guests_dma_at_once(vm):
    vm = vm()
    table = vm.ram.table("x86-64-4level")
    source, target = page_of(vm, b"sixteen bytes. !"), page_of(vm)
    table.map(IOVA, source, 4096, RW)
    table.map(TARGET, target, 4096, RW)
    vm.device.attach(vm.nest(table))
    edu = Edu(vm.device)
    edu.move(IOVA, TARGET)
    vm.mapping.unmap()
    vm.ram.write(target, bytes(16))
    edu.move(IOVA, TARGET)
    assert vm.ram.read(target, 16) == bytes(16)
    assert NODE or vm.blocked()
    vm.ioas.map_file(vm.ram.fd, 0, vm.ram.end, iova=0)
    edu.move(IOVA, TARGET)
    assert vm.ram.read(target, 16) == b"sixteen bytes. !"


def test_a_guest_cannot_reach_what_is_not_its_own(vm):
    vm = vm()
    table = vm.ram.table("x86-64-4level")
    target = page_of(vm)
    table.map(TARGET, target, 4096, RW)
    table.map(IOVA, vm.ram.end, 4096, RW)
    table.map(IOVA + 4096, 1 << 40, 4096, RW)
    vm.device.attach(vm.nest(table))
    edu = Edu(vm.device)
    for iova in (IOVA, IOVA + 4096):
        edu.move(iova, TARGET)
        assert vm.ram.read(target, 16) == bytes(16)
    assert NODE or len(vm.blocked()) == 2


def test_pasids_have_tables_of_their_own_beside_the_devices(vm):
    vm = vm(TEST, NEST_PARENT | ALLOC_PASID)
    base, process = vm.ram.table("x86-64-4level"), vm.ram.table("x86-64-5level")
    one, two, target = (page_of(vm, os.urandom(4096)) for _ in range(3))
    base.map(IOVA, one, 4096, RW)
    process.map(IOVA, two, 4096, RW)
    for table in (base, process):
        table.map(TARGET, target, 4096, RW)
    of_base = vm.nest(base, hwpt_flags=ALLOC_PASID)
    of_process = vm.nest(process, width=57, hwpt_flags=ALLOC_PASID)
    vm.device.attach(of_base)
    for pasid in (7, 900):
        vm.device.attach(of_process, pasid)
    test = PciTest(vm.device)
    for pasid, source in ((None, one), (7, two), (900, two)):
        test.load(IOVA, pasid)
        test.store(TARGET, pasid)
        assert vm.ram.read(target, 4096) == vm.ram.read(source, 4096)
    # A process's tables become a device's own, and the other way.
    vm.device.attach(of_base, 7)
    vm.device.attach(of_process)
    for pasid, source in ((None, two), (7, one)):
        test.load(IOVA, pasid)
        test.store(TARGET, pasid)
        assert vm.ram.read(target, 4096) == vm.ram.read(source, 4096)
    vm.device.detach(900)
    before = vm.ram.read(target, 4096)
    test.load(IOVA, 900)
    test.store(TARGET, 900)
    assert vm.ram.read(target, 4096) == before


def test_a_nested_hwpt_without_the_pasid_flag_takes_none(vm):
    vm = vm(TEST, NEST_PARENT | ALLOC_PASID)
    table = vm.ram.table("x86-64-4level")
    with pytest.raises(OSError, match=r"ALLOC_PASID|refused") as caught:
        vm.device.attach(vm.nest(table), 7)
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize("pasid", [None, 7])
def test_a_fault_of_a_guests_table_reaches_the_vmm_and_is_answered(vm, pasid):
    vm = vm(TEST, NEST_PARENT | ALLOC_PASID)
    table, faults = vm.ram.table("x86-64-4level"), vm.iommufd.fault_queue()
    content = os.urandom(4096)
    source, target = page_of(vm, content), page_of(vm)
    nested = vm.nest(table, hwpt_flags=ALLOC_PASID, faults=faults)
    vm.device.attach(nested, pasid)
    test = PciTest(vm.device)
    assert test.load(IOVA, pasid)
    (fault,) = faults.read()
    assert (fault.addr, fault.pasid, fault.device_id) == (IOVA, pasid, vm.device.id)
    table.map(IOVA, source, 4096, RW)
    faults.respond(fault.cookie)
    assert not test.busy
    assert test.store(TARGET, pasid)
    (fault,) = faults.read()
    table.map(TARGET, target, 4096, RW)
    faults.respond(fault.cookie)
    assert vm.ram.read(target, 4096) == content

    table.unmap(IOVA, 4096)
    assert not test.load(IOVA, pasid)  # the device has it still
    nested.invalidate(0, [abi.HwptVtdS1Invalidate(IOVA, 1)])
    assert test.load(IOVA, pasid)
    (fault,) = faults.read()
    faults.respond(fault.cookie, success=False)
    assert not test.busy


def test_what_was_refused_in_an_array_is_told_with_how_many_were_done(vm):
    vm = vm()
    table = vm.ram.table("x86-64-4level")
    target, pages = page_of(vm), [page_of(vm, bytes([n + 1]) * 16) for n in range(3)]
    table.map(TARGET, target, 4096, RW)
    for number, gpa in enumerate(pages):
        table.map(IOVA + (number << 12), gpa, 4096, RW)
    nested = vm.nest(table)
    vm.device.attach(nested)
    edu = Edu(vm.device)
    for number in range(3):
        edu.move(IOVA + (number << 12), TARGET)
    table.unmap(IOVA, 3 * 4096)
    entries = [abi.HwptVtdS1Invalidate(IOVA + (n << 12), 1) for n in range(3)]
    entries[1].flags = 2
    with pytest.raises(OSError, match=r"entry 1 has flags 0x2|refused") as caught:
        nested.invalidate(0, entries)
    assert (caught.value.errno, caught.value.handled) == (errno.EOPNOTSUPP, 1)
    reached = []
    for number in range(3):
        edu.move(IOVA + (number << 12), TARGET)
        reached.append(vm.ram.read(target, 16) == bytes([number + 1]) * 16)
    assert reached == [False, True, True]


@pytest.mark.parametrize(
    ("data_type", "entries", "number"),
    [
        (1, [abi.HwptVtdS1Invalidate(0, 1)], errno.EINVAL),
        (GENERIC + 1, [InvalidateV1(scope=0, targets=1)], errno.EINVAL),
        (GENERIC, [InvalidateV1(scope=9, targets=1)], errno.EOPNOTSUPP),
        (GENERIC, [InvalidateV2(scope=0, targets=1, valid=2, device=1)], errno.EINVAL),
        (0, [InvalidateV2(out_fault=1)], errno.E2BIG),
    ],
)
def test_arrays_that_no_nested_hwpt_takes(vm, data_type, entries, number):
    vm = vm()
    nested = vm.nest(vm.ram.table("x86-64-4level"))
    with pytest.raises(OSError) as caught:
        nested.invalidate(data_type, entries)
    assert (caught.value.errno, caught.value.handled) == (number, 0)
    assert nested.invalidate(GENERIC, []) == nested.invalidate(0, []) == 0


def test_an_entry_of_version_2_hears_what_became_of_it(vm):
    vm = vm()
    nested = vm.nest(vm.ram.table("x86-64-4level"))
    entries = [InvalidateV2(scope=0, targets=targets, out_errno=99, out_fault=99) for targets in (1, 15, 16, 1)]
    with pytest.raises(OSError) as caught:
        nested.invalidate(GENERIC, entries)
    assert (caught.value.errno, caught.value.handled) == (errno.EOPNOTSUPP, 2)
    assert [entry.out_errno for entry in entries] == [0, 0, errno.EOPNOTSUPP, 99]
    assert [entry.out_fault for entry in entries] == [0, 0, 0, 99]


def test_only_a_nest_parent_has_nested_hwpts(vm):
    vm = vm()
    table = vm.ram.table("x86-64-4level")
    vm.parent = vm.device.hwpt(vm.ioas)
    with pytest.raises(OSError, match=r"no nesting parent|refused") as caught:
        vm.nest(table)
    assert caught.value.errno == errno.EINVAL


def test_the_parent_stays_while_a_guest_is_on_it(vm):
    vm = vm()
    nested = vm.nest(vm.ram.table("x86-64-4level"))
    vm.device.attach(nested)
    for held in (vm.parent, nested):
        with pytest.raises(OSError) as caught:
            held.destroy()
        assert caught.value.errno == errno.EBUSY
    vm.device.detach()
    nested.destroy()
    vm.parent.destroy()


def test_the_host_sees_which_of_a_guests_pages_were_written(vm):
    vm = vm(flags=NEST_PARENT | int(abi.HwptAllocFlags.ALLOC_DIRTY_TRACKING))
    table = vm.ram.table("x86-64-4level")
    source, target = page_of(vm), page_of(vm)
    table.map(IOVA, source, 4096, RW)
    table.map(TARGET, target, 4096, RW)
    vm.device.attach(vm.nest(table))
    vm.parent.track_dirty()
    Edu(vm.device).move(IOVA, TARGET)
    large = 2 << 20  # what the parent's leaves are
    assert target & -large in vm.parent.dirty(0, vm.ram.end, large)
    assert vm.parent.dirty(0, vm.ram.end, large) == []
    Edu(vm.device).move(IOVA, TARGET)
    assert vm.parent.dirty(0, vm.ram.end, large) == [target & -large]
    vm.parent.track_dirty(False)


@pytest.mark.skipif(bool(NODE), reason="the node is of another kernel")
def test_the_kernel_6_12_nests_too():
    ram = GuestRam()
    table, source, target = ram.table("x86-64-4level"), ram.alloc(4096), ram.alloc(4096)
    ram.write(source, b"sixteen bytes. !")
    table.map(IOVA, source, 4096, RW)
    table.map(TARGET, target, 4096, RW)
    with softiommu.open("vtd-nested", "6.12") as iommufd, mmap.mmap(ram.fd, ram.end) as pages:
        ioas, device = iommufd.ioas(), iommufd.device(EDU)
        mapping = ioas.map(pages, iova=0)
        parent = device.hwpt(ioas, NEST_PARENT)
        nested = device.hwpt(parent, 0, (VTD_S1, abi.HwptVtdS1(0, table.root, 48)))
        device.attach(nested)
        Edu(device).move(IOVA, TARGET)
        assert ram.read(target, 16) == b"sixteen bytes. !"
        assert nested.invalidate(0, [abi.HwptVtdS1Invalidate(0, ALL)]) == 1
        device.close()
        nested.destroy()
        parent.destroy()
        mapping.unmap()
    ram.close()
