"""vDPA as the third consumer: a virtio device moves buffers through the address spaces of VFIO's devices."""

import mmap
import random
import re
import struct
import subprocess
import sys
from errno import E2BIG, EBUSY, EINVAL, ENOBUFS, ENOENT, ENXIO, EPERM
from pathlib import Path

import pytest

import softiommu
from softiommu.errors import ConfigError, UapiError
from softiommu.machine.assemble import Machine
from softiommu.machine.description import parse
from split_ring import FEATURES, FLUSH, IN, IOERR, NEEDS_RESET, OK, OUT, Ring

MAKES = ("vtd", "smmuv3", "amd", "riscv")
MACHINE = """
name = "disks"
[[iommu]]
name = "iommu0"
model = "{model}"
[[device]]
name = "disk0"
address = "0000:00:03.0"
model = "virtio_blk"
size = 0x100000
[[device]]
name = "nvme0"
address = "0000:00:07.0"
model = "nvme"
size = 0x100000
"""
PAGE, IOVA = 4096, 0x100000
#: Pages of the program's memory: the queue has four, the data the others.
PAGES, DATA = 16, 4
CC, CSTS, AQA, ASQ, ACQ = 0x14, 0x1C, 0x24, 0x28, 0x30


def errno(call, *arguments):
    """The errno of a call that is refused."""
    with pytest.raises(UapiError) as error:
        call(*arguments)
    return error.value.errno


class Program:
    """A program with memory that it maps at IOVA of an address space, and a virtio disk in it."""

    def __init__(self, model="vtd"):
        self.machine = Machine(parse(MACHINE.format(model=model), "disks.toml"))
        self.iommufd = softiommu.open(self.machine)
        self.ioas = self.iommufd.ioas()
        self.memory = mmap.mmap(-1, PAGES * PAGE)
        self.mapping = self.ioas.map(self.memory, iova=IOVA)
        self.disk = self.iommufd.vdpa_device("disk0")
        self.ring = Ring(self.load, self.store, 0, IOVA, lambda: self.disk.kick(0))
        self.used, self.changed, self.refused = [], [], []
        self.machine.on_refusal = lambda device, why: self.refused.append(f"{device}: {why}")
        self.disk.on_used(0, lambda: self.used.append(1))
        self.disk.on_config_change(lambda: self.changed.append(1))

    def load(self, at, length):
        return self.memory[at : at + length]

    def store(self, at, data):
        self.memory[at : at + len(data)] = data

    def page(self, number):
        return self.memory[number * PAGE : (number + 1) * PAGE]

    def start(self):
        self.ring.clear()
        self.disk.start(FEATURES, {0: self.ring.addresses})

    def request(self, kind, sector, page, length=PAGE):
        return self.ring.request(kind, sector, (IOVA + page * PAGE, length))


@pytest.fixture(params=MAKES)
def program(request):
    made = Program(request.param)
    with made.iommufd:
        yield made


@pytest.fixture
def plain():
    made = Program()
    with made.iommufd:
        yield made


def test_a_disk_moves_buffers_through_an_attached_address_space(program):
    program.disk.attach(program.ioas)
    program.start()
    data = random.Random(1).randbytes(PAGE)
    program.memory[DATA * PAGE : (DATA + 1) * PAGE] = data
    assert program.request(OUT, 8, DATA) == (OK, 1)
    assert program.request(IN, 8, DATA + 1) == (OK, PAGE + 1)
    assert program.page(DATA + 1) == data
    assert program.ring.request(FLUSH) == (OK, 1)
    assert (len(program.used), program.changed) == (3, [])
    assert int.from_bytes(program.disk.config(0, 8), "little") == 0x100000 // 512


def test_without_an_address_space_nothing_is_reached(program):
    program.start()
    assert program.request(OUT, 0, DATA) is None
    assert program.disk.status.DEVICE_NEEDS_RESET
    assert (program.used, program.changed) == ([], [1])
    assert program.refused[-1].startswith(
        "disk0: the device needs a reset (DEVICE_NEEDS_RESET): DMA at iova 0x101002: "
    )
    program.disk.attach(program.ioas)
    program.start()
    assert program.request(OUT, 0, DATA) == (OK, 1)


def test_memory_that_is_unmapped_under_a_running_disk_is_out_of_its_reach(program):
    program.disk.attach(program.ioas)
    program.start()
    program.memory[DATA * PAGE : (DATA + 1) * PAGE] = b"k" * PAGE
    other = mmap.mmap(-1, PAGE)
    other[:] = b"o" * PAGE
    with program.ioas.map(other, iova=IOVA + PAGES * PAGE):
        assert program.request(OUT, 0, PAGES) == (OK, 1)
    # Its data only: the request fails. Its queue, too: the device stops.
    assert program.request(IN, 0, PAGES) == (IOERR, 1)
    program.mapping.unmap()
    assert program.request(IN, 0, DATA) is None
    assert program.disk.status.DEVICE_NEEDS_RESET
    assert program.page(DATA) == b"k" * PAGE
    program.ioas.map(program.memory, iova=IOVA)
    program.start()
    assert program.request(IN, 0, DATA) == (OK, PAGE + 1)
    assert program.page(DATA) == b"o" * PAGE


