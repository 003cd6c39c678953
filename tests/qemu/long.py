"""One long run: a million translations and 20,000 faults of each rig, or as many as asked for.

    python tests/qemu/long.py [--translations N] [--faults N] [--seed N] [RIG ...]

Other seeds are other tables. Each rig's line tells what agreed, and how often which deviation of QEMU was met.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from qemu.oracle import Oracle
from qemu.rigs import RIGS

#: Messages of disagreements to print of each rig.
_SHOWN = 20
#: Addresses tried for each leaf.
_DENSITY = 40


def run(name: str, seed: int, translations: int, faults: int) -> int:
    """Run one rig, and tell how it went; -> how many accesses the sides disagree about."""
    setup = RIGS[name]
    path = shutil.which(setup.program)
    if path is None:
        sys.exit(f"needs {setup.program}")
    rig = setup.make(path)
    try:
        start = time.monotonic()
        oracle = Oracle(rig, seed, tolerant=True, density=_DENSITY)
        tally = oracle.run(translations, faults)
        seconds = time.monotonic() - start
    finally:
        rig.close()
    agreed = f"{tally.translations.total():,} translations and {tally.faults.total():,} faults agree"
    print(f"{name}: {agreed}, {seconds:.0f} s")
    for reason, count in sorted(tally.faults.items()):
        print(f"    {count:9,}  fault {reason}")
    for deviation, count in sorted(tally.deviations.items()):
        print(f"    {count:9,}  QEMU: {deviation}")
    for message in oracle.disagreements[:_SHOWN]:
        print(f"    {message}")
    print(f"    {len(oracle.disagreements):9,}  disagreements", flush=True)
    return len(oracle.disagreements)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--translations", type=int, default=1_000_000)
    parser.add_argument("--faults", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("rigs", nargs="*", metavar="RIG", help=", ".join(RIGS))
    options = parser.parse_args()
    wrong = [run(name, options.seed, options.translations, options.faults) for name in options.rigs or RIGS]
    sys.exit(1 if any(wrong) else 0)


if __name__ == "__main__":
    main()
