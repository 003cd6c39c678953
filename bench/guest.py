"""A guest on our NVMe drive beside the same guest on QEMU's own: boot, throughput, latency, and mappings.

    python bench/guest.py [--rounds N]    # needs QEMU 10.0 and `make guests`; prints one line of JSON

Both drives are files. Both guests run at once, and work in turns of a second or less, so that what else the machine
does meets both. Medians of the rounds, but the best boot. Targets: boot at most 1.5 times QEMU's own, sequential read
at least 0.5 times, latency of 4 KiB at most 3 times. QEMU maps our drive's registers, as it does unless told otherwise;
with `x-no-mmap=on` it tells of each access. Behind a virtual IOMMU (caching mode) each page of a transfer is mapped and
unmapped again, on our side by two ioctls; QEMU's own drive needs none.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from guests.disk import ADDRESSES, machine_with
from guests.vm import Vm
from softiommu.guest import qemu

MIB = 1 << 20
SIZE = 512 * MIB
#: MiB of a transfer, and how many reads of 4 KiB, in one turn.
PLAIN, SHADOW = (512, 4000), (16, 500)
PAGES = MIB >> 12


class Setting(NamedTuple):
    """How a guest has our drive: whether its registers are mapped, and whether it is behind a virtual IOMMU."""

    mapped: bool = True
    viommu: bool = False


SETTINGS = {
    "registers mapped": Setting(),
    "x-no-mmap=on": Setting(mapped=False),
    "behind a virtual IOMMU": Setting(viommu=True),
}


def theirs(folder: Path, setting: Setting) -> Vm:
    """A guest on QEMU's own drive."""
    file = folder / "theirs.img"
    with file.open("wb") as created:
        created.truncate(SIZE)
    drive = ["-drive", f"if=none,id=disk,file={file},format=raw", "-device", "nvme,drive=disk,serial=S"]
    front = qemu.virtual_vtd() if setting.viommu else []
    return Vm(None, options=[*front, *drive], kernel_line=line(setting.viommu))


def ours(folder: Path, setting: Setting) -> Vm:
    """A guest on ours."""
    machine, _ = machine_with(folder, SIZE)
    front = qemu.virtual_vtd() if setting.viommu else []
    device = qemu.passed(ADDRESSES[0], "nvme0", mapped=setting.mapped)
    return Vm(machine, options=[*front, *qemu.iommufd(), "-device", device], kernel_line=line(setting.viommu))


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


class Side:
    """A guest with one of the drives, booted several times."""

    def __init__(self, make: Callable[[Path, Setting], Vm], setting: Setting, rounds: int) -> None:
        boots = []
        for left in reversed(range(rounds)):
            self._folder = tempfile.TemporaryDirectory()
            self.vm = make(Path(self._folder.name), setting)
            boots.append(self.vm.boot())
            if left:
                self.close()
        self.boot = min(boots)

    def close(self) -> None:
        """End it."""
        self.vm.close()
        self._folder.cleanup()


def measure(setting: Setting, rounds: int) -> dict[str, Any]:
    """All figures of one kind of guest."""
    sides = {name: Side(make, setting, rounds) for name, make in (("QEMU", theirs), ("ours", ours))}
    size = SHADOW if setting.viommu else PLAIN
    told: dict[str, Any] = {"boot, s": compared([{name: side.boot for name, side in sides.items()}])}
    try:
        for side in sides.values():
            side.vm.run("modprobe nvme")
            side.vm.wait_for("[ -b /dev/nvme0n1 ]")
            transfer(side.vm, "write", size)
        for way, unit in (("write", "MiB/s"), ("read", "MiB/s"), ("latency", "us")):
            turns = [{name: transfer(side.vm, way, size) for name, side in sides.items()} for _ in range(rounds)]
            told[f"{way}, {unit}"] = compared(turns)
    finally:
        for side in sides.values():
            side.close()
    if setting.viommu:
        told["mapped and unmapped, pages/s"] = round(told["read, MiB/s"]["ours"] * PAGES)
    return told


def compared(turns: list[dict[str, float]]) -> dict[str, Any]:
    """The medians of both sides, and of the ratios of each turn, with the least and the most of these."""
    ratios = sorted(turn["ours"] / turn["QEMU"] for turn in turns)
    found: dict[str, Any] = {name: round(median(turn[name] for turn in turns), 2) for name in turns[0]}
    return found | {"ratio": round(median(ratios), 2), "from": round(ratios[0], 2), "to": round(ratios[-1], 2)}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    print(json.dumps({name: measure(setting, rounds) for name, setting in SETTINGS.items()}, indent=2))


if __name__ == "__main__":
    main()
