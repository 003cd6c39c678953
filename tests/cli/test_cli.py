"""The command line as a whole: help, versions, and what it says of a wrong one."""

from importlib.metadata import version

import pytest

from softiommu.cli import _COMMANDS
from softiommu.machine.description import builtin_names


def test_the_version_is_the_packages(softiommu):
    assert softiommu("--version") == (0, f"softiommu {version('softiommu')}\n", "")


@pytest.mark.parametrize("arguments", [["--help"], ["-h"]])
def test_help_lists_every_command(softiommu, arguments):
    ended = softiommu(*arguments)
    assert ended.code == 0
    assert ended.err == ""
    for name, (_, line) in _COMMANDS.items():
        assert f"  {name} " in ended.out
        assert line in ended.out


@pytest.mark.parametrize("command", [[name] for name in _COMMANDS] + [["machine", "list"], ["machine", "show"]])
def test_every_command_has_help(softiommu, command):
    ended = softiommu(*command, "--help")
    assert ended.code == 0
    assert ended.out.startswith(f"Usage: softiommu {' '.join(command)}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Usage: softiommu"),
        (["machin"], f"unknown command 'machin': expected one of {', '.join(_COMMANDS)} (did you mean machine?)"),
        (["--verion"], "No such option '--verion'"),
        (["machine", "lst"], "No such command 'lst'"),
        (["machine", "show"], "Missing argument 'NAME'"),
        (["run"], "Missing argument 'PROGRAM...'"),
        (["run", "--machin", "mock", "--", "true"], "--machine"),
        (["run", "--machine"], "Option '--machine' requires an argument"),
    ],
)
def test_a_wrong_command_line_ends_with_2_and_says_what_there_is(softiommu, arguments, message):
    ended = softiommu(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err


@pytest.mark.parametrize("command", [["run", "-m", "mok", "--", "true"], ["machine", "show", "mok"]])
def test_an_unknown_machine_names_the_nearest(softiommu, command):
    ended = softiommu(*command)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.splitlines() == [
        f"softiommu: unknown machine 'mok': expected one of {', '.join(builtin_names())} (did you mean mock?)",
        "hint: a machine of your own is a TOML file, named by its path",
    ]


@pytest.mark.parametrize("command", [["run", "-k", "6.13", "--", "true"], ["machine", "show", "mock", "-k", "6.13"]])
def test_an_unknown_kernel_names_those_there_are(softiommu, command):
    ended = softiommu(*command)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == "softiommu: unknown kernel '6.13': there are 6.12, 7.2, 7.3; did you mean 6.12?\n"
