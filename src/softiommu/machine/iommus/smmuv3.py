"""The Arm SMMUv3 in a description: which one it is like, and the features that differ.

[[iommu]]
model = "smmuv3"
unit = "full"                        # qemu, full (the default), tegra241
idr0 = { HTTU = 0 }                  # fields as Arm IHI 0070, 6.3 names them
idr1 = { SSIDSIZE = 0 }
idr3 = { RIL = 0 }
idr5 = { GRAN64K = 0 }
cmdqv = { NUM_VCMDQ_LOG2 = 4, NUM_VINTF_LOG2 = 2 }  # of tegra241: fields of the CMDQV's PARAM
atomics = "no"                       # the interconnect has no atomic accesses: nobody sets flags in tables
iort = { HTTU = 0 }                  # what the firmware's table says, whatever IDR0 says
extensions = { BTM = 1, HTTU = 1 }   # what the kernel does that no released one does
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from softiommu.drivers.smmuv3.driver import LINUX_6_12, LINUX_7_2, SmmuDriver
from softiommu.drivers.smmuv3.platform import NO_EXTENSIONS, Extensions, Iort, as_registers_say
from softiommu.errors import ModelError
from softiommu.hardware.smmuv3.cmdqv import TEGRA241, Cmdqv, check
from softiommu.hardware.smmuv3.model import Smmu
from softiommu.hardware.smmuv3.presets import FULL, QEMU, Identity
from softiommu.machine.models import Built

if TYPE_CHECKING:
    from softiommu.hardware.smmuv3.cmdqv_registers import Param
    from softiommu.machine.models import Site
    from softiommu.machine.reading import Table

_TEGRA241 = "tegra241"
_ATOMICS = ("yes", "no")
_UNITS = {"qemu": QEMU, "full": FULL, _TEGRA241: FULL}


class Features(NamedTuple):
    """The ID registers; and how much a CMDQV has, where there is one."""

    identity: Identity
    cmdqv: Param | None
    iort: Iort
    extensions: Extensions


def read(table: Table) -> Features:
    """The features. ConfigError names the rule that they break."""
    name = table.choice("unit", _UNITS) or "full"
    unit = _UNITS[name]
    param = table.word("cmdqv", TEGRA241) if name == _TEGRA241 else None
    found = unit._replace(
        idr0=table.word("idr0", unit.idr0),
        idr1=table.word("idr1", unit.idr1),
        idr3=table.word("idr3", unit.idr3),
        idr5=table.word("idr5", unit.idr5),
        atomics=table.choice("atomics", _ATOMICS) != "no",
    )
    iort, extensions = table.word("iort", as_registers_say(found.idr0)), table.word("extensions", NO_EXTENSIONS)
    try:
        found.check()
        if param is not None:
            check(param)
    except ModelError as error:
        raise table.error(None, str(error)) from error
    if iort.HTTU > found.idr0.HTTU:
        raise table.error("iort", f"the firmware cannot add to IDR0.HTTU, which is {found.idr0.HTTU}")
    return Features(found, param, iort, extensions)


def build(features: object, site: Site) -> Built:
    """An SMMU, and its driver."""
    assert isinstance(features, Features), "features are what `read` gave"

    def hear(*_: int) -> None:
        for blocked in driver.faults.take():
            site.report(str(blocked))
        driver.service()

    def fail() -> None:
        if driver.cmdqv is not None:
            driver.cmdqv.interrupt()

    unit = Smmu(site.memory, features.identity, interrupt=hear, wired=lambda wire: hear())
    extension = Cmdqv(unit, site.memory, features.cmdqv, fail) if features.cmdqv is not None else None
    quirks = replace(LINUX_6_12 if site.kernel.name == "6.12" else LINUX_7_2, extensions=features.extensions)
    driver = SmmuDriver(site.memory, unit, quirks, extension, features.iort)
    return Built(unit, driver)
