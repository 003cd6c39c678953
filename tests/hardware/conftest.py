"""Devices that several test files drive."""

import pytest
from nvme_driver import Driver

from softiommu.hardware.bus import Port
from softiommu.hardware.devices.nvme.controller import Nvme
from softiommu.hardware.devices.nvme.namespace import Namespace, RamBacking
from softiommu.memory.physical import PhysicalMemory


@pytest.fixture
def nvme():
    """A controller that runs, with one namespace of 4 MiB and one queue pair, and its driver."""
    memory = PhysicalMemory(16 << 20)
    controller = Nvme(Port(memory, 0x38), [Namespace(RamBacking(4 << 20))])
    driver = Driver(controller.function, memory)
    driver.nvme = controller
    assert driver.enable() == 1
    driver.make_queues()
    return driver
