"""How a supervised program starts and ends, and what the one who started it sees."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from run.conftest import Runner


@pytest.mark.parametrize("code", [0, 1, 42, 255])
def test_the_exit_code_is_the_programs(supervise: Runner, code: int) -> None:
    assert supervise.program(["/bin/sh", "-c", f"exit {code}"]).code == code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGPIPE])
def test_a_fatal_signal_is_told_as_a_shell_tells_it(supervise: Runner, number: signal.Signals) -> None:
    assert supervise.program(["/bin/sh", "-c", f"kill -{number.value} $$"]).code == 128 + number


def test_the_supervisor_dies_by_the_programs_signal(supervise: Runner) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from doubles import *\n"
        "sys.exit(run(Machine(Events()), ['/bin/sh', '-c', 'kill -9 $$']))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(Path(__file__).parent)], timeout=30)
    assert done.returncode == -signal.SIGKILL


def test_a_program_that_cannot_start_is_told_as_a_shell_tells_it(supervise: Runner, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("no program")

    def told(name: str) -> tuple[int, str]:
        result = supervise.program([name])
        return result.code, result.err.removeprefix("softiommu: ")

    assert told("no-such-program") == (127, "no-such-program: command not found\n")
    assert told(f"{tmp_path}/missing") == (127, f"{tmp_path}/missing: No such file or directory\n")
    assert told(str(plain)) == (126, f"{plain}: Permission denied\n")
    assert told(str(tmp_path)) == (126, f"{tmp_path}: Is a directory\n")


def test_streams_folder_environment_and_group_are_the_callers(supervise: Runner, tmp_path: Path) -> None:
    code = (
        "import os, sys; same = os.getpgid(0) == os.getpgid(os.getppid())\n"
        "print(sys.stdin.read(), os.getcwd(), os.environ['MARK'], same)"
    )
    done = subprocess.run(
        supervise.command([sys.executable, "-c", code]),
        input="from stdin", capture_output=True, text=True, cwd=tmp_path, timeout=30, env={**os.environ, "MARK": "42"},
    )  # fmt: skip
    assert done.stdout == f"from stdin {tmp_path} 42 True\n"


def test_signal_settings_are_those_of_a_fresh_program(supervise: Runner) -> None:
    result = supervise.program(["/bin/sh", "-c", "grep -E 'SigBlk|SigIgn' /proc/self/status"])
    blocked, ignored = (int(line.split()[1], 16) for line in result.out.splitlines())
    # glibc's posix_spawn, with which make starts programs, leaves its own two signals (32 and 33) ignored.
    assert (blocked, ignored & ~(3 << 31)) == (0, 0)


def test_the_terminal_is_untouched(supervise: Runner) -> None:
    leader, follower = pty.openpty()
    code = "import os; print(os.isatty(0), os.isatty(1), os.tcgetpgrp(0) == os.getpgid(0))"
    command = [
        sys.executable,
        "-c",
        "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
        "os.execv(sys.argv[1], sys.argv[1:])",
    ]
    with subprocess.Popen(
        [*command, *supervise.command([sys.executable, "-c", code])], stdin=follower, stdout=follower, stderr=follower
    ):
        os.close(follower)
        said = b""
        while said.count(b"\n") < 1:
            said += os.read(leader, 1000)
        assert said.split() == [b"True"] * 3
    os.close(leader)


def test_a_daemon_is_supervised_to_its_end_and_the_code_is_the_first_childs(supervise: Runner) -> None:
    result = supervise.program(
        [
            sys.executable,
            "-c",
            """
import os, time, fcntl
if os.fork(): os._exit(5)
os.setsid()
if os.fork(): os._exit(0)
time.sleep(0.3)
fd = os.open("/dev/iommu", os.O_RDWR)
fcntl.ioctl(fd, 0x3b80)
""",
        ]
    )
    assert (result.code, result.opened, result.released, result.ioctls) == (5, 1, 1, 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_supervisor_reaches_the_program(supervise: Runner, number: signal.Signals) -> None:
    code = f"""
import os, signal, time
def bye(*_): os._exit(9)
signal.signal({number.value}, bye)
os.open("/dev/iommu", os.O_RDWR); print("ready", flush=True)
while True: signal.pause()
"""
    with subprocess.Popen(supervise.command([sys.executable, "-c", code]), stdout=subprocess.PIPE) as started:
        assert started.stdout is not None
        started.stdout.readline()
        started.send_signal(number)
        assert started.wait(20) == 9


def test_a_signal_to_the_supervisor_ends_what_the_program_left_behind(supervise: Runner) -> None:
    code = """
