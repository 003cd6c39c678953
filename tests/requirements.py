"""What a test needs of the machine that runs it."""

from __future__ import annotations

import os
import shutil

import pytest


def need(tool: str) -> str:
    """The path of a program; skips the test where it is not installed, and fails it where nothing may be skipped."""
    path = shutil.which(tool)
    if path is None and os.environ.get("SOFTIOMMU_REQUIRE_ALL"):
        pytest.fail(f"needs {tool}, and SOFTIOMMU_REQUIRE_ALL is set")
    if path is None:
        pytest.skip(f"needs {tool}")
    return path
