"""What starting must not import: it costs time, or an extra that is not installed."""

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"numba", "llvmlite", "numpy", "pyarrow", "rich", "starlette", "uvicorn", "hypothesis"}
EXAMPLE = str(Path(__file__).parent.parent / "examples" / "first_mapping.py")
DMA = str(Path(__file__).parent.parent / "examples" / "first_dma.py")


def imported(*arguments):
    """Every module that a Python with these arguments imported, in itself (not in what it started)."""
    argv = [sys.executable, "-X", "importtime", *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}


def tops(modules):
    return {module.partition(".")[0] for module in modules}


@pytest.mark.parametrize(
    "arguments",
    [
        ["-m", "softiommu", "--help"],
        ["-m", "softiommu", "machine", "list"],
        ["-m", "softiommu", "run", "--", "true"],
        ["-m", "softiommu", "run", "-m", "mock", "--", sys.executable, "-S", "-E", EXAMPLE],
        ["-m", "softiommu", "run", "-m", "vtd", "--", sys.executable, "-S", "-E", DMA],
        ["-c", "import softiommu"],
    ],
    ids=" ".join,
)
def test_starting_imports_nothing_heavy(arguments):
    modules = imported(*arguments)
    assert "softiommu" in modules
    assert tops(modules) & HEAVY == set()


def test_help_loads_no_command_and_no_machine():
    ours = {module for module in imported("-m", "softiommu", "--help") if module.startswith("softiommu")}
    assert ours <= {"softiommu", "softiommu.cli", "softiommu.errors"}


def test_showing_machines_loads_no_supervisor():
    assert not {
        module for module in imported("-m", "softiommu", "machine", "list") if module.startswith("softiommu.run")
    }


def test_running_loads_no_python_face():
    modules = imported("-m", "softiommu", "run", "--", "true")
    assert "softiommu.run.supervisor" in modules
    assert not {module for module in modules if module.startswith("softiommu.api")}
