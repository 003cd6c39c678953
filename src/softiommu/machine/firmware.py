"""What firmware does before a kernel starts: each BAR of each function gets an address of its own.

Nothing is decoded there, since no CPU of the machine loads or stores; but programs read these addresses in sysfs and
in configuration space, and to vfio-pci a BAR at 0 is one that is not there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from softiommu.hardware.pci_config import Header

if TYPE_CHECKING:
    from softiommu.hardware.pci import Bar, Function

#: Where BARs of each kind go, upwards: ports, memory below 4 GiB and the local APICs, memory of 64 bits.
_PORTS, _LOW, _HIGH = 0xC000, 0xE000_0000, 0x3800_0000_0000
#: A page has registers of one function only: they can be mapped.
_LEAST_MEMORY = 0x1000


def assign(functions: Iterable[Function]) -> None:
    """Write an aligned address into every BAR, in the order of functions and BARs."""
    free = {_PORTS: _PORTS, _LOW: _LOW, _HIGH: _HIGH}
    for function in functions:
        for index, bar in enumerate(function.bars):
            if bar is not None:
                window = _PORTS if bar.io else _HIGH if bar.is_64 else _LOW
                size = bar.size if bar.io else max(bar.size, _LEAST_MEMORY)
                at = -(-free[window] // size) * size
                free[window] = at + size
                _write(function, index, bar, at)


def _write(function: Function, index: int, bar: Bar, address: int) -> None:
    function.write_config(Header.BAR.at(index), 4, address & 0xFFFFFFFF)
    if bar.is_64:
        function.write_config(Header.BAR.at(index + 1), 4, address >> 32)


def address(function: Function, index: int) -> int:
    """Where a BAR is."""
    bar = function.bars[index]
    assert bar is not None, "only BARs have addresses"
    value = int(function.header.BAR[index])
    if bar.is_64:
        value |= int(function.header.BAR[index + 1]) << 32
    return value & -bar.size
