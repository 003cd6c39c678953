"""What RISC-V IOMMUs tell of themselves, and which capabilities can go together."""

from __future__ import annotations

from softiommu.errors import ModelError
from softiommu.hardware.riscv.registers import Capabilities, Igs

_BASE = Capabilities.of(VERSION=0x10, SV39=1, SV48=1, SV57=1, SV39X4=1, SV48X4=1, SV57X4=1, PAS=56)

#: The IOMMU of QEMU's virt machine, but for the memory-resident interrupt files.
QEMU = _BASE.replace(MSI_FLAT=1, ATS=1, IGS=Igs.MSI, HPM=1, DBG=1, PD8=1, PD17=1, PD20=1)
#: First-stage tables and MSIs, nothing else.
SMALL = Capabilities.of(VERSION=0x10, SV39=1, PAS=56)
#: Everything that this model has.
FULL = QEMU.replace(
    SVPBMT=1, AMO_HWAD=1, T2GPA=1, IGS=Igs.BOTH, QOSID=1, NL=1, S=1, MSI_MRIF=1, AMO_MRIF=1, SVRSW60T59B=1
)

#: What each capability needs.
_NEEDS = {
    "SV48": "SV39",
    "SV57": "SV48",
    "SV48X4": "SV39X4",
    "SV57X4": "SV48X4",
    "T2GPA": "ATS",
    "MSI_MRIF": "MSI_FLAT",
    "AMO_MRIF": "MSI_MRIF",
}
_NOT_MODELLED = ("SV32", "SV32X4", "END", "CUSTOM")


def check(capabilities: Capabilities) -> None:
    """ModelError: no hardware is so, or this model is not; the message names the rule."""
    for name in _NOT_MODELLED:
        if getattr(capabilities, name):
            raise ModelError(f"capabilities.{name} is not modelled")
    for name, needed in _NEEDS.items():
        if getattr(capabilities, name) and not getattr(capabilities, needed):
            raise ModelError(f"capabilities.{name} needs capabilities.{needed}")
    if capabilities.T2GPA and not capabilities.SV39X4:
        raise ModelError("capabilities.T2GPA needs a second stage")
    if capabilities.reserved:
        raise ModelError(f"bits {capabilities.reserved:#x} of capabilities are reserved")
    if capabilities.IGS == Igs.RESERVED:
        raise ModelError("capabilities.IGS 3 is reserved")
    if not 12 < capabilities.PAS <= 56:
        raise ModelError(f"capabilities.PAS {capabilities.PAS}: physical addresses have 13 to 56 bits")
