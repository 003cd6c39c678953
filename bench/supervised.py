"""A supervised ioctl against the floor: the same client under a do-nothing supervisor in C, and under ours.

    python bench/supervised.py            # needs a C compiler; prints one line of JSON

The ioctl copies 4 bytes in and 4 bytes out, as the smallest real command does. Best of several runs, in turns.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from softiommu.machine.nodes import Entry, Node
from softiommu.memory.client import Caller
from softiommu.memory.files import File
from softiommu.run.supervisor import run

HERE = Path(__file__).resolve().parent
CALLS, ROUNDS = 20_000, 5


class Echo(File):
    """Copies a word in and out, and nothing else."""

    def ioctl(self, caller: Caller, cmd: int, arg: int) -> int:
        """Add nothing, answer 0."""
        caller.write(arg, caller.read(arg, 4))
        return 0


class World:
    """One device."""

    entries: Mapping[str, Entry] = {"/dev/iommu": Node(10, 120, 0o600, lambda caller, flags: Echo())}
    #: Pages that must be looked at: none.
    pollers: Mapping[object, Callable[[], None]] = {}


def _output(argv: Sequence[str]) -> int:
    return int(subprocess.run(argv, check=True, capture_output=True).stdout)


def _seconds(argv: Sequence[str]) -> float:
    start = time.perf_counter()
    subprocess.run(argv, check=True)
    return time.perf_counter() - start


def measure(floor: str) -> dict[str, float]:
    """Both sides in turns; the best of each."""
    client = [floor, "client", "/dev/null", str(CALLS)]
    ours = [sys.executable, __file__, "--run", floor, "client", "/dev/iommu", str(CALLS)]
    floors, supervised, plain, wrapped = [], [], [], []
    for _ in range(ROUNDS):
        floors.append(_output([floor, "bare", *client]))
        supervised.append(_output(ours))
        plain.append(_seconds(["true"]))
        wrapped.append(_seconds([sys.executable, __file__, "--run", "true"]))
    return {
        "floor_ns": min(floors),
        "supervised_ns": min(supervised),
        "ratio": round(min(supervised) / min(floors), 2),
        "start_s": round(min(wrapped) - min(plain), 3),
    }


def main() -> int:
    """Build the C side, measure, print."""
    if sys.argv[1:2] == ["--run"]:
        return run(World(), sys.argv[2:])
    with tempfile.TemporaryDirectory() as folder:
        floor = os.path.join(folder, "floor")
        subprocess.run(["cc", "-O2", "-o", floor, str(HERE / "floor.c")], check=True)
        print(json.dumps(measure(floor)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
