"""Children of hardware and of software in one tree (`nesting = "mixed"`): on each make of IOMMU that nests, and others.

One parent has a child that the hardware nests, one that a guest keeps (BOUND), one that the program keeps (MAPPED), and
one over that, which the hardware nests where it can do so without a vIOMMU. Each has a device of its own.
"""

import errno
import itertools

import pytest

import softiommu
from drivers.smmuv3_guest import context
from nesting.guest import Edu, GuestRam
from nesting.test_amd_guest import AmdVm, TestAmdGuest as _AmdGuest
from nesting.test_riscv_guest import PSCID, RiscvVm, TestRiscvGuest as _RiscvGuest
from softiommu.abi import amd_extension, iommufd as abi, riscv_extension
from softiommu.abi.generic_invalidation import GENERIC, InvalidateV1, InvalidateV2, Scope, Target, Valid
from softiommu.abi.software_nesting import BOUND, MAPPED, BoundFlags, HwptBound, HwptMapped, TableFormat
from softiommu.hardware.amd.tables import Dte, Dte0, Dte1, Gcr3Entry
from softiommu.hardware.riscv.tables import DeviceTa, FirstMode, Iosatp, Tc
from softiommu.hardware.smmuv3.tables import Config, S1Dss, Ste0, Ste1
from softiommu.machine.assemble import Machine
from softiommu.machine.description import parse

PAGE, RW = 4096, 3
NAME = 0x42
IOVA, TARGET = 0x700_0000, 0x10_0000
NEST_PARENT = int(abi.HwptAllocFlags.ALLOC_NEST_PARENT)
TEXT = """
name = "mixed"
unsafe_interrupts = true
[[iommu]]
name = "unit"
{iommu}
nesting = "mixed"
"""
DEVICE = """
[[device]]
name = "edu{number}"
address = "0000:00:0{number}.0"
model = "edu"
dma_bits = 64
"""


def machine(iommu):
    return Machine(parse(TEXT.format(iommu=iommu) + "".join(DEVICE.format(number=4 + n) for n in range(4)), "mixed"))


class Child:
    """A nested HWPT with its device, and the guest's table that it is of."""

    def __init__(self, tree, table, hwpt, device):
        self.tree, self.table, self.hwpt, self.device = tree, table, hwpt, device
        self.edu = Edu(device)
        device.attach(hwpt)

    def map(self, iova, gpa):
        self.table.map(iova, gpa, PAGE, RW)

    def unmap(self, iova):
        self.table.unmap(iova, PAGE)
        everything = InvalidateV1(scope=Scope.DOMAIN, targets=Target.LEAF | Target.TABLES)
        assert self.hwpt.invalidate(GENERIC, [everything]) == 1

    def moved(self):
        """What a transfer from IOVA to TARGET brings."""
        self.tree.ram.write(self.tree.target, bytes(16))
        self.edu.move(IOVA, TARGET)
        return self.tree.ram.read(self.tree.target, 16)

    def close(self):
        self.device.detach()
        self.hwpt.destroy()


class Bound(Child):
    """In software: what is mapped is invalidated, too."""

    def map(self, iova, gpa):
        super().map(iova, gpa)
        page = InvalidateV1(scope=Scope.RANGE_ALL_PASIDS, addr=iova, count=1, granule_lg2=12, targets=Target.LEAF)
        assert self.hwpt.invalidate(GENERIC, [page]) == 1


class Mapped(Child):
    """In software: an address space is the table."""

    def map(self, iova, gpa):
        self.table.map(gpa, PAGE, iova)

    def unmap(self, iova):
        self.table.unmap(iova, PAGE)


