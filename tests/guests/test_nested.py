"""Nested VT-d, by QEMU 11.1 and the guest's own driver: the machine walks the guest's tables, or merges them.

The oracle is the guest, which checks what it wrote. The counts show that its tables were really used.
"""

import json
import subprocess
import sys

import pytest

from guests.disk import Disk, complaints, repair
from guests.vm import Vm
from softiommu.guest import nested, qemu

MIB = 1 << 20
ADDRESS = "0000:00:07.0"
MACHINE = """
name = "guests"

[[iommu]]
name = "dmar0"
model = "vtd"
unit = "full"
{iommu}

[[device]]
name = "nvme0"
address = "0000:00:07.0"
model = "nvme"
file = "{file}"
{device}
"""
HARDWARE = ("", "")
SOFTWARE = ('ecap = { NEST = 0 }\nnesting = "software"', "page_requests = true")
#: What QEMU says of mapped BARs, as on a kernel without dma-buf: devices do not reach one another's.
HARMLESS = ("PCI BAR?", "dma-buf not supported", "vfio_container_dma_map", "peer-to-peer", "'-mon' is deprecated")


class Host:
    """A machine with one drive, and what is counted on it."""

    def __init__(self, folder, how):
        self.disk, self.machine, self.file = folder / "disk.img", folder / "machine.toml", folder / "counts"
        with self.disk.open("wb") as created:
            created.truncate(64 * MIB)
        self.machine.write_text(MACHINE.format(iommu=how[0], device=how[1], file=self.disk))

    def vm(self, program, front=(), line="quiet", bus=None, **more):
        """A guest, which has the drive behind the IOMMU `front`."""
        device = qemu.passed(ADDRESS, "nvme0", bus)
        slots = qemu.root_port(0) if bus else []
        return Vm(
            self.machine,
            options=[*front, *qemu.iommufd(), *slots, "-device", device],
            program=[program],
            run_options=["--counts", str(self.file)],
            kernel_line=line,
            **more,
        )

    @property
    def counts(self):
        return json.loads(self.file.read_text())


def said(vm):
    return [line for line in complaints(vm.errors) if not any(words in line for words in HARMLESS)]


def work(vm, mib=16, fresh=True):
    """Make a file system (unless there is one), write, and read back; -> whether the sums are equal."""
    disk = Disk(vm, "nvme0n1")
    disk.format() if fresh else disk.mount()
    same = disk.write("file", mib) == disk.checksum("file")
    disk.unmount()
    return same


LINE = f"quiet {nested.KERNEL_LINE}"


def test_the_machine_walks_the_guests_tables(tmp_path, qemu11):
    host = Host(tmp_path, HARDWARE)
    with host.vm(qemu11, nested.virtual_vtd(), LINE, "port0") as vm:
        assert work(vm)
        vm.unplug("nvme0")
        vm.wait_for("! [ -e /dev/nvme0 ]")
        vm.plug(qemu.passed(ADDRESS, "nvme0", "port0"))
        assert work(vm, 4, fresh=False)
        assert "DMA" in vm.run("cat /sys/kernel/iommu_groups/*/type")
        assert vm.leave() == 0
        assert said(vm) == []
    unit = host.counts["iommus"]["dmar0"]
    assert unit["first_stage_tables"] == 4 * unit["nested_walks"] > 4 * 1000
    assert 0 < unit["forgotten"]
    assert host.counts["invalidated"] > 0
    assert repair(host.disk) == ""


def test_a_guest_is_reset_under_input_and_output(tmp_path, qemu11):
    host = Host(tmp_path, HARDWARE)
    with host.vm(qemu11, [*nested.virtual_vtd(), "-action", "reboot=reset"], LINE) as vm:
        disk = Disk(vm, "nvme0n1")
        disk.format()
        written = disk.write("file", 4)
        vm.run("sync")
        for reset in (lambda: vm.qmp("system_reset"), lambda: vm.start("reboot -f")):
            vm.run("dd if=/dev/zero of=/mnt/more bs=64k count=500 conv=fsync >/dev/null 2>&1 &")
            vm.run("usleep 300000")
            reset()
            vm.restarted()
            disk = Disk(vm, "nvme0n1")
            disk.mount()
            assert disk.checksum("file") == written
        disk.unmount()
        assert vm.leave() == 0
        assert said(vm) == []
    assert repair(host.disk) == ""


def test_a_machine_without_nesting_merges_the_guests_tables_with_its_own(tmp_path, qemu11):
    host = Host(tmp_path, SOFTWARE)
    with host.vm(qemu11, nested.virtual_vtd(), LINE, shared=False) as vm:
        assert work(vm, 4)
        assert vm.leave() == 0
        assert said(vm) == []
    unit = host.counts["iommus"]["dmar0"]
    assert unit["nested_walks"] == 0
    assert unit["software"]["merged"] == unit["software"]["dropped"] > 1000
    assert unit["software"]["tables"] > 4 * 1000
    assert host.counts["invalidated"] > 0
    assert repair(host.disk) == ""


@pytest.mark.parametrize("backend", ["memfd", "ram"])
def test_memory_is_mapped_as_what_it_is(tmp_path, qemu11, backend):
    host = Host(tmp_path, HARDWARE)
    command = [
        *(sys.executable, "-m", "softiommu.cli", "run", "--machine", host.machine, "--counts", host.file, "--"),
        *(qemu11, "-S", "-accel", "tcg", "-nodefaults", "-display", "none", "-monitor", "stdio", "-M", "q35"),
        *("-m", "64", "-object", f"memory-backend-{backend},id=ram,size=64M", "-machine", "memory-backend=ram"),
        *(*qemu.iommufd(), "-device", qemu.passed(ADDRESS, "nvme0")),
    ]
    done = subprocess.run(command, input="quit\n", capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert ("IOAS_MAP_FILE" in host.counts["calls"]) == (backend == "memfd")
    assert host.counts["calls"]["IOAS_MAP"] > 0
