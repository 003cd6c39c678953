"""Intel VT-d in a description: which unit it is like, and the fields of its capability registers that differ.

[[iommu]]
model = "vtd"
unit = "vtd-sm"                      # vtd (the default), vtd-39, vtd-sm, vtd-flts, vtd-sc, vtd-noir, full
cap = { MGAW = 38, SAGAW = 2 }       # fields as VT-d 11.4.2 names them
ecap = { SC = 1 }                    # and 11.4.3
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from softiommu.drivers.vtd import LINUX_6_12, LINUX_7_2, VtdDriver
from softiommu.drivers.vtd_faults import FaultLog
from softiommu.hardware.vtd.model import Unit
from softiommu.hardware.vtd.presets import FULL, QEMU, Preset
from softiommu.hardware.vtd.tables import WIDTHS
from softiommu.machine.models import Built

if TYPE_CHECKING:
    from softiommu.machine.models import Site
    from softiommu.machine.reading import Table

_UNITS = {**QEMU, "full": FULL}


def read(table: Table) -> Preset:
    """The capability registers. ConfigError names the rule that they break."""
    unit = _UNITS[table.choice("unit", _UNITS) or "vtd"]
    preset = Preset(table.word("cap", unit.cap), table.word("ecap", unit.ecap))
    broken = rule_broken(preset)
    if broken is not None:
        raise table.error(*broken)
    return preset


def rule_broken(preset: Preset) -> tuple[str, str] | None:
    """The key and the rule that no hardware with these registers could keep (VT-d 11.4.2, 11.4.3)."""
    cap, ecap = preset
    widths = [30 + 9 * aw for aw in WIDTHS if cap.SAGAW >> aw & 1]
    rules = (
        ("ecap", not ecap.QI, "QI = 0: the driver needs queued invalidation"),
        ("cap", not widths, "SAGAW names no width of second-stage tables: expected some of bits 1 to 3"),
        ("cap", widths and max(widths) < cap.MGAW + 1, "MGAW is wider than every table width in SAGAW"),
        ("ecap", (ecap.FSTS or ecap.SSTS) and not ecap.SMTS, "FSTS and SSTS need scalable mode (SMTS)"),
        (
            "ecap",
            ecap.SMTS and not ecap.FSTS and not ecap.SSTS,
            "SMTS needs tables of some stage (FSTS, SSTS)",
        ),
        ("ecap", ecap.NEST and not (ecap.FSTS and ecap.SSTS), "NEST needs both stages (FSTS and SSTS)"),
        ("ecap", ecap.PASID and not ecap.SMTS, "PASID needs scalable mode (SMTS)"),
        ("ecap", ecap.PSS and not ecap.PASID, "PSS gives PASIDs a size, but PASID = 0"),
        ("ecap", ecap.SSADS and not ecap.SSTS, "SSADS needs second-stage tables (SSTS)"),
        ("cap", (cap.FS1GP or cap.FS5LP) and not ecap.FSTS, "FS1GP and FS5LP need first-stage tables (FSTS)"),
        ("ecap", ecap.PRS and not ecap.DT, "PRS needs device TLBs (DT)"),
        ("ecap", ecap.EIM and not ecap.IR, "EIM needs interrupt remapping (IR)"),
    )
    return next(((key, rule) for key, broken, rule in rules if broken), None)


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
