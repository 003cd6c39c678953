"""An NVMe drive of a machine in user space: its file on this side, and what a guest does with it on the other."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from guests.vm import Vm
from requirements import need

_MACHINE = """
name = "guests"

[[iommu]]
name = "dmar0"
model = "vtd"
"""
_DEVICE = """
[[device]]
name = "nvme{number}"
address = "{address}"
model = "nvme"
file = "{file}"
"""
#: Where the drives of a machine sit.
ADDRESSES = ("0000:00:07.0", "0000:00:08.0")
#: What QEMU says on real hardware, too: when a device leaves that KVM was never told of, and when a BAR that it maps
#: is no memory that another device may reach.
_HARMLESS = re.compile(
    r"KVM VFIO device isn't created yet|Bad address, PCI BAR\?|vfio_container_dma_map\(.* = -14 |PCI peer-to-peer"
)


def machine_with(folder: Path, size: int, count: int = 1) -> tuple[Path, Sequence[Path]]:
    """A machine with drives of `size` bytes; -> its description, and their files."""
    files = [folder / f"disk{number}.img" for number in range(count)]
    text = _MACHINE
    for number, file in enumerate(files):
        with file.open("wb") as created:
            created.truncate(size)
        text += _DEVICE.format(number=number, address=ADDRESSES[number], file=file)
    machine = folder / "machine.toml"
    machine.write_text(text)
    return machine, files


def complaints(errors: str) -> list[str]:
    """What was written to standard error that should not be there."""
    return [line for line in errors.splitlines() if line and not _HARMLESS.search(line)]


class Disk:
    """A drive in a guest, and its file system under /mnt."""

    def __init__(self, vm: Vm, name: str = "nvme0n1") -> None:
        self._vm, self.device = vm, f"/dev/{name}"
        vm.run("modprobe nvme && modprobe ext4")

    def format(self) -> None:
        """Make a file system, and mount it."""
        self._vm.wait_for(f"[ -b {self.device} ]")
        self._vm.run(f"mkfs.ext4 -q {self.device}")
        self.mount()

    def mount(self) -> None:
        """Mount the file system as soon as the drive is there."""
        self._vm.wait_for(f"[ -b {self.device} ]")
        self._vm.run(f"mount -t ext4 {self.device} /mnt")

    def unmount(self) -> None:
        """Unmount it."""
        self._vm.run("umount /mnt")

    def write(self, name: str, mib: int) -> str:
        """Write a file, no two MiB of which are equal, to the drive; -> its checksum, taken before it got there."""
        assert mib % 4 == 0, "random bytes are repeated every 4 MiB"
        self._vm.run("head -c 4194296 /dev/urandom >/tmp/random")
        pieces = f"for i in $(seq 1000001 {1000000 + mib // 4}); do echo $i; cat /tmp/random; done"
        return self._vm.run(f"{pieces} | tee /mnt/{name} | md5sum && sync").split()[0]

    def checksum(self, name: str) -> str:
        """The checksum of a file, read from the drive."""
        return self._vm.run(f"echo 3 >/proc/sys/vm/drop_caches && md5sum </mnt/{name}").split()[0]


def repair(file: Path) -> str:
    """Replay the journal in a drive's file as a kernel would, then hold the file system against its rules; -> why not.

    An empty answer: it is whole.
    """
    checker = need("fsck.ext4")
    for options in (("-p",), ("-f", "-n")):
        done = subprocess.run([checker, *options, file], capture_output=True, text=True, timeout=120)
        if done.returncode:
            return f"fsck.ext4 {' '.join(options)}: status {done.returncode}: {done.stdout}{done.stderr}"
    return ""


def contents(file: Path, name: str) -> bytes:
    """A file in the file system of a drive's file."""
    return subprocess.run(
        [need("debugfs"), "-R", f"cat /{name}", file], capture_output=True, check=True, timeout=120
    ).stdout
