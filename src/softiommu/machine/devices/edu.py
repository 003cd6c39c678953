"""QEMU's teaching device in a description.

[[device]]
model = "edu"
dma_bits = 28                        # how many address bits it drives; QEMU's default
conventional = true                  # PCI without Express wherever it sits, as QEMU's is: it has no reset of its own
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from softiommu.hardware.devices.edu import DEFAULT_DMA_MASK, Edu

if TYPE_CHECKING:
    from softiommu.hardware.bus import Port
    from softiommu.hardware.pci import Function
    from softiommu.machine.reading import Table


class Options(NamedTuple):
    """How it is made."""

    dma_mask: int
    conventional: bool


def read(table: Table) -> Options:
    """The options. ConfigError."""
    bits = table.number("dma_bits", 64, DEFAULT_DMA_MASK.bit_length())
    return Options((1 << bits) - 1, table.flag("conventional"))


def build(options: object, port: Port, express: bool, claim: bool) -> Function:
    """The device."""
    assert isinstance(options, Options), "options are what `read` gave"
    return Edu(port, dma_mask=options.dma_mask, express=express and not options.conventional).function
