"""IOAS_MAP and IOAS_UNMAP of 4 KiB: by the Python face, and by a supervised C client against the floor of two calls.

    python bench/mapping.py            # needs a C compiler; prints one line of JSON

The floor is the same two ioctls under a do-nothing supervisor in C. The best of several runs of both, in turns.
"""

from __future__ import annotations

import json
import mmap
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import softiommu

HERE = Path(__file__).resolve().parent
PAIRS, ROUNDS = 3000, 4
SOFTIOMMU = [sys.executable, "-m", "softiommu", "run"]


def python_face(machine: str) -> float:
    """Microseconds for a map and an unmap in process; on `mock` with a device attached, so that pages are pinned."""
    with softiommu.open(machine) as iommufd, iommufd.ioas() as ioas:
        device = iommufd.mock_device(ioas) if machine == "mock" else None
        buffer = mmap.mmap(-1, 1 << 16)
        best = float("inf")
        for _ in range(ROUNDS):
            start = time.perf_counter()
            for _ in range(PAIRS):
                with ioas.map(buffer, 4096):
                    pass
            best = min(best, (time.perf_counter() - start) / PAIRS)
        if device is not None:
            device.destroy()
    return round(best * 1e6, 1)


def build(folder: str, name: str) -> str:
    """A C program of this folder."""
    program = os.path.join(folder, name)
    subprocess.run(["cc", "-O2", "-o", program, str(HERE / f"{name}.c")], check=True)
    return program


def _number(argv: list[str]) -> int:
    return int(subprocess.run(argv, check=True, capture_output=True).stdout)


def main() -> None:
    """Measure, print."""
    with tempfile.TemporaryDirectory() as folder:
        floor, client = build(folder, "floor"), build(folder, "client")
        floors, pairs = [], []
        for _ in range(ROUNDS):
            floors.append(2 * _number([floor, "bare", floor, "client", "/dev/null", str(2 * PAIRS)]))
            pairs.append(_number([*SOFTIOMMU, "--", client, str(PAIRS)]))
        resident = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    figures = {
        "python_nodev_us": python_face("nodev"),
        "python_mock_us": python_face("mock"),
        "floor_of_two_ns": min(floors),
        "supervised_pair_ns": min(pairs),
        "ratio": round(min(pairs) / min(floors), 2),
        "largest_process_mib": resident,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
