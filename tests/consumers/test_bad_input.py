"""Bad input: what a program or a driver does wrong is answered as vfio-pci and hardware do it, and told in words."""

import mmap
import random
import struct
import subprocess
import sys

import pytest

import softiommu
from softiommu.errors import UapiError
from softiommu.machine.assemble import Machine
from softiommu.machine.description import parse

PAGE = 4096
BAR_SIZE, TABLE, CONFIG_SIZE = 0x4000, 0x2000, 4096
CONFIG = 7
MAKES = ("vtd", "smmuv3", "amd", "riscv")
CAP, CC, CSTS, AQA, ASQ, ACQ = 0x00, 0x14, 0x1C, 0x24, 0x28, 0x30
ENABLE, FATAL = 4 << 20 | 6 << 16 | 1, 2
CREATE_SQ, CREATE_CQ, IDENTIFY, WRITE, READ = 1, 5, 6, 1, 2
IOVA = 0x100000
SUCCESS, TRANSFER_ERROR, BAD_OFFSET = 0, 0x004, 0x013


# A program under supervision, with the log

PRELUDE = """
import errno, fcntl, os, struct

def attempt(function, *arguments):
    try:
        result = function(*arguments)
    except OSError as error:
        result = errno.errorcode[error.errno]
    print(result if isinstance(result, str) else "done")
    return result

def node(path):
    return os.open(path, os.O_RDWR)

def call(fd, number, layout, *values):
    data = bytearray(struct.pack(layout, struct.calcsize(layout), *values))
    fcntl.ioctl(fd, number, data)
    return struct.unpack(layout, data)

def bind(device, iommufd):
    return call(device, 0x3B76, "=IIiI", 0, iommufd, 0)

def set_irqs(device, flags, index, *fds):
    return call(device, 0x3B6E, f"=IIIII{len(fds)}i", flags, index, 0, len(fds), *fds)
"""


def supervised(tmp_path, code, machine="vtd"):
    """What a program prints, line by line, and the sentences of its log."""
    log = tmp_path / "log"
    command = [sys.executable, "-m", "softiommu.cli", "run", "--machine", machine, "--log", str(log), "--"]
    command += [sys.executable, "-c", PRELUDE + code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stderr) == (0, "")
    refused = [line.split(" = -", 1)[1] for line in log.read_text().splitlines() if " = -" in line]
    return done.stdout.split(), refused


def test_a_device_that_the_machine_does_not_have(tmp_path):
    said, refused = supervised(
        tmp_path,
        """
attempt(node, "/dev/vfio/devices/vfio99")
attempt(node, "/dev/vfio/99")
group, container = node("/dev/vfio/2"), node("/dev/vfio/vfio")
fcntl.ioctl(group, 0x3B68, container.to_bytes(4, "little"))
attempt(fcntl.ioctl, group, 0x3B6A, b"0000:00:1f.0\\0")
attempt(fcntl.ioctl, group, 0x3B6A, b"0000:00:04.0\\0")
""",
    )
    assert said == ["ENOENT", "ENOENT", "ENODEV", "ENODEV"]
    assert refused == [
        "ENOENT: /dev/vfio/devices has no vfio99",
        "ENOENT: /dev/vfio has no 99",
        "ENODEV: group 2 has no device '0000:00:1f.0'",
        "ENODEV: group 2 has no device '0000:00:04.0'",
    ]


