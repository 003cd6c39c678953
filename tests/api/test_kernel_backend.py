"""The Python face on a device node: its tests once more, by plain ioctls under `softiommu run`."""

import os
import subprocess
import sys
from pathlib import Path


def test_the_same_tests_hold_on_a_device_node():
    here = Path(__file__).parent
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(here / "test_api.py")]
    done = subprocess.run(
        [sys.executable, "-m", "softiommu", "run", "--machine", "mock", "--", *tests],
        env={**os.environ, "SOFTIOMMU_TEST_NODE": "/dev/iommu"},
        cwd=here.parent.parent,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout or "100%" in done.stdout
