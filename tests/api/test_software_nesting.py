"""Nesting in software through the ioctls, and beside hardware that nests."""

import mmap
import struct
import subprocess
import sys
from contextlib import contextmanager, nullcontext
from errno import EBUSY, EINVAL, EOPNOTSUPP
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

import softiommu
from softiommu.abi import iommufd as abi
from softiommu.abi.generic_invalidation import GENERIC, InvalidateV1, Scope, Target
from softiommu.abi.software_nesting import BOUND, MAPPED, BoundFlags, HwptBound, HwptMapped
from softiommu.machine.assemble import Machine
from softiommu.machine.description import load, parse

EXAMPLE = Path(__file__).parents[2] / "examples" / "nesting_two_ways.py"
PAGE, LARGE = 4096, 2 << 20
RAM = 2 * LARGE
ROOT, DATA = 0x1000, 0x100000
ALL = (1 << 64) - 1
NEST_PARENT = int(abi.HwptAllocFlags.ALLOC_NEST_PARENT)
TEXT = """
name = "one-stage"
unsafe_interrupts = true
[[iommu]]
name = "unit"
{iommu}
nesting = "{nesting}"
[[device]]
name = "edu0"
address = "0000:00:04.0"
model = "edu"
dma_bits = 64
"""
IOMMUS = {
    "vtd": 'model = "vtd"',
    "vtd-sm": 'model = "vtd"\nunit = "vtd-sm"',
    "smmuv3": 'model = "smmuv3"',
    "amd": 'model = "amd"',
    "riscv": 'model = "riscv"',
    "virtio": 'model = "virtio"\nunit = "full"',
}


def machine(iommu="vtd", nesting="software"):
    return Machine(parse(TEXT.format(iommu=IOMMUS[iommu], nesting=nesting), "test"))


class Vm:
    """A guest's memory, its table, and a VMM that nests them."""

    def __init__(self, iommufd, ioas, device, data_type=BOUND, parent_flags=0):
        self.iommufd, self.ioas, self.device = iommufd, ioas, device
        self.ram = mmap.mmap(-1, RAM)
        self._tables = ROOT + PAGE
        self.parent = device.hwpt(ioas, NEST_PARENT | parent_flags)
        self.low = ioas.map(self.ram, iova=0)
        bound = HwptBound(BoundFlags.CACHING_MODE, ROOT, 48)
        data = bound if data_type == BOUND else abi.HwptVtdS1(0, ROOT, 48)
        self.child = device.hwpt(self.parent, data=(data_type, data))
        device.attach(self.child)
        device.enable()

    def store(self, at, word):
        struct.pack_into("<Q", self.ram, at, word)

    def entry(self, iova, level=0):
        """The address of an entry; tables are made on the way to it."""
        table = ROOT
        for above in range(3, level, -1):
            at = table + 8 * (iova >> 12 + 9 * above & 511)
            (word,) = struct.unpack_from("<Q", self.ram, at)
            if not word & 1:
                word, self._tables = self._tables | 7, self._tables + PAGE
                self.store(at, word)
            table = word & -PAGE
        return table + 8 * (iova >> 12 + 9 * level & 511)

    def map(self, iova, gpa, writable=True):
        self.store(self.entry(iova), gpa | 0x25 | (0x42 if writable else 0))

    def invalidate(self, iova, pages):
        assert self.child.invalidate(0, [abi.HwptVtdS1Invalidate(iova, pages)]) == 1

    def dma(self, source, target, command):
        for register, value in ((0x80, source), (0x88, target), (0x90, 4), (0x98, command)):
            self.device.write(0, register, 8, value)

    def read(self, iova):
        """What the device reads there: four bytes, of which none is 0 where it may."""
        self.dma(iova, 0x40000, 1)
        return self.device_holds()

    def device_holds(self):
        # Where the device writes its buffer for us to see: a page of its own, mapped for good.
        self.dma(0x40000, 0x7000, 3)
        return bytes(self.ram[0x80000:0x80004])

    def write(self, iova, what):
        """Let the device write four bytes there."""
        self.ram[0x80010:0x80014] = what
        self.dma(0x7010, 0x40000, 1)
        self.dma(0x40000, iova, 3)


