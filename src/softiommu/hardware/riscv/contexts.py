"""What device and process contexts say, decoded and checked. RISC-V IOMMU 1.0, "Device-context configuration checks".

Software changes a context and tells the IOMMU by IODIR; until then the IOMMU goes by what it decoded.
"""

from __future__ import annotations

from typing import NamedTuple

from softiommu.hardware.riscv.registers import Capabilities
from softiommu.hardware.riscv.tables import (
    FIRST_STAGE,
    SECOND_STAGE,
    DeviceTa,
    FirstMode,
    Iohgatp,
    Iosatp,
    MsiMode,
    MsiPages,
    Msiptp,
    PdtMode,
    Pdtp,
    ProcessTa,
    SecondMode,
    Tc,
)
from softiommu.pagetable.formats import VARIANTS, riscv
from softiommu.pagetable.kinds import HW_ACCESSED, HW_DIRTY
from softiommu.pagetable.nested import Stage

#: In place of a GSCID or PSCID: there is no such stage.
NO_ID = -1

_FIRST_CAPABILITY: dict[int, str] = {FirstMode.SV39: "SV39", FirstMode.SV48: "SV48", FirstMode.SV57: "SV57"}
_SECOND_CAPABILITY: dict[int, str] = {
    SecondMode.SV39X4: "SV39X4",
    SecondMode.SV48X4: "SV48X4",
    SecondMode.SV57X4: "SV57X4",
}
_PDT_CAPABILITY: dict[int, str] = {PdtMode.PD8: "PD8", PdtMode.PD17: "PD17", PdtMode.PD20: "PD20"}


class InterruptFiles(NamedTuple):
    """Which guest pages are interrupt files, and their table."""

    table: int
    mask: int
    pattern: int

    def covers(self, gpa: int) -> bool:
        """Whether an address is in an interrupt file's page."""
        return (gpa >> 12 ^ self.pattern) & ~self.mask == 0

    def meets(self, gpa: int, lg2: int) -> bool:
        """Whether the 2**lg2 bytes around an address have such a page."""
        return (gpa >> 12 ^ self.pattern) & ~self.mask >> lg2 - 12 << lg2 - 12 == 0

    def file(self, gpa: int) -> int:
        """The interrupt file's number: the page's bits that the mask selects, packed."""
        page, number, at = gpa >> 12, 0, 0
        for place in range(self.mask.bit_length()):
            if self.mask >> place & 1:
                number |= (page >> place & 1) << at
                at += 1
        return number


class Space(NamedTuple):
    """A first stage: of a device context, or of a process context; None: Bare."""

    first: Stage | None = None
    pscid: int = NO_ID
    #: PC.ta.ENS: the process's supervisor may ask, too.
    ens: bool = False


class Device(NamedTuple):
    """A device context."""

    tc: Tc
    #: With PDTV = 0; else that of a request without a process: Bare.
    space: Space
    #: With PDTV = 1.
    pdtp: Pdtp
    second: Stage | None
    gscid: int
    msi: InterruptFiles | None


BARE = Space()


