"""What SMMUs tell of themselves, and which features can go together."""

from __future__ import annotations

from typing import NamedTuple

from softiommu.errors import ModelError
from softiommu.hardware.smmuv3.registers import SIZES, Aidr, Idr0, Idr1, Idr3, Idr5, Iidr


class Identity(NamedTuple):
    """The ID registers, and the system around. IDR2 (VATOS) and IDR4 are 0."""

    idr0: Idr0
    idr1: Idr1
    idr3: Idr3
    idr5: Idr5
    iidr: Iidr = Iidr(0)
    aidr: Aidr = Aidr(2)
    #: The interconnect carries atomic accesses. Without them hardware fails to set flags in tables, and IDR0.HTTU may
    #: say otherwise: firmware knows (5.4, IR0: the third of the behaviours; IORT, HTTU override).
    atomics: bool = True

    @property
    def oas(self) -> int:
        """Bits of physical addresses; those of intermediate addresses are as many, since tables are AArch64's only."""
        return SIZES[self.idr5.OAS]

    def has_granule(self, lg2: int) -> bool:
        """Whether there are tables of this granule."""
        has = {12: self.idr5.GRAN4K, 14: self.idr5.GRAN16K, 16: self.idr5.GRAN64K}
        return bool(has[lg2])

    @property
    def smallest_granule(self) -> int:
        """log2 of it: the unit of address translation services (STU)."""
        return min(lg2 for lg2 in (12, 14, 16) if self.has_granule(lg2))

    def check(self) -> None:
        """ModelError: no hardware is so, or this model is not; the message names the rule."""
        for register, word, names in (
            ("IDR0", self.idr0, ("ATOS", "VMW", "VATOS", "RME_IMPL")),
            ("IDR1", self.idr1, ("REL", "QUEUES_PRESET", "TABLES_PRESET", "ECMDQ")),
            ("IDR3", self.idr3, ("MPAM", "FWB", "DPT")),
            ("IDR5", self.idr5, ("D128",)),
        ):
            for name in names:
                if getattr(word, name):
                    raise ModelError(f"{register}.{name} is not modelled")
        for name, needed in _NEEDS.items():
            if getattr(self.idr0, name) and not getattr(self.idr0, needed):
                raise ModelError(f"IDR0.{name} needs IDR0.{needed}")
        for good, rule in self._rules():
            if not good:
                raise ModelError(rule)

    def _rules(self) -> tuple[tuple[bool, str], ...]:
        idr0, idr1, idr5 = self.idr0, self.idr1, self.idr5
        granules = idr5.GRAN4K or idr5.GRAN16K or idr5.GRAN64K
        return (
            (bool(idr0.S1P or idr0.S2P), "an SMMU has stage 1 or stage 2"),
            (idr0.TTF == 2, "IDR0.TTF is 2: only AArch64 tables are modelled"),
            (idr0.TTENDIAN == 2, "IDR0.TTENDIAN is 2: only little-endian tables are modelled"),
            (idr0.HTTU <= 2, "IDR0.HTTU 3 (flags of table descriptors) is not modelled"),
            (idr0.STALL_MODEL <= 2, "IDR0.STALL_MODEL 3 is reserved"),
            (idr0.STALL_MODEL == 1 or idr5.STALL_MAX > 0, "a stall model needs IDR5.STALL_MAX"),
            (idr0.ST_LEVEL <= 1, "IDR0.ST_LEVEL 2 and 3 are reserved"),
            (idr1.SIDSIZE <= 32, "stream ids have at most 32 bits"),
            (idr1.SSIDSIZE <= 20, "substream ids have at most 20 bits"),
            (bool(idr0.S1P) or not idr1.SSIDSIZE, "substreams need stage 1"),
            (max(idr1.CMDQS, idr1.EVENTQS, idr1.PRIQS) <= 19, "queues have at most 2**19 entries"),
            (idr5.OAS <= 6, "IDR5.OAS 7 is not modelled"),
            (bool(granules), "an SMMU has a translation granule"),
            (idr5.VAX <= 1, "IDR5.VAX 2 and 3 are reserved"),
            (not idr5.DS or bool(idr5.GRAN4K or idr5.GRAN16K), "IDR5.DS needs granules of 4 or 16 KiB"),
            (not idr5.VAX or bool(idr5.GRAN64K or idr5.DS), "IDR5.VAX needs granules of 64 KiB, or IDR5.DS"),
        )


#: What each feature needs.
_NEEDS = {"PRI": "ATS", "HYP": "S1P", "ASID16": "S1P", "CD2L": "S1P", "VMID16": "S2P"}

#: QEMU's SMMU with both stages.
QEMU = Identity(Idr0(0x0D44101B), Idr1(0x02730010), Idr3(0x1414), Idr5(0x74))

_BOTH = Idr0.of(S2P=1, S1P=1, TTF=2, COHACC=1, ASID16=1, VMID16=1, MSI=1, SEV=1, CD2L=1, TTENDIAN=2, ST_LEVEL=1)

#: Everything that this model has, but for EL2's regime, and broadcast TLB maintenance (BTM), which few machines have.
FULL = Identity(
    _BOTH.replace(HTTU=2, ATS=1, PRI=1, ATSRECERR=1),
    Idr1.of(SIDSIZE=16, SSIDSIZE=20, PRIQS=19, EVENTQS=19, CMDQS=19, ATTR_PERMS_OVR=1),
    Idr3.of(HAD=1, XNX=1, STT=1, RIL=1, BBML=2, E0PD=1),
    Idr5.of(OAS=6, GRAN4K=1, GRAN16K=1, GRAN64K=1, DS=1, VAX=1, STALL_MAX=16),
)