def test_another_address_space_takes_its_place_without_a_gap(program):
    other, second = program.iommufd.ioas(), mmap.mmap(-1, PAGES * PAGE)
    other.map(second, iova=IOVA)
    first = program.disk.attach(program.ioas)
    program.start()
    program.memory[DATA * PAGE : (DATA + 1) * PAGE] = b"1" * PAGE
    assert program.request(OUT, 0, DATA) == (OK, 1)
    # The queue lies at the same addresses of the other one, as it would after a move to another place.
    second[: DATA * PAGE] = program.memory[: DATA * PAGE]
    assert program.disk.attach(other) != first
    program.memory, program.before = second, program.memory
    assert program.request(IN, 0, DATA + 1) == (OK, PAGE + 1)
    assert second[(DATA + 1) * PAGE : (DATA + 2) * PAGE] == b"1" * PAGE
    assert program.before[(DATA + 1) * PAGE : (DATA + 2) * PAGE] == bytes(PAGE)
    program.disk.detach()
    assert program.request(IN, 0, DATA) is None


class Drive:
    """An NVMe drive in the hands of the same program, by VFIO: its queues are pages 12 and 13."""

    def __init__(self, program):
        self.program, self.tail = program, 0
        self.device = program.iommufd.device("nvme0")
        self.device.enable()
        self.device.attach(program.ioas)
        at = IOVA + 12 * PAGE
        for register, width, value in ((AQA, 4, 0xF000F), (ASQ, 8, at), (ACQ, 8, at + PAGE), (CC, 4, 0x460001)):
            self.device.write(0, register, width, value)
        assert self.device.read(0, CSTS, 4) == 1

    def identify(self, page):
        """Identify Controller into a page: the status."""
        raw = struct.pack("<IIQQQQ6I", 6, 0, 0, 0, IOVA + page * PAGE, 0, 1, 0, 0, 0, 0, 0)
        self.program.store(12 * PAGE + 64 * self.tail, raw)
        self.tail += 1
        self.device.write(0, 0x1000, 4, self.tail)
        return int.from_bytes(self.program.load(13 * PAGE + 16 * self.tail - 2, 2), "little") >> 1


def test_what_vfios_device_puts_into_a_buffer_vdpas_takes_out_of_it(program):
    program.disk.attach(program.ioas)
    program.start()
    drive = Drive(program)
    assert drive.identify(DATA) == 0
    assert b"softiommu NVMe" in program.page(DATA)
    assert program.request(OUT, 0, DATA) == (OK, 1)
    assert program.request(IN, 0, DATA + 1) == (OK, PAGE + 1)
    assert program.page(DATA + 1) == program.page(DATA)
    # Their address space is one: what is gone for the one is gone for the other.
    program.ioas.unmap_all()
    assert program.request(OUT, 0, DATA) is None
    drive.identify(DATA + 2)
    assert drive.device.read(0, CSTS, 4) & 2


def test_both_share_one_page_table_that_was_made_for_them(plain):
    table = plain.disk.hwpt(plain.ioas)
    device = plain.iommufd.device("nvme0")
    assert plain.disk.attach(table) == device.attach(table) == table.id
    plain.start()
    assert plain.request(OUT, 0, DATA) == (OK, 1)
    assert errno(table.destroy) == EBUSY
    device.detach()
    plain.disk.detach()
    table.destroy()


def test_a_disk_belongs_to_one_iommufd_and_is_free_and_clean_after_its_close(plain):
    plain.disk.attach(plain.ioas)
    plain.start()
    with softiommu.open(plain.machine) as other:
        assert errno(other.vdpa_device, "disk0") == EBUSY
        plain.disk.close()
        plain.disk.close()
        with other.vdpa_device("disk0") as taken:
            assert taken.status == 0
            taken.kick(0)
            assert not plain.ring.used()
    assert not plain.machine.services.owners
    assert errno(plain.disk.kick, 0) == ENXIO
    assert errno(plain.disk.attach, plain.ioas) == EINVAL


def test_closing_the_iommufd_gives_the_disk_back():
    program = Program()
    program.disk.attach(program.ioas)
    program.iommufd.close()
    assert not program.machine.services.owners
    assert not program.machine.physical.pinned
    with softiommu.open(program.machine) as other, other.vdpa_device("disk0") as disk:
        assert disk.features == FEATURES


def test_a_group_belongs_to_one_iommufd_whoever_consumes_it():
    text = MACHINE.format(model="vtd").replace("0000:00:07.0", "0000:02:02.0").replace("0000:00:03.0", "0000:02:01.0")
    machine = Machine(parse(text + '[[bridge]]\nname = "b"\naddress = "0000:00:06.0"\nbus = 2\n', "disks.toml"))
    with softiommu.open(machine) as one, softiommu.open(machine) as two:
        one.vdpa_device("disk0")
        assert errno(two.device, "nvme0") == EPERM
        one.device("nvme0")


