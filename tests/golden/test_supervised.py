"""Every open recording once more, by a client program of plain system calls under `softiommu run`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from golden.records import PROFILES

CLIENT = Path(__file__).parent / "client.py"


@pytest.mark.parametrize(("kernel", "profile"), PROFILES)
def test_every_answer_under_supervision_is_the_recorded_kernels(kernel, profile):
    if os.geteuid():
        pytest.skip("the recordings are of a root program; the same ones are played in process")
    command = [sys.executable, "-m", "softiommu.cli", "run", "--machine", profile, "--kernel", kernel, "--"]
    done = subprocess.run(
        [*command, sys.executable, str(CLIENT), kernel, profile], capture_output=True, text=True, timeout=300
    )
    # The recordings have DMA that is blocked, which a kernel tells.
    assert [line for line in done.stderr.splitlines() if not line.startswith("softiommu: kernel: DMA ")] == []
    assert done.stdout.splitlines()[-1].endswith("sequences, 0 differ"), done.stdout
    assert done.returncode == 0
