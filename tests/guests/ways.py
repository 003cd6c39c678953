"""The ways in which a guest gets a drive, and the work that it then does: files must be what was written."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from guests.disk import ADDRESSES, Disk, complaints, machine_with, repair
from guests.vm import Vm
from softiommu.guest import qemu

MIB = 1 << 20
#: What a file system of its own takes, and the journal.
_OVERHEAD = 48


class Way(NamedTuple):
    """How a guest gets the device, and how much it writes."""

    iommufd: bool = True
    shared: bool = True
    viommu: bool = False
    mapped: bool = False
    mib: int = 8


WAYS = {
    "iommufd": Way(mib=16),
    "private memory": Way(shared=False, mapped=True),
    "group": Way(iommufd=False),
    "virtual IOMMU": Way(viommu=True),
}


def options(way: Way, *devices: str) -> list[str]:
    """QEMU's options for devices in slots."""
    front = qemu.virtual_vtd() if way.viommu else []
    back = qemu.iommufd() if way.iommufd else []
    slots = [option for number, _ in enumerate(devices) for option in qemu.root_port(number)]
    return [*front, *back, *slots, *[word for device in devices for word in ("-device", device)]]


def work(folder: Path, way: Way, cycles: int = 1) -> None:
    """A guest makes a file system and a file, and finds it again after the drive was unplugged and plugged in, so many
    times; in the end the drive's file is a whole file system."""
    machine, (file,) = machine_with(folder, size=(way.mib + _OVERHEAD) * MIB)
    device = qemu.passed(ADDRESSES[0], "nvme0", bus="port0", iommufd=way.iommufd, mapped=way.mapped)
    line = "quiet intel_iommu=on" if way.viommu else "quiet"
    with Vm(machine, options=options(way, device), shared=way.shared, kernel_line=line) as vm:
        disk = Disk(vm)
        disk.format()
        written = disk.write("file", way.mib)
        assert disk.checksum("file") == written
        for _ in range(cycles):
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