class Tree:
    """A guest's RAM behind a parent, and children on that; a make of IOMMU gives what its hardware nests."""

    IOMMU = TABLE = VIOMMU = None

    def __init__(self):
        self.iommufd = softiommu.open(machine(self.IOMMU))
        self.ram = GuestRam()
        self.ioas = self.iommufd.ioas()
        self.mapping = self.ioas.map_file(self.ram.fd, 0, self.ram.end, iova=0)
        self.devices = [self.iommufd.device(f"0000:00:0{4 + number}.0") for number in range(4)]
        self.parent = self.devices[0].hwpt(self.ioas, NEST_PARENT)
        self.target = self.page(b"")
        self.viommu = self.devices[0].viommu(self.VIOMMU, self.parent) if self.VIOMMU else None
        self.vdevice = self.viommu.vdevice(self.devices[0], NAME) if self.viommu else None
        self.children = {"hardware": self.hardware(self.devices[0], self.parent), **self.software()}

    def page(self, content):
        at = self.ram.alloc(PAGE)
        self.ram.write(at, content)
        return at

    def hardware(self, device, parent):
        table = self.ram.table(self.TABLE)
        where = self.viommu or parent
        return Child(self, table, device.hwpt(where, 0, self.data(table)), device)

    def data(self, table):
        """HWPT data of the make, for a guest's table."""
        raise NotImplementedError

    def software(self):
        table, space = self.ram.table("x86-64-4level"), self.iommufd.ioas()
        bound = HwptBound(BoundFlags.CACHING_MODE, table.root, 48, TableFormat.X86_64)
        mapped = self.devices[2].hwpt(self.parent, NEST_PARENT, (MAPPED, HwptMapped(space.id)))
        return {
            "bound": Bound(self, table, self.devices[1].hwpt(self.parent, 0, (BOUND, bound)), self.devices[1]),
            "mapped": Mapped(self, space, mapped, self.devices[2]),
        }

    def fill(self):
        """Every child has the target, and a page of its own; what its device reads there."""
        pages = {}
        for name, child in self.children.items():
            pages[name] = name.encode().ljust(16, b".")
            child.map(IOVA, self.page(pages[name]))
            child.map(TARGET, self.target)
        return pages

    def moved(self):
        return {name: child.moved() for name, child in self.children.items()}

    def close(self):
        for device in self.devices:
            device.close()
        self.iommufd.close()
        self.ram.close()
        assert not self.iommufd.backend.machine.physical.pinned


class VtdTree(Tree):
    """Nests on a parent, without a vIOMMU."""

    IOMMU, TABLE = 'model = "vtd"\nunit = "full"', "x86-64-4level"

    def data(self, table):
        return abi.HwptDataType.VTD_S1, abi.HwptVtdS1(0, table.root, 48)


class SmmuTree(Tree):
    """Nests on a vIOMMU: a context descriptor in the guest's RAM."""

    IOMMU, TABLE, VIOMMU = 'model = "smmuv3"', "arm64-4k-48-s1", abi.ViommuType.ARM_SMMUV3

    def data(self, table):
        contexts = self.ram.alloc(PAGE)
        for number, word in enumerate(context(table, 5)):
            self.ram.write_u64(contexts + 8 * number, int(word))
        ste = Ste0.of(V=1, CONFIG=Config.S1, S1CONTEXTPTR=contexts >> 6), Ste1.of(S1DSS=S1Dss.SSID0)
        return abi.HwptDataType.ARM_SMMUV3, abi.HwptArmSmmuv3(*ste)


class AmdTree(Tree):
    """Nests on a vIOMMU: a GCR3 table in the guest's RAM."""

    IOMMU, TABLE, VIOMMU = 'model = "amd"', "x86-64-4level", amd_extension.VIOMMU

    def data(self, table):
        gcr3 = self.ram.alloc(PAGE)
        self.ram.write_u64(gcr3, Gcr3Entry.of(V=1, ADDR=table.root >> 12))
        entry = Dte(Dte0.of(V=1, TV=1, GV=1, GIoV=1), Dte1.of(DomainID=7)).with_gcr3_root(gcr3)
        return abi.HwptDataType.AMD_GUEST, abi.HwptAmdGuest.from_bytes(entry.to_bytes())


class RiscvTree(Tree):
    """Nests on a vIOMMU or a parent."""

    IOMMU, TABLE, VIOMMU = 'model = "riscv"', "riscv-sv48", riscv_extension.VIOMMU

    def data(self, table):
        fsc = Iosatp.of(MODE=FirstMode.SV48, PPN=table.root >> 12)
        return riscv_extension.HWPT_DATA, riscv_extension.HwptRiscv(Tc.of(V=1, SADE=1), DeviceTa.of(PSCID=PSCID), fsc)


MAKES = {"vtd": VtdTree, "smmuv3": SmmuTree, "amd": AmdTree, "riscv": RiscvTree}


@pytest.fixture(params=MAKES.values(), ids=MAKES)
def tree(request):
    made = request.param()
    yield made
    made.close()


