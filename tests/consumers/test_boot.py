"""An unmodified QEMU gives its guest a disk of the machine, and the guest's firmware boots from it.

The boot sector copies itself to another block by the firmware's call, says so on the debug port, and ends QEMU. So
firmware, queues in the guest's memory, the IOMMU's tables, DMA both ways and INTx all have to work.
"""

import subprocess
import sys

import pytest

from requirements import need

MACHINE = """
name = "boot"

[[iommu]]
name = "dmar0"
model = "vtd"

[[device]]
name = "disk0"
address = "0000:00:07.0"
{model}
file = "{disk}"
"""
BLOCK, COPY = 512, 5
SAYS = b"booted"
DEBUG_PORT, EXIT_PORT, GOOD, BAD = 0x402, 0xF4, 0x10, 0x01


def word(value):
    """16 bits."""
    return value.to_bytes(2, "little")


def boot_sector():
    """16-bit code for 0000:7C00."""
    packet, text = 0x7C80, 0x7CA0
    leave = [b"\xba" + word(EXIT_PORT) + b"\xb0" + bytes([code]) + b"\xee\xf4" for code in (GOOD, BAD)]
    say = b"\xba" + word(DEBUG_PORT) + b"\xbe" + word(text)  # mov dx, port; mov si, text
    say += b"\xac\x84\xc0\x74\x03\xee\xeb\xf8"  # next: lodsb; test al, al; jz leave; out dx, al; jmp next
    code = b"\x31\xc0\x8e\xd8\xbe" + word(packet)  # xor ax, ax; mov ds, ax; mov si, packet
    code += b"\xb8\x00\x43\xcd\x13\x72" + bytes([len(say + leave[0])])  # mov ax, 4300h; int 13h; jc bad
    code += say + leave[0] + leave[1]
    address_packet = b"\x10\x00\x01\x00" + word(0x7C00) + word(0) + COPY.to_bytes(8, "little")
    sector = code.ljust(packet - 0x7C00, b"\0") + address_packet
    sector = sector.ljust(text - 0x7C00, b"\0") + SAYS + b"\0"
    return sector.ljust(BLOCK - 2, b"\0") + b"\x55\xaa"


#: QEMU would let other devices reach the BARs that it maps, which iommufd refuses, and says so.
PEER_TO_PEER = (
    "PCI peer-to-peer transactions on BARs are not supported",
    "= -14 (Bad address)",
    "Bad address, PCI BAR?",
)


#: A controller, and a disk whose driver knows virtio.
NVME, VIRTIO = 'model = "nvme"', 'model = "virtio_blk"\ndriver = "vfio"'
#: How QEMU gets the device: by its address; by its group; by descriptors of low numbers, as libvirt gives them.
OPTIONS = {
    "iommufd": ["-object", "iommufd,id=fd0", "-device", "vfio-pci,host=0000:00:07.0,bootindex=0,iommufd=fd0"],
    "group": ["-device", "vfio-pci,host=0000:00:07.0,bootindex=0,x-no-mmap=on"],
    "passed": ["-object", "iommufd,id=fd0,fd=9", "-device", "vfio-pci,fd=8,bootindex=0,iommufd=fd0,x-no-mmap=on"],
}
OPENED = ["bash", "-c", 'exec 8<>/dev/vfio/devices/vfio0 9<>/dev/iommu; exec "$@"', "bash"]
BOOTS = [("iommufd", NVME), ("group", NVME), ("passed", NVME), ("iommufd", VIRTIO)]


@pytest.mark.parametrize(("way", "model"), BOOTS, ids=["iommufd", "group", "passed", "virtio"])
def test_a_guest_boots_from_a_disk_whose_bar_is_mapped_or_not(tmp_path, way, model):
    disk, machine, said = tmp_path / "disk.img", tmp_path / "boot.toml", tmp_path / "said"
    disk.write_bytes(boot_sector().ljust(1 << 20, b"\0"))
    machine.write_text(MACHINE.format(disk=disk, model=model))
    command = [
        *(sys.executable, "-m", "softiommu.cli", "run", "--machine", str(machine), "--unlimited-memlock", "--"),
        *(OPENED if way == "passed" else []),
        *(need("qemu-system-x86_64"), "-accel", "tcg", "-M", "q35", "-m", "64"),
        *("-display", "none", "-serial", "none"),
        *("-monitor", "none", "-nodefaults", "-vga", "none", "-net", "none"),
        *("-debugcon", f"file:{said}", "-global", f"isa-debugcon.iobase={DEBUG_PORT:#x}"),
        *("-device", f"isa-debug-exit,iobase={EXIT_PORT:#x},iosize=1"),
        *OPTIONS[way],
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
    assert done.returncode == GOOD << 1 | 1, done.stderr
    assert said.read_bytes().endswith(SAYS)
    warnings = done.stderr.splitlines()
    assert all(any(known in line for known in PEER_TO_PEER) for line in warnings)
    assert bool(warnings) == (way == "iommufd" and model is NVME)
    written = disk.read_bytes()
    assert written[COPY * BLOCK : (COPY + 1) * BLOCK] == written[:BLOCK] == boot_sector()
