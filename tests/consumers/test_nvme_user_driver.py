"""The examples of a user-space NVMe driver, in Python and C, as unmodified programs on machines of every make."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from requirements import need

DRIVER = Path(__file__).parents[2] / "examples" / "nvme_user_driver"
ADDRESS = "0000:00:07.0"
SIZE = 8 << 20
MACHINE = """
name = "disk"

[[iommu]]
name = "iommu0"
model = "{model}"

[[device]]
name = "edu0"
address = "0000:00:04.0"
model = "edu"

[[device]]
name = "nvme0"
address = "{address}"
model = "nvme"
file = "{file}"
block = {block}
"""


class Machine:
    """A machine with an NVMe drive that is a file."""

    def __init__(self, folder, model="vtd", block=512):
        self.disk, self._description = folder / "disk.img", folder / "disk.toml"
        self.disk.write_bytes(bytes(SIZE))
        self._description.write_text(MACHINE.format(model=model, address=ADDRESS, file=self.disk, block=block))

    def run(self, *arguments, address=ADDRESS, stdin=b"", driver=(sys.executable, str(DRIVER))):
        """The driver with these arguments."""
        command = [sys.executable, "-m", "softiommu.cli", "run", "--machine", str(self._description), "--"]
        command += [*driver, address, *arguments]
        return subprocess.run(command, input=stdin, capture_output=True, timeout=60, check=False)


def checked(seed, block):
    """What the driver's check leaves on the drive."""
    chance, left, size = random.Random(seed), b"", 4 << 10
    while size <= 1 << 20:
        for _ in (0, block):
            left += chance.randbytes(size)
        size *= 2
    return left


def test_it_uses_nothing_but_what_a_program_on_hardware_has():
    imports = set()
    for file in DRIVER.glob("*.py"):
        lines = file.read_text().splitlines()
        imports |= {line.split()[1].split(".")[0] for line in lines if line.startswith(("import ", "from "))}
    assert imports <= set(sys.stdlib_module_names) | {"nvme", "vfio"}


@pytest.mark.parametrize("model", ["vtd", "smmuv3", "amd", "riscv"])
def test_what_it_writes_is_in_the_file_whatever_the_iommu(tmp_path, model):
    machine = Machine(tmp_path, model)
    done = machine.run("check", "--seed", "7")
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(done.stdout.splitlines()) == 18
    left = checked(7, 512)
    assert machine.disk.read_bytes() == left.ljust(SIZE, b"\0")


@pytest.mark.parametrize(("block", "poll"), [(4096, False), (512, True)])
def test_blocks_of_4_kib_and_polling_work_too(tmp_path, block, poll):
    machine = Machine(tmp_path, block=block)
    done = machine.run(*["--poll"] * poll, "check")
    assert (done.returncode, done.stderr) == (0, b"")
    assert machine.disk.read_bytes() == checked(0, block).ljust(SIZE, b"\0")


def test_files_go_to_the_drive_and_come_back(tmp_path):
    machine, data = Machine(tmp_path), random.Random(5).randbytes((3 << 20) + 512)
    done = machine.run("write", "0x1200", stdin=data)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert machine.disk.read_bytes() == (bytes(0x1200) + data).ljust(SIZE, b"\0")
    done = machine.run("read", "0x1400", str(1 << 20))
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == data[0x200 : 0x200 + (1 << 20)]


def test_it_tells_what_drive_it_is(tmp_path):
    done = Machine(tmp_path).run("info")
    said = done.stdout.decode().splitlines()
    assert said[:3] == [
        "softiommu NVMe, serial number SOFTIOMMU0002",
        "8 MiB: 16384 blocks of 512 bytes",
        "a command moves up to 512 KiB",
    ]


@pytest.mark.parametrize(
    ("arguments", "address", "sentence"),
    [
        (["info"], "0000:00:09.0", "there is no PCI device at 0000:00:09.0"),
        (["info"], "0000:00:04.0", "0000:00:04.0 is no NVMe controller: its class is 0x00ff00"),
        (["read", "0x800000", "512"], ADDRESS, "a read of 1 blocks at block 16384 failed: LBA Out of Range (0x080)"),
        (["read", "100", "512"], ADDRESS, "offset 0x64 and length 0x200 must be multiples of 512 bytes"),
    ],
)
def test_what_goes_wrong_is_a_sentence(tmp_path, arguments, address, sentence):
    done = Machine(tmp_path).run(*arguments, address=address)
    assert done.returncode == 1
    assert done.stderr.decode().startswith(f"nvme_user_driver: {sentence}")
    assert b"Traceback" not in done.stderr


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """The driver in C: it needs no header of a new kernel."""
    program = tmp_path_factory.mktemp("driver") / "nvme_user_driver"
    command = [need("cc"), "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(program), str(DRIVER.with_suffix(".c"))]
    subprocess.run(command, check=True)
    return (str(program),)


@pytest.mark.parametrize("model", ["vtd", "smmuv3", "amd", "riscv"])
def test_the_driver_in_c_writes_and_reads_the_same_drive(tmp_path, compiled, model):
    machine, data = Machine(tmp_path, model), random.Random(6).randbytes((2 << 20) + 4096 + 512)
    done = machine.run("write", "0x1000", stdin=data, driver=compiled)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert machine.disk.read_bytes() == (bytes(0x1000) + data).ljust(SIZE, b"\0")
    done = machine.run("read", "0x1000", str(len(data)), driver=compiled)
    assert (done.returncode, done.stdout == data, done.stderr) == (0, True, b"")


def test_the_driver_in_c_says_what_goes_wrong(tmp_path, compiled):
    machine = Machine(tmp_path)
    for arguments, address, sentence in (
        (["read", "0x800000", "512"], ADDRESS, b"a read failed: status 0x080"),
        (["read", "1", "512"], ADDRESS, b"offset 0x1 and length 0x200 must be multiples of 512 bytes"),
        (["read", "0", "512"], "0000:00:09.0", b"VFIO has no device at 0000:00:09.0"),
        (["erase"], ADDRESS, b"usage: "),
    ):
        done = machine.run(*arguments, address=address, driver=compiled)
        assert done.returncode == 1
        assert done.stderr.startswith(b"nvme_user_driver: " + sentence)
