"""A guest on our NVMe drive beside the same guest on QEMU's own: boot, throughput, latency, and mappings.

    python bench/guest.py [--rounds N]    # needs QEMU 10.0 and `make guests`; prints one line of JSON

Both drives are files. Both guests run at once, and work in turns of a second or less, so that what else the machine
does meets both. Best of the rounds. Targets: boot at most 1.5 times QEMU's own, sequential read at least 0.5 times,
latency of 4 KiB at most 3 times. Behind a virtual IOMMU (caching mode) each page of a transfer is mapped and unmapped
again, on our side by two ioctls; QEMU's own drive needs none.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from guests.disk import ADDRESSES, machine_with
from guests.vm import Vm
from softiommu.guest import qemu

MIB = 1 << 20
SIZE = 512 * MIB
#: MiB of a transfer, and how many reads of 4 KiB, in one turn.
PLAIN, SHADOW = (512, 4000), (8, 500)
PAGES = MIB >> 12


def theirs(folder: Path, viommu: bool) -> Vm:
    """A guest on QEMU's own drive."""
    file = folder / "theirs.img"
    with file.open("wb") as created:
        created.truncate(SIZE)
    drive = ["-drive", f"if=none,id=disk,file={file},format=raw", "-device", "nvme,drive=disk,serial=S"]
    return Vm(None, options=[*(qemu.virtual_vtd() if viommu else []), *drive], kernel_line=line(viommu))


def ours(folder: Path, viommu: bool) -> Vm:
    """A guest on ours."""
    machine, _ = machine_with(folder, SIZE)
    front = qemu.virtual_vtd() if viommu else []
    device = qemu.passed(ADDRESSES[0], "nvme0")
    return Vm(machine, options=[*front, *qemu.iommufd(), "-device", device], kernel_line=line(viommu))


def line(viommu: bool) -> str:
    """The end of the kernel's command line."""
    return "quiet intel_iommu=on" if viommu else "quiet"


def seconds(vm: Vm, command: str) -> float:
    """How long a command takes, by the guest's clock."""
    found = re.search(r"real\s+(\d+)m ([\d.]+)s", vm.run(f"time {command}"))
    assert found is not None, "`time` of busybox tells it"
    return int(found[1]) * 60 + float(found[2])


def transfer(vm: Vm, way: str, size: tuple[int, int]) -> float:
    """The figure of one turn: MiB a second of a read or write, or microseconds of a read of 4 KiB."""
    if way == "latency":
        return seconds(vm, f"dd if=/dev/nvme0n1 of=/dev/null bs=4k count={size[1]} iflag=direct") / size[1] * 1e6
    file, other = (
        ("if=/dev/nvme0n1 iflag=direct", "of=/dev/null")
        if way == "read"
        else (
            "of=/dev/nvme0n1 oflag=direct",
            "if=/dev/zero",
        )
    )
    return size[0] / seconds(vm, f"dd {file} {other} bs=1M count={size[0]}")


def start(make: Callable[[Path, bool], Vm], viommu: bool, rounds: int) -> tuple[float, Vm, Any]:
    """The fastest boot of several; -> its seconds, and the last guest, with what must be closed after it."""
    fastest = float("inf")
    for left in reversed(range(rounds)):
        folder = tempfile.TemporaryDirectory()
        vm = make(Path(folder.name), viommu)
        fastest = min(fastest, vm.boot())
        if not left:
            return fastest, vm, folder
        vm.close()
        folder.cleanup()
    raise AssertionError("there is a round at least")


def measure(viommu: bool, rounds: int) -> dict[str, Any]:
    """All figures of one kind of guest."""
    sides = {name: start(make, viommu, rounds) for name, make in (("QEMU", theirs), ("ours", ours))}
    size = SHADOW if viommu else PLAIN
    best: dict[str, dict[str, float]] = {"boot, s": {name: side[0] for name, side in sides.items()}}
    try:
        for _, vm, _ in sides.values():
            vm.run("modprobe nvme")
            vm.wait_for("[ -b /dev/nvme0n1 ]")
            transfer(vm, "write", size)
        for way, unit, choose in (("write", "MiB/s", max), ("read", "MiB/s", max), ("latency", "us", min)):
            turns = [{name: transfer(vm, way, size) for name, (_, vm, _) in sides.items()} for _ in range(rounds)]
            best[f"{way}, {unit}"] = {name: choose(turn[name] for turn in turns) for name in sides}
    finally:
        for _, vm, folder in sides.values():
            vm.close()
            folder.cleanup()
    told: dict[str, Any] = {
        what: {name: round(figure, 2) for name, figure in figures.items()}
        | {"ratio": round(figures["ours"] / figures["QEMU"], 2)}
        for what, figures in best.items()
    }
    if viommu:
        told["mapped and unmapped, pages/s"] = round(best["read, MiB/s"]["ours"] * PAGES)
    return told


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    print(json.dumps({"plain": measure(False, rounds), "behind a virtual IOMMU": measure(True, rounds)}, indent=2))


if __name__ == "__main__":
    main()
