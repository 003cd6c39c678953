"""Translations by QEMU's IOMMUs beside ours: the same tables, the same accesses, in one run.

    python bench/qemu.py [RIG ...]    # needs QEMU 10.0; prints one line of JSON

It is the comparison of tests/qemu, timed. QEMU's side moves the bytes too (a network card's descriptors by qtest); ours
is one Python call for each access. So the figures say what a check of each costs, and no more.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

TRANSLATIONS, FAULTS = 20_000, 200


class Clock:
    """Adds up the time that wrapped calls take."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same call, timed."""

        def timed(*arguments: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*arguments)
            finally:
                self.seconds += time.perf_counter() - start

        return timed


def measure(name: str) -> dict[str, float]:
    """Microseconds of one access by each."""
    from qemu.oracle import Oracle
    from qemu.rigs import RIGS

    setup = RIGS[name]
    path = shutil.which(setup.program)
    if path is None:
        sys.exit(f"needs {setup.program}")
    rig = setup.make(path)
    try:
        theirs, ours, count = Clock(), Clock(), [0]
        for method in ("read", "write"):
            setattr(rig.nic, method, theirs.wrap(getattr(rig.nic, method)))
        translate = ours.wrap(rig.translate)

        def counted(probe: Any) -> Any:
            count[0] += 1
            return translate(probe)

        rig.translate = counted
        tally = Oracle(rig, seed=7).run(TRANSLATIONS, FAULTS)
    finally:
        rig.close()
    moved = tally.translations["read"] + tally.translations["write"]
    return {
        "QEMU us an access": round(theirs.seconds / moved * 1e6, 2),
        "ours us an access": round(ours.seconds / count[0] * 1e6, 2),
    }


if __name__ == "__main__":
    from qemu.rigs import RIGS

    print(json.dumps({name: measure(name) for name in sys.argv[1:] or RIGS}, indent=2))
