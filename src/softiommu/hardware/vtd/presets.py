"""What VT-d units tell of themselves: capability and extended capability registers by the name of a unit."""

from __future__ import annotations

from typing import NamedTuple

from softiommu.hardware.vtd.registers import Cap, Ecap


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
