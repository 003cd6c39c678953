"""The NVMe controller, with the guest's own driver: files on it are what was written, however it is passed on.

The oracle of the data is the guest itself (checksums of what it wrote), and the file behind the namespace.
"""

import hashlib
from typing import NamedTuple

import pytest

from guests.disk import ADDRESSES, Disk, complaints, machine_with, repair
from guests.vm import Vm
from softiommu.guest import qemu

MIB = 1 << 20


class Way(NamedTuple):
    """How a guest gets the device, and how much it writes."""

    iommufd: bool = True
    shared: bool = True
    viommu: bool = False
    mapped: bool = False
    mib: int = 8


WAYS = {
    "iommufd": Way(mib=32),
    "private memory": Way(shared=False, mapped=True),
    "group": Way(iommufd=False),
    "virtual IOMMU": Way(viommu=True),
}


def options(way, *devices):
    """QEMU's options for devices in slots."""
    front = qemu.virtual_vtd() if way.viommu else []
    back = qemu.iommufd() if way.iommufd else []
    slots = [option for number, _ in enumerate(devices) for option in qemu.root_port(number)]
    return [*front, *back, *slots, *[word for device in devices for word in ("-device", device)]]


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_files_survive_unplugging_and_are_what_was_written(tmp_path, way):
    machine, (file,) = machine_with(tmp_path, size=(way.mib + 48) * MIB)
    device = qemu.passed(ADDRESSES[0], "nvme0", bus="port0", iommufd=way.iommufd, mapped=way.mapped)
    line = "quiet intel_iommu=on" if way.viommu else "quiet"
    with Vm(machine, options=options(way, device), shared=way.shared, kernel_line=line) as vm:
        disk = Disk(vm, "nvme0n1")
        disk.format()
        written = disk.write("file", way.mib)
        assert disk.checksum("file") == written
        disk.unmount()
        vm.unplug("nvme0")
        vm.wait_for("! [ -e /dev/nvme0 ]")
        vm.plug(device)
        disk.mount()
        assert disk.checksum("file") == written
        disk.unmount()
        assert vm.leave() == 0
        assert complaints(vm.errors) == []
    assert file.stat().st_blocks * 512 >= way.mib * MIB
    assert repair(file) == ""


def test_two_devices_on_one_iommufd_keep_their_data_apart(tmp_path):
    machine, files = machine_with(tmp_path, size=16 * MIB, count=2)
    devices = [qemu.passed(address, f"nvme{n}", bus=f"port{n}") for n, address in enumerate(ADDRESSES)]
    with Vm(machine, options=options(Way(), *devices)) as vm:
        vm.run("modprobe nvme")
        vm.wait_for("[ -b /dev/nvme0n1 -a -b /dev/nvme1n1 ]")
        vm.run("head -c 4194304 /dev/urandom >/tmp/a; head -c 4194304 /dev/urandom >/tmp/b")
        vm.run("dd if=/tmp/a of=/dev/nvme0n1 bs=64k conv=fsync & dd if=/tmp/b of=/dev/nvme1n1 bs=64k conv=fsync; wait")
        serials = vm.run("cat /sys/class/nvme/nvme0/address /sys/class/nvme/nvme1/address").split()
        sums = vm.run("md5sum </tmp/a; md5sum </tmp/b").split()[::2]
        assert vm.leave() == 0
        assert complaints(vm.errors) == []
    found = [hashlib.md5(file.read_bytes()[: 4 * MIB]).hexdigest() for file in files]
    assert dict(zip(serials, sums, strict=True)) == dict(zip(("0000:01:00.0", "0000:02:00.0"), found, strict=True))
