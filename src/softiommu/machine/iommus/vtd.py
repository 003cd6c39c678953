"""Intel VT-d in a description: which unit it is like, and the fields of its capability registers that differ.

[[iommu]]
model = "vtd"
unit = "vtd-sm"                      # vtd (the default), vtd-39, vtd-sm, vtd-flts, vtd-sc, vtd-noir, full
cap = { MGAW = 38, SAGAW = 2 }       # fields as VT-d 11.4.2 names them
ecap = { SC = 1 }                    # and 11.4.3
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from softiommu.drivers.vtd.driver import LINUX_6_12, LINUX_7_2, VtdDriver
from softiommu.drivers.vtd.faults import FaultLog
from softiommu.hardware.vtd.model import Unit
from softiommu.hardware.vtd.presets import FULL, QEMU, Preset, broken_rule
from softiommu.machine.models import Built

if TYPE_CHECKING:
    from softiommu.machine.models import Site
    from softiommu.machine.reading import Table

_UNITS = {**QEMU, "full": FULL}


def read(table: Table) -> Preset:
    """The capability registers. ConfigError names the rule that they break."""
    unit = _UNITS[table.choice("unit", _UNITS) or "vtd"]
    preset = Preset(table.word("cap", unit.cap), table.word("ecap", unit.ecap))
    broken = broken_rule(*preset)
    if broken is not None:
        register, rule = broken
        raise table.error(register, f"there is no such hardware: {rule}")
    if not preset.ecap.QI:
        raise table.error("ecap", "QI = 0: the driver needs queued invalidation")
    return preset


def build(features: object, site: Site) -> Built:
    """A unit, and the driver of the kernel that the machine plays."""
    assert isinstance(features, Preset), "features are what `read` gave"
    unit = Unit(site.memory, features.cap, features.ecap, interrupt=lambda address, data: hear())
    driver = VtdDriver(site.memory, unit, LINUX_6_12 if site.kernel.name == "6.12" else LINUX_7_2)
    log = FaultLog(unit)

    def hear() -> None:
        for blocked in log.take():
            site.report(str(blocked))
        driver.service()

    return Built(unit, driver)
