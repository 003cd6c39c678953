"""Every open recording against this process's own iommufd."""

import gc

import pytest

from golden.kernels import InProcess
from golden.records import PROFILES, load, play_apart
from softiommu.machine.assemble import machine


@pytest.mark.parametrize(("kernel", "profile"), PROFILES)
def test_every_answer_is_the_recorded_kernels(kernel, profile):
    records = load(kernel, profile)
    assert records
    gc.collect()  # memories of earlier tests may lie where the recordings' buffers go
    # Each sequence has a process of its own, and in it a copy of the machine as it was made.
    made = machine(profile, kernel)
    different = [play_apart(lambda: InProcess(made), record) for record in records]
    assert [text for text in different if text] == []
