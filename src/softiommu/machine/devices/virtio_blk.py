"""A virtio block device in a description.

[[device]]
model = "virtio_blk"
driver = "vdpa"                      # who has it: vdpa when left out, or vfio
size = 0x4000000                     # bytes of a disk in memory; 64 MiB when left out
file = "disk.img"                    # or a file that holds it, and keeps it
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from softiommu.hardware.devices.nvme.namespace import RamBacking
from softiommu.hardware.devices.virtio_blk import SECTOR_LG2, VirtioBlk
from softiommu.machine import media

if TYPE_CHECKING:
    from softiommu.hardware.bus import Port
    from softiommu.hardware.pci import Function
    from softiommu.machine.media import Medium
    from softiommu.machine.reading import Table

_SIZE, _MOST, _SECTOR = 64 << 20, 1 << 40, 1 << SECTOR_LG2


class Options(NamedTuple):
    """How it is made. `file` is None for a disk in memory."""

    size: int
    file: Medium | None


def read(table: Table) -> Options:
    """The options. ConfigError."""
    file = media.read(table)
    if file is not None:
        return Options(0, file)
    size = table.number("size", _MOST, _SIZE)
    if not size or size % _SECTOR:
        raise table.error("size", f"size is {size:#x}: expected a multiple of {_SECTOR}")
    return Options(size, None)


def build(options: object, port: Port, express: bool, claim: bool) -> Function:
    """The device. ConfigError: the file cannot be opened, or is another's."""
    assert isinstance(options, Options), "options are what `read` gave"
    if options.file is None:
        return VirtioBlk(port, RamBacking(options.size)).function
    return VirtioBlk(port, media.open_file(options.file, 0, claim), os.path.basename(options.file.path)).function
