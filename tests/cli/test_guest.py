"""`softiommu guest`: what a guest did, what was counted, and what is missing."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from guests.vm import need_guests
from requirements import need
from softiommu.errors import ConfigError
from softiommu.guest import ending, nested, offer, qemu
from softiommu.machine.assemble import machine

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


@pytest.fixture
def nothing(tmp_path):
    """A folder that looks prepared."""
    for name in ("kernel", "initrd", "versions"):
        (tmp_path / name).touch()
    return str(tmp_path)


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
    assert ended.err == "softiommu: the guest did not finish its job: what failed is told above\n"


def test_a_guest_that_panics_has_failed(softiommu, folder, tmp_path):
    for name in ("kernel", "versions"):
        shutil.copy(Path(folder, name), tmp_path)
    (tmp_path / "initrd").write_bytes(Path(folder, "initrd").read_bytes()[:1000])
    ended = softiommu("guest", "--guests", str(tmp_path))
    assert "Kernel panic" in ended.out
    assert ended.code == 1
    assert "softiommu: the guest did not finish its job: QEMU ended with 0, as it does when a guest panics" in ended.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_guest_that_a_signal_ends_has_failed(folder, number):
    argv = [sys.executable, "-m", "softiommu", "guest", "--guests", folder, "--mib", "60"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().startswith("guest: Linux")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[0]) if number == signal.SIGKILL else process.pid, number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert said.endswith(f"softiommu: the guest did not finish its job: {number.name} ended QEMU\n")


def test_a_qemu_that_does_nothing_has_failed(softiommu, nothing):
    ended = softiommu("guest", "--guests", nothing, "--qemu", "true")
    assert ended.code == 1
    assert ended.err.startswith("softiommu: the guest did not finish its job: QEMU ended with 0")


@pytest.mark.parametrize(
    ("end", "job", "code"),
    [
        (ending.End(85), True, 0),
        (ending.End(85, signal.SIGTERM), True, 0),
        (ending.End(85, bugs=1), True, 70),
        (ending.End(0), True, 1),
        (ending.End(3), True, 1),
        (ending.End(70, bugs=1), True, 70),
        (ending.End(0, signal.SIGINT), True, 130),
        (ending.End(137), True, 137),
        (ending.End(255), True, 1),
        (ending.End(0), False, 0),
        (ending.End(0, signal.SIGTERM), False, 143),
        (ending.End(1), False, 1),
        (ending.End(85), False, 1),
    ],
    ids=str,
)
def test_only_a_job_that_says_so_is_through(end, job, code):
    found, why = end.told(job)
    assert (found, why is None) == (code, code in (0, 70) and end.status != 70)


def test_a_shell_has_the_drive_and_ends_by_powering_off(folder):
    argv = [sys.executable, "-m", "softiommu", "guest", "--guests", folder, "--shell"]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        said, end = b"", time.monotonic() + 60
        while b"/ # " not in said and time.monotonic() < end:
            said += process.stdout.read1()
        rest, _ = process.communicate(
            b"mkfs.ext4 -q /dev/nvme0n1 && mount /dev/nvme0n1 /mnt && df /mnt; poweroff -f\n", 60
        )
    assert b"There is a drive, /dev/nvme0n1, of 64 MiB." in said
    assert re.search(rb"/dev/nvme0n1 +\d+ .* /mnt", rest)
    assert process.returncode == 0


@pytest.mark.parametrize("name", ["smmuv3", "tegra241"])
def test_a_guests_ram_leaves_out_what_devices_keep(softiommu, folder, name):
    ended = softiommu("guest", "--guests", folder, "-m", name, "--mib", "1")
    assert (ended.code, ended.err) == (0, "")
    assert "-m 128 " in softiommu("guest", "--guests", folder, "-m", name, "--print").out


def test_a_guests_iommu_is_no_wider_than_the_machines(softiommu, folder):
    options = ("--guests", folder, "-m", "viommu", "--viommu", "shadow", "--mib", "1")
    ended = softiommu("guest", *options)
    assert (ended.code, ended.err) == (0, "")
    assert "caching-mode=on,aw-bits=39 " in softiommu("guest", *options, "--print").out


def test_a_guests_first_stage_has_no_pages_that_the_machines_has_not(softiommu, nothing, tmp_path):
    file = tmp_path / "small.toml"
    file.write_text(MACHINE.replace('model = "vtd"', 'model = "vtd"\nunit = "full"\ncap = { FS1GP = 0 }'))
    options = ("--guests", nothing, "--viommu", "nested", "--qemu", sys.executable, "--print")
    assert "fsts=on,fs1gp=off " in softiommu("guest", *options, "-m", str(file)).out
    assert "fsts=on " in softiommu("guest", *options).out


def test_a_guest_uses_each_device_that_it_can_drive(softiommu, folder, tmp_path):
    file = tmp_path / "many.toml"
    more = '[[device]]\nname = "{}"\naddress = "0000:00:{:02x}.0"\nmodel = "{}"\n'
    text = MACHINE.replace("0x100000", "0x2000000") + more.format("nvme1", 8, "nvme") + more.format("ioat0", 9, "ioat")
    file.write_text(text)
    ended = softiommu("guest", "--guests", folder, "-m", str(file), "--mib", "1")
    assert (ended.code, ended.err) == (0, "")
    found = re.findall(r"found the drive (\w+): softiommu NVMe, (\d+) MiB", ended.out)
    assert sorted(name for name, _ in found) == ["nvme0n1", "nvme1n1"]
    assert sorted(int(size) for _, size in found) == [32, 64]
    assert "guest: found a DMA engine: its driver tested 1 channel(s)" in ended.out


def test_asking_a_machine_leaves_nothing_behind():
    world = machine("vtd-paged")
    first = offer.ask(world, ["nvme0"], nested=True)
    assert first == offer.ask(world, ["nvme0"], nested=True)
    assert (first.memory > qemu.MEMORY, first.width, first.gigabyte_pages) == (True, 56, True)
    assert not world.services.owners
    with pytest.raises(ConfigError, match="the hardware has no nesting"):
        offer.ask(machine("vtd"), ["nvme0"], nested=True)


@pytest.mark.parametrize(
    ("options", "reason", "hint"),
    [
        (
            ["-m", "vtd-noir"],
            "machine vtd-noir passes nvme0 on to nobody: writes of nvme0 can be any interrupt: nothing remaps",
            "`unsafe_interrupts = true`",
        ),
        (
            ["-m", "vtd", "--viommu", "nested"],
            "machine vtd does not nest the tables of nvme0's guest: the hardware has no nesting",
            "--machine vtd-nested",
        ),
        (
            ["-m", "vtd-shadow", "--viommu", "nested"],
            "machine vtd-shadow does not nest the tables of nvme0's guest: a shadow hears of new mappings only by",
            "--machine vtd-nested",
        ),
    ],
    ids=["interrupts", "hardware", "software"],
)
def test_what_a_machine_cannot_give_is_refused_before_qemu_starts(softiommu, nothing, options, reason, hint):
    ended = softiommu("guest", "--guests", nothing, *options, "--qemu", sys.executable)
    assert (ended.code, ended.out) == (2, "")
    first, second = ended.err.splitlines()
    assert first.startswith(f"softiommu: {reason}")
    assert second.startswith(f"hint: {hint}")


def test_a_qemu_that_cannot_nest_is_refused_by_its_version(softiommu, nothing, tmp_path):
    old = tmp_path / "old"
    old.write_text("#!/bin/sh\necho 'QEMU emulator version 10.0.2 (Debian 1:10.0.2)'\n")
    old.chmod(0o755)
    ended = softiommu("guest", "--guests", nothing, "--viommu", "nested", "--qemu", str(old))
    assert ended.code == 2
    assert ended.err.startswith(f"softiommu: --viommu nested needs QEMU 11, and {old} is QEMU 10.0.2: its intel-iommu")
    old.write_text("#!/bin/sh\necho 'QEMU emulator version 11.1.3'\n")
    nested.check(str(old))


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
    assert ended.err == "softiommu: the guest did not finish its job: QEMU ended with 1\n"
