"""Regions of an open device: what VFIO_DEVICE_GET_REGION_INFO tells, and their bytes by pread and pwrite.

Which BARs can be mapped, and how, is the device model's matter (`hardware.pci.Mapping`).
"""

from __future__ import annotations

from errno import EINVAL, EIO
from typing import TYPE_CHECKING

from softiommu.abi.vfio import (
    PCI_NUM_REGIONS,
    InfoCapHeader,
    PciRegion,
    RegionCap,
    RegionFlags,
    RegionInfo,
    RegionInfoCapSparseMmap,
    RegionSparseMmapArea,
)
from softiommu.consumers.vfio.levels import pages
from softiommu.errors import UapiError
from softiommu.hardware.pci import Mapping

if TYPE_CHECKING:
    from collections.abc import Iterator

    from softiommu.consumers.calls import Call
    from softiommu.consumers.vfio.config import ConfigSpace
    from softiommu.consumers.vfio.lines import Lines
    from softiommu.hardware.pci import Bar, Function
    from softiommu.memory.files import MmapRequest

_OFFSET_LG2 = 40
#: Where the first region begins, in regions. vfio-pci has it at 0, and takes index << 40 as we do, too. But accesses to
#: small offsets of a descriptor that was passed by a socket do not come to us: `run.seccomp` goes by large offsets.
_FIRST = 16
_CAP_VERSION = 1
_MAP_SHARED = 1
_WIDTHS = (8, 4, 2, 1)


def offset_of(index: int) -> int:
    """Where a region begins in the file."""
    return (_FIRST + index) << _OFFSET_LG2


def place_of(offset: int) -> tuple[int, int]:
    """The region at a file offset, and the offset in it."""
    region, at = divmod(offset, 1 << _OFFSET_LG2)
    return region - _FIRST if region >= _FIRST else region, at


def _nothing_at(offset: int) -> str:
    region, at = place_of(offset)
    if region >= PCI_NUM_REGIONS:
        return f"no region lies at file offset {offset:#x}: nothing is there"
    return f"there is nothing at offset {at:#x} of region {region}"


