"""Soak: QEMU starts and ends, is killed and reset, hundreds of times under one supervisor, and nothing is left of it.

    python tests/guests/soak.py [--cycles 100] [--ways stop,kill,reset,reboot] [--unit vtd] [--qemu PROGRAM] [--seed 1]

The guest is a boot sector on the NVMe drive: by the firmware's calls it writes a block, reads it back, compares, and
goes on. Three processes: one is supervised, and starts QEMU again and again; the supervisor notes after each cycle what
it has; the third judges the notes.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

NVME = "0000:00:07.0"
SIZE, BLOCK, SECTOR = 1 << 20, 4096, 512
#: The sectors that the guest writes: so many blocks from this one on. All others stay as they were.
FIRST, BLOCKS = 16, 64
MACHINE = """
name = "soak"

[[iommu]]
name = "dmar0"
model = "vtd"
unit = "{unit}"

[[device]]
name = "nvme0"
address = "{address}"
model = "nvme"
file = "{file}"
"""
CONSOLE_PORT, EXIT_PORT, RESET_PORT = 0xE9, 0xF4, 0xCF9
STARTED, WROTE, FAILED = b"B", b".", b"X"
#: What QEMU ends with when a guest writes 0x10 to its exit port.
GOOD = 0x21
#: Rounds of a guest that ends by itself.
ROUNDS = 8
#: Cycles until everything is there that stays (above all, the places of memory that some programs have used), and how
#: many bytes of memory may come after them.
WARM, MOST_GROWTH = 20, 16 << 20
#: What there may be nothing of between cycles.
NOTHING_OF = (
    *("iommufd.context.Context", "iommufd.file.IommufdFile", "consumers.vfio_file.DeviceFile"),
    *("run.descriptors.OpenFile", "pinned pages", "mapped files"),
)


# The guest


def _out(port: int, value: int) -> bytes:
    return b"\xba" + port.to_bytes(2, "little") + b"\xb0" + bytes([value]) + b"\xee"  # mov dx; mov al; out dx, al


def boot_sector(ending: str) -> bytes:
    """16-bit code for 0000:7C00. `ending`: what it does after some rounds: `stop`, `reboot` or, going on, `never`."""
    counter, store, load = 0x7DC0, 0x7DD0, 0x7DE0
    data, copy = 0x8000, 0x9000

    def word(value: int) -> bytes:
        return value.to_bytes(2, "little")

    def disk(call: int, packet: int) -> bytes:
        return b"\xbe" + word(packet) + b"\xb8" + word(call) + b"\xb2\x80\xcd\x13"  # mov si; mov ax; mov dl; int 13h

    start = b"\x31\xc0\x8e\xd8\x8e\xc0\xfc" + _out(CONSOLE_PORT, STARTED[0])  # ds = es = 0; cld
    failed = _out(CONSOLE_PORT, FAILED[0]) + _out(EXIT_PORT, 0) + b"\xf4"
    steps = [
        b"\x66\xff\x06" + word(counter) + b"\x66\xa1" + word(counter),  # inc dword [counter]; mov eax, [counter]
        b"\xbf" + word(data) + b"\xb9" + word(BLOCK // 4) + b"\xf3\x66\xab",  # fill the block with it
        b"\x25" + word(BLOCKS - 1) + b"\xc1\xe0\x03\x05" + word(FIRST),  # ax = sector
        b"\xa3" + word(store + 8) + b"\xa3" + word(load + 8),
        disk(0x4300, store),
        b"\x72",  # jc failed
        disk(0x4200, load),
        b"\x72",
        b"\xbe" + word(data) + b"\xbf" + word(copy) + b"\xb9" + word(BLOCK // 2) + b"\xf3\xa7",  # repe cmpsw
        b"\x75",  # jne failed
        _out(CONSOLE_PORT, WROTE[0]),
    ]
    last = {"stop": _out(EXIT_PORT, GOOD >> 1), "reboot": _out(RESET_PORT, 6), "never": b""}[ending]
    after = b"\x80\x3e" + word(counter) + bytes([ROUNDS]) + b"\x72" if last else b"\xeb"  # cmp byte [counter]; jb
    size = sum(len(step) + (len(step) == 1) for step in steps) + len(after) + 1 + len(last) + bool(last)
    code, begin = start, len(start)
    for step in steps:
        code += step
        if len(step) == 1:
            code += bytes([begin + size - len(code) - 1])
    code += after + bytes([begin - len(code) - len(after) - 1 & 0xFF]) + last + (b"\xf4" if last else b"")
    assert len(code) == begin + size
    code += failed
    sector = bytearray(code.ljust(SECTOR - 2, b"\0") + b"\x55\xaa")
    for packet, buffer in ((store, data), (load, copy)):
        where = b"\x10\x00" + word(BLOCK // SECTOR) + word(buffer) + word(0) + bytes(8)
        sector[packet - 0x7C00 : packet - 0x7C00 + len(where)] = where
    sector[counter - 0x7C00 : counter - 0x7C00 + 4] = bytes(4)
    return bytes(sector)


class Disk:
    """The drive's file, and what must be in it."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path = path
        self._rest = random.Random(seed).randbytes(SIZE)

    def make(self, ending: str) -> None:
        """A new drive, which boots."""
        with self.path.open("wb") as file:
            file.write(boot_sector(ending) + self._rest[SECTOR:])

    def boot(self, ending: str) -> None:
        """Another boot sector."""
        with self.path.open("r+b") as file:
            file.write(boot_sector(ending))

    def check(self) -> None:
        """Each block that the guest writes is as one of its writes left it; nothing else has changed."""
        found = self.path.read_bytes()
        first, end = FIRST * SECTOR, FIRST * SECTOR + BLOCKS * BLOCK
        assert found[SECTOR:first] == self._rest[SECTOR:first], "sectors before the guest's were written"
        assert found[end:] == self._rest[end:], "sectors behind the guest's were written"
        for at in range(first, end, BLOCK):
            block = found[at : at + BLOCK]
            whole = block == block[:4] * (BLOCK // 4) or block == self._rest[at : at + BLOCK]
            assert whole, f"the block at {at:#x} was written in part"


# The supervised process


class Job(NamedTuple):
    """What is to be done."""

    folder: str
    cycles: int
    ways: list[str]
    unit: str
    qemu: str
    seed: int
    #: How often a guest is reset in one cycle.
    lives: int = 10
    #: The guest's RAM is a file, which the supervisor maps, or private.
    shared: bool = False


class Guest:
    """A QEMU that was just started."""

    def __init__(self, job: Job) -> None:
        ours, theirs = socket.socketpair()
        self.monitor = ours.makefile("rwb")
        ours.close()
        self.process = subprocess.Popen(
            [
                *(job.qemu, "-accel", "tcg", "-M", "q35,memory-backend=ram", "-nodefaults", "-display", "none"),
                *("-m", "64", "-object", f"memory-backend-{'memfd' if job.shared else 'ram'},id=ram,size=64M"),
                *("-chardev", "stdio,id=said", "-device", f"isa-debugcon,iobase={CONSOLE_PORT:#x},chardev=said"),
                *("-device", f"isa-debug-exit,iobase={EXIT_PORT:#x},iosize=1"),
                *("-chardev", f"socket,id=qmp,fd={theirs.fileno()}", "-mon", "chardev=qmp,mode=control"),
                *(
                    "-object",
                    "iommufd,id=fd0",
                    "-device",
                    f"vfio-pci,host={NVME},iommufd=fd0,bootindex=0",
                ),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        assert self.process.stdout is not None
        self._said = self.process.stdout
        self._ask(None)
        self._ask("qmp_capabilities")

    def _ask(self, command: str | None) -> None:
        """One command, and the answer to it; events are passed over. EOFError."""
        if command is not None:
            self.monitor.write(json.dumps({"execute": command}).encode())
            self.monitor.flush()
        wanted = "return" if command else "QMP"
        while True:
            line = self.monitor.readline()
            if not line:
                raise EOFError("QEMU is gone")
            answer = json.loads(line)
            assert "error" not in answer, answer
            if wanted in answer:
                return

    def wait_for(self, what: bytes, count: int = 1) -> None:
        """Wait until the guest has said something so often from now on. EOFError; AssertionError: it failed."""
        while count:
            byte = self._said.read(1)
            if not byte:
                raise EOFError("QEMU is gone")
            assert byte != FAILED, "the guest read back something else than it wrote, or could not"
            count -= byte == what

    def reset(self) -> None:
        """Reset the machine, now."""
        self._ask("system_reset")

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self._close()

    def end(self) -> int:
        """Wait for its end; -> its exit code."""
        self._close()
        return self.process.returncode

    def _close(self) -> None:
        self.process.wait(60)
        self.monitor.close()
        self._said.close()


def stop(guest: Guest, chance: random.Random, lives: int) -> None:
    """The guest works, and ends QEMU."""
    guest.wait_for(WROTE, ROUNDS)
    code = guest.end()
    assert code == GOOD, f"QEMU ended with {code}"


def kill(guest: Guest, chance: random.Random, lives: int) -> None:
    """QEMU is killed at any moment; every other time while the guest writes."""
    if chance.random() < 0.5:
        guest.wait_for(WROTE)
        time.sleep(chance.random() / 5)
    else:
        time.sleep(chance.random() * 2)
    guest.kill()


def reset(guest: Guest, chance: random.Random, lives: int) -> None:
    """The machine is reset while the guest writes, or starts."""
    for _ in range(lives):
        guest.wait_for(STARTED)
        if chance.random() < 0.8:
            guest.wait_for(WROTE)
        time.sleep(chance.random() / 10)
        guest.reset()
    guest.wait_for(WROTE)
    guest.kill()


def reboot(guest: Guest, chance: random.Random, lives: int) -> None:
    """The guest works, and resets the machine itself."""
    guest.wait_for(STARTED, lives)
    guest.wait_for(WROTE, ROUNDS)
    guest.kill()


#: How a cycle goes, and what its guest's boot sector does in the end.
WAYS = {"stop": (stop, "stop"), "kill": (kill, "never"), "reset": (reset, "never"), "reboot": (reboot, "reboot")}


def supervised(job: Job) -> None:
    """Cycles, each of which ends with a note by the supervisor."""
    chance = random.Random(job.seed)
    disk = Disk(Path(job.folder) / "disk", job.seed)
    for way in job.ways:
        act, ending = WAYS[way]
        disk.boot(ending)
        for _ in range(job.cycles):
            act(Guest(job), chance, job.lives)
            disk.check()
            # Read-only, as QEMU never opens it: this is what the supervisor makes a note of.
            os.close(os.open("/dev/iommu", os.O_RDONLY))


# The supervisor


def census() -> dict[str, int]:
    """What a supervisor has: descriptors, bytes of memory, mappings, and objects of ours by their classes."""
    gc.collect()
    kinds = (type(each) for each in gc.get_objects() if type(each).__module__.startswith("softiommu."))
    found = Counter(f"{kind.__module__.removeprefix('softiommu.')}.{kind.__name__}" for kind in kinds)
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    mapped = Path("/proc/self/maps").read_text().count("/memfd:")
    return {"descriptors": len(os.listdir("/proc/self/fd")), "memory": resident, "mapped files": mapped, **found}


def supervise(job: Job) -> None:
    """Run the supervised process, with a note at each of its signs."""
    from softiommu.machine.assemble import Machine
    from softiommu.machine.description import parse
    from softiommu.run import supervisor

    folder = Path(job.folder)
    text = MACHINE.format(unit=job.unit, address=NVME, file=folder / "disk")
    machine = Machine(parse(text, "soak"))
    node = machine.entries["/dev/iommu"]
    notes = (folder / "notes").open("w")

    def opened(caller, flags):
        if flags & os.O_ACCMODE == os.O_RDONLY:
            given = machine.hardware.memory.given
            pinned = machine.physical.accounts.total
            print(json.dumps({**census(), "physical memory": given, "pinned pages": pinned}), file=notes, flush=True)
        return node.open(caller, flags)

    machine.entries["/dev/iommu"] = node._replace(open=opened)
    argv = [sys.executable, __file__, "supervised", json.dumps(job)]
    sys.exit(supervisor.run(machine, argv))


# The judge


class Report(NamedTuple):
    """What came of a soak: how it ended, what it said, and a note for each cycle."""

    code: int
    errors: str
    seconds: float
    notes: list[dict[str, int]]

    @property
    def left(self) -> dict[str, int]:
        """What was still there after some cycle, and may not be."""
        most = {name: max((note.get(name, 0) for note in self.notes), default=0) for name in NOTHING_OF}
        return {name: count for name, count in most.items() if count}

    @property
    def grown(self) -> dict[str, int]:
        """What became more with the cycles, once everything is there that stays."""
        if len(self.notes) <= WARM:
            return {}
        first, last = self.notes[WARM], self.notes[-1]
        more = {name: count - first.get(name, 0) for name, count in last.items()}
        most = max((len(self.notes) - WARM) // 4, 8)
        return {name: count for name, count in more.items() if count > (MOST_GROWTH if name == "memory" else most)}


def soak(job: Job) -> Report:
    """Do it, in a folder that exists; -> what came of it."""
    folder = Path(job.folder)
    Disk(folder / "disk", job.seed).make("stop")
    begin = time.monotonic()
    argv = [sys.executable, __file__, "supervise", json.dumps(job)]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    lines = (folder / "notes").read_text().splitlines() if (folder / "notes").exists() else []
    notes = [json.loads(line) for line in lines]
    return Report(done.returncode, done.stderr, time.monotonic() - begin, notes)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cycles", type=int, default=100, help="cycles of each way; one of reset or reboot has ten")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--unit", default="vtd", help="the VT-d unit (docs/machines.md)")
    parser.add_argument("--qemu", default="qemu-system-x86_64")
    parser.add_argument("--shared", action="store_true", help="the guest's RAM is a memfd")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    failed = False
    for way in options.ways.split(","):
        cycles = options.cycles // 10 if way in ("reset", "reboot") else options.cycles
        with tempfile.TemporaryDirectory() as folder:
            job = Job(folder, cycles, [way], options.unit, options.qemu, options.seed, shared=options.shared)
            report = soak(job)
        notes, ours = report.notes, [line for line in report.errors.splitlines() if line.startswith("softiommu:")]
        failed |= bool(report.code or len(notes) < cycles or report.left or report.grown or ours)
        print(f"{way}: {len(notes)} cycles in {report.seconds:.0f} s, ended with {report.code}")
        for name in ("descriptors", "memory", "run.tracee.Task"):
            print(f"  {name} after each tenth: {' '.join(str(note.get(name, 0)) for note in notes[::10] + notes[-1:])}")
        print(
            f"  left after a cycle: {report.left or 'nothing'}; grown since cycle {WARM}: {report.grown or 'nothing'}"
        )
        print("\n".join(ours or report.errors.splitlines()[-20:] * bool(report.code)), flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    if sys.argv[1:2] == ["supervise"]:
        supervise(Job(*json.loads(sys.argv[2])))
    elif sys.argv[1:2] == ["supervised"]:
        supervised(Job(*json.loads(sys.argv[2])))
    else:
        main()
