"""What a test needs of the machine that runs it."""

from __future__ import annotations

import shutil

import pytest


def need(tool: str) -> str:
    """The path of a program; skips the test where it is not installed."""
    path = shutil.which(tool)
    if path is None:
        pytest.skip(f"needs {tool}")
    return path