class Regions:
    """BARs, configuration space; no device of ours has an expansion ROM or VGA."""

    def __init__(self, function: Function, config: ConfigSpace, lines: Lines) -> None:
        self._function, self._config = function, config
        #: In which BAR the MSI-X table lies, and where. The host owns it: a program reads ones, its writes are dropped.
        self._table_bar, self._table = lines.msix_table
        self._low_power = False
        self._on: bool | None = None

    @property
    def on(self) -> bool:
        """Whether the device's memory answers."""
        if self._on is None:
            self._on = not self._low_power and bool(self._config.command.MEMORY) and not self._config.asleep
        return self._on

    def power_changed(self) -> None:
        """The device was reset, or its configuration space written: whether its memory answers is found out anew."""
        self._on = None

    @property
    def low_power(self) -> bool:
        """Whether it is in a low-power state that the program asked for (VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY)."""
        return self._low_power

    @low_power.setter
    def low_power(self, low: bool) -> None:
        self._low_power, self._on = low, None

    def _bar(self, index: int) -> Bar | None:
        return self._function.bars[index] if index <= PciRegion.BAR5 else None

    def bar_at(self, offset: int) -> Bar | None:
        """The BAR at a file offset."""
        return self._bar(place_of(offset)[0])

    # VFIO_DEVICE_GET_REGION_INFO

    def info(self, call: Call) -> None:
        """Flags, size and place of a region, and how it can be mapped. EINVAL: no such region.

        Where there is no room for the capabilities, argsz says how much they need.
        """
        cmd = call.struct(RegionInfo)
        if cmd.index >= PciRegion.VGA:
            raise UapiError(EINVAL, f"there is no region {cmd.index}")
        cmd.offset, cmd.flags, cmd.size = offset_of(cmd.index), 0, 0
        bar, caps = self._bar(cmd.index), b""
        if cmd.index == PciRegion.CONFIG:
            cmd.size, cmd.flags = self._config.size, int(RegionFlags.READ | RegionFlags.WRITE)
        elif bar is not None:
            cmd.size, cmd.flags = bar.size, int(RegionFlags.READ | RegionFlags.WRITE)
            if bar.mapping is Mapping.LEVEL or (bar.mapping is Mapping.TRAPPED and call.can_trap()):
                cmd.flags |= int(RegionFlags.MMAP)
                caps = self._capabilities(cmd.index, bar)
        if caps:
            cmd.flags |= int(RegionFlags.CAPS)
            fits = cmd.argsz >= RegionInfo.SIZE + len(caps)
            cmd.cap_offset = RegionInfo.SIZE if fits else 0
            if fits:
                call.write(RegionInfo.SIZE, caps)
            else:
                cmd.argsz = RegionInfo.SIZE + len(caps)
        call.reply(cmd)

    def _capabilities(self, index: int, bar: Bar) -> bytes:
        """The chain of a BAR that can be mapped: which parts of it, and that the MSI-X table is among them."""
        with_table, caps = bool(self._table) and self._table_bar == index, b""
        if bar.mapped is not None:
            after = RegionInfo.SIZE + RegionInfoCapSparseMmap.SIZE + RegionSparseMmapArea.SIZE if with_table else 0
            caps += RegionInfoCapSparseMmap(int(RegionCap.SPARSE_MMAP), _CAP_VERSION, after, 1).to_bytes()
            caps += RegionSparseMmapArea(bar.mapped.start, len(bar.mapped)).to_bytes()
        if with_table:
            caps += InfoCapHeader(int(RegionCap.MSIX_MAPPABLE), _CAP_VERSION, 0).to_bytes()
        return caps

    # Mappings

    def check_mmap(self, request: MmapRequest) -> Bar:
        """The BAR that is to be mapped. EINVAL: it cannot be, or not so."""
        index, at = place_of(request.offset)
        bar = self._bar(index) if request.offset >= offset_of(0) else None
        if not request.flags & _MAP_SHARED:
            raise UapiError(EINVAL, "a region is mapped with MAP_SHARED")
        if bar is None or bar.mapping is Mapping.NONE:
            raise UapiError(EINVAL, f"{_nothing_at(request.offset)} that can be mapped")
        allowed = bar.mapped or range(pages(bar.size))
        if not allowed.start <= at <= at + request.length <= allowed.stop:
            raise UapiError(
                EINVAL,
                f"{at:#x}..{at + request.length - 1:#x} of region {index}: "
                f"{allowed.start:#x}..{allowed.stop - 1:#x} can be mapped",
            )
        return bar

    def load(self, offset: int, width: int) -> int:
        """A load from a mapping: one access of the bus where it is aligned. EIO: the device's memory is off."""
        region, at = place_of(offset)
        if at % width:
            return int.from_bytes(self.read(offset, width).ljust(width, b"\xff"), "little")
        self._check_enabled(region)
        if self._hidden(region, at):
            return (1 << 8 * width) - 1
        return self._function.read_bar(region, at, width)

    def store(self, offset: int, width: int, value: int) -> None:
        """A store to a mapping: one access of the bus where it is aligned. EIO: the device's memory is off."""
        region, at = place_of(offset)
        if at % width:
            self.write(offset, value.to_bytes(width, "little")[: self.room(offset, width)])
            return
        self._check_enabled(region)
        if not self._hidden(region, at):
            self._function.write_bar(region, at, width, value)

    def has(self, region: int, at: int, width: int) -> bool:
        """Whether a BAR has these bytes, outside of the MSI-X table."""
        bar, table = self._bar(region), self._table
        if bar is None or at + width > bar.size:
            return False
        return self._table_bar != region or at + width <= table.start or at >= table.stop

    def _hidden(self, region: int, at: int) -> bool:
        return at in self._table and region == self._table_bar

    # Bytes

    def room(self, offset: int, count: int) -> int:
        """How many bytes an access to `count` bytes at a file offset moves. EINVAL: no region is there; EFAULT: past
        the end of configuration space."""
        region, at = place_of(offset)
        if region == PciRegion.CONFIG:
            self._config.check(at, count)
            return count
        bar = self._bar(region)
        if bar is None or at >= bar.size:
            raise UapiError(EINVAL, _nothing_at(offset))
        return min(count, bar.size - at)

    def read(self, offset: int, count: int) -> bytes:
        """The bytes at a file offset: fewer at the end of a region. EINVAL; EIO: the device's memory is off."""
        count = self.room(offset, count)
        region, at = place_of(offset)
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
        region, at = place_of(offset)
        if region == PciRegion.CONFIG:
            try:
                return self._config.write(at, data)
            finally:
                self.power_changed()
        for place, width, hidden in self._accesses(region, at, len(data)):
            self._check_enabled(region)
            if not hidden:
                value = int.from_bytes(data[place - at : place - at + width], "little")
                self._function.write_bar(region, place, width, value)
        return len(data)

    def _accesses(self, region: int, at: int, count: int) -> Iterator[tuple[int, int, bool]]:
        """The bus accesses of a transfer: offset, width (the widest that is aligned), and whether it is hidden."""
        table, end = self._table if self._table_bar == region else range(0), at + count
        while at < end:
            hidden = self._hidden(region, at)
            edge = min([end, *(limit for limit in (table.start, table.stop) if table and limit > at)])
            width = next(width for width in _WIDTHS if not at % width and at + width <= edge)
            yield at, width, hidden
            at += width

    def _check_enabled(self, region: int) -> None:
        bar = self._bar(region)
        if bar is not None and not bar.io and not self.on:
            raise UapiError(EIO, f"region {region}: the memory of the device is disabled")
