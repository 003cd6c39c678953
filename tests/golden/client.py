"""The client program of test_supervised.py: plays the recordings of one kernel and profile by plain system calls."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from golden.kernels import Real
from golden.records import load, play_apart


def main(kernel, profile):
    """Play every sequence, each in a process of its own; tell which differ."""
    records = load(kernel, profile)
    different = [text for text in (play_apart(Real, record) for record in records) if text]
    for text in different:
        print(text)
    print(f"{len(records)} sequences, {len(different)} differ")
    return bool(different)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
