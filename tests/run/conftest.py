"""Running small client programs on the machine of doubles."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from requirements import need

HERE = Path(__file__).parent
PRELUDE = """
import array, errno, fcntl, mmap, os, select, signal, socket, struct, sys, threading, time
COUNT, ECHO, REFUSE, NEW_QUEUE, CRASH, WHO = range(0x3B80, 0x3B86)
PIN, UNPIN, PEEK, POKE, QUEUE, FILE_OF, MAPPED, ALIVE = range(0x3B86, 0x3B8E)
def error(function, *args):
    try:
        function(*args)
    except OSError as failure:
        return errno.errorcode[failure.errno]
    return "no error"
"""


class Result(NamedTuple):
    """How a supervised program ended, and what its machine saw."""

    code: int
    out: str
    err: str
    opened: int
    released: int
    ioctls: int


class Runner:
    """Starts programs under supervision."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.events = folder / "events"

    def command(self, argv: list[str], *options: str) -> list[str]:
        """The command line that supervises `argv`."""
        return [sys.executable, str(HERE / "doubles.py"), *options, str(self.events), *argv]

    def program(self, argv: list[str], *options: str, timeout: float = 60) -> Result:
        """Run a program to its end."""
        done = subprocess.run(
            self.command(argv, *options), capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL
        )
        return Result(done.returncode, done.stdout, done.stderr, **json.loads(self.events.read_text()))

    def python(self, code: str, *options: str) -> Result:
        """Run Python statements, and demand that they succeed and leave no file behind."""
        result = self.program([sys.executable, "-S", "-E", "-c", PRELUDE + code], *options)
        assert result.code == 0, result.err
        assert result.opened == result.released
        return result


@pytest.fixture
def supervise(tmp_path: Path) -> Runner:
    """A way to run programs on the machine of doubles."""
    return Runner(tmp_path)


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Compiles a client of `clients/`; the path of the program."""
    folder = tmp_path_factory.mktemp("clients")

    def compile_client(name: str, *flags: str) -> str:
        target = folder / (name + "".join(flags))
        if not target.exists():
            subprocess.run(
                [need("cc"), "-O1", *flags, "-o", target, HERE / "clients" / f"{name}.c", "-lpthread"], check=True
            )
        return str(target)

    return compile_client
