"""The Arm SMMUv3 in a description: which one it is like, and the features that differ.

[[iommu]]
model = "smmuv3"
unit = "full"                        # qemu, full (the default)
idr0 = { HTTU = 0 }                  # fields as Arm IHI 0070, 6.3 names them
idr1 = { SSIDSIZE = 0 }
idr3 = { RIL = 0 }
idr5 = { GRAN64K = 0 }
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from softiommu.drivers.smmuv3 import SmmuDriver
from softiommu.errors import ModelError
from softiommu.hardware.smmuv3.model import Smmu
from softiommu.hardware.smmuv3.presets import FULL, QEMU, Identity
from softiommu.machine.models import Built

if TYPE_CHECKING:
    from softiommu.machine.models import Site
    from softiommu.machine.reading import Table

_UNITS = {"qemu": QEMU, "full": FULL}


def read(table: Table) -> Identity:
    """The ID registers. ConfigError names the rule that they break."""
    unit = _UNITS[table.choice("unit", _UNITS) or "full"]
    found = unit._replace(
        idr0=table.word("idr0", unit.idr0),
        idr1=table.word("idr1", unit.idr1),
        idr3=table.word("idr3", unit.idr3),
        idr5=table.word("idr5", unit.idr5),
    )
    try:
        found.check()
    except ModelError as error:
        raise table.error(None, str(error)) from error
    return found


def build(features: object, site: Site) -> Built:
    """An SMMU, and its driver."""
    assert isinstance(features, Identity), "features are what `read` gave"

    def hear(*_: int) -> None:
        for blocked in driver.faults.take():
            site.report(str(blocked))

    unit = Smmu(site.memory, features, interrupt=hear, wired=lambda wire: hear())
    driver = SmmuDriver(site.memory, unit)
    return Built(unit, driver)
