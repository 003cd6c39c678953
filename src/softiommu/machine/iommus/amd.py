"""The AMD IOMMU in a description: which one it is like, and the features that differ.

[[iommu]]
model = "amd"
unit = "full"                        # qemu, small, full (the default)
efr = { HATS = 1 }                   # fields as the specification names them (MMIO offset 0x30)
efr2 = { GCR3TRPModeSup = 0 }        # (MMIO offset 0x1A0)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from softiommu.drivers.amd.driver import LINUX_6_12, LINUX_7_2, AmdDriver
from softiommu.errors import ModelError
from softiommu.hardware.amd.model import AmdIommu
from softiommu.hardware.amd.presets import FULL, QEMU, SMALL, Preset, check
from softiommu.machine.models import Built

if TYPE_CHECKING:
    from softiommu.machine.models import Site
    from softiommu.machine.reading import Table

_UNITS = {"qemu": QEMU, "small": SMALL, "full": FULL}


def read(table: Table) -> Preset:
    """The feature registers. ConfigError names the rule that they break."""
    unit = _UNITS[table.choice("unit", _UNITS) or "full"]
    found = unit._replace(efr=table.word("efr", unit.efr), efr2=table.word("efr2", unit.efr2))
    try:
        check(found)
    except ModelError as error:
        raise table.error("efr", str(error)) from error
    return found


def build(features: object, site: Site) -> Built:
    """An IOMMU, and its driver."""
    assert isinstance(features, Preset), "features are what `read` gave"

    def hear(*_: int) -> None:
        for blocked in driver.events.take():
            site.report(str(blocked))
        driver.service()

    unit = AmdIommu(
        site.memory,
        features.efr,
        features.efr2,
        interrupt=hear,
        wire=lambda level: hear() if level else None,
        header=features.header,
    )
    quirks = LINUX_6_12 if site.kernel.name == "6.12" else LINUX_7_2
    driver = AmdDriver(site.memory, unit, features.header, quirks)
    return Built(unit, driver)