@contextmanager
def vm(made, data_type=BOUND, parent_flags=0):
    with softiommu.open(made) as iommufd, iommufd.device("edu0") as device:
        guest = Vm(iommufd, iommufd.ioas(), device, data_type, parent_flags)
        guest.map(0x7000, 0x80000)
        guest.invalidate(0x7000, 1)
        yield guest


@pytest.mark.parametrize("iommu", IOMMUS)
def test_a_guests_table_works_on_every_model(iommu):
    with vm(machine(iommu)) as guest:
        guest.ram[DATA : DATA + 4] = b"data"
        guest.map(0x10000, DATA)
        assert guest.read(0x10000) == bytes(4)
        guest.invalidate(0x10000, 1)
        assert guest.read(0x10000) == b"data"
        guest.write(0x10000, b"DMA!")
        assert guest.ram[DATA : DATA + 4] == b"DMA!"
        guest.map(0x10000, DATA + PAGE, writable=False)
        guest.write(0x10000, b"late")
        assert guest.ram[DATA : DATA + 4] == b"late"
        leaf = InvalidateV1(Scope.RANGE_NO_PASID, 12, Target.LEAF, 0, 0, 0, 0x10000, 1)
        assert guest.child.invalidate(GENERIC, [leaf]) == 1
        guest.write(0x10000, b"none")
        assert guest.ram[DATA + PAGE : DATA + PAGE + 4] == bytes(4)
        guest.device.detach()
        guest.child.destroy()
        guest.low.unmap()
        guest.parent.destroy()


@pytest.mark.parametrize("iommu", IOMMUS)
def test_nothing_is_left_of_many_guests(iommu):
    made = machine(iommu)
    given = []
    for _ in range(3):
        with vm(made) as guest:
            for page in range(64):
                guest.map(0x100000 + page * PAGE, DATA + page * PAGE)
            guest.invalidate(0, ALL)
            assert guest.ioas.unmap_all() == RAM
        given.append(made.hardware.memory.given)
    assert len(set(given)) == 1


@pytest.mark.parametrize("iommu", IOMMUS)
def test_the_hosts_changes_reach_the_guests_device(iommu):
    with vm(machine(iommu)) as guest:
        guest.map(0x10000, RAM)
        guest.invalidate(0x10000, 1)
        assert guest.read(0x10000) == bytes(4)
        page = mmap.mmap(-1, PAGE)
        page[:4] = b"host"
        with guest.ioas.map(page, iova=RAM):
            assert guest.read(0x10000) == b"host"
            guest.write(0x10000, b"seen")
            assert page[:4] == b"seen"
        assert guest.read(0x10000) == bytes(4)
        with guest.ioas.map(page, iova=RAM, write=False):
            guest.write(0x10000, b"more")
            assert page[:4] == b"seen"


def test_a_guest_in_caching_mode_is_refused_nothing_and_another_is_told_why():
    with vm(machine()) as guest:
        plain = guest.device.hwpt(guest.parent, data=(abi.HwptDataType.VTD_S1, abi.HwptVtdS1(0, ROOT, 48)))
        with pytest.raises(OSError, match=r"the guest does not promise them \(CACHING_MODE\)") as refused:
            guest.device.attach(plain)
        assert refused.value.errno == EINVAL
        guest.ram[DATA : DATA + 4] = b"data"
        guest.map(0x10000, DATA)
        guest.invalidate(0x10000, 1)
        assert guest.read(0x10000) == b"data"


def test_a_machine_that_does_not_nest_says_so():
    with softiommu.open("vtd") as iommufd, iommufd.ioas() as ioas, iommufd.device("edu0") as device:
        with pytest.raises(OSError, match="nesting") as refused:
            device.hwpt(ioas, NEST_PARENT)
        assert refused.value.errno == EOPNOTSUPP
    with softiommu.open("vtd-nested") as iommufd, iommufd.device("edu0") as device:
        parent = device.hwpt(iommufd.ioas(), NEST_PARENT)
        with pytest.raises(OSError, match="nothing nests tables in software") as refused:
            device.hwpt(parent, data=(MAPPED, HwptMapped(iommufd.ioas().id)))
        assert refused.value.errno == EOPNOTSUPP
        with pytest.raises(OSError, match="no first-stage table"):
            device.hwpt(parent, data=(BOUND, HwptBound(1, ROOT, 48)))


