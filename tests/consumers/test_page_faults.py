"""I/O page faults from end to end: a device with ATS and PRI finds nothing, the program maps, the transfer goes on."""

import mmap
import os

import pytest

import softiommu
from softiommu.machine.assemble import Machine
from softiommu.machine.description import parse

MACHINE = """
name = "faults"

[[iommu]]
name = "dmar0"
model = "vtd"
unit = "full"

[[device]]
name = "test0"
address = "0000:00:04.0"
model = "pcitest"
pasid_bits = 16
"""
ADDRESS, COMMAND, PASID = 0x00, 0x08, 0x10
RUN, TO_DEVICE, VALID = 1, 2, 1 << 31
IOVA = 0x40000
ALLOC_PASID = 8


def memory(data=b""):
    """A page of this process."""
    page = mmap.mmap(-1, 4096)
    page[: len(data)] = data
    return page


@pytest.mark.parametrize("pasid", [None, 7])
def test_a_transfer_waits_for_the_page_and_goes_on(pasid):
    machine = Machine(parse(MACHINE, "faults.toml"))
    content = os.urandom(4096)
    with softiommu.open(machine) as iommufd:
        device, ioas, faults = iommufd.device("test0"), iommufd.ioas(), iommufd.fault_queue()
        hwpt = device.hwpt(ioas, ALLOC_PASID if pasid else 0, faults=faults)
        if pasid:
            device.attach(device.hwpt(ioas, ALLOC_PASID))
            device.attach(hwpt, pasid)
        else:
            device.attach(hwpt)
        device.enable()

        def run(command):
            device.write(0, ADDRESS, 8, IOVA)
            device.write(0, PASID, 4, VALID | pasid if pasid else 0)
            device.write(0, COMMAND, 4, command)

        run(RUN | TO_DEVICE)
        assert device.read(0, COMMAND, 4) & RUN
        (fault,) = faults.read()
        assert (fault.addr, fault.pasid, fault.device_id) == (IOVA, pasid, device.id)
        source = ioas.map(memory(content), iova=IOVA)
        faults.respond(fault.cookie)
        assert not device.read(0, COMMAND, 4) & RUN
        assert not faults.ready
        source.unmap()

        run(RUN)
        (fault,) = faults.read()
        target = memory()
        ioas.map(target, iova=IOVA)
        faults.respond(fault.cookie)
        assert target[:] == content

        ioas.unmap(IOVA, 4096)
        run(RUN | TO_DEVICE)
        (fault,) = faults.read()
        faults.respond(fault.cookie, success=False)
        assert not device.read(0, COMMAND, 4) & RUN
