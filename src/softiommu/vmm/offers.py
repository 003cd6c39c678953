"""The ID registers that the front ends offer: what the rules allow, and the fields that are the VMM's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from softiommu.errors import ConfigError
from softiommu.hardware.smmuv3.presets import Identity
from softiommu.hardware.smmuv3.registers import SIZES, Aidr, Idr0, Idr1, Idr3, Idr5, Iidr
from softiommu.hardware.vtd.presets import Preset, check
from softiommu.hardware.vtd.registers import Cap, Ecap
from softiommu.vmm.capabilities.negotiate import NOTHING, negotiate

if TYPE_CHECKING:
    from softiommu.vmm.capabilities import Offer, Request, Seen

#: Of the virtual SMMUv3: log2 of the entries of its queues.
_QUEUE_LG2 = 16
#: log2 of the most PASIDs of a device where a VMM attaches each by itself: so many a guest can make it attach. It reads
#: the limit in its registers.
PASIDS_LG2 = 10


def _offer(seen: Seen, register: str, what: str, requests: Request = NOTHING) -> Offer:
    offer = negotiate(seen.infos[0], seen.kernel, requests)
    if register not in offer.words:
        raise ConfigError(f"the device is not behind {what}")
    return offer


def vtd_offer(seen: Seen) -> Preset:
    """The capabilities of a virtual VT-d over one of the host, as `capabilities.probe` has seen it. ConfigError: it is
    no VT-d, or cannot nest.

    Caching mode is on: the VMM hears of the guest's entries when these are invalidated, and never otherwise.
    """
    words = _offer(seen, "ECAP", "a VT-d").words
    cap, ecap = Cap(words["CAP"]), Ecap(words["ECAP"])
    if not ecap.SMTS or not ecap.FSTS:
        raise ConfigError("the VT-d of the host does not nest: there is no first stage for a guest")
    return _complete(cap, ecap)


def vtd_in_software(pasid_bits: int = 0) -> Preset:
    """The capabilities of a virtual VT-d over any IOMMU that nests in software: both stages, and PASIDs where the host
    attaches such. Device TLBs are the host's business."""
    cap = Cap.of(SAGAW=0b0110, MGAW=47, SSLPS=3, DWD=1, DRD=1, FS1GP=1)
    ecap = Ecap.of(SMTS=1, FSTS=1, SSTS=1, SC=1)
    if pasid_bits:
        ecap = ecap.replace(PASID=1, PSS=pasid_bits - 1)
    return _complete(cap, ecap)


def _complete(cap: Cap, ecap: Ecap) -> Preset:
    cap = cap.replace(ND=6, CM=1, PSI=1, MAMV=18, FRO=0x22, NFR=7, ESRTPS=1, ESIRTPS=1)
    ecap = ecap.replace(C=1, QI=1, PT=1, IR=1, EIM=1, IRO=0xF, MHMV=15, PSS=min(ecap.PSS, PASIDS_LG2 - 1))
    check(cap, ecap)
    return Preset(cap, ecap)


def smmuv3_offer(seen: Seen, requests: Request = NOTHING) -> Identity:
    """The ID registers of a virtual SMMUv3 over one of the host. ConfigError: it is no SMMUv3, or cannot nest.

    `requests` is what its vIOMMU is allocated with: BTM makes the guest leave TLB maintenance to its CPUs.
    Transactions do not stall: no event queue of a vIOMMU tells of those that wait.
    """
    words = _offer(seen, "IDR0", "an SMMUv3", requests).words
    idr0 = Idr0(words["IDR0"])
    if not idr0.S1P:
        raise ConfigError("the SMMUv3 of the host does not nest: there is no stage 1 for a guest")
    stalls = 1 if idr0.STALL_MODEL == 0 else idr0.STALL_MODEL
    identity = Identity(
        idr0.replace(MSI=1, SEV=1, PRI=0, STALL_MODEL=stalls),
        Idr1(words["IDR1"]).replace(CMDQS=_QUEUE_LG2, EVENTQS=_QUEUE_LG2),
        Idr3(words["IDR3"]),
        Idr5(words["IDR5"]),
        Iidr(words["IIDR"]),
        Aidr(words["AIDR"]),
    )
    identity.check()
    return identity


def smmuv3_in_software(pasid_bits: int = 0) -> Identity:
    """The ID registers of a virtual SMMUv3 over any IOMMU that nests in software: stage 1 of 48 bits, and substreams
    where the host attaches PASIDs. Device TLBs are the host's business."""
    features = ("S1P", "COHACC", "ASID16", "MSI", "SEV", "CD2L", "STALL_MODEL", "ST_LEVEL")
    identity = Identity(
        Idr0.of(TTF=2, TTENDIAN=2, **dict.fromkeys(features, 1)),
        Idr1.of(SIDSIZE=16, SSIDSIZE=min(pasid_bits, PASIDS_LG2), CMDQS=_QUEUE_LG2, EVENTQS=_QUEUE_LG2),
        Idr3.of(RIL=1),
        Idr5.of(OAS=SIZES.index(48), GRAN4K=1, GRAN16K=1, GRAN64K=1),
    )
    identity.check()
    return identity
