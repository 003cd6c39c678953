"""The guests once more on device nodes, by plain ioctls of a program under `softiommu run`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("machine", "tests"),
    [("vtd-nested", "test_vtd_guest.py"), ("riscv", "test_riscv_guest.py"), ("amd", "test_amd_guest.py")],
)
def test_the_same_guests_run_on_device_nodes(machine, tests):
    here = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(here / tests)]
    done = subprocess.run(
        [sys.executable, "-m", "softiommu", "run", "--machine", machine, "--", *command],
        env={**os.environ, "SOFTIOMMU_TEST_NODE": "/dev/iommu"},
        cwd=here.parent.parent,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout or "100%" in done.stdout
