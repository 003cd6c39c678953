"""VFIO_DEVICE_IOEVENTFD: the host writes a value to a BAR whenever an eventfd of the program is signalled."""

from __future__ import annotations

from errno import EEXIST, EINVAL, ENODEV, ENOSPC, ENOTTY
from typing import TYPE_CHECKING, NamedTuple

from softiommu.abi.vfio import DeviceIoeventfd, IoeventfdFlags, PciRegion
from softiommu.consumers import eventfd
from softiommu.consumers.vfio.regions import place_of
from softiommu.errors import UapiError

if TYPE_CHECKING:
    from collections.abc import Callable

    from softiommu.consumers.calls import Call
    from softiommu.consumers.vfio.regions import Regions

#: What vfio-pci allows one device (VFIO_PCI_IOEVENTFD_MAX).
MOST = 1000
_LARGEST = 4


class _Write(NamedTuple):
    """What is written where: a file offset, a width in bytes, a value."""

    offset: int
    width: int
    value: int


class Ioeventfds:
    """Those of one open device. `on_write` is called after each write."""

    def __init__(self, regions: Regions, on_write: Callable[[], None]) -> None:
        self._regions, self._on_write = regions, on_write
        #: What ends the wait for each.
        self._ends: dict[_Write, Callable[[], None]] = {}

    def set(self, call: Call) -> None:
        """Add one, or with descriptor -1 take it away.

        EINVAL: not one width, or not in a BAR outside of its MSI-X table; 8 bytes, as for the kernel. EEXIST; ENODEV:
        there is none to take away; ENOSPC: there are too many; EBADF.
        """
        cmd = call.struct(DeviceIoeventfd)
        write = self._write(cmd)
        if write in self._ends:
            if cmd.fd >= 0:
                raise UapiError(EEXIST, f"an eventfd writes {write.value:#x} to offset {write.offset:#x} already")
            self._ends.pop(write)()
        elif cmd.fd < 0:
            raise UapiError(ENODEV, f"no eventfd writes {write.value:#x} to offset {write.offset:#x}")
        elif len(self._ends) >= MOST:
            raise UapiError(ENOSPC, f"a device has {MOST} eventfds at most")
        else:
            self._add(call, write, cmd.fd)

    def _write(self, cmd: DeviceIoeventfd) -> _Write:
        width = cmd.flags
        if width & ~int(IoeventfdFlags.SIZE_MASK) or width.bit_count() != 1 or cmd.fd < -1:
            raise UapiError(EINVAL, f"flags {cmd.flags:#x} are no one width, or descriptor {cmd.fd} is below -1")
        region, at = place_of(cmd.offset)
        if region > PciRegion.BAR5 or not self._regions.has(region, at, width):
            raise UapiError(EINVAL, f"no {width} bytes of a BAR at offset {cmd.offset:#x} can be written")
        if width > _LARGEST:
            raise UapiError(EINVAL, f"{width} bytes are more than {_LARGEST}")
        return _Write(cmd.offset, width, cmd.data)

    def _add(self, call: Call, write: _Write, fd: int) -> None:
        event = eventfd.find(call.caller, fd)
        if call.watch is None:
            raise UapiError(ENOTTY, "nobody here can wait for an eventfd")

        def hear() -> None:
            event.take()
            if self._regions.on:
                mask = (1 << 8 * write.width) - 1
                self._regions.store(write.offset, write.width, write.value & mask)
                self._on_write()

        self._ends[write] = call.watch(event.fd, hear)

    def close(self) -> None:
        """Nobody waits any more."""
        for end in self._ends.values():
            end()
        self._ends.clear()
