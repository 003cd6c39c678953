"""The NVMe controller, with the guest's own driver: files on it are what was written, however it is passed on.

The oracle of the data is the guest itself (checksums of what it wrote), and the file behind the namespace.
"""

import hashlib

import pytest

from guests.disk import ADDRESSES, complaints, machine_with
from guests.vm import Vm
from guests.ways import MIB, WAYS, Way, options, work
from softiommu.guest import qemu


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_files_survive_unplugging_and_are_what_was_written(tmp_path, way):
    work(tmp_path, way)


def test_two_devices_on_one_iommufd_keep_their_data_apart(tmp_path):
    machine, files = machine_with(tmp_path, size=16 * MIB, count=2)
    devices = [qemu.passed(address, f"nvme{n}", bus=f"port{n}") for n, address in enumerate(ADDRESSES)]
    with Vm(machine, options=options(Way(), *devices)) as vm:
        vm.run("modprobe nvme")
        vm.wait_for("[ -b /dev/nvme0n1 -a -b /dev/nvme1n1 ]")
        vm.run("head -c 4194304 /dev/urandom >/tmp/a; head -c 4194304 /dev/urandom >/tmp/b")
        vm.run("dd if=/tmp/a of=/dev/nvme0n1 bs=64k conv=fsync & dd if=/tmp/b of=/dev/nvme1n1 bs=64k conv=fsync; wait")
        places = vm.run("cat /sys/class/nvme/nvme0/address /sys/class/nvme/nvme1/address").split()
        sums = vm.run("md5sum </tmp/a; md5sum </tmp/b").split()[::2]
        assert vm.leave() == 0
        assert complaints(vm.errors) == []
    found = [hashlib.md5(file.read_bytes()[: 4 * MIB]).hexdigest() for file in files]
    assert dict(zip(places, sums, strict=True)) == dict(zip(("0000:01:00.0", "0000:02:00.0"), found, strict=True))
