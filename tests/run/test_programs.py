"""Programs that are no Python: static, threaded, interrupted, killed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from requirements import need
from run.conftest import HERE, Runner

Compile = Callable[..., str]


@pytest.mark.parametrize("flags", [(), ("-static",)], ids=["dynamic", "static"])
def test_a_c_program_is_served(supervise: Runner, compiled: Compile, flags: tuple[str, ...]) -> None:
    result = supervise.program([compiled("calls", *flags), "once"])
    assert (result.code, result.out, result.opened, result.released) == (0, "1 0 42\n", 1, 1)


def test_a_rust_program_is_served(supervise: Runner, tmp_path: Path) -> None:
    subprocess.run([need("rustc"), "-o", tmp_path / "calls", HERE / "clients" / "calls.rs"], check=True)
    assert supervise.program([str(tmp_path / "calls")]).out == "1 0 42\n"


@pytest.mark.parametrize("restart", [[], ["restart"]], ids=["interrupting", "restarting"])
def test_under_a_storm_of_signals_each_call_happens_once(
    supervise: Runner, compiled: Compile, restart: list[str]
) -> None:
    assert supervise.program([compiled("calls"), "storm", *restart]).out == "exactly once\n"


def test_eight_threads_share_a_descriptor(supervise: Runner, compiled: Compile) -> None:
    result = supervise.program([compiled("calls"), "threads"])
    assert (result.out, result.ioctls, result.released) == ("4001\n", 4001, 1)


def test_processes_killed_at_any_moment_leave_nothing(supervise: Runner, compiled: Compile) -> None:
    result = supervise.python(f"""
import random
chance = random.Random(7)
fd = os.open("/dev/iommu", os.O_RDWR)
for _ in range(60):
    child = os.fork()
    if child == 0: os.execv({compiled("calls")!r}, ["calls", "churn"])
    time.sleep(chance.uniform(0.002, 0.02))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert fcntl.ioctl(fd, ALIVE) == 1
""")
    assert result.err == ""
    assert result.opened > 100


def test_a_supervised_shell_runs_a_pipeline(supervise: Runner) -> None:
    loop = "while read n; do echo got $n; done"
    script = f"echo start; {sys.executable} -c 'print(7)' | cat | {loop}; exec 9</dev/iommu; echo $?"
    result = supervise.program(["/bin/bash", "-c", script])
    assert (result.out, result.opened, result.released) == ("start\ngot 7\n0\n", 1, 1)
