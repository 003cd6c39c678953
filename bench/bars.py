"""What an access to a BAR costs a supervised program: as a call, trapped, and as plain memory.

    python bench/bars.py                  # needs a C compiler; prints one line of JSON

`edu` traps each access, `nvme` has its registers as memory. `answered` is the time from a store that starts something
until its answer can be loaded, `answered_by_call` the same by pwrite and pread. All sides run in turns, in one program
each; the best of several runs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
COUNT, ROUNDS = 1000, 3
#: Of machine vtd.
NODES = {"edu": "/dev/vfio/devices/vfio0", "nvme": "/dev/vfio/devices/vfio2"}


def _once(client: str, kind: str) -> dict[str, float]:
    run = [sys.executable, "-m", "softiommu.cli", "run", "--machine", "vtd", "--"]
    done = subprocess.run([*run, client, NODES[kind], kind, str(COUNT)], check=True, capture_output=True)
    answer: dict[str, float] = json.loads(done.stdout)
    return answer


def measure(client: str) -> dict[str, float]:
    """Both devices in turns; the best of each figure, and the ratios that matter."""
    best: dict[str, float] = {}
    for _ in range(ROUNDS):
        for kind in NODES:
            for name, value in _once(client, kind).items():
                best[name] = min(value, best.get(name, value))
    best["trapped_load_to_pread"] = round(best["trapped_load_ns"] / best["pread_ns"], 2)
    best["answered_to_call"] = round(best["answered_ns"] / best["answered_by_call_ns"], 2)
    return best


def main() -> int:
    """Build the client, measure, print."""
    with tempfile.TemporaryDirectory() as folder:
        client = f"{folder}/bars"
        subprocess.run(["cc", "-O2", "-o", client, str(HERE / "bars.c")], check=True)
        print(json.dumps(measure(client)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
