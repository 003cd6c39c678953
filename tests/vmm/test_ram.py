"""A guest's RAM: the VMM's view, the file, and what devices reach."""

import os

import pytest

import softiommu
from softiommu.memory.physical import BadAddressError
from softiommu.vmm.ram import GuestRam

BASE, LENGTH = 1 << 32, 1 << 20


def test_the_file_is_the_guests_memory():
    ram = GuestRam(BASE, LENGTH)
    ram.write_u64(BASE + 8, 0x1122334455667788)
    assert os.pread(ram.fd, 8, 8) == bytes.fromhex("8877665544332211")
    os.pwrite(ram.fd, b"by the file", LENGTH - 11)
    assert ram.read(BASE + LENGTH - 11, 11) == b"by the file"


@pytest.mark.parametrize("at", [4096, BASE - 8, BASE + LENGTH, BASE + LENGTH - 4, (1 << 64) - 8])
def test_where_there_is_no_ram_an_access_is_an_error(at):
    with pytest.raises(BadAddressError):
        GuestRam(BASE, LENGTH).read_u64(at)


def test_devices_are_shown_all_of_it_at_its_addresses():
    with softiommu.open("smmuv3") as iommufd, iommufd.ioas() as ioas:
        mapping = GuestRam(BASE, LENGTH).show(ioas)
        assert (mapping.iova, mapping.length) == (BASE, LENGTH)
        mapping.unmap()