def test_a_group_is_bound_once_and_never_both_ways(tmp_path):
    said, refused = supervised(
        tmp_path,
        """
group, device, iommufd, other = map(node, ("/dev/vfio/2", "/dev/vfio/devices/vfio2", "/dev/iommu", "/dev/iommu"))
attempt(node, "/dev/vfio/2")
attempt(bind, device, iommufd)
os.close(group)
attempt(bind, device, iommufd)
attempt(node, "/dev/vfio/2")
attempt(bind, device, other)
attempt(bind, node("/dev/vfio/devices/vfio2"), other)
os.close(device)
attempt(node, "/dev/vfio/2")
""",
    )
    assert said == ["EBUSY", "EBUSY", "done", "EBUSY", "EINVAL", "EINVAL", "done"]
    assert refused == [
        "EBUSY: group 2 is used: its node is open",
        "EBUSY: group 2 is open: its devices are not bound by themselves",
        "EBUSY: group 2 is used: a device of it is bound through the device's node",
        "EINVAL: this descriptor is bound already",
        "EINVAL: 0000:00:07.0 is bound already",
    ]


def test_an_interrupt_goes_to_the_eventfd_that_was_given_also_when_its_number_is_closed(tmp_path):
    said, refused = supervised(
        tmp_path,
        """
device, iommufd = node("/dev/vfio/devices/vfio2"), node("/dev/iommu")
bind(device, iommufd)
told, alone = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0)
copy = os.dup(told)
set_irqs(device, 0x24, 2, told, alone)
os.close(told)
os.close(alone)
for vector in (0, 1):
    call(device, 0x3B6E, "=IIIII", 0x21, 2, vector, 1)
attempt(os.eventfd_read, copy)
attempt(os.eventfd_read, copy)
attempt(set_irqs, device, 0x24, 2, told, alone)
attempt(set_irqs, device, 0x24, 2, copy, iommufd)
attempt(set_irqs, device, 0x24, 2, copy, os.pipe()[0])
attempt(set_irqs, device, 0x24, 2, *[copy] * 10)
""",
    )
    assert said == ["done", "EAGAIN", "EBADF", "EINVAL", "EINVAL", "EINVAL"]
    assert [sentence.split(":")[0] for sentence in refused] == said[2:]
    assert [sentence.rsplit(" ", 3)[1:] for sentence in refused[1:3]] == [["is", "no", "eventfd"]] * 2
    assert refused[3] == "EINVAL: there are 9 MSIX interrupts"
    assert "open" in refused[0]


def test_a_place_that_no_region_has_is_told(tmp_path):
    said, refused = supervised(
        tmp_path,
        """
device, iommufd = node("/dev/vfio/devices/vfio2"), node("/dev/iommu")
attempt(os.pread, device, 4, 0)
bind(device, iommufd)
for region, offset in ((0, 0x4000), (1, 0), (6, 0), (8, 0), (9, 0), (7, 4095)):
    attempt(os.pread, device, 4, region << 40 | offset)
    attempt(os.pwrite, device, b"1234", region << 40 | offset)
os.pwrite(device, bytes(2), 7 << 40 | 4)
attempt(os.pread, device, 4, 0)
""",
    )
    assert said == ["EINVAL", *["EINVAL"] * 10, *["EFAULT"] * 2, "EIO"]
    assert refused[0] == "EINVAL: 0000:00:07.0 is not bound through this descriptor"
    assert refused[1:3] == ["EINVAL: there is nothing at offset 0x4000 of region 0"] * 2
    assert refused[11:13] == ["EFAULT: 0xfff..0x1002 passes the end of configuration space"] * 2
    assert refused[13] == "EIO: region 0: the memory of the device is disabled"


def test_what_a_device_refuses_its_driver_is_in_the_log(tmp_path):
    supervised(
        tmp_path,
        """
device, iommufd = node("/dev/vfio/devices/vfio2"), node("/dev/iommu")
bind(device, iommufd)
bar, config = (call(device, 0x3B6C, "=IIIIQQ", 0, index, 0, 0, 0)[5] for index in (0, 7))
os.pwrite(device, b"\\6\\0", config + 4)
os.pwrite(device, (1).to_bytes(4, "little"), bar + 0x14)
""",
    )
    lines = (tmp_path / "log").read_text().splitlines()
    (number,) = (at for at, line in enumerate(lines) if " nvme0: " in line)
    assert (
        f"{number + 1} nvme0: a fatal error (CSTS.CFS): it cannot be enabled with <Configuration 0x1 EN=1>"
        in lines[number]
    )
    assert "vfio device: write(count=4 " in lines[number + 1]