def test_the_description_of_a_machine_names_what_nests():
    assert parse(TEXT.format(iommu=IOMMUS["amd"], nesting="mixed"), "x").iommus[0].nesting == "mixed"
    with pytest.raises(softiommu.ConfigError, match="x:7: unknown nesting 'softwear': expected one of hardware"):
        parse(TEXT.format(iommu=IOMMUS["vtd"], nesting="softwear"), "x")
    with pytest.raises(softiommu.ConfigError, match="the mock IOMMU has no tables"):
        parse('name = "m"\n[[iommu]]\nname = "mock0"\nmodel = "mock"\nnesting = "software"', "x")


def test_a_parents_dirty_bitmap_has_what_was_written_through_the_guests_table():
    with vm(machine("smmuv3"), parent_flags=int(abi.HwptAllocFlags.ALLOC_DIRTY_TRACKING)) as guest:
        guest.map(0x10000, DATA)
        guest.map(0x11000, DATA + PAGE)
        guest.invalidate(0x10000, 2)
        guest.parent.track_dirty()
        assert guest.parent.dirty(DATA, 4 * PAGE) == []
        guest.write(0x11000, b"live")
        assert guest.parent.dirty(DATA, 4 * PAGE) == [DATA + PAGE]
        guest.write(0x10000, b"move")
        guest.store(guest.entry(0x10000), 0)
        guest.invalidate(0x10000, 1)
        assert guest.parent.dirty(DATA, 4 * PAGE) == [DATA]
        assert guest.parent.dirty(DATA, 4 * PAGE) == []


SUPERVISED = """
import sys
sys.path.insert(0, sys.argv[1])
import softiommu
from api.test_software_nesting import DATA, Vm
with softiommu.open_kernel() as iommufd, iommufd.device("0000:00:04.0") as device:
    guest = Vm(iommufd, iommufd.ioas(), device)
    guest.map(0x7000, 0x80000)
    guest.ram[DATA : DATA + 4] = b"data"
    guest.map(0x10000, DATA)
    guest.invalidate(0x7000, 1)
    print(guest.read(0x10000))
    guest.invalidate(0x10000, 1)
    print(guest.read(0x10000))
    guest.write(0x10000, b"DMA!")
    print(bytes(guest.ram[DATA : DATA + 4]))
"""


def test_it_nests_for_a_program_under_supervision():
    command = [sys.executable, "-c", SUPERVISED, str(Path(__file__).parents[1])]
    argv = [sys.executable, "-m", "softiommu", "run", "--machine", "vtd-shadow", "--", *command]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [str(bytes(4)), "b'data'", "b'DMA!'"], done.stderr
    (fault,) = done.stderr.splitlines()
    assert "DMA read by 00:04.0 at iova 0x10000 is blocked" in fault


# A child that the program maps


@contextmanager
def mapped(made):
    """A device behind a child with an address space of its own, over a guest's memory from 0 on."""
    with softiommu.open(made) as iommufd, iommufd.device("edu0") as device:
        gpa, giova = iommufd.ioas(), iommufd.ioas()
        parent = device.hwpt(gpa, NEST_PARENT)
        child = device.hwpt(parent, data=(MAPPED, HwptMapped(giova.id)))
        device.attach(child)
        device.enable()
        yield iommufd, device, gpa, giova, parent, child


@pytest.mark.parametrize("iommu", IOMMUS)
def test_the_worked_example_of_the_design_debate(iommu):
    """GIOVA 0x2000 leads to GPA 0x1000, and that to memory of the VMM."""
    with mapped(machine(iommu)) as (_, device, gpa, giova, _, _):
        ram = mmap.mmap(-1, 4 * PAGE)
        ram[PAGE : PAGE + 4] = b"deep"
        dma = lambda *words: [device.write(0, 0x80 + 8 * n, 8, word) for n, word in enumerate(words)]  # noqa: E731
        guest_page = giova.map(0x1000, PAGE, iova=0x2000)
        output = giova.map(0x3000, PAGE, iova=0x8000)

        def seen():
            dma(0x2000, 0x40000, 4, 1)
            dma(0x40000, 0x8000, 4, 3)
            return ram[3 * PAGE : 3 * PAGE + 4]

        with gpa.map(ram, iova=0):
            assert seen() == b"deep"
        with gpa.map(ram, iova=0):
            ram[PAGE : PAGE + 4] = b"back"
            assert seen() == b"back"
            guest_page.unmap()
            assert seen() == bytes(4)
            giova.map(0x1000, PAGE, iova=0x2000, write=False)
            assert seen() == b"back"
            dma(0x8000, 0x40000, 4, 1)
            dma(0x40000, 0x2000, 4, 3)
            output.unmap()
            ram[3 * PAGE : 3 * PAGE + 4] = b"kept"
            seen()
            assert ram[3 * PAGE : 3 * PAGE + 4] == b"kept"


