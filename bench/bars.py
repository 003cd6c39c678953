"""What an access to a BAR costs a supervised program: as a call, trapped, and as plain memory.

    python bench/bars.py                  # needs a C compiler; prints one line of JSON

`edu` traps each access, `nvme` and `pcitest` have their registers as memory. `transfer` is the time from the store that
starts a transfer of 4 KiB until a load says that it is over, `transfer_by_call` the same by pwrite and pread. All sides
run in turns, in one program each; the best of several runs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
COUNT, ROUNDS = 1000, 3
DEVICES = ("edu", "nvme", "pcitest")
MACHINE = 'name = "bars"\n[[iommu]]\nname = "dmar0"\nmodel = "vtd"\n' + "".join(
    f'[[device]]\nname = "{model}0"\naddress = "00:0{number + 4}.0"\nmodel = "{model}"\n'
    for number, model in enumerate(DEVICES)
)


def _once(machine: str, client: str, kind: str) -> dict[str, float]:
    run = [sys.executable, "-m", "softiommu.cli", "run", "--machine", machine, "--"]
    node = f"/dev/vfio/devices/vfio{DEVICES.index(kind)}"
    done = subprocess.run([*run, client, node, kind, str(COUNT)], check=True, capture_output=True)
    answer: dict[str, float] = json.loads(done.stdout)
    return answer


def measure(machine: str, client: str) -> dict[str, float]:
    """The devices in turns; the best of each figure, and the ratios that matter."""
    best: dict[str, float] = {}
    for _ in range(ROUNDS):
        for kind in DEVICES:
            for name, value in _once(machine, client, kind).items():
                best[name] = min(value, best.get(name, value))
    best["trapped_load_to_pread"] = round(best["trapped_load_ns"] / best["pread_ns"], 2)
    best["transfer_to_call"] = round(best["transfer_ns"] / best["transfer_by_call_ns"], 2)
    return best


def main() -> int:
    """Build the client, measure, print."""
    with tempfile.TemporaryDirectory() as folder:
        client = f"{folder}/bars"
        subprocess.run(["cc", "-O2", "-o", client, str(HERE / "bars.c")], check=True)
        machine = Path(folder) / "bars.toml"
        machine.write_text(MACHINE)
        print(json.dumps(measure(str(machine), client)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