def test_a_driver_cannot_go_back_but_by_a_reset(plain):
    plain.disk.attach(plain.ioas)
    plain.start()
    vdpa = plain.disk.vdpa
    assert errno(vdpa.set_status, 1) == EINVAL
    assert errno(vdpa.set_features, FEATURES) == EBUSY
    assert errno(vdpa.set_vq_address, 0, 0, 0, 0) == EBUSY
    plain.disk.reset()
    assert plain.request(OUT, 0, DATA) is None
    assert not vdpa.vq_ready(0)
    assert errno(vdpa.set_features, FEATURES | 1) == EINVAL
    assert errno(vdpa.set_features, FEATURES & ~(1 << 33)) == EINVAL
    plain.start()
    assert plain.request(OUT, 0, DATA) == (OK, 1)


def test_what_the_disk_does_not_have_is_refused(plain):
    disk, vdpa = plain.disk, plain.disk.vdpa
    assert (vdpa.device_id, vdpa.num_queues, vdpa.vq_num_max(0), vdpa.vq_group(0)) == (2, 1, 256, 0)
    for call in (disk.kick, vdpa.vq_ready, vdpa.vq_group, vdpa.vq_num_max, vdpa.set_vq_ready):
        assert errno(call, 1) == ENOBUFS
    for entries in (0, 3, 512, -1):
        assert errno(vdpa.set_vq_num, 0, entries) == EINVAL
    assert errno(disk.config, 0, 0) == EINVAL
    assert errno(disk.config, 0, vdpa.config_size + 1) == E2BIG
    assert errno(disk.attach, plain.ioas, 1) == EINVAL
    assert errno(disk.detach, 1) == EINVAL
    disk.set_group_asid(0, 0)
    assert errno(disk.set_group_asid, 0, 1) == EINVAL
    assert errno(disk.set_group_asid, 1, 0) == EINVAL
    plain.ioas.id = 99
    assert errno(disk.attach, plain.ioas) == ENOENT


def test_only_machines_in_this_process_have_vdpa(plain):
    with pytest.raises(ConfigError, match="vDPA has no device 'nvme0': there are disk0"):
        plain.iommufd.vdpa_device("nvme0")
    assert "disk0" not in plain.machine.device_nodes()
    facts = {device["name"]: device for device in plain.machine.facts()["devices"]}
    assert (facts["disk0"]["id"], facts["disk0"]["nodes"]) == ("1af4:1042", [])
    assert facts["nvme0"]["nodes"] == ["/dev/vfio/devices/vfio0", "/dev/vfio/1"]
    folder = "/sys/devices/pci0000:00/0000:00:03.0"
    assert plain.machine.entries[f"{folder}/driver"].target == "../../../bus/pci/drivers/vp-vdpa"
    assert plain.machine.entries[f"{folder}/uevent"].content().startswith(b"DRIVER=vp-vdpa\n")
    assert f"{folder}/vfio-dev/vfio0/dev" not in plain.machine.entries


def test_a_virtio_device_can_be_vfios_instead_and_nothing_else_vdpas():
    text = MACHINE.format(model="vtd").replace('model = "virtio_blk"', 'model = "virtio_blk"\ndriver = "vfio"')
    with softiommu.open(Machine(parse(text, "disks.toml"))) as iommufd:
        with iommufd.device("disk0") as device:
            capabilities = [device.read(7, at, 1) for at in (0x90, 0xA0, 0xC0, 0xD0, 0xE0)]
            assert capabilities == [9] * 5
            device.enable()
            assert device.read(0, 0x2000, 8) == 0x100000 // 512
            # The window in configuration space works through VFIO, too.
            for at, value in ((0xE8, 0x2000), (0xEC, 4)):
                device.write(7, at, 4, value)
            assert device.read(7, 0xF0, 4) == 0x100000 // 512
        with pytest.raises(ConfigError, match="vDPA has no device 'disk0': there are none"):
            iommufd.vdpa_device("disk0")
    with pytest.raises(ConfigError, match=r"disks.toml:16: vDPA has devices of model virtio_blk only, not 'nvme'"):
        parse(MACHINE.format(model="vtd") + 'driver = "vdpa"\n', "disks.toml")


def test_a_hostile_ring_stops_the_disk_and_not_the_drive_beside_it(program):
    program.disk.attach(program.ioas)
    drive = Drive(program)
    chance = random.Random(3)
    for _ in range(100):
        program.start()
        for index in range(4):
            at = chance.choice((IOVA, IOVA + 3 * PAGE, IOVA + PAGES * PAGE, chance.getrandbits(64)))
            program.ring.describe(index, at, chance.choice((16, 512, 0xFFFFFFFF)), chance.randrange(8), index + 1)
        program.ring.offer(0)
        assert not program.disk.status & ~(0xF | NEEDS_RESET)
    assert drive.identify(DATA) == 0
    program.start()
    assert program.request(OUT, 0, DATA) == (OK, 1)


def test_the_documentations_program_runs():
    text = (Path(__file__).parents[2] / "docs" / "vdpa.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == ["the device gave a buffer back", "status 0"]