import os, time
first = os.getpid()
if os.fork(): os._exit(3)
os.open("/dev/iommu", os.O_RDWR)
while os.getppid() == first: pass
print("alone", flush=True)
time.sleep(60)
"""
    with subprocess.Popen(supervise.command([sys.executable, "-c", code]), stdout=subprocess.PIPE) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == b"alone\n"
        started.send_signal(signal.SIGTERM)
        assert started.wait(20) == 3


def test_a_program_whose_supervisor_is_killed_does_not_hang(supervise: Runner) -> None:
    code = """
import fcntl, os, time, errno
fd = os.open("/dev/iommu", os.O_RDWR); print(os.getpid(), flush=True)
while True:
    try: fcntl.ioctl(fd, 0x3b80)
    except OSError as error: print(errno.errorcode[error.errno], flush=True); os._exit(0)
"""
    with subprocess.Popen(supervise.command([sys.executable, "-c", code]), stdout=subprocess.PIPE) as started:
        assert started.stdout is not None
        started.stdout.readline()
        time.sleep(0.1)
        started.kill()
        assert started.stdout.readline() == b"ENOSYS\n"


def test_a_bug_of_ours_is_told_and_survived(supervise: Runner) -> None:
    code = """
import os, fcntl, sys
fd = os.open("/dev/iommu", os.O_RDWR)
try: fcntl.ioctl(fd, 0x3b84)
except OSError as error: print(error.errno, fcntl.ioctl(fd, 0x3b80))
sys.exit(int(sys.argv[1]))
"""
    result = supervise.program([sys.executable, "-c", code, "0"])
    assert (result.code, result.out, result.released) == (70, "5 2\n", 1)
    assert "this is a bug of softiommu" in result.err
    assert "the double crashes" in result.err
    assert "ioctl(0x3, 0x3b84" in result.err
    assert supervise.program([sys.executable, "-c", code, "3"]).code == 3


def test_a_second_supervisor_inside_is_refused_with_the_reason(supervise: Runner) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from doubles import *\nfrom softiommu.errors import ConfigError\n"
        "try: run(Machine(Events()), ['true'])\nexcept ConfigError as error: print(error)"
    )
    result = supervise.program([sys.executable, "-c", code, str(Path(__file__).parent)])
    assert "already has a seccomp listener" in result.out
    assert "hint:" in result.out


@pytest.mark.skipif(os.getuid() != 0, reason="drops root")
def test_no_privilege_is_needed() -> None:
    # The interpreter may lie where nobody else can read it: become nobody after the imports.
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from doubles import *\nimport tempfile, shutil, resource\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "script = 'exec 5<>/dev/iommu && ls -l /dev/iommu /dev/vfio && id -u'\n"
        "sys.exit(run(Machine(Events()), ['/bin/sh', '-c', script]))"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, cwd="/")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("crw------- 1 nobody root 10, 120 ")
    assert done.stdout.endswith("devices\n65534\n")


def test_the_log_has_a_line_for_each_call(supervise: Runner, tmp_path: Path) -> None:
    log = tmp_path / "log"
    supervise.python(
        """
fd = os.open("/dev/iommu", os.O_RDWR)
fcntl.ioctl(fd, COUNT); error(fcntl.ioctl, fd, REFUSE)
queue = fcntl.ioctl(fd, NEW_QUEUE); os.read(queue, 8)
os.close(fd)
""",
        "--log",
        str(log),
    )
    lines = [line.split(" ", 2)[2] for line in log.read_text().splitlines()]
    assert [line.split(" ", 1)[0] for line in log.read_text().splitlines()] == [str(n) for n in range(1, 8)]
    assert lines[0] == "file: open(path=/dev/iommu flags=0x80002) = 3"
    assert lines[1] == "ioctl(cmd=0x3b80 arg=0x0) = 1"
    assert lines[2] == "ioctl(cmd=0x3b82 arg=0x0) = -EPERM: the double refuses"
    assert lines[4:] == ["queue: read(count=8) = 0", "close() = 0", "queue: close() = 0"]
