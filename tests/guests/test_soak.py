"""Starts, ends, deaths and resets of QEMU under one supervisor leave nothing behind (`soak.py`: by hundreds)."""

from guests.soak import WAYS, Job, soak
from requirements import need


def test_nothing_is_left_of_programs_that_end_die_or_are_reset_under_input_and_output(tmp_path):
    job = Job(str(tmp_path), 3, list(WAYS), "vtd", need("qemu-system-x86_64"), seed=1, lives=3)
    report = soak(job)
    assert report.code == 0, report.errors
    assert len(report.notes) == 3 * len(WAYS)
    assert report.left == {}
    assert "softiommu:" not in report.errors