# A device's registers, whatever the width

DISK = """
name = "disk"
[[iommu]]
name = "iommu0"
model = "{model}"
[[device]]
name = "nvme0"
address = "0000:00:07.0"
model = "nvme"
size = 0x100000
"""


class Client:
    """A driver of the machine's NVMe controller, in this process. `sentences` is what the log would have."""

    def __init__(self, model="vtd"):
        self.machine = Machine(parse(DISK.format(model=model), "disk.toml"))
        self.sentences = []
        self.machine.on_refusal = lambda device, why: self.sentences.append(f"{device}: {why}")
        self.iommufd = softiommu.open(self.machine)
        self.device = self.iommufd.device("nvme0")
        self.function = self.machine.hardware.devices[0].function
        self.device.enable()

    def pread(self, region, offset, count):
        backend = self.iommufd.backend
        return backend.pread(self.device._fd, count, (region << 40) + offset)

    def pwrite(self, region, offset, data):
        backend = self.iommufd.backend
        return backend.pwrite(self.device._fd, data, (region << 40) + offset)


@pytest.fixture
def client():
    made = Client()
    with made.iommufd:
        yield made


def around(*edges):
    """Offsets near the edges of what a BAR has."""
    return [offset for edge in edges for offset in range(max(edge - 9, 0), edge + 9)]


def test_reads_of_a_bar_are_the_bytes_that_are_there_whatever_width_and_offset(client):
    table = range(TABLE, TABLE + 9 * 16)
    bytes_of = [0xFF if at in table else client.pread(0, at, 1)[0] for at in range(BAR_SIZE)]
    assert all(client.pread(0, at, 1) == b"\xff" for at in table)
    for offset in around(0, 0x14, 0x40, 0x1000, TABLE, table.stop, 0x3000, BAR_SIZE - 9):
        for count in range(1, 18):
            expected = bytes(bytes_of[offset : offset + count])
            assert client.pread(0, offset, count) == expected
            assert len(expected) == min(count, BAR_SIZE - offset)


def test_writes_of_a_bar_move_what_fits_and_never_touch_the_msix_table(client):
    chance = random.Random(1)
    before = client.function.msix.vectors[0].entry.read(0, 8), client.function.msix.vectors[8].entry.read(12, 4)
    for offset in around(TABLE, TABLE + 9 * 16, BAR_SIZE - 9):
        for count in range(1, 18):
            assert client.pwrite(0, offset, chance.randbytes(count)) == min(count, BAR_SIZE - offset)
    assert before == (
        client.function.msix.vectors[0].entry.read(0, 8),
        client.function.msix.vectors[8].entry.read(12, 4),
    )


def test_configuration_space_reads_alike_whatever_width_and_offset(client):
    bytes_of = b"".join(client.pread(CONFIG, at, 1) for at in range(CONFIG_SIZE))
    assert client.pread(CONFIG, 0, CONFIG_SIZE) == bytes_of
    for offset in (*range(0x110), *around(CONFIG_SIZE - 26)):
        for count in range(1, 10):
            assert client.pread(CONFIG, offset, count) == bytes_of[offset : offset + count]
    for offset in range(CONFIG_SIZE - 8, CONFIG_SIZE + 2):
        with pytest.raises(UapiError, match="passes the end of configuration space"):
            client.pread(CONFIG, offset, 9)


