"""What the driver of an SMMUv3 knows beside the registers: the firmware's table, and its kernel's extensions."""

from __future__ import annotations

from softiommu.abi.smmuv3_extension import HW_CAP_BTM, HW_CAP_HTTU
from softiommu.hardware.smmuv3.registers import Idr0
from softiommu.words import Word, bit, bits


class Iort(Word, width=32):
    """Flags of an SMMUv3 node in the firmware's table: they hold, whatever IDR0 says. Arm DEN 0049, SMMUv3 node."""

    COHACC = bit(0)
    HTTU = bits(2, 1)


class Extensions(Word, width=32):
    """What this kernel does for guests that no released one does (docs/extensions.md)."""

    #: Stage 2 takes the VMID of a VM, and the SMMU listens to the CPUs.
    BTM = bit(0)
    #: It tells whether the firmware leaves HTTU alone.
    HTTU = bit(1)


#: A released kernel.
NO_EXTENSIONS = Extensions(0)


def as_registers_say(idr0: Idr0) -> Iort:
    """A firmware that overrides nothing."""
    return Iort.of(COHACC=idr0.COHACC, HTTU=idr0.HTTU)


def capabilities(raw: Idr0, iort: Iort, extensions: Extensions) -> int:
    """The bits of out_capabilities beside those of released kernels, of a driver that nests."""
    found = HW_CAP_BTM if extensions.BTM and raw.BTM else 0
    if extensions.HTTU and raw.HTTU and iort.HTTU == raw.HTTU:
        found |= HW_CAP_HTTU
    return found
