"""What VT-d units tell of themselves: capability and extended capability registers by the name of a unit."""

from __future__ import annotations

from typing import NamedTuple

from softiommu.errors import ConfigError
from softiommu.hardware.vtd.registers import Cap, Ecap

#: Registers whose place no capability tells end here.
_FIXED_REGISTERS = 0xF0


class Preset(NamedTuple):
    """The two words that say what a unit can do."""

    cap: Cap
    ecap: Ecap


_CAP = Cap.of(ND=6, SAGAW=0b0110, MGAW=47, FRO=0x22, SSLPS=3, PSI=1, NFR=0, MAMV=18, DWD=1, DRD=1)
_NO_REMAPPING = Ecap.of(QI=1, PT=1, IRO=0xF)
_ECAP = _NO_REMAPPING.replace(IR=1, MHMV=15)

#: The units of QEMU's machines, as GET_HW_INFO of a kernel on them tells it.
QEMU = {
    "vtd": Preset(_CAP, _ECAP),
    "vtd-39": Preset(_CAP.replace(SAGAW=0b0010, MGAW=38), _ECAP),
    "vtd-sm": Preset(_CAP, _ECAP.replace(SMTS=1, SSTS=1, SRS=1)),
    "vtd-flts": Preset(_CAP.replace(FS1GP=1), _ECAP.replace(SMTS=1, FSTS=1)),
    "vtd-sc": Preset(_CAP, _ECAP.replace(SC=1)),
    "vtd-noir": Preset(_CAP, _NO_REMAPPING),
}

#: Everything that this model has.
_EVERYTHING = (
    *("C", "QI", "DT", "IR", "EIM", "PT", "SC", "NEST", "PRS", "ERS", "SRS", "NWFS", "EAFS", "PASID", "PDS", "SMTS"),
    *("SSADS", "SSTS", "FSTS", "SMPWCS", "RPS"),
)
FULL = Preset(
    _CAP.replace(SAGAW=0b1110, MGAW=56, NFR=7, FS1GP=1, FS5LP=1),
    Ecap.of(**dict.fromkeys(_EVERYTHING, 1), IRO=0xF, MHMV=15, PSS=19),
)

#: Second-stage tables of 39 and 48 bits, queued invalidation and pass-through, in legacy mode.
LEGACY = Preset(_CAP.replace(NFR=3), _NO_REMAPPING.replace(C=1, SC=1))
#: The same with scalable mode, both stages and nesting.
SCALABLE = Preset(
    LEGACY.cap.replace(FS1GP=1),
    LEGACY.ecap.replace(SMTS=1, SSTS=1, FSTS=1, NEST=1, PASID=1, PSS=19, SRS=1, ERS=1, RPS=1),
)


def check(cap: Cap, ecap: Ecap) -> None:
    """ConfigError: capabilities that no hardware can have together, with the rule that they break."""
    broken = broken_rule(cap, ecap)
    if broken is not None:
        raise ConfigError(f"no VT-d unit is so: {broken[1]}")


def broken_rule(cap: Cap, ecap: Ecap) -> tuple[str, str] | None:
    """The register ("cap" or "ecap") and the rule that no hardware with these words could keep."""
    widths = [30 + 9 * bit for bit in (1, 2, 3) if cap.SAGAW >> bit & 1]
    needs_scalable = ("NEST", "PASID", "SSADS", "SSTS", "FSTS", "SMPWCS", "RPS", "PRS", "PDS", "EAFS", "SRS", "ERS")
    blocks = (range(ecap.IRO * 16, ecap.IRO * 16 + 16), range(cap.FRO * 16, cap.FRO * 16 + 16 * (cap.NFR + 1)))
    apart = all(block.start >= _FIXED_REGISTERS for block in blocks) and not _overlap(*blocks)
    rules = (
        ("cap", widths and not int(cap.SAGAW) & ~0b1110, "SAGAW names widths of 39, 48 and 57 bits, and at least one"),
        ("cap", max(widths, default=64) > cap.MGAW, "MGAW is not wider than the widest table of SAGAW"),
        ("cap", not cap.SSLPS & 2 or cap.SSLPS & 1, "1 GiB pages (SSLPS) come with 2 MiB pages"),
        ("cap", apart, "fault records (FRO) and IOTLB registers (IRO) have a place of their own"),
        ("cap", ecap.FSTS or not (cap.FS1GP or cap.FS5LP), "FS1GP and FS5LP are of first-stage tables (FSTS)"),
        ("ecap", not ecap.SMTS or ecap.SSTS or ecap.FSTS, "scalable mode (SMTS) needs tables of a stage: SSTS or FSTS"),
        ("ecap", not ecap.SMTS or ecap.QI, "scalable mode (SMTS) needs the invalidation queue (QI)"),
        ("ecap", not ecap.NEST or (ecap.SSTS and ecap.FSTS), "nesting (NEST) needs both stages: SSTS and FSTS"),
        ("ecap", not ecap.SSADS or ecap.SSTS, "flags of a second stage (SSADS) need a second stage (SSTS)"),
        ("ecap", not ecap.PRS or ecap.DT, "page requests (PRS) need device TLBs (DT)"),
        ("ecap", not ecap.PDS or ecap.PRS, "page request drain (PDS) needs page requests (PRS)"),
        ("ecap", not ecap.DT or ecap.QI, "device TLBs (DT) need the invalidation queue (QI)"),
        ("ecap", not ecap.IR or ecap.QI, "interrupt remapping (IR) needs the invalidation queue (QI)"),
        ("ecap", not ecap.EIM or ecap.IR, "wide interrupt destinations (EIM) need interrupt remapping (IR)"),
        ("ecap", not ecap.PSS or ecap.PASID, "PASID bits (PSS) need PASIDs (PASID)"),
        *(
            ("ecap", not getattr(ecap, name) or ecap.SMTS, f"{name} needs scalable mode (SMTS)")
            for name in needs_scalable
        ),
    )
    return next(((register, rule) for register, holds, rule in rules if not holds), None)


def _overlap(one: range, other: range) -> bool:
    return one.start < other.stop and other.start < one.stop