def test_whatever_is_written_to_configuration_space_the_device_stays_what_it_is(client):
    chance = random.Random(2)
    identity = [client.pread(CONFIG, at, 4) for at in (0x00, 0x08, 0x2C)]
    chain = client.pread(CONFIG, 0x34, 1)
    for _ in range(4000):
        offset, count = chance.choice((chance.randrange(0x100), chance.randrange(CONFIG_SIZE))), chance.randint(1, 9)
        if offset + count <= CONFIG_SIZE:
            assert client.pwrite(CONFIG, offset, chance.randbytes(count)) == count
    assert [client.pread(CONFIG, at, 4) for at in (0x00, 0x08, 0x2C)] == identity
    assert client.pread(CONFIG, 0x34, 1) == chain
    client.device.reset()
    client.pwrite(CONFIG, 4, b"\6\0")
    assert client.pread(0, CAP, 2) == b"\xff\x03"


# A driver that drives its queues at bad addresses


class Driver(Client):
    """One that has 16 pages of DMA memory at IOVA: queues in the first ones, data behind."""

    def __init__(self, model):
        super().__init__(model)
        self.memory = mmap.mmap(-1, 16 * PAGE)
        self.ioas = self.iommufd.ioas()
        self.ioas.map(self.memory, iova=IOVA)
        self.device.attach(self.ioas)
        self.tails = {}

    def enable(self, asq=IOVA, acq=IOVA + PAGE, entries=15 << 16 | 15):
        self.device.write(0, CC, 4, 0)
        for register, width, value in ((AQA, 4, entries), (ASQ, 8, asq), (ACQ, 8, acq), (CC, 4, ENABLE)):
            self.device.write(0, register, width, value)
        self.tails = {0: 0}
        return self.device.read(0, CSTS, 4)

    def submit(self, queue, opcode, nsid, prp1, prp2=0, *dwords):
        """A command with its doorbell; the status of its completion, None where there is none."""
        tail, at = self.tails[queue], 2 * queue * PAGE
        raw = struct.pack("<IIQQQQ6I", opcode, nsid, 0, 0, prp1, prp2, *dwords, *[0] * (6 - len(dwords)))
        self.memory[at + 64 * tail : at + 64 * tail + 64] = raw
        self.tails[queue] = tail + 1
        self.device.write(0, 0x1000 + 8 * queue, 4, tail + 1)
        status = int.from_bytes(self.memory[at + PAGE + 16 * tail + 14 : at + PAGE + 16 * tail + 16], "little")
        return status >> 1 & 0x7FF if status & 1 else None

    def make_queues(self, sq=IOVA + 2 * PAGE, cq=IOVA + 3 * PAGE):
        self.tails[1] = 0
        made = self.submit(0, CREATE_CQ, 0, cq, 0, 15 << 16 | 1, 1)
        return made, self.submit(0, CREATE_SQ, 0, sq, 0, 15 << 16 | 1, 1 << 16 | 1)


@pytest.fixture(params=MAKES)
def driver(request):
    made = Driver(request.param)
    with made.iommufd:
        yield made


def blocked(driver, iova):
    """Whether the kernel of the machine has told of a fault at this address."""
    return any(f"iova {iova:#x} is blocked" in line for line in driver.machine.messages)


@pytest.mark.parametrize(("asq", "acq"), [(IOVA + (1 << 30), IOVA), (IOVA, IOVA + (1 << 30)), (0, 1 << 50)])
def test_admin_queues_that_are_not_mapped_are_fatal(driver, asq, acq):
    assert driver.enable(asq, acq) == 1
    assert driver.submit(0, IDENTIFY, 0, IOVA + 4 * PAGE, 0, 1) is None
    assert driver.device.read(0, CSTS, 4) & FATAL
    bad = asq if asq != IOVA else acq
    told = f"nvme0: a fatal error (CSTS.CFS): a queue cannot be reached: DMA at iova {bad:#x}: "
    assert [line[: len(told)] for line in driver.sentences] == [told]
    assert blocked(driver, bad) or bad >> 39
    assert driver.enable() == 1
    assert driver.submit(0, IDENTIFY, 0, IOVA + 4 * PAGE, 0, 1) == SUCCESS


