"""A client of QEMU's qtest protocol: memory, ports and time of a machine whose processors never run."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

#: Commands sent before an answer is awaited: their answers fit into the socket's buffer.
_BATCH = 512
_SIZES = {1: "b", 2: "w", 4: "l", 8: "q"}
#: Firmware that halts the processor, since Debian's QEMU has no accelerator without one: cli, hlt at the reset vector
#: of a PC; wfi and a jump back to it.
_HALTED = {
    "qemu-system-x86_64": bytes.fromhex("faf4ebfc").rjust(0xFFF4, b"\0").ljust(0x10000, b"\0"),
    "qemu-system-aarch64": bytes.fromhex("7f2003d5 ffffff17"),
    "qemu-system-riscv64": bytes.fromhex("73005010 6ff0dfff"),
}
_START_SECONDS, _ANSWER_SECONDS, _END_SECONDS = 60, 120, 20


_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


def _end_with_parent() -> None:
    """Nobody is left to end a QEMU whose test was killed. One that is supervised hears of it by its supervisor."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class QtestError(Exception):
    """QEMU ended, or refused a command."""


class Qtest:
    """A running QEMU. Its RAM is a file that is mapped here, too: `ram` starts at physical address `ram_base`."""

    def __init__(self, binary: str, machine: str, ram: range, arguments: Iterable[str]) -> None:
        ram_base, ram_size = ram.start, len(ram)
        self.ram_base, self.ram_size = ram_base, ram_size
        self._folder = tempfile.TemporaryDirectory(prefix="qtest-")
        folder = Path(self._folder.name)
        (folder / "halted").write_bytes(_HALTED[Path(binary).name])
        with open(os.memfd_create("ram"), "r+b") as file:
            file.truncate(ram_size)
            self.ram = mmap.mmap(file.fileno(), ram_size)
            backend = f"memory-backend-file,id=ram,size={ram_size},share=on,mem-path=/proc/self/fd/{file.fileno()}"
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(folder / "qtest"))
            listener.listen(1)
            listener.settimeout(1)
            self._log, self._seen = (folder / "log").open("w+"), 0
            quiet = ["-qtest-log", "none", "-nodefaults", "-display", "none", "-bios", str(folder / "halted")]
            backed = ["-object", backend, "-machine", f"{machine},memory-backend=ram", "-m", f"{ram_size >> 20}M"]
            self._process = subprocess.Popen(
                [binary, "-accel", "tcg", "-qtest", f"unix:{folder / 'qtest'}", *quiet, *backed, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=[file.fileno()],
                preexec_fn=_end_with_parent,
            )
            try:
                self._socket = self._accept(listener)
            except BaseException:
                self.close()
                raise
            finally:
                listener.close()
        self._rest = b""

    def _accept(self, listener: socket.socket) -> socket.socket:
        for _ in range(_START_SECONDS):
            with contextlib.suppress(TimeoutError):
                connection, _ = listener.accept()
                connection.settimeout(_ANSWER_SECONDS)
                return connection
            if self._process.poll() is not None:
                break
        raise QtestError(f"QEMU did not start: {self.log()}")

    def log(self) -> str:
        """What QEMU printed."""
        return Path(self._log.name).read_text(errors="replace")

    def news(self) -> str:
        """What QEMU printed since this was called last."""
        with Path(self._log.name).open(errors="replace") as log:
            log.seek(self._seen)
            text = log.read()
            self._seen = log.tell()
        return text

    def close(self) -> None:
        """End QEMU."""
        self._process.terminate()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
        if hasattr(self, "_socket"):
            self._socket.close()
        self._folder.cleanup()

    # Commands

    def ask(self, commands: list[str]) -> list[int]:
        """Run commands in order; the number that each answers with (0 when it has none)."""
        answers: list[int] = []
        for start in range(0, len(commands), _BATCH):
            batch = commands[start : start + _BATCH]
            self._socket.sendall("".join(f"{command}\n" for command in batch).encode())
            answers += (self._answer(command) for command in batch)
        return answers

    def _answer(self, command: str) -> int:
        while b"\n" not in self._rest:
            more = self._socket.recv(1 << 16)
            if not more:
                raise QtestError(f"QEMU ended at {command!r}: {self.log()}")
            self._rest += more
        line, self._rest = self._rest.split(b"\n", 1)
        words = line.decode().split()
        if words[0] != "OK":
            raise QtestError(f"{command!r} is answered {line.decode()!r}")
        return int(words[1], 0) if len(words) > 1 else 0

    def read(self, pa: int, width: int) -> int:
        """A load of 1, 2, 4 or 8 bytes."""
        return self.ask([load(pa, width)])[0]

    def write(self, pa: int, width: int, value: int) -> None:
        """A store of 1, 2, 4 or 8 bytes."""
        self.ask([store(pa, width, value)])


def load(pa: int, width: int) -> str:
    """The command of a load."""
    return f"read{_SIZES[width]} {pa:#x}"


def store(pa: int, width: int, value: int) -> str:
    """The command of a store."""
    return f"write{_SIZES[width]} {pa:#x} {value:#x}"
