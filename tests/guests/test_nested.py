"""Nested VT-d, by QEMU 11.1 and the guest's own driver: the machine walks the guest's tables, or merges them.

The oracle is the guest, which checks what it wrote. The counts show that its tables were really used.
"""

import json

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
#: One gigabyte pages are the only thing that QEMU asks of the hardware.
UNSOUND = ('ecap = { NEST = 0 }\nnesting = "software"', "")
#: What QEMU says of mapped BARs, as on a kernel without dma-buf: devices do not reach one another's.
HARMLESS = ("PCI BAR?", "dma-buf not supported", "vfio_container_dma_map", "peer-to-peer", "'-mon' is deprecated")


class Host:
    """A machine with one drive, and what is counted on it."""

    def __init__(self, folder, how):
        self.disk, self.machine, self.file = folder / "disk.img", folder / "machine.toml", folder / "counts"
        with self.disk.open("wb") as created:
            created.truncate(64 * MIB)
        self.machine.write_text(MACHINE.format(iommu=how[0], device=how[1], file=self.disk))

    def vm(self, program, front=(), line="quiet", bus=None, run_options=(), **more):
        """A guest, which has the drive behind the IOMMU `front`."""
        device = qemu.passed(ADDRESS, "nvme0", bus)
        slots = qemu.root_port(0) if bus else []
        return Vm(
            self.machine,
            options=[*front, *qemu.iommufd(), *slots, "-device", device],
            program=[program],
            run_options=["--counts", str(self.file), *run_options],
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
    assert host.counts["invalidated"] > 50
    assert repair(host.disk) == ""


def test_a_machine_without_nesting_merges_the_guests_tables_with_its_own(tmp_path, qemu11):
    host = Host(tmp_path, SOFTWARE)
    with host.vm(qemu11, nested.virtual_vtd(), LINE) as vm:
        assert work(vm, 4)
        assert vm.leave() == 0
        assert said(vm) == []
    unit = host.counts["iommus"]["dmar0"]
    assert unit["nested_walks"] == 0
    assert unit["software"]["merged"] == unit["software"]["dropped"] > 1000
    assert unit["software"]["tables"] > 4 * 1000
    assert host.counts["invalidated"] > 50
    assert repair(host.disk) == ""


def test_tables_that_cannot_be_merged_soundly_are_refused_and_the_log_says_why(tmp_path, qemu11):
    host = Host(tmp_path, UNSOUND)
    log = tmp_path / "log"
    with host.vm(qemu11, nested.virtual_vtd(), LINE, run_options=["--log", str(log)]) as vm:
        vm.boot()
        assert vm.leave() == 0
        assert "Attaching to HWPT failed" in vm.errors
    refused = [line for line in log.read_text().splitlines() if "VFIO_DEVICE_ATTACH_IOMMUFD_PT" in line]
    assert "a shadow hears of new mappings only by invalidations" in refused[-1]


@pytest.mark.parametrize("shared", [True, False], ids=["a file", "private"])
def test_memory_is_mapped_as_what_it_is(tmp_path, qemu11, shared):
    host = Host(tmp_path, HARDWARE)
    with host.vm(qemu11, shared=shared) as vm:
        assert work(vm, 4)
        assert vm.leave() == 0
        assert said(vm) == []
    calls = host.counts["calls"]
    assert ("IOAS_MAP_FILE" in calls) == shared
    assert host.counts["iommus"]["dmar0"]["nested_walks"] == 0


def test_what_a_guest_maps_is_mapped_for_it_where_its_iommu_has_no_first_stage(tmp_path, qemu11):
    host = Host(tmp_path, HARDWARE)
    with host.vm(qemu11, qemu.virtual_vtd(), "quiet intel_iommu=on") as vm:
        assert work(vm, 4)
        assert vm.leave() == 0
        assert said(vm) == []
    calls = host.counts["calls"]
    assert min(calls["IOAS_MAP_FILE"], calls["IOAS_UNMAP"]) > 1000
    assert host.counts["invalidated"] == 0
