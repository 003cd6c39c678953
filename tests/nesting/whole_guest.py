"""A complete guest, the same for each IOMMU: tables in its RAM, DMA by its addresses, unmaps, invalidations, faults.

`Vm` is an iommufd, the guest and its device, on a soft machine or on device nodes (SOFTIOMMU_TEST_NODE).
"""

import os
from errno import EOPNOTSUPP

import pytest

import softiommu
from nesting.guest import Edu, GuestRam
from softiommu.abi import iommufd as abi
from softiommu.abi.generic_invalidation import GENERIC, InvalidateV2, Scope, Target

NODE = os.environ.get("SOFTIOMMU_TEST_NODE")
EDU = "0000:00:04.0"
NEST_PARENT = int(abi.HwptAllocFlags.ALLOC_NEST_PARENT)
IOVA, TARGET = 0x7_0000_0000, 0x10_0000
PAGE, RW = 4096, 3


class Vm:
    """A guest whose RAM an address space shows from 0 on; a vendor gives the rest."""

    MACHINE = VIOMMU = TABLE = None
    NAME = 0x42

    def __init__(self):
        self.iommufd = softiommu.open_kernel(NODE) if NODE else softiommu.open(self.MACHINE)
        self.ram = GuestRam()
        self.ioas = self.iommufd.ioas()
        self.mapping = self.ioas.map_file(self.ram.fd, 0, self.ram.end, iova=0)
        self.device = self.iommufd.device(EDU)
        self.edu = Edu(self.device)
        self.parent = self.device.hwpt(self.ioas, NEST_PARENT)
        self.viommu = self.device.viommu(self.VIOMMU, self.parent)
        self.vdevice = self.viommu.vdevice(self.device, self.NAME)
        self.table = self.ram.table(self.TABLE)
        self.nested = self.nest()
        self.device.attach(self.nested)

    def nest(self):
        """A nested HWPT of the table."""
        raise NotImplementedError

    def page(self, content=b""):
        """A page of the guest's, with something in it."""
        pa = self.ram.alloc(PAGE)
        self.ram.write(pa, content)
        return pa

    def moved(self, source, target):
        """What a transfer of 16 bytes brings to the guest's page `target`, which TARGET is mapped to."""
        self.ram.write(target, bytes(16))
        self.edu.move(source, TARGET)
        return self.ram.read(target, 16)

    def blocked(self):
        """How many accesses the kernel said it blocked since it was asked before; None where that is not seen."""
        if NODE:
            return None
        messages = self.iommufd.backend.machine.messages
        count = len(messages)
        messages.clear()
        return count

    def close(self):
        """Let go of everything; nothing stays pinned."""
        self.device.close()
        self.iommufd.close()
        self.ram.close()
        if not NODE:
            assert not self.iommufd.backend.machine.physical.pinned


class WholeGuest:
    """The tests, for the `Vm` of a vendor."""

    VM = Vm

    @pytest.fixture
    def vm(self):
        made = self.VM()
        yield made
        made.close()

    def test_dma_goes_by_guest_addresses_and_stale_ones_until_they_are_invalidated(self, vm):
        one, two, target = vm.page(b"the first page.."), vm.page(b"the second page."), vm.page()
        vm.table.map(IOVA, one, PAGE, RW)
        vm.table.map(TARGET, target, PAGE, RW)
        assert vm.moved(IOVA, target) == b"the first page.."
        vm.table.unmap(IOVA, PAGE)
        vm.table.map(IOVA, two, PAGE, RW)
        assert vm.moved(IOVA, target) == b"the first page.."
        vm.forget(IOVA)
        assert vm.moved(IOVA, target) == b"the second page."
        vm.table.unmap(IOVA, PAGE)
        assert vm.viommu.invalidate(GENERIC, [InvalidateV2(scope=Scope.DOMAIN, targets=Target.LEAF)]) == 1
        assert not vm.blocked()
        vm.table.unmap(TARGET, PAGE)
        vm.forget(TARGET)
        assert vm.moved(IOVA, target) == bytes(16)
        assert vm.blocked() in (2, None)

    def test_an_unmap_by_the_host_ends_a_guests_dma_at_once(self, vm):
        source, target = vm.page(b"sixteen bytes. !"), vm.page()
        vm.table.map(IOVA, source, PAGE, RW)
        vm.table.map(TARGET, target, PAGE, RW)
        assert vm.moved(IOVA, target) == b"sixteen bytes. !"
        vm.ioas.unmap(0, vm.ram.end)
        assert vm.moved(IOVA, target) == bytes(16)
        vm.ioas.map_file(vm.ram.fd, 0, vm.ram.end, iova=0)
        assert vm.moved(IOVA, target) == b"sixteen bytes. !"

    def test_a_guest_cannot_reach_what_is_not_its_own(self, vm):
        source, target = vm.page(b"sixteen bytes. !"), vm.page()
        vm.table.map(IOVA, vm.ram.end + PAGE, PAGE, RW)
        vm.table.map(TARGET, target, PAGE, RW)
        vm.table.map(IOVA + PAGE, source, PAGE, 1)  # to read
        assert vm.moved(IOVA + PAGE, target) == b"sixteen bytes. !"
        vm.edu.move(TARGET, IOVA + PAGE)
        assert vm.ram.read(source, 16) == b"sixteen bytes. !"
        vm.ram.write(target, b"not moved at all")
        vm.edu.move(IOVA, IOVA)
        assert vm.ram.read(target, 16) == b"not moved at all"

    def test_what_was_refused_in_an_array_is_told_with_how_many_were_done(self, vm):
        target = vm.page()
        contents = [f"this is page {number:3}".encode() for number in range(3)]
        vm.table.map(TARGET, target, PAGE, RW)
        for number, page in enumerate([vm.page(content) for content in contents]):
            vm.table.map(IOVA + number * PAGE, page, PAGE, RW)
            assert vm.moved(IOVA + number * PAGE, target) == contents[number]
        vm.table.unmap(IOVA, 3 * PAGE)
        vm.table.map(IOVA, vm.page(b"what is new here"), PAGE, RW)
        entries = [
            InvalidateV2(scope=Scope.RANGE_NO_PASID, addr=IOVA + number * PAGE, count=1, granule_lg2=12, targets=1)
            for number in range(3)
        ]
        entries[1].hints = 1 << 31
        with pytest.raises(OSError, match=r"hints|refused") as caught:
            vm.nested.invalidate(GENERIC, entries)
        assert (caught.value.errno, caught.value.handled) == (EOPNOTSUPP, 1)
        found = [vm.moved(IOVA + number * PAGE, target) for number in range(3)]
        assert found == [b"what is new here", *contents[1:]]
