"""The examples do what they say."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def start(*argv):
    return subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)


def test_the_first_mapping_uses_nothing_but_what_a_program_on_hardware_has():
    text = (EXAMPLES / "first_mapping.py").read_text()
    imports = {line.split()[1] for line in text.splitlines() if line.startswith(("import ", "from "))}
    assert imports == {"ctypes", "fcntl", "mmap", "os", "struct", "sys"}


@pytest.mark.skipif(Path("/dev/iommu").exists(), reason="there is a real /dev/iommu here")
def test_the_first_mapping_says_where_there_is_no_iommufd():
    ended = start(sys.executable, str(EXAMPLES / "first_mapping.py"))
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", "there is no /dev/iommu here\n")


def test_the_page_fault_is_answered_once():
    ended = start(sys.executable, str(EXAMPLES / "page_fault.py"))
    assert (ended.returncode, ended.stderr) == (0, "")
    said = ended.stdout.splitlines()
    assert "<PgfaultPerm.WRITE: 2> at 0x7000" in said[1]
    assert said[3] == "a second answer is refused: an answer with cookie 1: no fault waits for it"


def test_the_first_dma_uses_nothing_but_what_a_program_on_hardware_has():
    text = (EXAMPLES / "first_dma.py").read_text()
    imports = {line.split()[1] for line in text.splitlines() if line.startswith(("import ", "from "))}
    assert imports == {"ctypes", "fcntl", "mmap", "os", "pathlib", "struct", "sys", "time"}


@pytest.mark.parametrize("nodes", [False, True], ids=["in process", "on device nodes"])
@pytest.mark.parametrize(
    ("example", "machine", "address", "fault"),
    [
        (
            "guest_vtd.py",
            "vtd-nested",
            "0000:00:05.0",
            "the guest's page request queue: device 0x20 wants 0x700000000000; it is mapped again",
        ),
        (
            "guest_smmuv3.py",
            "smmuv3",
            "0000:00:08.0",
            "the guest's event queue: F_TRANSLATION at 0x700000001000 of stream 0x20",
        ),
    ],
)
def test_a_guest_maps_unmaps_and_hears_of_faults(example, machine, address, fault, nodes):
    command = [sys.executable, str(EXAMPLES / example)]
    if nodes:
        command = [sys.executable, "-m", "softiommu", "run", "--machine", machine, "--", *command, address]
    ended = start(*command)
    assert (ended.returncode, ended.stderr) == (0, "")
    said = ended.stdout.splitlines()
    assert said[1] == "the device read at 0x700000000000 and wrote b'hello, guest' one page behind it"
    assert said[2].startswith("unmapped, not invalidated: the device still ")
    assert said[4] == fault


@pytest.mark.parametrize("machine", ["vtd", "vtd-39", "vtd-sm", "vtd-flts", "vtd-sc", "riscv", "viommu"])
def test_the_first_dma_moves_bytes_and_shows_the_fault(machine):
    command = [sys.executable, "-m", "softiommu", "run", "--machine", machine, "--"]
    ended = start(*command, sys.executable, str(EXAMPLES / "first_dma.py"))
    assert ended.returncode == 0, ended.stderr
    said = ended.stdout.splitlines()
    assert said[0] == "found edu at PCI address 0000:00:04.0, in IOMMU group 0"
    assert said[3] == "the device read b'hello, device' and wrote b'hello, device' at 0x108000"
    assert said[-1] == "the program's memory is as it was: b'hello, device'"
    (fault,) = ended.stderr.splitlines()
    assert fault.startswith("softiommu: kernel: DMA read by 00:04.0 at iova 0x100000 is blocked: ")
    assert "; <" in fault


def test_the_ioat_driver_uses_nothing_but_what_a_program_on_hardware_has():
    text = (EXAMPLES / "ioat_copy.py").read_text()
    imports = {line.split()[1] for line in text.splitlines() if line.startswith(("import ", "from "))}
    assert imports == {"ctypes", "fcntl", "mmap", "os", "pathlib", "select", "struct", "sys"}


def test_the_ioat_driver_copies_and_recovers_from_an_address_where_nothing_is():
    machine = str(EXAMPLES / "ioat.toml")
    command = [sys.executable, "-m", "softiommu", "run", "--machine", machine, "--"]
    ended = start(*command, sys.executable, str(EXAMPLES / "ioat_copy.py"))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == [
        "found an I/OAT engine at PCI address 0000:00:09.0",
        "version 3.2, channels: 1, bytes in a descriptor: up to 4096",
        "it filled 4096 bytes and copied them seven times: the channel is idle, errors: none",
        "the last copy is b'I/OAT.. I/OAT\\x00'",
        "now it writes behind the buffer, where nothing is mapped:",
        "the channel is halted, errors: write data",
        "after a reset the channel is idle again",
    ]
    (fault,) = ended.stderr.splitlines()
    assert fault.startswith("softiommu: kernel: DMA write by 00:09.0 at iova 0x110000 is blocked: ")
