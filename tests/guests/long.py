"""Long runs with guests: large files through many unpluggings, and many deaths amid writes.

    python tests/guests/long.py [--mib N] [--cycles N] [--deaths N] [--seed N] [WAY ...]

Each way of passing the drive on writes a file of 256 MiB, or as many as asked for (behind a virtual IOMMU, where each
page is mapped and unmapped again, a quarter), and finds it again after each of 3 unpluggings. Then QEMU is killed 10
times, at random moments.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from guests.crash import die_amid_writes
from guests.ways import WAYS, work

#: Seconds within which QEMU dies.
_LATEST = 3.0


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--cycles", type=int, default=3)
    parser.add_argument("--deaths", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("ways", nargs="*", metavar="WAY", help=", ".join(WAYS))
    options = parser.parse_args()
    for name in options.ways or WAYS:
        way = WAYS[name]
        mib = max(options.mib // 4 & ~3, 4) if way.viommu else options.mib
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            work(Path(folder), way._replace(mib=mib), options.cycles)
        seconds = time.monotonic() - start
        print(f"{name}: {mib} MiB are the same after {options.cycles} unpluggings, {seconds:.0f} s", flush=True)
    chance = random.Random(options.seed)
    for _ in range(options.deaths):
        after = chance.uniform(0, _LATEST)
        with tempfile.TemporaryDirectory() as folder:
            die_amid_writes(Path(folder), after)
        print(
            f"killed after {after:.2f} s of writing: the file system is whole, and what was flushed is there",
            flush=True,
        )


if __name__ == "__main__":
    main()
