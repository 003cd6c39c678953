"""virtio-iommu in a description: which device it is like, and what it offers otherwise.

[[iommu]]
model = "virtio"
unit = "qemu"                        # qemu (the default), full
features = { BYPASS_CONFIG = 0 }     # feature bits as virtio 5.13.3 names them
input_bits = 39                      # how wide addresses are
mappings = 0                         # how many a domain can have; 0: no limit
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from softiommu.drivers.virtio.driver import LINUX_6_12, LINUX_7_2, VirtioDriver
from softiommu.errors import ModelError
from softiommu.hardware.virtio.model import VirtioIommu
from softiommu.hardware.virtio.presets import FULL, QEMU, Offer
from softiommu.machine.models import Built

if TYPE_CHECKING:
    from softiommu.machine.models import Site
    from softiommu.machine.reading import Table

_UNITS = {"qemu": QEMU, "full": FULL}


def read(table: Table) -> Offer:
    """What the device offers. ConfigError names the rule that it breaks."""
    unit = _UNITS[table.choice("unit", _UNITS) or "qemu"]
    bits = table.number("input_bits", 64, unit.input_range[1].bit_length())
    if not bits:
        raise table.error("input_bits", "input_bits is 0: expected 1..64")
    features = table.word("features", unit.features)
    offer = replace(
        unit,
        features=features,
        input_range=(0, (1 << bits) - 1),
        bypass=unit.bypass and bool(features.BYPASS_CONFIG),
        most_mappings=table.number("mappings", (1 << 32) - 1, 0),
    )
    try:
        offer.check()
    except ModelError as error:
        raise table.error("features", str(error)) from error
    if not offer.features.MAP_UNMAP:
        raise table.error("features", "MAP_UNMAP = 0: the driver needs map requests")
    return offer


def build(features: object, site: Site) -> Built:
    """A device, and its driver."""
    assert isinstance(features, Offer), "features are what `read` gave"

    def tell(level: bool) -> None:
        if level:
            for blocked in driver.faults.take():
                site.report(str(blocked))

    unit = VirtioIommu(site.memory, features, line=tell)
    driver = VirtioDriver(site.memory, unit, LINUX_6_12 if site.kernel.name == "6.12" else LINUX_7_2)
    return Built(unit, driver)
