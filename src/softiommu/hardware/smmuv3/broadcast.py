"""TLB maintenance that CPUs broadcast: what a TLBI instruction of a CPU in the SMMU's shareability domain names, and
what an SMMU that listens forgets. Arm IHI 0070, 3.17; the instructions are those of the Arm ARM, D8.

A message never reaches device TLBs, and says nothing of configuration: for these there are commands only.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple, Protocol, runtime_checkable

from softiommu.hardware.smmuv3.tables import Strw
from softiommu.hardware.smmuv3.tlb import ADDRESS, Selection

_LAST = (1 << 64) - 1


class Tlbi(Enum):
    """What an instruction names; those for last levels (VALE1IS, ...) name the same leaves."""

    VMALLE1 = "stage 1 of a VMID"
    VMALLS12E1 = "both stages of a VMID"
    ALLE1 = "both stages of every VMID"
    ASIDE1 = "an ASID of a VMID"
    VAE1 = "addresses in an ASID of a VMID"
    VAAE1 = "addresses in every ASID of a VMID"
    IPAS2E1 = "intermediate addresses of a VMID"
    ALLE2 = "EL2"
    ASIDE2 = "an ASID of EL2 (E2H)"
    VAE2 = "addresses of EL2, with E2H in an ASID"
    VAAE2 = "addresses in every ASID of EL2 (E2H)"


_OF_EL2 = frozenset({Tlbi.ALLE2, Tlbi.ASIDE2, Tlbi.VAE2, Tlbi.VAAE2})
_BY_ASID = frozenset({Tlbi.ASIDE1, Tlbi.VAE1, Tlbi.ASIDE2, Tlbi.VAE2})
_BY_ADDRESS = frozenset({Tlbi.VAE1, Tlbi.VAAE1, Tlbi.IPAS2E1, Tlbi.VAE2, Tlbi.VAAE2})


class Broadcast(NamedTuple):
    """A message. The interconnect adds the VMID of the VM that runs on the CPU (VTTBR_EL2.VMID)."""

    op: Tlbi
    vmid: int = 0
    asid: int = 0
    #: An inclusive range, in the operations by address.
    first: int = 0
    last: int = _LAST
    #: Of EL2: the CPU's EL2 is a host's (HCR_EL2.E2H).
    e2h: bool = False


@runtime_checkable
class Listener(Protocol):
    """An IOMMU in the shareability domain of the CPUs."""

    def hear(self, message: Broadcast) -> None:
        """A CPU's message comes by. What it names is forgotten when this returns, as the CPU's DSB waits for."""
        ...


def selection(message: Broadcast, e2h: bool) -> Selection | None:
    """What a message names in the IOTLB of an SMMU whose CR2.E2H is `e2h`. None: nothing.

    ASIDs and VMIDs that are wider than the SMMU's match none of its tags (3.17.4).
    """
    op = message.op
    window = (message.first & ADDRESS, message.last & ADDRESS) if op in _BY_ADDRESS else None
    asid = message.asid if op in _BY_ASID else None
    with_globals = op in (Tlbi.VAE1, Tlbi.VAE2)
    if op not in _OF_EL2:
        vmid = None if op is Tlbi.ALLE1 else message.vmid
        has_stage1 = op is not Tlbi.IPAS2E1
        has_stage2 = op in (Tlbi.VMALLS12E1, Tlbi.ALLE1, Tlbi.IPAS2E1)
        spares = op in _BY_ASID
        return Selection(Strw.NS_EL1, vmid, asid, with_globals, window, has_stage1, has_stage2, spares)
    # Between the two kinds of EL2 nothing is heard (3.17.5); without E2H there are no ASIDs.
    if message.e2h != e2h or (not e2h and op in (Tlbi.ASIDE2, Tlbi.VAAE2)):
        return None
    spares = op in _BY_ASID if e2h else op is Tlbi.VAE2
    return Selection(Strw.EL2, None, asid if e2h else None, with_globals, window, spares_private=spares)
