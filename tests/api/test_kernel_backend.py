"""The Python face on a device node: its tests once more, by plain ioctls under `softiommu run`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("machine", "tests"),
    [
        ("mock", "test_api.py"),
        ("vtd", "test_vfio.py"),
        ("smmuv3", "test_smmuv3_nesting.py"),
        ("tegra241", "test_guest_queues.py"),
    ],
)
def test_the_same_tests_hold_on_a_device_node(machine, tests):
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
