"""What a test needs of the machine that runs it."""

from __future__ import annotations

import os
import shutil

import pytest

#: Where Debian has tools that other users may run as well, though not by their name alone.
_FOR_ROOT = "/usr/sbin:/sbin"


def need(tool: str) -> str:
    """The path of a program; skips the test where it is not installed, and fails it where nothing may be skipped."""
    path = shutil.which(tool) or shutil.which(tool, path=_FOR_ROOT)
    if path is None and os.environ.get("SOFTIOMMU_REQUIRE_ALL"):
        pytest.fail(f"needs {tool}, and SOFTIOMMU_REQUIRE_ALL is set")
    if path is None:
        pytest.skip(f"needs {tool}")
    return path
