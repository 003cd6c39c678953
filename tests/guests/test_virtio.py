"""An unmodified Linux drives the virtio disk of a machine: the other side of `hardware.devices.virtio_blk`."""

import os

import pytest

from guests.disk import ADDRESSES, Disk, complaints, machine_with, repair
from guests.vm import CommandFailedError, Vm
from softiommu.guest import qemu

MIB = 1 << 20


def test_linux_makes_a_file_system_on_a_virtio_disk_and_finds_its_files_again(tmp_path):
    machine, (file,) = machine_with(tmp_path, size=56 * MIB)
    virtio = 'model = "virtio_blk"\ndriver = "vfio"'
    machine.write_text(machine.read_text().replace('model = "nvme"', virtio))
    device = qemu.passed(ADDRESSES[0], "disk0", bus="port0")
    with Vm(machine, options=[*qemu.iommufd(), *qemu.root_port(0), "-device", device]) as vm:
        vm.boot()
        try:
            vm.run("modprobe virtio_blk")
        except CommandFailedError as error:
            if os.environ.get("SOFTIOMMU_REQUIRE_ALL"):
                raise
            pytest.skip(f"the guests were prepared without virtio_blk: run `make guests` ({error})")
        disk = Disk(vm, "vda")
        disk.format()
        written = disk.write("file", 4)
        assert disk.checksum("file") == written
        disk.unmount()
        assert vm.leave() == 0
        assert complaints(vm.errors) == []
    assert repair(file) == ""
