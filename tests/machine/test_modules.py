"""What sysfs shows of modules: a program that looks whether VFIO is loaded finds it, where there are devices."""

import pytest

from softiommu.machine.assemble import Machine
from softiommu.machine.description import parse
from softiommu.machine.nodes import Link

DEVICE = """
[[iommu]]
name = "dmar0"
model = "vtd"

[[device]]
name = "edu0"
address = "00:04.0"
model = "edu"
"""
UNSAFE = "/sys/module/iommufd/parameters/allow_unsafe_interrupts"
NO_IOMMU = "/sys/module/vfio/parameters/enable_unsafe_noiommu_mode"


def entries(text):
    return Machine(parse('name = "x"\n' + text, "x.toml")).entries


@pytest.mark.parametrize("module", ["vfio", "vfio_pci", "iommufd"])
def test_a_machine_with_devices_has_the_modules_that_serve_them(module):
    assert entries(DEVICE)[f"/sys/module/{module}/initstate"].content() == b"live\n"


def test_a_machine_without_devices_shows_none():
    assert not [path for path in entries("") if path.startswith("/sys/module")]


def test_the_pci_driver_is_found_from_its_module():
    assert entries(DEVICE)["/sys/module/vfio_pci/drivers/pci:vfio-pci"] == Link("../../../bus/pci/drivers/vfio-pci")


@pytest.mark.parametrize(("line", "shown"), [("", b"N\n"), ("unsafe_interrupts = true\n", b"Y\n")])
def test_parameters_are_those_of_the_description(line, shown):
    assert entries(line + DEVICE)[UNSAFE].content() == shown


def test_a_kernel_without_no_iommu_has_no_parameter_for_it():
    assert NO_IOMMU not in entries(DEVICE)
    assert entries("no_iommu = true\n" + DEVICE)[NO_IOMMU].content() == b"N\n"
