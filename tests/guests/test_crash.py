"""A drive's file outlives a QEMU that dies amid writes, as a disk outlives a power failure: what was flushed is there,
and the file system is whole once its journal was replayed."""

import hashlib
import signal
import subprocess
import time

from guests.disk import ADDRESSES, Disk, contents, machine_with, repair
from guests.vm import Vm
from requirements import need
from softiommu.guest import qemu

MIB = 1 << 20
#: Makes, grows, renames and removes files, so that the journal never rests.
CHURN = "while :; do for i in 1 2 3 4 5 6 7 8; do cp /tmp/random /mnt/new$i && mv /mnt/new$i /mnt/old$i; done; done"


def test_what_was_flushed_survives_the_death_of_qemu_amid_writes(tmp_path):
    machine, (file,) = machine_with(tmp_path, size=64 * MIB)
    with Vm(machine, options=[*qemu.iommufd(), "-device", qemu.passed(ADDRESSES[0], "nvme0")]) as vm:
        disk = Disk(vm)
        disk.format()
        flushed = disk.write("kept", 8)
        vm.run("(while :; do sync; done) >/dev/null 2>&1 &")
        vm.start(CHURN)
        time.sleep(1)
        assert vm.kill() == -signal.SIGKILL
    header = subprocess.run([need("dumpe2fs"), "-h", file], capture_output=True, text=True, check=True).stdout
    assert "needs_recovery" in header
    assert repair(file) == ""
    assert hashlib.md5(contents(file, "kept")).hexdigest() == flushed
