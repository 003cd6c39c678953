"""`softiommu guest`: what a guest did, what was counted, and what is missing."""

import re
import sys

import pytest

from guests.vm import need_guests
from requirements import need
from softiommu.guest import qemu

MACHINE = """
name = "small"

[[iommu]]
name = "dmar0"
model = "vtd"

[[device]]
name = "nvme0"
address = "0000:00:07.0"
model = "nvme"
size = 0x100000
"""


@pytest.fixture
def folder():
    need(qemu.PROGRAM)
    return str(need_guests().kernel.parent)


def test_a_guest_does_its_work_and_the_machine_tells_what_that_took(softiommu, folder):
    ended = softiommu("guest", "--guests", folder, "--mib", "1", "--viommu", "shadow")
    assert (ended.code, ended.err) == (0, "")
    assert "guest: sees an IOMMU of its own: dmar0\n" in ended.out
    assert "guest: read it back from the drive: the checksums are equal\n" in ended.out
    told = re.search(
        r"softiommu: QEMU made ([\d,]+) ioctls: ([\d,]+) mapped memory, ([\d,]+) unmapped some\n", ended.out
    )
    assert told is not None
    assert all(int(count.replace(",", "")) > 100 for count in told.groups())
    assert re.search(r"\nsoftiommu: dmar0 found [\d,]+ translations in its IOTLB, walked tables for [\d,]+", ended.out)


def test_a_guest_that_fails_is_told_by_the_exit_code(softiommu, folder, tmp_path):
    machine = tmp_path / "small.toml"
    machine.write_text(MACHINE)
    ended = softiommu("guest", "--guests", folder, "-m", str(machine), "--mib", "2", "--group", "--private")
    assert ended.code == 1
    assert "guest: FAILED: the file could not be written\n" in ended.out


def test_what_is_missing_is_told_with_how_to_get_it(softiommu, tmp_path):
    ended = softiommu("guest", "--guests", str(tmp_path), "--qemu", sys.executable)
    assert ended.code == 2
    assert ended.err.startswith(f"softiommu: there is no guest in {tmp_path}\nhint: `make guests` prepares one")
    for name in ("kernel", "initrd", "versions"):
        (tmp_path / name).touch()
    ended = softiommu("guest", "--guests", str(tmp_path), "--qemu", "no-such-qemu")
    assert (ended.code, ended.err.splitlines()[0]) == (2, "softiommu: no-such-qemu is not installed")
    ended = softiommu("guest", "--guests", str(tmp_path), "-m", "mock", "--qemu", sys.executable)
    assert ended.code == 2
    assert ended.err.startswith("softiommu: machine mock has no device that the guest can drive: expected one of model")


def test_the_command_can_be_printed_and_run_by_hand(softiommu, tmp_path):
    for name in ("kernel", "initrd", "versions"):
        (tmp_path / name).touch()
    ended = softiommu("guest", "--guests", str(tmp_path), "--qemu", sys.executable, "--print")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith(f"softiommu run --machine vtd --unlimited-memlock -- {sys.executable} -M q35,")
    assert ended.out.endswith("-device vfio-pci,host=0000:00:07.0,id=nvme0,iommufd=iommufd0,x-no-mmap=on\n")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--group"], "--viommu nested binds tables by iommufd, which --group leaves out"),
        (
            ["-m", "smmuv3"],
            "--viommu nested needs an IOMMU of model vtd, and smmu0 of machine smmuv3 is of model smmuv3",
        ),
    ],
    ids=["group", "machine"],
)
def test_what_cannot_nest_is_refused_before_qemu_starts(softiommu, options, reason):
    ended = softiommu("guest", "--viommu", "nested", *options, "--qemu", sys.executable)
    assert ended.code == 2
    assert ended.err.startswith(f"softiommu: {reason}")


def test_a_qemu_that_ends_early_is_told(softiommu, tmp_path):
    for name in ("kernel", "initrd", "versions"):
        (tmp_path / name).touch()
    ended = softiommu("guest", "--guests", str(tmp_path), "--qemu", "false")
    assert ended.code == 1
    assert "softiommu: QEMU ended with 1 before its guest was done\n" in ended.err
