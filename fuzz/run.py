"""Fuzz the manager for a while: `python fuzz/run.py --seconds 60 --seed 1`. Ends with 1 at the first finding."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import count, product
from pathlib import Path
from types import FrameType

sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzz.session import PROFILES, Broken, Session
from softiommu.errors import ModelError
from softiommu.iommufd.kernels import KERNELS

STEPS = 300
MACHINES = tuple(product(PROFILES, KERNELS))
_HANG = 20


def sessions(seed: int, first: int = 0, machines: Sequence[tuple[str, str]] = MACHINES) -> Iterator[Session]:
    """Sessions without end, each machine (profile and kernel) in turn."""
    for number in count(first):
        for profile, kernel in machines:
            # The mock has the most to test.
            for part in range(4 if profile == "mock" else 1):
                yield Session(seed, 4 * number + part, profile, kernel)


def run_one(session: Session, steps: int = STEPS) -> int:
    """Run a session; how many calls succeeded. Broken: also when it does not end, or leaks descriptors."""

    def hang(signum: int, frame: FrameType | None) -> None:
        raise Broken(f"{session.name}, call {session.calls} does not end")

    old = signal.signal(signal.SIGALRM, hang)
    signal.alarm(_HANG)
    try:
        session.run(steps)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
    return session.done


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(3), "little"))
    parser.add_argument("--first", type=int, default=0, help="number of the first round")
    parser.add_argument("--steps", type=int, default=STEPS, help="calls in a session")
    args = parser.parse_args()
    print(f"seed {args.seed}", file=sys.stderr)
    end = time.monotonic() + args.seconds
    calls = done = total = 0
    for session in sessions(args.seed, args.first):
        if time.monotonic() > end:
            break
        try:
            done += run_one(session, args.steps)
        except ModelError as error:
            print(f"error: {error}", file=sys.stderr)
            if error.__cause__ is not None:
                import traceback

                traceback.print_exception(error.__cause__)
            return 1
        calls, total = calls + session.calls, total + 1
    print(f"{total} sessions, {calls} calls, {done} ioctls succeeded, nothing found")
    return 0


if __name__ == "__main__":
    sys.exit(main())
