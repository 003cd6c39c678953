"""What a virtio-iommu offers, and which offers go together."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from itertools import pairwise

from softiommu.errors import ModelError
from softiommu.hardware.virtio.commands import Property, PropertyType, ResvMem, Subtype, size_of
from softiommu.hardware.virtio.registers import Features
from softiommu.hardware.virtio.tables import LARGEST

_TOP = (1 << 64) - 1
#: Writes here are interrupts, on a PC.
_DOORBELL = (0xFEE00000, 0xFEEFFFFF)


def resv_mem(first: int, last: int, subtype: Subtype = Subtype.RESERVED) -> ResvMem:
    """The property of a reserved range."""
    length = size_of(ResvMem) - size_of(Property)
    return ResvMem.of(TYPE=PropertyType.RESV_MEM, LENGTH=length, SUBTYPE=subtype, START=first, END=last)


@dataclass(frozen=True)
class Offer:
    """A device: its features, its limits, and whom it serves."""

    features: Features
    page_size_mask: int = _TOP & ~0xFFF
    #: Inclusive, as all ranges here.
    input_range: tuple[int, int] = (0, _TOP)
    domain_range: tuple[int, int] = (0, (1 << 32) - 1)
    probe_size: int = 512
    #: What `bypass` is until software writes it.
    bypass: bool = False
    #: Ranges that endpoints cannot map.
    reserved: tuple[ResvMem, ...] = ()
    endpoints: Container[int] = range(1 << 16)
    #: Mappings that a domain can have; 0: no limit.
    most_mappings: int = 0
    queue_size: int = 256

    def check(self) -> None:
        """ModelError: no device is so; the message names the rule."""
        features, properties = self.features, size_of(ResvMem) * len(self.reserved)
        rules = (
            (not features.VERSION_1, "VERSION_1 is what makes a device one of this specification"),
            (features.BYPASS and features.BYPASS_CONFIG, "BYPASS and BYPASS_CONFIG are not offered together"),
            (self.bypass and not features.BYPASS_CONFIG, "bypass is set, but BYPASS_CONFIG is not offered"),
            (bool(features.reserved), f"feature bits {features.reserved:#x} are not modelled"),
            (not 0 < self.page_size_mask <= _TOP, "page_size_mask names no page size"),
            (not _is_range(self.input_range, 64), "input_range ends before it starts, or has more than 64 bits"),
            (not _is_range(self.domain_range, 32), "domain_range ends before it starts, or has more than 32 bits"),
            (
                self.input_range != (0, _TOP) and not features.INPUT_RANGE,
                "input_range has limits, but INPUT_RANGE is not offered",
            ),
            (
                self.domain_range != (0, (1 << 32) - 1) and not features.DOMAIN_RANGE,
                "domain_range has limits, but DOMAIN_RANGE is not offered",
            ),
            (self.reserved and not features.PROBE, "reserved ranges need PROBE, which tells of them"),
            (properties > self.probe_size, f"probe_size has no room for {properties} bytes of properties"),
            (_overlap(self.reserved), "reserved ranges overlap, or one ends before it starts"),
            (
                sum(mem.SUBTYPE == Subtype.MSI for mem in self.reserved) > 1,
                "an endpoint has one MSI range at most",
            ),
            (
                not 1 <= self.queue_size <= LARGEST or self.queue_size & self.queue_size - 1,
                f"queue_size is a power of two up to {LARGEST}",
            ),
        )
        for broken, rule in rules:
            if broken:
                raise ModelError(f"virtio-iommu: {rule}")


def _is_range(limits: tuple[int, int], width: int) -> bool:
    return 0 <= limits[0] <= limits[1] < 1 << width


def _overlap(reserved: tuple[ResvMem, ...]) -> bool:
    ranges = sorted((mem.START, mem.END) for mem in reserved)
    if any(first > last for first, last in ranges):
        return True
    return any(before[1] >= after[0] for before, after in pairwise(ranges))


_ALL = Features.of(
    INPUT_RANGE=1, DOMAIN_RANGE=1, MAP_UNMAP=1, PROBE=1, MMIO=1, BYPASS_CONFIG=1, INDIRECT_DESC=1, VERSION_1=1
)

#: QEMU's virtio-iommu-pci on q35: addresses of 39 bits, 4 KiB pages, all endpoints in bypass mode until attached.
QEMU = Offer(_ALL, input_range=(0, (1 << 39) - 1), bypass=True, reserved=(resv_mem(*_DOORBELL, Subtype.MSI),))
#: Everything, nothing reserved, nobody bypassed.
FULL = Offer(_ALL)
