"""Capabilities are negotiated, never guessed.

GET_HW_INFO reports raw ID registers. A VMM forwards a bit only by a rule, and a linter catches one that forwards more.
"""

import pytest

import softiommu
from softiommu.vmm.capabilities import Verdict, lint, negotiate, probe

MACHINES = ("vtd", "vtd-sm", "vtd-nested", "smmuv3", "amd", "tegra241")


@pytest.fixture(params=MACHINES)
def seen(request):
    with softiommu.open(request.param) as iommufd, iommufd.device("edu0") as device:
        yield probe(iommufd, device)


def test_what_is_offered_passes_the_linter(seen):
    for info in seen.infos:
        offer = negotiate(info, seen.kernel)
        assert lint(offer.words, info, seen.kernel) == []


def test_a_vmm_that_copies_the_registers_is_caught(seen):
    info = seen.infos[0]
    offer = negotiate(info, seen.kernel)
    raw = dict(offer.words)
    for answer in offer.answers:
        raw[answer.register] = raw[answer.register].replace(**{answer.field: answer.hardware})
    withheld = (Verdict.MASK, Verdict.NEEDS)
    kept = {(a.register, a.field) for a in offer.answers if a.verdict in withheld and a.hardware != a.offered}
    assert {(finding.register, finding.field) for finding in lint(raw, info, seen.kernel)} == kept


def test_every_answer_has_its_reason(seen):
    for info in seen.infos:
        for answer in negotiate(info, seen.kernel).answers:
            assert answer.reason