class Decoder:
    """Checks contexts and decodes them, as these capabilities have it."""

    def __init__(self, capabilities: Capabilities) -> None:
        self._capabilities = capabilities
        widths = (("SV57X4", 59), ("SV48X4", 50), ("SV39X4", 41))
        self._gpa_bits = next((bits for name, bits in widths if getattr(capabilities, name)), capabilities.PAS)

    def device(self, words: list[int]) -> Device | None:
        """The device context; None: misconfigured. `words` are 4 or 8, the first with V set."""
        tc, hgatp, ta = Tc(words[0]), Iohgatp(words[1]), DeviceTa(words[2])
        if self._has_reserved(tc, ta, words) or not self._flags_agree(tc, hgatp):
            return None
        if not self._first_is_right(tc, words[3]) or not self._second_is_right(hgatp):
            return None
        msi = None
        if len(words) > 4:
            msiptp = Msiptp(words[4])
            if msiptp.MODE not in (MsiMode.OFF, MsiMode.FLAT):
                return None
            if msiptp.MODE == MsiMode.FLAT:
                if hgatp.MODE == SecondMode.BARE:
                    return None
                msi = InterruptFiles(msiptp.PPN << 12, words[5], words[6])
        bare = hgatp.MODE == SecondMode.BARE
        second = None if bare else self._second(hgatp, tc)
        space = BARE if tc.PDTV else self._space(Iosatp(words[3]), tc, ta.PSCID, bare)
        return Device(tc, space, Pdtp(words[3]), second, NO_ID if bare else hgatp.GSCID, msi)

    def _has_reserved(self, tc: Tc, ta: DeviceTa, words: list[int]) -> bool:
        """Check 1."""
        if tc.reserved or ta.reserved or Iosatp(words[3]).reserved:
            return True
        if not self._capabilities.QOSID and (ta.RCID or ta.MCID):
            return True
        if len(words) == 4:
            return False
        beyond = MsiPages.RESERVED | -1 << self._gpa_bits - 12
        return bool(Msiptp(words[4]).reserved or (words[5] | words[6]) & beyond or words[7])

    def _flags_agree(self, tc: Tc, hgatp: Iohgatp) -> bool:
        """Checks 2 to 5, 8, and 12 to 14 (this IOMMU has one endianness, and GXL is 0)."""
        have = self._capabilities
        wrong = (
            (not have.ATS and (tc.EN_ATS or tc.EN_PRI or tc.PRPR))
            or (not tc.EN_ATS and (tc.T2GPA or tc.EN_PRI))
            or (not tc.EN_PRI and tc.PRPR)
            or (tc.T2GPA and (not have.T2GPA or hgatp.MODE == SecondMode.BARE))
            or (not tc.PDTV and tc.DPE)
            or (not have.AMO_HWAD and (tc.SADE or tc.GADE))
            or tc.SBE
            or tc.SXL
        )
        return not wrong

    def _first_is_right(self, tc: Tc, fsc: int) -> bool:
        """Checks 6 and 7."""
        if not tc.PDTV:
            return self.has_first(Iosatp(fsc).MODE)
        mode = Pdtp(fsc).MODE
        return mode == PdtMode.BARE or self._has(_PDT_CAPABILITY.get(mode))

    def _second_is_right(self, hgatp: Iohgatp) -> bool:
        """Checks 9 and 10."""
        if hgatp.MODE == SecondMode.BARE:
            return True
        return self._has(_SECOND_CAPABILITY.get(hgatp.MODE)) and not hgatp.PPN & 3

    def has_first(self, mode: int) -> bool:
        """Whether there is such a first stage (SXL is 0)."""
        return mode == FirstMode.BARE or self._has(_FIRST_CAPABILITY.get(mode))

    def _has(self, capability: str | None) -> bool:
        return capability is not None and bool(getattr(self._capabilities, capability))

    def process(self, words: list[int], device: Device) -> Space | None:
        """The process context; None: misconfigured. `words` are 2, the first with V set."""
        ta, satp = ProcessTa(words[0]), Iosatp(words[1])
        if ta.reserved or satp.reserved or not self.has_first(satp.MODE):
            return None
        space = self._space(satp, device.tc, ta.PSCID, device.second is None)
        if space.first is not None and ta.SUM:
            table = space.first.table
            space = space._replace(first=Stage(table._replace(option=table.option | riscv.SUM), space.first.root))
        return space._replace(ens=bool(ta.ENS))

    def _space(self, satp: Iosatp, tc: Tc, pscid: int, physical: bool) -> Space:
        if satp.MODE == FirstMode.BARE:
            return BARE
        return Space(self._stage(FIRST_STAGE[satp.MODE], satp.PPN, bool(tc.SADE), physical), pscid)

    def _second(self, hgatp: Iohgatp, tc: Tc) -> Stage:
        return self._stage(SECOND_STAGE[hgatp.MODE], hgatp.PPN, bool(tc.GADE), True)

    def _stage(self, name: str, ppn: int, updates: bool, physical: bool) -> Stage:
        """A stage; the output of the last one is physical, and so no wider than PAS."""
        table = VARIANTS[name]
        option = table.option
        if updates:
            option |= HW_ACCESSED | HW_DIRTY
        if not self._capabilities.SVPBMT:
            option |= riscv.NO_PBMT
        if self._capabilities.SVRSW60T59B:
            option |= riscv.MORE_RSW
        width = self._capabilities.PAS if physical else table.output_bits
        return Stage(table._replace(option=option, output_bits=width), ppn << 12)
