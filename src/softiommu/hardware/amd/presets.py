"""What AMD IOMMUs tell of themselves, and which features can go together."""

from __future__ import annotations

from typing import NamedTuple

from softiommu.errors import ModelError
from softiommu.hardware.amd.registers import CapabilityHeader, Efr, Efr2


class Preset(NamedTuple):
    """The words that say what an IOMMU can do: both feature registers, and its PCI capability's header."""

    efr: Efr
    efr2: Efr2 = Efr2(0)
    header: CapabilityHeader = CapabilityHeader.of(CapId=0xF, CapType=3, CapRev=1, IotlbSup=1, EFRSup=1, CapExt=1)


#: Host tables of four levels and nothing else.
SMALL = Preset(Efr.of(IASup=1))
#: QEMU's amd-iommu tells of guest tables and page requests, too; it has neither.
QEMU = Preset(
    Efr.of(PreFSup=1, PPRSup=1, GTSup=1, IASup=1, GASup=1, HESup=1, HATS=2, GATS=2),
    header=CapabilityHeader.of(CapId=0xF, CapType=3, CapRev=1, IotlbSup=1, HtTunnel=1, NpCache=1, EFRSup=1, CapExt=1),
)
#: Everything that this model has.
FULL = Preset(
    Efr.of(
        **dict.fromkeys(("PreFSup", "PPRSup", "NXSup", "GTSup", "IASup", "GASup", "HESup", "USSup"), 1),
        **dict.fromkeys(("PprAutoRspSup", "MsiCapMmioSup", "GIoSup", "HASup", "HDSup", "InvIotlbTypeSup"), 1),
        HATS=2,
        GATS=1,
        GLXSup=2,
        PASmax=19,
        DevTblSegSup=3,
    ),
    Efr2.of(GCR3TRPModeSup=1),
)

#: What a feature needs.
_NEEDS = {
    "GATS": "GTSup",
    "GLXSup": "GTSup",
    "PASmax": "GTSup",
    "GIoSup": "GTSup",
    "USSup": "GTSup",
    "HDSup": "HASup",
    "PprAutoRspSup": "PPRSup",
    "PprOvrflwEarlySup": "PPRSup",
    "DualPprLogSup": "PPRSup",
    "GAMSup": "GASup",
}
_NOT_MODELLED = (
    *("XTSup", "PCSup", "SmiFSup", "SmiFRC", "GAMSup", "DualPprLogSup", "DualEventLogSup", "PprOvrflwEarlySup"),
    *("MarcSup", "BlkStopMrkSup", "PerfOptSup", "EPHSup", "AttrFWSup", "GAUpdateDisSup", "ForcePhyDestSup", "SNPSup"),
)
_NOT_MODELLED2 = ("SEVSNPIOSup", "SNPAVICSup", "NumIntRemapSup")


def check(preset: Preset) -> None:
    """ModelError: no hardware is so, or this model is not; the message names the rule."""
    efr, efr2, header = preset
    for register, word, names in (("efr", efr, _NOT_MODELLED), ("efr2", efr2, _NOT_MODELLED2)):
        for name in names:
            if getattr(word, name):
                raise ModelError(f"{register}.{name} is not modelled")
        if word.reserved:
            raise ModelError(f"bits {word.reserved:#x} of {register} are reserved")
    for name, needed in _NEEDS.items():
        if getattr(efr, name) and not getattr(efr, needed):
            raise ModelError(f"efr.{name} needs efr.{needed}")
    if efr2.GCR3TRPModeSup and not efr.GTSup:
        raise ModelError("efr2.GCR3TRPModeSup needs efr.GTSup")
    for name in ("HATS", "GATS", "GLXSup"):
        if getattr(efr, name) == 3:
            raise ModelError(f"efr.{name} 3 is reserved")
    if efr.PASmax > 19:
        raise ModelError(f"efr.PASmax {efr.PASmax}: PASIDs have 1 to 20 bits")
    if (efr or efr2) and not header.EFRSup:
        raise ModelError("efr and efr2 need EFRSup in the capability's header")
