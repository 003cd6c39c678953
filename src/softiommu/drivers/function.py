"""What a driver finds of the hardware: the registers of an IOMMU, and the functions behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol


class Bus(Protocol):
    """How a driver reaches the registers of a device."""

    def read(self, offset: int, width: int) -> int:
        """Read `width` bytes at `offset`."""
        ...

    def write(self, offset: int, width: int, value: int) -> None:
        """Write `width` bytes at `offset`."""
        ...


class Function(NamedTuple):
    """A PCI function as a driver finds it: its name, the requester ids of its group, and what its capabilities say."""

    name: str
    #: Its own requester id, then those that are routed with it: its bridge's alias, and the rest of its group.
    sids: tuple[int, ...]
    #: Equal for functions that cannot be isolated from one another; None: it stands alone.
    group: object | None = None
    #: log2 of how many PASIDs it can use; 0: no PASID capability.
    pasid_bits: int = 0
    ats: bool = False
    pri: bool = False
    #: Lets the function ask for translations, or not (pci_enable_ats). None: only what turned it on can.
    set_ats: Callable[[bool], None] | None = None
    #: Its requests may be held until software has looked at them (dma-can-stall).
    stalls: bool = False
