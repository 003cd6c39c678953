"""The RISC-V IOMMU in a description: which unit it is like, and the capabilities that differ.

[[iommu]]
model = "riscv"
unit = "full"                        # qemu, small, full (the default)
capabilities = { SV57 = 0 }          # fields as the specification's section 5.3 names them
levels = 3                           # how deep the device directory may be
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from softiommu.drivers.riscv.driver import RiscvDriver
from softiommu.errors import ModelError
from softiommu.hardware.riscv.model import RiscvIommu
from softiommu.hardware.riscv.presets import FULL, QEMU, SMALL, check
from softiommu.hardware.riscv.registers import Capabilities
from softiommu.machine.models import Built

if TYPE_CHECKING:
    from softiommu.machine.models import Site
    from softiommu.machine.reading import Table

_UNITS = {"qemu": QEMU, "small": SMALL, "full": FULL}


class Features(NamedTuple):
    """What the hardware can do."""

    capabilities: Capabilities
    levels: int


def read(table: Table) -> Features:
    """The capabilities. ConfigError names the rule that they break."""
    unit = _UNITS[table.choice("unit", _UNITS) or "full"]
    found = Features(table.word("capabilities", unit), table.number("levels", 3, 3))
    try:
        check(found.capabilities)
    except ModelError as error:
        raise table.error("capabilities", str(error)) from error
    if not found.levels:
        raise table.error("levels", "levels is 0: expected 1..3")
    return found


def build(features: object, site: Site) -> Built:
    """An IOMMU, and its driver."""
    assert isinstance(features, Features), "features are what `read` gave"

    def tell(*_: int) -> None:
        for blocked in driver.faults.take():
            site.report(str(blocked))
        driver.service()

    unit = RiscvIommu(
        site.memory, features.capabilities, interrupt=tell, wire=lambda vector, level: tell(), levels=features.levels
    )
    driver = RiscvDriver(site.memory, unit)
    return Built(unit, driver)