def test_a_childs_address_space_holds_no_memory_and_is_used_for_nothing_else():
    with mapped(machine()) as (iommufd, device, gpa, giova, parent, child):
        ram = mmap.mmap(-1, PAGE)
        real = gpa.map(ram, iova=0)
        guests = giova.map(0x5000, PAGE, iova=0x2000)
        refusals = {
            "no file can be mapped": lambda: giova.map_file(0, 0, PAGE),
            "the other does not": lambda: giova.copy(real),
            "the other does not.": lambda: gpa.copy(guests),
            "it is shown by a child's HWPT": lambda: device.hwpt(giova),
            "it is shown by a child's HWPT.": lambda: device.attach(giova),
            "a child needs one of its own": lambda: device.hwpt(parent, data=(MAPPED, HwptMapped(gpa.id))),
            "is no nesting parent": lambda: device.hwpt(child, data=(MAPPED, HwptMapped(iommufd.ioas().id))),
        }
        for sentence, call in refusals.items():
            with pytest.raises(OSError, match=sentence.rstrip(".")) as refused:
                call()
            assert refused.value.errno == EINVAL
        with pytest.raises(OSError, match="other objects use it") as refused:
            parent.destroy()
        assert refused.value.errno == EBUSY
        with pytest.raises(OSError, match="reserved"):
            device.hwpt(parent, data=(MAPPED, HwptMapped(giova.id, 1)))
        # It goes on to hold a parent's addresses when its HWPT is gone, until it is empty.
        device.detach()
        child.destroy()
        with pytest.raises(OSError, match="holds addresses of a parent"):
            device.attach(giova)
        guests.unmap()
        device.attach(giova)


def test_an_address_space_holds_addresses_of_one_other_whoever_shows_it():
    with mapped(machine()) as (iommufd, device, gpa, giova, parent, child):
        ram = mmap.mmap(-1, 4 * PAGE)
        gpa.map(ram, iova=0)
        again = device.hwpt(gpa, NEST_PARENT)
        middle = device.hwpt(parent, NEST_PARENT, data=(MAPPED, HwptMapped(iommufd.ioas().id)))
        second = device.hwpt(again, data=(MAPPED, HwptMapped(giova.id)))  # of another parent, which shows the same
        pages = giova.map(0x1000, 2 * PAGE, iova=0x2000)
        device.enable()
        for domain, word in ((child, b"1st."), (second, b"2nd.")):
            device.attach(domain)
            ram[PAGE : PAGE + 4] = word
            for command in ((0x2000, 0x40000, 4, 1), (0x40000, 0x3000, 4, 3)):
                for number, value in enumerate(command):
                    device.write(0, 0x80 + 8 * number, 8, value)
            assert ram[2 * PAGE : 2 * PAGE + 4] == word
        device.detach()
        others = iommufd.ioas()
        device.hwpt(middle, data=(MAPPED, HwptMapped(others.id)))
        for holder in (giova, others):
            with pytest.raises(OSError, match="of another space") as refused:
                device.hwpt(middle if holder is giova else parent, data=(MAPPED, HwptMapped(holder.id)))
            assert refused.value.errno == EINVAL
        with pytest.raises(OSError, match="the other does not"):
            others.copy(pages)
        for gone in (child, second):
            gone.destroy()
        with pytest.raises(OSError, match="of another space"):
            device.hwpt(middle, data=(MAPPED, HwptMapped(giova.id)))
        pages.unmap()
        device.hwpt(middle, data=(MAPPED, HwptMapped(giova.id)))


