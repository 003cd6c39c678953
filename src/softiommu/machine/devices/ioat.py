"""An Intel I/OAT DMA engine in a description.

[[device]]
model = "ioat"
channels = 1                         # each with an interrupt vector; one when left out, as the chip has
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from softiommu.hardware.devices.ioat.engine import Ioat
from softiommu.hardware.devices.ioat.registers import MAX_CHANNELS

if TYPE_CHECKING:
    from softiommu.hardware.bus import Port
    from softiommu.hardware.pci import Function
    from softiommu.machine.reading import Table


class Options(NamedTuple):
    """How it is made."""

    channels: int


def read(table: Table) -> Options:
    """The options. ConfigError."""
    channels = table.number("channels", MAX_CHANNELS, 1)
    if not channels:
        raise table.error("channels", f"channels is 0: expected 1..{MAX_CHANNELS}")
    return Options(channels)


def build(options: object, port: Port, express: bool) -> Function:
    """The device."""
    assert isinstance(options, Options), "options are what `read` gave"
    return Ioat(port, options.channels).function
