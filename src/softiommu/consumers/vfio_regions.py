"""Regions of an open device: what VFIO_DEVICE_GET_REGION_INFO tells, and their bytes by pread and pwrite."""

from __future__ import annotations

from errno import EINVAL, EIO
from typing import TYPE_CHECKING

from softiommu.abi.vfio import PciRegion, RegionFlags, RegionInfo
from softiommu.errors import UapiError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from softiommu.consumers.calls import Call
    from softiommu.consumers.vfio_config import ConfigSpace
    from softiommu.consumers.vfio_lines import Lines
    from softiommu.hardware.pci import Bar, Function

#: Where a region begins in the file: its index, shifted.
_OFFSET_LG2 = 40
_WIDTHS = (8, 4, 2, 1)


class Regions:
    """BARs, configuration space; no device of ours has an expansion ROM or VGA."""

    def __init__(self, function: Function, config: ConfigSpace, lines: Lines) -> None:
        self._function, self._config, self._lines = function, config, lines
        #: The device is in a low-power state that the program asked for (VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY).
        self.low_power = False

    def _bar(self, index: int) -> Bar | None:
        return self._function.bars[index] if index <= PciRegion.BAR5 else None

    # VFIO_DEVICE_GET_REGION_INFO

    def info(self, call: Call) -> None:
        """Flags, size and place of a region. EINVAL: no such region."""
        cmd = call.struct(RegionInfo)
        if cmd.index >= PciRegion.VGA:
            raise UapiError(EINVAL, f"there is no region {cmd.index}")
        cmd.offset, cmd.flags, cmd.size = cmd.index << _OFFSET_LG2, 0, 0
        bar = self._bar(cmd.index)
        if cmd.index == PciRegion.CONFIG:
            cmd.size, cmd.flags = self._config.size, int(RegionFlags.READ | RegionFlags.WRITE)
        elif bar is not None:
            cmd.size, cmd.flags = bar.size, int(RegionFlags.READ | RegionFlags.WRITE)
        call.reply(cmd)

    # Bytes

    def room(self, offset: int, count: int) -> int:
        """How many bytes an access to `count` bytes at a file offset moves. EINVAL: no region is there; EFAULT: past
        the end of configuration space."""
        region, at = divmod(offset, 1 << _OFFSET_LG2)
        if region == PciRegion.CONFIG:
            self._config.check(at, count)
            return count
        bar = self._bar(region)
        if bar is None or at >= bar.size:
            raise UapiError(EINVAL, f"there is nothing at offset {at:#x} of region {region}")
        return min(count, bar.size - at)

    def read(self, offset: int, count: int) -> bytes:
        """The bytes at a file offset: fewer at the end of a region. EINVAL; EIO: the device's memory is off."""
        count = self.room(offset, count)
        region, at = divmod(offset, 1 << _OFFSET_LG2)
        if region == PciRegion.CONFIG:
            return self._config.read(at, count)
        data = b""
        for place, width, hidden in self._accesses(region, at, count):
            self._check_enabled(region)
            value = (1 << 8 * width) - 1 if hidden else self._function.read_bar(region, place, width)
            data += value.to_bytes(width, "little")
        return data

    def write(self, offset: int, data: bytes) -> int:
        """Store bytes at a file offset, as many as `room` says. EINVAL; EIO: the device's memory is off."""
        region, at = divmod(offset, 1 << _OFFSET_LG2)
        if region == PciRegion.CONFIG:
            return self._config.write(at, data)
        for place, width, hidden in self._accesses(region, at, len(data)):
            self._check_enabled(region)
            if not hidden:
                value = int.from_bytes(data[place - at : place - at + width], "little")
                self._function.write_bar(region, place, width, value)
        return len(data)

    def _accesses(self, region: int, at: int, count: int) -> Iterator[tuple[int, int, bool]]:
        """The bus accesses of a transfer: offset, width (the widest that is aligned), and whether it is hidden."""
        bar, table = self._lines.msix_table
        # The host owns the MSI-X table: a program reads ones, and its writes are dropped.
        table, end = table if bar == region else range(0), at + count
        while at < end:
            hidden = at in table
            edge = min([end, *(limit for limit in (table.start, table.stop) if table and limit > at)])
            width = next(width for width in _WIDTHS if not at % width and at + width <= edge)
            yield at, width, hidden
            at += width

    def _check_enabled(self, region: int) -> None:
        bar, config = self._bar(region), self._config
        if bar is not None and not bar.io and (self.low_power or not config.command.MEMORY or config.asleep):
            raise UapiError(EIO, f"region {region}: the memory of the device is disabled")