@pytest.mark.parametrize("kernel", ["6.12", "7.2"])
def test_a_kernel_without_the_pasid_flag_makes_no_child_with_it(kernel):
    text = TEXT.format(iommu=IOMMUS["vtd"], nesting="software")
    with softiommu.open(Machine(parse(text, "test"), kernel=kernel)) as iommufd, iommufd.device("edu0") as device:
        parent = device.hwpt(iommufd.ioas(), NEST_PARENT)
        child = HwptMapped(iommufd.ioas().id)
        known = nullcontext() if kernel == "7.2" else pytest.raises(OSError, match="flags for a child")
        with known as refused:
            device.hwpt(parent, int(abi.HwptAllocFlags.ALLOC_PASID), (MAPPED, child))
        assert refused is None or refused.value.errno == EOPNOTSUPP


def test_children_nest_on_children_through_the_ioctls():
    with mapped(machine()) as (iommufd, device, gpa, _, parent, _):
        ram = mmap.mmap(-1, 4 * PAGE)
        ram[2 * PAGE : 2 * PAGE + 4] = b"deep"
        gpa.map(ram, iova=0)
        middle, top = iommufd.ioas(), iommufd.ioas()
        first = device.hwpt(parent, NEST_PARENT, data=(MAPPED, HwptMapped(middle.id)))
        second = device.hwpt(first, data=(MAPPED, HwptMapped(top.id)))
        device.attach(second)
        middle.map(0x2000, 2 * PAGE, iova=0x50000)
        top.map(0x50000, PAGE, iova=0x90000)
        top.map(0x51000, PAGE, iova=0xA0000)
        for words in ((0x90000, 0x40000, 4, 1), (0x40000, 0xA0000, 4, 3)):
            for number, word in enumerate(words):
                device.write(0, 0x80 + 8 * number, 8, word)
        assert ram[3 * PAGE : 3 * PAGE + 4] == b"deep"


# Beside hardware


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("map"), st.integers(0, 7), st.integers(0, 5), st.booleans()),
        st.tuples(st.just("unmap"), st.integers(0, 7)),
        st.tuples(st.just("host")),
        st.tuples(st.just("write"), st.integers(0, 7)),
    ),
    max_size=12,
)


def history(made, data_type, steps):
    """What a device saw and did, of a guest that always invalidates."""
    seen = []
    extra = mmap.mmap(-1, PAGE)
    with vm(made, data_type) as guest:
        for page in range(6):
            guest.ram[DATA + page * PAGE : DATA + page * PAGE + 4] = b"pg%02d" % page
        given = None
        for number, step in enumerate(steps):
            match step:
                case "map", slot, page, writable:
                    # Page 5 is the host's to give and to take.
                    guest.map(0x10000 + slot * PAGE, RAM if page == 5 else DATA + page * PAGE, writable)
                    guest.invalidate(0x10000 + slot * PAGE, 1)
                case "unmap", slot:
                    guest.store(guest.entry(0x10000 + slot * PAGE), 0)
                    guest.invalidate(0x10000 + slot * PAGE, 1)
                case ("host",):
                    if given is not None:
                        given.unmap()
                    given = guest.ioas.map(extra, iova=RAM) if given is None else None
                case "write", slot:
                    guest.write(0x10000 + slot * PAGE, b"w%03d" % number)
            seen.append([guest.read(0x10000 + slot * PAGE) for slot in range(8)])
        seen.append([guest.ram[DATA + page * PAGE : DATA + page * PAGE + 4] for page in range(5)])
    return seen, extra[:4]


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS)
def test_hardware_and_software_show_a_correct_guest_the_same(steps):
    by_hardware = history(Machine(load("vtd-nested")), abi.HwptDataType.VTD_S1, steps)
    assert history(machine("vtd"), BOUND, steps) == by_hardware


def test_the_example_shows_the_same_twice():
    done = subprocess.run([sys.executable, str(EXAMPLE)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[3] == "page 1 invalidated: p000 p009 p002 p003"
    assert lines[6] == "the host gives memory there: new! p009"
    assert "DIFFERENT" not in done.stdout
    assert "merged 20 leaves, dropped 20, and was reached by 2 changes of the host" in done.stdout
