"""Tables in memory lead where QEMU goes by them, and are refused for the reason that QEMU has."""

import os
import subprocess

import pytest

from qemu.oracle import Oracle
from qemu.rigs import RIGS
from requirements import need

TRANSLATIONS, FAULTS, STRUCTURES = 20_000, 1_000, 1_000
#: The deviations are of this one.
VERSION = "QEMU emulator version 10.0."


def program(name):
    path = need(name)
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    if not version.startswith(VERSION):
        reason = f"needs {VERSION}x, not {version.splitlines()[0]}"
        pytest.fail(reason) if os.environ.get("SOFTIOMMU_REQUIRE_ALL") else pytest.skip(reason)
    return path


@pytest.fixture(scope="module")
def rig(request):
    setup = RIGS[request.param]
    made = setup.make(program(setup.program))
    yield made
    made.close()


@pytest.mark.parametrize("rig", RIGS, indirect=True)
def test_tables_lead_where_qemu_goes(rig):
    tally = Oracle(rig, seed=1).run(TRANSLATIONS, FAULTS)
    assert tally.translations.total() >= TRANSLATIONS
    assert tally.faults.total() >= FAULTS


@pytest.mark.parametrize("rig", ["vtd-first"], indirect=True)
def test_accesses_leave_the_flags_that_qemu_leaves(rig):
    oracle = Oracle(rig, seed=3)
    assert sum(oracle.flags() for _ in range(30)) > STRUCTURES


@pytest.mark.parametrize("rig", [name for name, setup in RIGS.items() if setup.structures], indirect=True)
def test_wrong_structures_are_refused_as_by_qemu(rig):
    oracle = Oracle(rig, seed=2)
    for _ in range(10):
        oracle.configurations(STRUCTURES // 10)
    checked = oracle.tally.faults.total() + oracle.tally.translations.total()
    assert checked > STRUCTURES // 2
