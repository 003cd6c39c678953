"""What sysfs shows of a PCI device."""

import posixpath

import pytest

from softiommu.machine.nodes import Link, Text
from softiommu.machine.pci import PciDevice, address, entries

EDU = PciDevice("edu0", "0000:00:1e.0", 0x1234, 0x11E8, 0x00FF00, 0x10, 0x1AF4, 0x1100)


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("0000:00:04.0", "0000:00:04.0"),
        ("00:1f.7", "0000:00:1f.7"),
        ("ABCD:EF:1E.3", "abcd:ef:1e.3"),
        ("00:20.0", None),
        ("00:1f.8", None),
        ("0:04.0", None),
        ("00:04", None),
        ("00:04.0\n", None),
        ("", None),
    ],
)
def test_an_address_is_domain_bus_device_function(text, full):
    assert address(text) == full


def test_files_hold_what_linux_writes():
    folder = "/sys/devices/pci0000:00/0000:00:1e.0"
    shown = entries([EDU])
    text = {path: entry.content() for path, entry in shown.items() if isinstance(entry, Text)}
    modalias = b"pci:v00001234d000011E8sv00001AF4sd00001100bc00scFFi00\n"
    assert text == {
        f"{folder}/vendor": b"0x1234\n",
        f"{folder}/device": b"0x11e8\n",
        f"{folder}/subsystem_vendor": b"0x1af4\n",
        f"{folder}/subsystem_device": b"0x1100\n",
        f"{folder}/class": b"0x00ff00\n",
        f"{folder}/revision": b"0x10\n",
        f"{folder}/modalias": modalias,
        f"{folder}/ari_enabled": b"0\n",
        f"{folder}/broken_parity_status": b"0\n",
        f"{folder}/consistent_dma_mask_bits": b"32\n",
        f"{folder}/dma_mask_bits": b"32\n",
        f"{folder}/enable": b"0\n",
        f"{folder}/irq": b"0\n",
        f"{folder}/msi_bus": b"1\n",
        f"{folder}/numa_node": b"-1\n",
        f"{folder}/power/control": b"on\n",
        f"{folder}/power/runtime_status": b"active\n",
        f"{folder}/power_state": b"D0\n",
        f"{folder}/uevent": b"PCI_CLASS=FF00\nPCI_ID=1234:11E8\nPCI_SUBSYS_ID=1AF4:1100\n"
        b"PCI_SLOT_NAME=0000:00:1e.0\nMODALIAS=" + modalias,
    }


def test_links_lead_from_the_bus_to_the_folder_and_back():
    shown = entries([EDU])
    links = {
        path: posixpath.normpath(posixpath.join(posixpath.dirname(path), entry.target))
        for path, entry in shown.items()
        if isinstance(entry, Link)
    }
    assert links == {
        "/sys/bus/pci/devices/0000:00:1e.0": EDU.folder,
        f"{EDU.folder}/subsystem": "/sys/bus/pci",
    }
