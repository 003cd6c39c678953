"""What a program may do with a PCI function's configuration space: which bits are kept for it, which it may write.

The rows follow the kernel's vfio-pci. A capability without rows here is left out of the chain: with PASID, for one, a
program would reach translations that are not its own; PASIDs are the iommufd's matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from softiommu.hardware.config_space import FIRST_EXTENDED
from softiommu.hardware.pci_config import (
    Ats,
    CapabilityHeader,
    CapabilityId,
    Command,
    DeviceControl,
    Express,
    ExtendedHeader,
    ExtendedId,
    Header,
    Msi,
    Msix,
    MsixEntry,
    Power,
    Pri,
    Status,
)
from softiommu.registers import Register

Read = Callable[[int, int], int]

#: Bytes of an entry of the MSI-X table.
MSIX_ENTRY = MsixEntry.CONTROL.offset + MsixEntry.CONTROL.size
_ALL = ~0
_NONE = 0
#: A register, the bits of it that are kept, and the bits that may be written.
_Row = tuple[Register[Any], int, int]


class Rights(NamedTuple):
    """Bitmaps over the bytes of a capability: what is kept for the program (virtual), and what it may write."""

    virtual: int
    writable: int


class Capability(NamedTuple):
    """The header (id None), or a capability: where it lies, and what a program may do with it."""

    id: CapabilityId | ExtendedId | None
    start: int
    length: int
    rights: Rights

    @property
    def extended(self) -> bool:
        """Whether it lies behind the first 256 bytes."""
        return self.start >= FIRST_EXTENDED


def _rights(*rows: _Row) -> Rights:
    virtual = writable = 0
    for register, kept, free in rows:
        whole, shift = (1 << 8 * register.size) - 1, 8 * register.offset
        virtual |= (kept & whole) << shift
        writable |= (free & whole) << shift
    return Rights(virtual, writable)


def _standard_rights(header: Register[CapabilityHeader], *rows: _Row) -> Rights:
    return _rights((header, CapabilityHeader.NEXT.mask, _NONE), *rows)


#: Identity, BARs and the interrupt's pin and line are kept, INTx Disable is emulated; Status cannot be written.
_HEADER = _rights(
    (Header.VENDOR, _ALL, _NONE),
    (Header.DEVICE, _ALL, _NONE),
    (Header.COMMAND, Command.INTX_DISABLE.mask, _ALL),
    (Header.STATUS, Status.CAPABILITIES.mask, _NONE),
    (Header.CACHE_LINE, _NONE, _ALL),
    (Header.LATENCY, _NONE, _ALL),
    (Header.BIST, _NONE, _ALL),
    (Header.ROM, _ALL, _ALL),
    (Header.CAPABILITIES, _ALL, _NONE),
    (Header.INTERRUPT_LINE, _ALL, _ALL),
    (Header.INTERRUPT_PIN, _ALL, _NONE),
)
_BAR_BYTES = ((1 << 8 * Header.BAR.count * Header.BAR.stride) - 1) << 8 * Header.BAR.at(0)

_STANDARD: dict[int, tuple[int, Rights]] = {
    # Power states are the program's.
    CapabilityId.POWER: (8, _standard_rights(Power.HEADER, (Power.PMCSR, _NONE, _ALL))),
    # Address and data are kept: the host's own are in the device. Masks are the device's.
    CapabilityId.MSI: (
        24,
        _standard_rights(
            Msi.HEADER,
            (Msi.CONTROL, 0xFF, 0xFF),
            (Msi.ADDRESS, _ALL, _ALL),
            (Msi.DATA, _ALL, _ALL),
            (Msi.MASK, _NONE, _ALL),
            (Msi.PENDING, _NONE, _ALL),
        ),
    ),
    # Enabled by SET_IRQS alone.
    CapabilityId.MSIX: (12, _standard_rights(Msix.HEADER)),
    # A reset is carried out for the program; sizes of packets concern the whole way to memory.
    CapabilityId.EXPRESS: (
        60,
        _standard_rights(
            Express.HEADER,
            (
                Express.DEVICE_CONTROL,
                DeviceControl.FLR.mask | DeviceControl.MAX_PAYLOAD.mask | DeviceControl.MAX_READ.mask,
                _ALL,
            ),
            (Express.DEVICE_CONTROL_2, _NONE, _ALL),
        ),
    ),
}
#: What a vendor has in a capability is the device's, to write, too: only the chain is kept. Its length is in it.
_VENDOR = Rights(_standard_rights(Power.HEADER).virtual, ((1 << 8 * 256) - 1) & ~0xFFFF)
_EXTENDED: dict[int, tuple[int, Rights]] = {
    ExtendedId.ATS: (8, _rights((Ats.HEADER, _ALL, _NONE))),
    ExtendedId.PRI: (16, _rights((Pri.HEADER, _ALL, _NONE))),
}


def walk(read: Read, size: int) -> list[Capability]:
    """The header and the capabilities that a program may see, in the order of their chains."""
    header = Capability(None, 0, 64, Rights(_HEADER.virtual | _BAR_BYTES, _HEADER.writable | _BAR_BYTES))
    return [header, *_walk_standard(read), *_walk_extended(read, size)]


def _walk_standard(read: Read) -> Iterator[Capability]:
    at = read(Header.CAPABILITIES.offset, 1)
    while at:
        header = CapabilityHeader(read(at, 2))
        if header.ID == CapabilityId.VENDOR:
            yield Capability(CapabilityId.VENDOR, at, read(at + 2, 1), _VENDOR)
        elif header.ID in _STANDARD:
            yield Capability(CapabilityId(header.ID), at, *_STANDARD[header.ID])
        at = header.NEXT


def _walk_extended(read: Read, size: int) -> Iterator[Capability]:
    at = FIRST_EXTENDED if size > FIRST_EXTENDED else 0
    while at:
        header = ExtendedHeader(read(at, 4))
        if header.ID in _EXTENDED:
            yield Capability(ExtendedId(header.ID), at, *_EXTENDED[header.ID])
        elif at == FIRST_EXTENDED and header:
            # The chain starts here whatever is here: what may not be seen becomes a header without an id.
            yield Capability(None, at, 4, _rights((Ats.HEADER, _ALL, _NONE)))
        at = header.NEXT


def extended_header(cap: Capability, header: int, following: int) -> ExtendedHeader:
    """The header that a program sees: the device's, with the next capability that it may see."""
    if cap.id is None:
        return ExtendedHeader.of(NEXT=following)
    return ExtendedHeader(header).replace(NEXT=following)
