"""fio in a guest, on an NVMe drive: what it reads is what it wrote, by several queues, and amid resets.

    python tests/guests/fio.py [--seconds 20] [--jobs 2] [--resets 0] [WAY ...]

fio and its libraries are those of this machine (apt install fio); they are put into the guest's first root. Each job
has a processor of the guest, thus a queue pair, and a part of the drive to itself. `--resets N` resets the controller
so many times meanwhile, which must cost no more than time.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "guests"))

from archive import Archive

from guests.disk import ADDRESSES, complaints, machine_with
from guests.vm import Vm, need_guests
from guests.ways import MIB, WAYS, Way, options
from requirements import need
from softiommu.guest import qemu
from softiommu.guest.folder import Folder

#: MiB of the drive that each job has, and of the guest's RAM: fio comes with 80 MiB of libraries.
_PART, _MEMORY = 64, 768
#: Seconds that fio may take.
_PATIENCE = 900
#: Where a library lies: `name => path (address)`.
_LIBRARY = re.compile(r"^\s*(\S+) => (/\S+)", re.MULTILINE)


def with_fio(folder: Path) -> Folder:
    """The guests' kernel, and in `folder` a first root that has fio, too."""
    guest, fio = need_guests(), need("fio")
    archive = Archive()
    archive.file("bin/fio", Path(fio).read_bytes(), executable=True)
    loaded = subprocess.run([need("ldd"), fio], capture_output=True, text=True, check=True).stdout
    for name, path in _LIBRARY.findall(loaded):
        archive.file(f"lib/{name}", Path(path).read_bytes())
    root = folder / "initrd"
    root.write_bytes(guest.initrd.read_bytes() + archive.close())
    return guest._replace(initrd=root)


def command(seconds: int, jobs: int) -> str:
    """The call of fio. `--randseed` must not be there: fio 3.33 then finds wrong headers on any drive."""
    words = [
        "fio --name=job --filename=/dev/nvme0n1 --ioengine=libaio --direct=1 --iodepth=32",
        "--rw=randrw --bsrange=4k-128k --verify=crc32c --verify_fatal=1",
        f"--numjobs={jobs} --size={_PART}m --offset_increment={_PART}m --time_based --runtime={seconds}",
        f"--cpus_allowed=0-{jobs - 1} --cpus_allowed_policy=split --group_reporting",
        "--eta=never --output-format=json --output=/tmp/fio",
    ]
    return " ".join(words)


class Result(NamedTuple):
    """What fio measured."""

    reads: float
    writes: float
    #: MiB a second.
    read_rate: float
    write_rate: float

    def __str__(self) -> str:
        return (
            f"{self.reads:,.0f} reads/s ({self.read_rate:.1f} MiB/s), "
            f"{self.writes:,.0f} writes/s ({self.write_rate:.1f} MiB/s)"
        )


def run(folder: Path, way: Way, call: str, jobs: int, resets: int) -> Result:
    """One guest, and what fio found. CommandFailedError: what was read is not what was written, or could not be."""
    machine, _ = machine_with(folder, size=jobs * _PART * MIB)
    device = qemu.passed(ADDRESSES[0], "nvme0", bus="port0", iommufd=way.iommufd, mapped=way.mapped)
    line = "quiet intel_iommu=on" if way.viommu else "quiet"
    with Vm(
        machine,
        options=options(way, device),
        shared=way.shared,
        kernel_line=line,
        memory=_MEMORY,
        cpus=jobs,
        folder=with_fio(folder),
    ) as vm:
        vm.run("modprobe nvme")
        vm.wait_for("[ -b /dev/nvme0n1 ]")
        reset = f"for i in $(seq {resets}); do sleep 1; echo 1 >/sys/class/nvme/nvme0/reset_controller || exit; done"
        told = vm.run(f"({reset}) & {call} 2>&1 && wait $!", timeout=_PATIENCE)
        assert not told, told
        used = {line.split()[-1] for line in vm.run("grep 'nvme0q[1-9]' /proc/interrupts").splitlines()}
        assert len(used) == jobs, f"the guest has queues {used}"
        assert vm.run("dmesg | grep -c 'default/read/poll queues'") == str(1 + resets), "a reset did not succeed"
        trouble = vm.run("dmesg | grep -iE 'nvme.*(error|timeout|abort|dead)|DMAR:.*fault' || true")
        assert not trouble, trouble
        report = vm.run("cat /tmp/fio")  # in front of it fio may warn of jobs on one drive: each has its part
        found = json.loads(report[report.index("{") :])["jobs"][0]
        assert not found["error"], found["error"]
        assert vm.leave() == 0
        assert complaints(vm.errors) == []
    read, write = found["read"], found["write"]
    return Result(read["iops"], write["iops"], read["bw"] / 1024, write["bw"] / 1024)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--resets", type=int, default=0)
    parser.add_argument("ways", nargs="*", metavar="WAY", help=", ".join(WAYS))
    asked = parser.parse_args()
    call = command(asked.seconds, asked.jobs)
    for name in asked.ways or WAYS:
        with tempfile.TemporaryDirectory() as folder:
            result = run(Path(folder), WAYS[name], call, asked.jobs, asked.resets)
        print(f"{name}: all as it was written; {result}", flush=True)


if __name__ == "__main__":
    main()
