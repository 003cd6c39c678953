"""The I/OAT engine, with the guest's own driver: it tests the device before it uses it, by copies and interrupts.

Debian's kernel has nothing that lets a user copy by DMA (DMATEST is not built), so the driver's test is the oracle:
without the bytes, the completion in memory and the interrupt that it waits for there is no channel.
"""

import json
from typing import NamedTuple

import pytest

from guests.disk import complaints
from guests.vm import Vm
from softiommu.guest import nested, qemu

ADDRESS = "0000:00:09.0"
MACHINE = """
name = "ioat"

[[iommu]]
name = "dmar0"
model = "vtd"
{iommu}

[[device]]
name = "ioat0"
address = "{address}"
model = "ioat"
channels = 4
{device}
"""
CHANNELS = [f"dma0chan{number}" for number in range(4)]


class Way(NamedTuple):
    """How a guest gets the device, and which interrupts its driver takes, one after another."""

    styles: tuple[str, ...] = ("msix",)
    iommufd: bool = True
    viommu: bool = False


WAYS = {
    "iommufd": Way(("msix", "msi", "intx")),
    "group": Way(iommufd=False),
    "virtual IOMMU": Way(viommu=True),
}


def probe(vm, style):
    """Let the driver take the device; -> its channels, what it said against it, and how many interrupts came."""
    vm.run(f"modprobe ioatdma ioat_interrupt_style={style}")
    channels = vm.run("ls /sys/class/dma; true").split()
    said = vm.run("dmesg -c | grep -E 'Self-test|ioatdma 0000.*(fail|halt|err)'; true")
    lines = vm.run(f"grep ioat-{style} /proc/interrupts; true").splitlines()
    return channels, said, sum(int(line.split()[1]) for line in lines)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_the_driver_finds_that_the_engine_copies_and_interrupts(tmp_path, way):
    machine = tmp_path / "machine.toml"
    machine.write_text(MACHINE.format(address=ADDRESS, iommu="", device=""))
    device = qemu.passed(ADDRESS, "ioat0", bus="port0", iommufd=way.iommufd)
    options = [
        *(qemu.virtual_vtd() if way.viommu else []),
        *(qemu.iommufd() if way.iommufd else []),
        *(*qemu.root_port(0), "-device", device),
    ]
    with Vm(machine, options=options, kernel_line="quiet intel_iommu=on" if way.viommu else "quiet") as vm:
        for style in way.styles:
            # The first interrupt is that of the descriptor which starts the channel, the second that of the copy.
            assert probe(vm, style) == (CHANNELS, "", 2)
            assert vm.run("cat /sys/class/dma/dma0chan0/quickdata/version") == "3.2"
            if style != way.styles[-1]:
                vm.run("modprobe -r ioatdma")
        vm.unplug("ioat0")
        assert vm.run("ls /sys/class/dma; true") == ""
        vm.plug(device)
        vm.wait_for("[ -e /sys/class/dma/dma0chan3 ]")
        assert vm.run("dmesg | grep Self-test; true") == ""
        assert vm.leave() == 0
        assert complaints(vm.errors) == []


@pytest.mark.parametrize(
    ("iommu", "device", "in_hardware"),
    [
        ('unit = "full"', "", True),
        ('unit = "full"\necap = { NEST = 0 }\nnesting = "software"', "page_requests = true", False),
    ],
    ids=["in hardware", "in software"],
)
def test_it_copies_by_tables_of_the_guest(tmp_path, qemu11, iommu, device, in_hardware):
    machine, counts = tmp_path / "machine.toml", tmp_path / "counts"
    machine.write_text(MACHINE.format(address=ADDRESS, iommu=iommu, device=device))
    options = [*nested.virtual_vtd(), *qemu.iommufd(), "-device", qemu.passed(ADDRESS, "ioat0")]
    with Vm(
        machine,
        options=options,
        program=[qemu11],
        run_options=["--counts", str(counts)],
        kernel_line=f"quiet {nested.KERNEL_LINE}",
    ) as vm:
        assert probe(vm, "msix") == (CHANNELS, "", 2)
        assert vm.leave() == 0
    unit = json.loads(counts.read_text())["iommus"]["dmar0"]
    assert unit["nested_walks"] > 0 if in_hardware else unit["software"]["merged"] > 0
