"""The documentation says what is so."""

import re
import subprocess
import sys
from pathlib import Path

from softiommu.cli import _COMMANDS
from softiommu.iommufd.kernels import DEFAULT, KERNELS
from softiommu.machine.description import parse
from softiommu.machine.models import DEVICES, IOMMUS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MACHINES = (ROOT / "docs" / "machines.md").read_text(encoding="utf-8")


def block(text, language):
    found = re.search(rf"```{language}\n(.*?)```", text, re.DOTALL)
    assert found, f"there is no block of {language}"
    return found[1]


def test_the_python_example_of_the_readme_runs():
    argv = [sys.executable, "-c", block(README, "python")]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    mapping, refusal = done.stdout.splitlines()
    assert mapping == "<Mapping 0x100000..0x1fffff of IOAS 1>"
    assert "0x100000..0x100fff" in refusal


def test_the_readme_names_every_command():
    named = {line.split()[2] for line in README.splitlines() if line.startswith("| `softiommu ")}
    assert named == set(_COMMANDS)


def test_files_that_the_readme_links_to_are_there():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_machines_of_the_documentation_are_such():
    first, *parts = re.findall(r"```toml\n(.*?)```", MACHINES, re.DOTALL)
    described = parse(first, "docs/machines.md")
    assert described.devices[1].class_code == 0x00FF00
    for part in parts:
        assert len(parse(f'name = "part"\n{part}', "docs/machines.md").iommus) == 1


def test_the_documentation_names_every_model():
    named = set(re.findall(r'model = "(\w+)"', MACHINES)) | set(
        re.findall(r"^\* \*\*(\w+)\*\*,", MACHINES, re.MULTILINE)
    )
    assert {*IOMMUS, *DEVICES} - {"mock"} <= named
    assert "`mock`" in MACHINES


def test_the_documentation_names_every_kernel():
    *others, last = KERNELS
    assert f"{', '.join(others)} or {last}; " in MACHINES
    assert f"the default is {DEFAULT}" in MACHINES
