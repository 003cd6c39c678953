"""Running the command line as a person does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest


class Ended(NamedTuple):
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str


@pytest.fixture
def softiommu() -> Callable[..., Ended]:
    """Run `softiommu` with these arguments to its end."""

    def command(*arguments: str, timeout: float = 60, **options: object) -> Ended:
        argv = [sys.executable, "-m", "softiommu", *arguments]
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL, check=False, **options
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    return command
