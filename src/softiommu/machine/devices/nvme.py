"""An NVMe controller with one namespace in a description.

[[device]]
model = "nvme"
size = 0x4000000                     # bytes of a namespace in memory; 64 MiB when left out
file = "disk.img"                    # or a file that holds it, and keeps it
block = 512                          # bytes of a block: 512 or 4096; Format NVM changes them in memory only
pairs = 8                            # I/O queue pairs, each with an interrupt vector
serial = "SOFTIOMMU0001"             # each has its own: left out, one made of which [[device]] this is
page_requests = true                 # it asks for pages that miss, where its IOMMU serves ATS and page requests
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from softiommu.hardware.devices.nvme.controller import Nvme
from softiommu.hardware.devices.nvme.identify import SERIAL_LENGTH
from softiommu.hardware.devices.nvme.namespace import FORMATS, Namespace, RamBacking
from softiommu.hardware.devices.nvme.registers import MAX_PAIRS
from softiommu.hardware.iommu import AtsIommu
from softiommu.machine import media

if TYPE_CHECKING:
    from softiommu.hardware.bus import Port
    from softiommu.hardware.pci import Function
    from softiommu.machine.media import Medium
    from softiommu.machine.reading import Table

_SIZE, _LEAST, _MOST = 64 << 20, 1 << 20, 1 << 40
_BLOCKS = [1 << lg2 for lg2 in FORMATS]


class Options(NamedTuple):
    """How it is made. `file` is None for a namespace in memory."""

    size: int
    file: Medium | None
    format: int
    pairs: int
    serial: str
    page_requests: bool = False


def read(table: Table) -> Options:
    """The options. ConfigError."""
    block, file = table.one_of("block", _BLOCKS), media.read(table)
    pairs = table.number("pairs", MAX_PAIRS, 8)
    if not pairs:
        raise table.error("pairs", f"pairs is 0: expected 1..{MAX_PAIRS}")
    # Linux takes two controllers of one serial number for one drive, and refuses the second.
    serial = table.text("serial", f"SOFTIOMMU{table.index + 1:04}")
    if not serial.isascii() or not serial.isprintable() or not 1 <= len(serial) <= SERIAL_LENGTH:
        raise table.error("serial", f"serial is {serial!r}: expected 1..{SERIAL_LENGTH} printable ASCII characters")
    asks = table.flag("page_requests")
    if file is not None:
        return Options(0, file, _BLOCKS.index(block), pairs, serial, asks)
    size = table.number("size", _MOST, _SIZE)
    if size < _LEAST or size % _BLOCKS[-1]:
        raise table.error("size", f"size is {size:#x}: expected a multiple of 4096, and {_LEAST:#x} or more")
    return Options(size, None, _BLOCKS.index(block), pairs, serial, asks)


def build(options: object, port: Port, express: bool, claim: bool) -> Function:
    """The controller. ConfigError: the file cannot be opened, is too short, or is another's."""
    assert isinstance(options, Options), "options are what `read` gave"
    ats = port.iommu if options.page_requests and isinstance(port.iommu, AtsIommu) else None
    return Nvme(port, [_namespace(options, claim)], options.serial, options.pairs, ats=ats).function


def _namespace(options: Options, claim: bool) -> Namespace:
    """The namespace. Nothing in a file says how large its blocks are: they are what the description says, always."""
    if options.file is None:
        return Namespace(RamBacking(options.size), options.format)
    return Namespace(media.open_file(options.file, _LEAST, claim), formats=(FORMATS[options.format],))
