"""The registers that each type of hardware information holds, with their baseline tables, and their decoding."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum, IntFlag
from typing import Any, NamedTuple, Protocol

from softiommu.abi.iommufd import (
    HwCapabilities,
    HwInfoAmd,
    HwInfoArmSmmuv3,
    HwInfoArmSmmuv3Flags,
    HwInfoTegra241Cmdqv,
    HwInfoType,
    HwInfoVtd,
    HwInfoVtdFlags,
)
from softiommu.abi.riscv_extension import HW_INFO, HwInfoRiscv
from softiommu.abi.struct import UserStruct
from softiommu.hardware.amd.registers import Efr, Efr2
from softiommu.hardware.riscv.registers import Capabilities, Fctl
from softiommu.hardware.smmuv3 import registers as smmu
from softiommu.hardware.vtd.registers import Cap, Ecap
from softiommu.vmm.capabilities import amd, riscv, smmuv3, vtd
from softiommu.vmm.capabilities.rules import EXTENSIONS, Capability, Table
from softiommu.words import Word, bits


class Info(Protocol):
    """What GET_HW_INFO tells of a device's IOMMU; `softiommu.api.HwInfo` is such."""

    @property
    def type(self) -> int:
        """out_data_type."""
        ...

    @property
    def data(self) -> bytes:
        """The structure of that type."""
        ...

    @property
    def capabilities(self) -> int:
        """out_capabilities."""
        ...

    @property
    def pasid_bits(self) -> int:
        """out_max_pasid_log2."""
        ...


class ExtensionType(IntEnum):
    """Types of hardware information that only this project has."""

    RISCV = HW_INFO


class Cmdqv(Word, width=32):
    """What struct iommu_hw_info_tegra241_cmdqv tells, as it lies behind the flags."""

    VERSION = bits(7, 0)
    LOG2VCMDQS = bits(15, 8)
    LOG2VSIDS = bits(23, 16)


class Register(NamedTuple):
    """An ID register: the class of its word, and the rules of its fields."""

    name: str
    word: type[Word]
    rules: Table


class Family(NamedTuple):
    """A type of hardware information. `values` takes the registers' values out of its structure."""

    kind: HwInfoType | ExtensionType
    struct: type[UserStruct]
    registers: tuple[Register, ...]
    values: Callable[[Any], tuple[int, ...]]
    flags: type[IntFlag] | None = None

    def register(self, name: str) -> Register:
        """The register of this name. ValueError: there is none."""
        for register in self.registers:
            if register.name == name:
                return register
        known = ", ".join(register.name for register in self.registers)
        raise ValueError(f"{self.kind.name} has no register {name}: there are {known}")


def _smmuv3(info: HwInfoArmSmmuv3) -> tuple[int, ...]:
    return (info.idr0, info.idr1, info.idr2, info.idr3, info.idr4, info.idr5, info.iidr, info.aidr)


def _cmdqv(info: HwInfoTegra241Cmdqv) -> tuple[int, ...]:
    # A byte of padding, which is reserved here as it is there.
    return (info.version | info.log2vcmdqs << 8 | info.log2vsids << 16 | info.reserved << 24,)


FAMILIES = {
    int(family.kind): family
    for family in (
        Family(
            HwInfoType.INTEL_VTD,
            HwInfoVtd,
            (Register("CAP", Cap, vtd.CAP), Register("ECAP", Ecap, vtd.ECAP)),
            lambda info: (info.cap_reg, info.ecap_reg),
            HwInfoVtdFlags,
        ),
        Family(
            HwInfoType.ARM_SMMUV3,
            HwInfoArmSmmuv3,
            (
                Register("IDR0", smmu.Idr0, smmuv3.IDR0),
                Register("IDR1", smmu.Idr1, smmuv3.IDR1),
                Register("IDR2", smmu.Idr2, smmuv3.IDR2),
                Register("IDR3", smmu.Idr3, smmuv3.IDR3),
                Register("IDR4", smmu.Registers.IDR4.word, smmuv3.IDR4),
                Register("IDR5", smmu.Idr5, smmuv3.IDR5),
                Register("IIDR", smmu.Iidr, smmuv3.IIDR),
                Register("AIDR", smmu.Aidr, smmuv3.AIDR),
            ),
            _smmuv3,
            HwInfoArmSmmuv3Flags,
        ),
        Family(HwInfoType.TEGRA241_CMDQV, HwInfoTegra241Cmdqv, (Register("CMDQV", Cmdqv, smmuv3.CMDQV),), _cmdqv),
        Family(
            HwInfoType.AMD,
            HwInfoAmd,
            (Register("EFR", Efr, amd.EFR), Register("EFR2", Efr2, amd.EFR2)),
            lambda info: (info.efr, info.efr2),
        ),
        Family(
            ExtensionType.RISCV,
            HwInfoRiscv,
            (Register("CAPABILITIES", Capabilities, riscv.CAPABILITIES), Register("FCTL", Fctl, riscv.FCTL)),
            lambda info: (info.capabilities, info.fctl),
        ),
    )
}


#: What a VMM has to know of the errata that flags tell of: by name, for flags of two makes are equal.
ERRATA: dict[str, str] = {
    "ERRATA_772415_SPR17": "no mapping under a nest parent may be read-only",
    "ERRATA_REPEAT_TLBI_CFGI": "invalidations are issued twice: by the kernel for commands that it takes, by the guest "
    "in a queue of its own, and no ID register says so",
}


class Decoded(NamedTuple):
    """Hardware information, decoded. `family` is None, and nothing is told, where the type is not known here."""

    family: Family | None
    words: dict[str, Word]
    #: What the structure's flags say beside the registers: errata.
    flags: int


def decode(info: Info) -> Decoded:
    """The registers in hardware information. ValueError: fewer bytes than the type's first version has."""
    family = FAMILIES.get(info.type)
    if family is None:
        return Decoded(None, {}, 0)
    size = family.struct.MIN_SIZE
    if len(info.data) < size:
        raise ValueError(f"{family.kind.name} has {size} bytes of hardware information, and here are {len(info.data)}")
    raw = family.struct.from_bytes(info.data)
    values = family.values(raw)
    words = {register.name: register.word(value) for register, value in zip(family.registers, values, strict=True)}
    flags = family.flags(getattr(raw, "flags", 0)) if family.flags is not None else 0
    return Decoded(family, words, flags)


_TOLD = {
    HwCapabilities.DIRTY_TRACKING: Capability.DIRTY_TRACKING,
    HwCapabilities.PCI_PASID_EXEC: Capability.PASID_EXEC,
    HwCapabilities.PCI_PASID_PRIV: Capability.PASID_PRIV,
}


def told(info: Info) -> Capability:
    """What hardware information says of the kernel. Where it says nothing of ATS, the uAPI means that there may be."""
    found = Capability(0)
    for bit, capability in _TOLD.items():
        if info.capabilities & bit:
            found |= capability
    for capability, mask in EXTENSIONS.items():
        if info.capabilities & mask:
            found |= capability
    if info.pasid_bits:
        found |= Capability.PASID
    if not info.capabilities & HwCapabilities.PCI_ATS_NOT_SUPPORTED:
        found |= Capability.ATS
    return found
