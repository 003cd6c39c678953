"""A guest under test: started on a machine in user space, told what to do line by line, plugged by QMP, and ended.

with Vm(machine, options=[*qemu.iommufd(), "-device", qemu.passed("0000:00:07.0", "nvme0")]) as vm:
    assert "nvme0n1" in vm.run("modprobe nvme && sleep 1; ls /dev")
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from requirements import need
from softiommu.errors import ConfigError
from softiommu.guest import qemu
from softiommu.guest.folder import DEFAULT, Folder, find

#: Seconds. A guest boots in 3 on an idle machine.
BOOT, COMMAND, LEAVE = 90, 120, 60
_ROOT = Path(__file__).parents[2]
#: QMP wants booleans where the command line has these words.
_SWITCH: dict[str, object] = {"on": True, "off": False}


def need_guests() -> Folder:
    """The prepared folder (SOFTIOMMU_GUESTS, or the checkout's); without it the test skips, or fails where it must."""
    try:
        return find(os.environ.get("SOFTIOMMU_GUESTS", _ROOT / DEFAULT))
    except ConfigError as error:
        if os.environ.get("SOFTIOMMU_REQUIRE_ALL"):
            pytest.fail(f"SOFTIOMMU_REQUIRE_ALL is set: {error}")
        pytest.skip(str(error))


class CommandFailedError(Exception):
    """A command in the guest that did not end with 0; its output."""


class Vm:
    """QEMU, supervised on `machine` (a name or a file); as it is without one.

    `program` starts QEMU where it is not the system's; `folder` is booted instead of the prepared one; `run_options`
    are options of `softiommu run`; the rest are options of QEMU and words for the kernel's command line.
    """

    def __init__(
        self,
        machine: str | Path | None,
        *,
        options: Sequence[str] = (),
        program: Sequence[str] = (),
        run_options: Sequence[str] = (),
        kernel_line: str = "quiet",
        shared: bool = True,
        memory: int = 256,
        cpus: int = 1,
        folder: Folder | None = None,
    ) -> None:
        self._files = tempfile.TemporaryDirectory()
        self.console = Path(self._files.name) / "console"
        self._errors = Path(self._files.name) / "errors"
        self._agent, agent = socket.socketpair()
        self._monitor, monitor = socket.socketpair()
        guest = qemu.Guest(
            folder=folder or need_guests(),
            job="agent",
            program=program or (need(qemu.PROGRAM),),
            memory=memory,
            shared=shared,
            cpus=cpus,
            kernel_line=kernel_line,
            options=[
                *("-serial", f"file:{self.console}"),
                *("-chardev", f"socket,id=agent,fd={agent.fileno()}", "-serial", "chardev:agent"),
                *("-chardev", f"socket,id=qmp,fd={monitor.fileno()}", "-mon", "chardev=qmp,mode=control"),
                *options,
            ],
        )
        run = [sys.executable, "-m", "softiommu.cli", "run", "--machine", str(machine)]
        run += ["--unlimited-memlock", *run_options, "--"]
        with self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                (run if machine is not None else []) + guest.command(),
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                pass_fds=(agent.fileno(), monitor.fileno()),
            )
        agent.close()
        monitor.close()
        self._received, self._booted = b"", False
        self._told, self._greeted = b"", False
        self._events: list[dict[str, Any]] = []

    def __enter__(self) -> Vm:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is not None:
            said = self.console.read_text(errors="replace") if self.console.exists() else ""
            error.add_note(f"errors: {self.errors}\nconsole: {said[-4000:]}")
        self.close()

    @property
    def errors(self) -> str:
        """What QEMU and softiommu wrote to standard error so far."""
        return self._errors.read_text(errors="replace")

    # The guest

    def boot(self) -> float:
        """Wait until the guest takes commands; -> the seconds that this took."""
        start = time.monotonic()
        if not self._booted:
            self._answer(BOOT)
            self._booted = True
        return time.monotonic() - start

    def restarted(self) -> None:
        """Wait until the guest takes commands again after a reset, which QEMU must have been told to make."""
        self._answer(BOOT)

    def start(self, command: str) -> None:
        """Begin a command of one line. `finish` waits for it."""
        self.boot()
        assert "\n" not in command, "the guest reads one line at a time"
        self._agent.sendall(command.encode() + b"\n")

    def finish(self, timeout: float = COMMAND) -> str:
        """What the command wrote, when it has ended. CommandFailedError, TimeoutError."""
        output, status = self._answer(timeout)
        if status:
            raise CommandFailedError(f"status {status}: {output}")
        return output

    def run(self, command: str, timeout: float = COMMAND) -> str:
        """Carry out a command of one line; -> what it wrote. CommandFailedError, TimeoutError."""
        self.start(command)
        return self.finish(timeout)

    def wait_for(self, condition: str, timeout: float = 30) -> None:
        """Wait in the guest until a command succeeds. TimeoutError."""
        tries = int(timeout / 0.05)
        self.run(
            f"n=0; until {condition}; do n=$((n+1)); [ $n -lt {tries} ] || exit 1; usleep 50000; done", timeout * 4
        )

    def _answer(self, timeout: float) -> tuple[str, int]:
        """Output up to the line `@@ STATUS`."""
        end = time.monotonic() + timeout
        while True:
            head, mark, tail = self._received.partition(b"@@ ")
            if mark and b"\n" in tail:
                status, _, self._received = tail.partition(b"\n")
                return head.decode(errors="replace").strip(), int(status)
            self._received += _receive(self._agent, end, "the guest")

    # QEMU

    def qmp(self, command: str, **arguments: object) -> object:
        """What QEMU's monitor returns. RuntimeError: what it says against it."""
        if not self._greeted:
            self._greeted = True
            self._message(lambda message: "QMP" in message)
            self.qmp("qmp_capabilities")
        self._monitor.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
        answer = self._message(lambda message: "return" in message or "error" in message)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["return"]

    def event(self, name: str, timeout: float = COMMAND, **data: object) -> None:
        """Wait for an event with this data. TimeoutError."""

        def is_it(message: dict[str, Any]) -> bool:
            told = message.get("data", {})
            return message.get("event") == name and all(told.get(key) == value for key, value in data.items())

        for message in self._events:
            if is_it(message):
                self._events.remove(message)
                return
        self._message(is_it, timeout)

    def _message(self, wanted: Callable[[dict[str, Any]], bool], timeout: float = COMMAND) -> dict[str, Any]:
        """The next message that is wanted; events that are not are kept."""
        end = time.monotonic() + timeout
        while True:
            line, newline, rest = self._told.partition(b"\n")
            if not newline:
                self._told += _receive(self._monitor, end, "QEMU")
                continue
            self._told = rest
            message = json.loads(line)
            if wanted(message):
                return message
            if "event" in message:
                self._events.append(message)

    def unplug(self, name: str) -> None:
        """Ask the guest to give a device back, and wait until it is gone."""
        self.qmp("device_del", id=name)
        self.event("DEVICE_DELETED", device=name)

    def plug(self, device: str) -> None:
        """Add a device, told as for `-device`."""
        driver, *rest = device.split(",")
        words = dict(part.split("=", 1) for part in rest)
        self.qmp("device_add", driver=driver, **{key: _SWITCH.get(word, word) for key, word in words.items()})

    # The end

    def leave(self, timeout: float = LEAVE) -> int:
        """Let the guest power off; -> the status with which all ended."""
        self.start("leave")
        return self.process.wait(timeout)

    def kill(self, timeout: float = LEAVE) -> int:
        """Kill QEMU outright; -> the status with which all ended."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        os.kill(int(children[0]) if children else pid, signal.SIGKILL)
        return self.process.wait(timeout)

    def close(self) -> None:
        """End what still runs. `softiommu run` passes the signal on, and ends with its program."""
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(LEAVE)
        self._agent.close()
        self._monitor.close()
        self._files.cleanup()


def _receive(connection: socket.socket, end: float, who: str) -> bytes:
    """More bytes, before the time `end`. TimeoutError; EOFError: the other side is gone."""
    connection.settimeout(max(end - time.monotonic(), 0.001))
    data = connection.recv(1 << 16)
    if not data:
        raise EOFError(f"{who} is gone")
    return data
