"""An Intel I/OAT DMA engine in a description.

[[device]]
model = "ioat"
channels = 1                         # each with an interrupt vector; one when left out, as the chip has
page_requests = true                 # it asks for pages that miss, where its IOMMU serves ATS and page requests
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from softiommu.hardware.devices.ioat.engine import Ioat
from softiommu.hardware.devices.ioat.registers import MAX_CHANNELS
from softiommu.hardware.iommu import AtsIommu

if TYPE_CHECKING:
    from softiommu.hardware.bus import Port
    from softiommu.hardware.pci import Function
    from softiommu.machine.reading import Table


class Options(NamedTuple):
    """How it is made."""

    channels: int
    page_requests: bool = False


def read(table: Table) -> Options:
    """The options. ConfigError."""
    channels = table.number("channels", MAX_CHANNELS, 1)
    if not channels:
        raise table.error("channels", f"channels is 0: expected 1..{MAX_CHANNELS}")
    return Options(channels, table.flag("page_requests"))


def build(options: object, port: Port, express: bool, claim: bool) -> Function:
    """The device."""
    assert isinstance(options, Options), "options are what `read` gave"
    ats = port.iommu if options.page_requests and isinstance(port.iommu, AtsIommu) else None
    return Ioat(port, options.channels, ats).function
