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

from softiommu.errors import ConfigError
from softiommu.hardware.devices.nvme.namespace import FileBacking, RamBacking
from softiommu.hardware.devices.virtio_blk import SECTOR_LG2, VirtioBlk

if TYPE_CHECKING:
    from softiommu.hardware.bus import Port
    from softiommu.hardware.pci import Function
    from softiommu.machine.reading import Table

_SIZE, _MOST, _SECTOR = 64 << 20, 1 << 40, 1 << SECTOR_LG2


class Options(NamedTuple):
    """How it is made. `file` is empty for a disk in memory."""

    size: int
    file: str


def read(table: Table) -> Options:
    """The options. ConfigError."""
    file = table.text("file", "")
    if file:
        return Options(0, file)
    size = table.number("size", _MOST, _SIZE)
    if not size or size % _SECTOR:
        raise table.error("size", f"size is {size:#x}: expected a multiple of {_SECTOR}")
    return Options(size, "")


def build(options: object, port: Port, express: bool) -> Function:
    """The device. ConfigError: the file cannot be opened."""
    assert isinstance(options, Options), "options are what `read` gave"
    if not options.file:
        return VirtioBlk(port, RamBacking(options.size)).function
    try:
        backing = FileBacking(os.open(options.file, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        raise ConfigError(f"the disk's file {options.file} cannot be opened: {error.strerror}") from error
    return VirtioBlk(port, backing, os.path.basename(options.file)).function
