"""The ATS and PRI test device (1234:11e9) in a description.

[[device]]
model = "pcitest"
pasid_bits = 16                      # 0, without PASIDs, when left out
stalls = true                        # its requests may be held; it has no ATS then
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from softiommu.hardware.devices.pcitest import PciTest
from softiommu.hardware.iommu import AtsIommu, StallingIommu

if TYPE_CHECKING:
    from softiommu.hardware.bus import Port
    from softiommu.hardware.pci import Function
    from softiommu.machine.reading import Table


class Options(NamedTuple):
    """How it is made."""

    pasid_bits: int
    stalls: bool = False


def read(table: Table) -> Options:
    """The options. ConfigError."""
    return Options(table.number("pasid_bits", 20, 0), table.flag("stalls"))


def build(options: object, port: Port, express: bool, claim: bool) -> Function:
    """The device: it uses ATS where the IOMMU in front of it has that, or is held by one that stalls."""
    assert isinstance(options, Options), "options are what `read` gave"
    if options.stalls:
        stalls = port.iommu if isinstance(port.iommu, StallingIommu) else None
        return PciTest(port, None, options.pasid_bits, stalls).function
    ats = port.iommu if isinstance(port.iommu, AtsIommu) else None
    return PciTest(port, ats, options.pasid_bits).function