def test_each_child_translates_by_its_own_table_and_its_parents_changes_reach_them_all(tree):
    pages = tree.fill()
    assert tree.moved() == pages
    tree.ioas.unmap(0, tree.ram.end)
    assert tree.moved() == dict.fromkeys(pages, bytes(16))
    tree.ioas.map_file(tree.ram.fd, 0, tree.ram.end, iova=0)
    assert tree.moved() == pages
    for name, child in tree.children.items():
        child.unmap(IOVA)
        assert child.moved() == bytes(16)
        rest = {other: pages[other] for other in pages if other != name}
        assert {other: tree.children[other].moved() for other in rest} == rest
        child.map(IOVA, tree.page(pages[name]))


@pytest.mark.parametrize("order", list(itertools.permutations(("hardware", "bound", "mapped"))), ids="-".join)
@pytest.mark.parametrize("make", MAKES)
def test_children_go_in_any_order_and_leave_the_others_as_they_are(make, order):
    tree = MAKES[make]()
    pages = tree.fill()
    for name in order:
        with pytest.raises(OSError, match="use it"):
            tree.parent.destroy()
        tree.children.pop(name).close()
        del pages[name]
        assert tree.moved() == pages
    if tree.viommu:
        tree.vdevice.destroy()
        tree.viommu.destroy()
    tree.parent.destroy()
    tree.close()


def test_a_nested_hwpt_knows_no_device_by_a_name(tree):
    entry = InvalidateV2(scope=Scope.DOMAIN, targets=Target.DEVICE_TLB, valid=Valid.DEVICE, device=NAME)
    for child in ("hardware", "bound"):
        with pytest.raises(OSError, match="device") as caught:
            tree.children[child].hwpt.invalidate(GENERIC, [entry])
        assert (caught.value.errno, caught.value.handled) == (errno.EINVAL, 0)
    if tree.viommu:
        assert tree.viommu.invalidate(GENERIC, [entry]) == 1


@pytest.mark.parametrize("make", ["vtd", "riscv"])
def test_the_hardware_nests_on_a_child_that_is_merged(make):
    tree = MAKES[make]()
    mapped = tree.children["mapped"]
    table = tree.ram.table(tree.TABLE)
    mapped.table.map(0, tree.ram.end, 0)
    child = Child(tree, table, tree.devices[3].hwpt(mapped.hwpt, 0, tree.data(table)), tree.devices[3])
    child.map(IOVA, tree.page(b"over the merged."))
    child.map(TARGET, tree.target)
    assert child.moved() == b"over the merged."
    mapped.table.unmap(0, tree.ram.end)
    assert child.moved() == bytes(16)
    mapped.table.map(0, tree.ram.end, 0)
    assert child.moved() == b"over the merged."
    tree.ioas.unmap(0, tree.ram.end)
    assert child.moved() == bytes(16)
    tree.close()


class _MixedAmd(AmdVm):
    MACHINE = property(lambda self: machine(AmdTree.IOMMU))


class _MixedRiscv(RiscvVm):
    MACHINE = property(lambda self: machine(RiscvTree.IOMMU))


class TestAmdGuestOfMixed(_AmdGuest):
    """A guest of AMD's notices nothing of it."""

    VM = _MixedAmd


class TestRiscvGuestOfMixed(_RiscvGuest):
    """Nor does one of RISC-V's."""

    VM = _MixedRiscv


@pytest.mark.parametrize("iommu", ['model = "vtd"', 'model = "virtio"\nunit = "full"'], ids=("vtd", "virtio"))
def test_what_the_hardware_cannot_nest_is_nested_in_software(iommu):
    with softiommu.open(machine(iommu)) as iommufd, iommufd.device("0000:00:04.0") as device:
        ram, outer, inner = GuestRam(), iommufd.ioas(), iommufd.ioas()
        outer.map_file(ram.fd, 0, ram.end, iova=0)
        parent = device.hwpt(outer, NEST_PARENT)
        child = device.hwpt(parent, 0, (MAPPED, HwptMapped(inner.id)))
        source, target = ram.alloc(PAGE), ram.alloc(PAGE)
        ram.write(source, b"software nests !")
        inner.map(source, PAGE, IOVA)
        inner.map(target, PAGE, TARGET)
        device.attach(child)
        Edu(device).move(IOVA, TARGET)
        assert ram.read(target, 16) == b"software nests !"
        with pytest.raises(OSError, match="vIOMMU") as caught:
            device.viommu(abi.ViommuType.ARM_SMMUV3, parent)
        assert caught.value.errno == errno.EOPNOTSUPP
        ram.close()
