"""QEMU is killed while its guest writes."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import time
from pathlib import Path

from guests.disk import ADDRESSES, Disk, contents, machine_with, repair
from guests.vm import Vm
from requirements import need
from softiommu.guest import qemu

_SIZE = 64 << 20
#: Makes, grows, renames and removes files, so that the journal never rests.
_CHURN = "while :; do for i in 1 2 3 4 5 6 7 8; do cp /tmp/random /mnt/new$i && mv /mnt/new$i /mnt/old$i; done; done"


def die_amid_writes(folder: Path, after: float) -> None:
    """A guest flushes a file, then goes on writing others until QEMU is killed, so many seconds later. The file is
    there, and the file system is whole once its journal was replayed."""
    machine, (file,) = machine_with(folder, _SIZE)
    with Vm(machine, options=[*qemu.iommufd(), "-device", qemu.passed(ADDRESSES[0], "nvme0")]) as vm:
        disk = Disk(vm)
        disk.format()
        flushed = disk.write("kept", 8)
        vm.run("(while :; do sync; done) >/dev/null 2>&1 &")
        vm.start(_CHURN)
        time.sleep(after)
        assert vm.kill() == -signal.SIGKILL
    header = subprocess.run([need("dumpe2fs"), "-h", file], capture_output=True, text=True, check=True).stdout
    assert "needs_recovery" in header
    assert repair(file) == ""
    assert hashlib.md5(contents(file, "kept")).hexdigest() == flushed
