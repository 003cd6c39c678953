"""sysfs around devices: what libraries read there, held against a real kernel's and read by an unmodified lspci."""

import itertools
import posixpath
import re
import subprocess
import sys
from pathlib import Path

import pytest

from requirements import need
from softiommu.machine.assemble import machine
from softiommu.machine.nodes import Link, Node, Text

MACHINES = ("vtd", "smmuv3", "amd", "riscv")
#: Folders that a kernel has whatever devices there are.
FOLDERS = ("/sys/bus/pci", "/sys/class/vfio", "/sys/class/vfio-dev", "/sys/class/iommu")


def folders(entries):
    """Every folder above an entry."""
    found = set(FOLDERS)
    for path in entries:
        while path != "/":
            path = posixpath.dirname(path)
            found.add(path)
    return found


@pytest.mark.parametrize("name", MACHINES)
def test_every_link_leads_to_something(name):
    entries = machine(name).entries
    known = folders(entries)
    for path, entry in entries.items():
        if isinstance(entry, Link):
            # sysfs is a tree: a link in a folder that is reached by its own path.
            target = posixpath.normpath(posixpath.join(posixpath.dirname(path), entry.target))
            assert target in entries or target in known, f"{path} leads to {target}"


@pytest.mark.parametrize("name", MACHINES)
def test_every_node_has_its_numbers_in_sysfs(name):
    entries = machine(name).entries
    for path, entry in entries.items():
        if isinstance(entry, Node) and path not in ("/dev/iommu", "/dev/vfio/vfio"):
            link = entries[f"/sys/dev/char/{entry.major}:{entry.minor}"]
            folder = posixpath.normpath(posixpath.join("/sys/dev/char", link.target))
            assert entries[f"{folder}/dev"].content() == f"{entry.major}:{entry.minor}\n".encode()
            assert f"DEVNAME={path.removeprefix('/dev/')}\n".encode() in entries[f"{folder}/uevent"].content()


def test_configuration_space_has_the_size_that_the_device_has():
    built = machine("vtd")
    sizes = {}
    for wired in built.hardware.devices:
        config = built.entries[f"{wired.pci.folder}/config"]
        assert isinstance(config, Text)
        sizes[wired.pci.name] = len(config.content())
    assert (sizes["edu0"], sizes["nvme0"]) == (256, 4096)


def test_how_a_device_can_be_reset_is_told():
    entries = machine("vtd").entries
    methods = {
        path.split("/")[-2]: entry.content() for path, entry in entries.items() if path.endswith("/reset_method")
    }
    assert methods == {"0000:00:07.0": b"flr\n", "0000:02:01.0": b"bus\n", "0000:02:02.0": b"bus\n"}


#: Files that a function has only where it is an IOMMU's or VFIO's.
OF_VFIO = {"driver", "driver_override", "iommu", "iommu_group", "vfio-dev", "reset_method"}


def test_a_function_has_the_files_that_a_real_kernels_functions_have():
    real = [folder for folder in Path("/sys/bus/pci/devices").glob("*") if (folder / "vendor").exists()]
    if not real:
        pytest.skip("this machine has no PCI function to compare with")
    folder = "/sys/devices/pci0000:00/0000:00:07.0/"
    ours = {path.removeprefix(folder) for path in machine("vtd").entries if path.startswith(folder)}
    theirs = {str(file.relative_to(real[0])) for file in real[0].rglob("*")}
    assert {name for name in ours if name.split("/")[0] not in OF_VFIO} <= theirs
    formats = ("vendor", "device", "class", "revision", "irq", "numa_node", "msi_bus", "power_state", "resource")
    for name in formats:
        shown = machine("vtd").entries[folder + name].content().decode().splitlines()[:6]
        read = (real[0] / name).read_text().splitlines()[:6]
        assert [len(line) for line in shown] == [len(line) for line in read] or name in ("irq", "numa_node")


def test_lspci_reads_everything_of_a_device():
    command = [sys.executable, "-m", "softiommu.cli", "run", "--machine", "vtd", "--"]
    command += [need("lspci"), "-vv", "-k", "-s", "00:07.0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, check=True)
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert "Cannot open" not in done.stderr
    assert lines[0].startswith("00:07.0 Non-Volatile memory controller: ")
    for expected in (
        "IOMMU group: 2",
        "Region 0: Memory at 380000000000 (64-bit, non-prefetchable) [disabled] [size=16K]",
        "Capabilities: [40] Power Management version 3",
        "Capabilities: [50] MSI-X: Enable- Count=9 Masked-",
        "Capabilities: [60] Express (v2) Root Complex Integrated Endpoint, MSI 00",
        "Kernel driver in use: vfio-pci",
    ):
        assert expected in lines


def test_what_is_behind_a_bridge_lies_in_its_folder():
    command = [sys.executable, "-m", "softiommu.cli", "run", "--machine", "vtd", "--"]
    command += [need("lspci"), "-t"]
    built = machine("vtd")
    bridge = "/sys/devices/pci0000:00/0000:00:06.0"
    assert built.entries["/sys/bus/pci/devices/0000:02:01.0"].target.endswith("pci0000:00/0000:00:06.0/0000:02:01.0")
    assert built.entries[f"{bridge}/class"].content() == b"0x060400\n"
    assert built.entries[f"{bridge}/config"].content()[14:27] == bytes([1, *bytes(9), 0, 2, 2])
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert re.search(r"-06\.0-\[02\]--\+-01\.0", done.stdout)


def test_bars_have_addresses_of_their_own():
    shown = {}
    for wired in machine("vtd").hardware.devices:
        rows = machine("vtd").entries[f"{wired.pci.folder}/resource"].content().decode().splitlines()
        assert len(rows) == 13
        for row, bar in zip(rows, wired.function.bars, strict=False):
            first, last, _ = (int(word, 16) for word in row.split())
            assert (first > 0) == (bar is not None)
            if bar is not None:
                assert (last - first + 1, first % bar.size) == (bar.size, 0)
                shown[first] = last
    ends = sorted(shown.items())
    assert all(last < following for (_, last), (following, _) in itertools.pairwise(ends))