@pytest.mark.parametrize("which", ["sq", "cq"])
def test_io_queues_that_are_not_mapped_are_fatal_when_they_are_used(driver, which):
    driver.enable()
    assert driver.make_queues(**{which: IOVA + (1 << 30)}) == (SUCCESS, SUCCESS)
    assert driver.submit(1, READ, 1, IOVA + 4 * PAGE) is None
    assert driver.device.read(0, CSTS, 4) & FATAL
    assert blocked(driver, IOVA + (1 << 30))


@pytest.mark.parametrize("opcode", [READ, WRITE])
def test_data_that_is_not_mapped_fails_the_command_and_nothing_else(driver, opcode):
    driver.enable()
    driver.make_queues()
    outside, data = IOVA + (1 << 30), IOVA + 4 * PAGE
    before = driver.memory[6 * PAGE :]
    for prp1, prp2, blocks in (
        (outside, 0, 0),
        (data, outside, 15),
        (data, outside, 31),
        (IOVA + 16 * PAGE - 512, outside, 1),
    ):
        assert driver.submit(1, opcode, 1, prp1, prp2, 0, 0, blocks) == TRANSFER_ERROR
        assert blocked(driver, outside)
    assert driver.memory[6 * PAGE : 15 * PAGE] == before[: 9 * PAGE]
    assert all("DATA_TRANSFER_ERROR: DMA at iova" in line for line in driver.sentences)
    assert driver.submit(1, opcode, 1, data) == SUCCESS
    assert not driver.device.read(0, CSTS, 4) & FATAL


def test_prp_entries_with_offsets_and_lists_that_lead_in_circles_end(driver):
    driver.enable()
    driver.make_queues()
    data, listed = IOVA + 4 * PAGE, IOVA + 5 * PAGE
    for prp1, prp2, blocks in ((data + 1, 0, 0), (data, data + 512, 15), (data, listed + 4, 31)):
        assert driver.submit(1, READ, 1, prp1, prp2, 0, 0, blocks) == BAD_OFFSET
    # A list whose every entry, the link at its end too, is the list itself: 512 KiB land on it, and the command ends.
    driver.memory[5 * PAGE : 6 * PAGE] = struct.pack("<512Q", *[listed] * 512)
    assert driver.submit(1, READ, 1, data, listed, 0, 0, 1023) == SUCCESS
    assert driver.submit(1, READ, 1, data, listed, 0, 0, 1024) == 0x002
    assert [line.split("fails: ")[1] for line in driver.sentences] == [
        f"PRP_OFFSET_INVALID: PRP1 is {data + 1:#x}, no multiple of 4",
        f"PRP_OFFSET_INVALID: a page's entry is {data + 512:#x}, no multiple of 0x1000",
        f"PRP_OFFSET_INVALID: a list is at {listed + 4:#x}, no multiple of 8",
        "INVALID_FIELD",
    ]


def test_memory_that_is_unmapped_under_a_running_driver_is_out_of_its_reach(driver):
    driver.enable()
    driver.make_queues()
    assert driver.submit(1, READ, 1, IOVA + 4 * PAGE) == SUCCESS
    driver.memory[4 * PAGE : 5 * PAGE] = b"k" * PAGE
    driver.ioas.unmap_all()
    assert driver.submit(1, READ, 1, IOVA + 4 * PAGE) is None
    assert driver.memory[4 * PAGE : 5 * PAGE] == b"k" * PAGE
    assert driver.device.read(0, CSTS, 4) & FATAL


def test_doorbells_of_queues_that_are_not_there_and_values_that_cannot_be_are_told(driver):
    driver.enable()
    for doorbell, value in ((0x1008, 1), (0x1000, 16), (0x1004, 1)):
        driver.device.write(0, doorbell, 4, value)
    assert driver.sentences == [
        "nvme0: doorbell 2 belongs to no queue",
        "nvme0: doorbell 0 cannot become 16",
        "nvme0: doorbell 1 cannot become 1",
    ]
    assert driver.enable(entries=0) & FATAL
    assert "it cannot be enabled with" in driver.sentences[-1]
