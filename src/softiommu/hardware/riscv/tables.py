"""Device and process directories, and MSI page tables. RISC-V IOMMU 1.0, chapter "Data structures"."""

from __future__ import annotations

from enum import IntEnum

from softiommu.hardware.riscv.registers import DdtpMode
from softiommu.words import Word, bit, bits


class DirectoryEntry(Word):
    """Non-leaf entry of a device or process directory."""

    V = bit(0)
    PPN = bits(53, 10)


class Tc(Word):
    """Device context, translation control."""

    V = bit(0)
    EN_ATS = bit(1)
    EN_PRI = bit(2)
    T2GPA = bit(3)
    DTF = bit(4)
    PDTV = bit(5)
    PRPR = bit(6)
    GADE = bit(7)
    SADE = bit(8)
    DPE = bit(9)
    SBE = bit(10)
    SXL = bit(11)
    CUSTOM = bits(31, 24)


class SecondMode(IntEnum):
    """iohgatp.MODE with fctl.GXL = 0."""

    BARE = 0
    SV39X4 = 8
    SV48X4 = 9
    SV57X4 = 10


class FirstMode(IntEnum):
    """iosatp.MODE with SXL = 0."""

    BARE = 0
    SV39 = 8
    SV48 = 9
    SV57 = 10


class PdtMode(IntEnum):
    """pdtp.MODE."""

    BARE = 0
    PD8 = 1
    PD17 = 2
    PD20 = 3


class MsiMode(IntEnum):
    """msiptp.MODE."""

    OFF = 0
    FLAT = 1


class Iohgatp(Word):
    """Device context, second stage."""

    PPN = bits(43, 0)
    GSCID = bits(59, 44)
    MODE = bits(63, 60, SecondMode)


class DeviceTa(Word):
    """Device context, translation attributes."""

    PSCID = bits(31, 12)
    RCID = bits(51, 40)
    MCID = bits(63, 52)


class Iosatp(Word):
    """First stage: of a device context without PDTV, and of a process context."""

    PPN = bits(43, 0)
    MODE = bits(63, 60, FirstMode)


class Pdtp(Word):
    """Process directory of a device context with PDTV."""

    PPN = bits(43, 0)
    MODE = bits(63, 60, PdtMode)


class Msiptp(Word):
    """Device context, extended format: MSI page table."""

    PPN = bits(43, 0)
    MODE = bits(63, 60, MsiMode)


class MsiPages(Word):
    """msi_addr_mask and msi_addr_pattern: page numbers."""

    PAGES = bits(51, 0)


class ProcessTa(Word):
    """Process context, translation attributes."""

    V = bit(0)
    ENS = bit(1)
    SUM = bit(2)
    PSCID = bits(31, 12)


class MsiPteMode(IntEnum):
    """Which kind of MSI page table entry."""

    MRIF = 1
    BASIC = 3


class MsiPte(Word):
    """MSI page table entry in basic mode, word 0. Word 1 is ignored."""

    V = bit(0)
    M = bits(2, 1, MsiPteMode)
    PPN = bits(53, 10)
    C = bit(63)


class MrifPte0(Word):
    """MSI page table entry in MRIF mode, word 0: where the interrupt file lies in memory (address bits 55:9)."""

    V = bit(0)
    M = bits(2, 1, MsiPteMode)
    ADDR = bits(53, 7)
    C = bit(63)


class MrifPte1(Word):
    """MSI page table entry in MRIF mode, word 1: the notice MSI's data and page."""

    N_LOW = bits(9, 0)
    NPPN = bits(53, 10)
    N_HIGH = bit(60)


#: Bytes of a device context, base and extended, and of a process context.
BASE_DC, EXTENDED_DC, PC = 32, 64, 16

#: Lowest bit of DDI[0], DDI[1] and DDI[2] of a device id, and its width.
BASE_DDI = (0, 7, 16, 24)
EXTENDED_DDI = (0, 6, 15, 24)
#: The same of PDI of a process id.
PDI = (0, 8, 17, 20)

#: Levels of directories by mode.
DDT_LEVELS = {DdtpMode.LEVEL1: 1, DdtpMode.LEVEL2: 2, DdtpMode.LEVEL3: 3}
PDT_LEVELS = {PdtMode.PD8: 1, PdtMode.PD17: 2, PdtMode.PD20: 3}
#: Bits of the process ids that a process directory has places for; without one they are all taken.
PDT_WIDTH = {PdtMode.BARE: 20, PdtMode.PD8: 8, PdtMode.PD17: 17, PdtMode.PD20: 20}

#: The formats of page tables by mode.
FIRST_STAGE = {FirstMode.SV39: "riscv-sv39", FirstMode.SV48: "riscv-sv48", FirstMode.SV57: "riscv-sv57"}
SECOND_STAGE = {SecondMode.SV39X4: "riscv-sv39x4", SecondMode.SV48X4: "riscv-sv48x4", SecondMode.SV57X4: "riscv-sv57x4"}


def directory_index(level: int, number: int, places: tuple[int, int, int, int]) -> int:
    """DDI[level] or PDI[level] of a device or process id."""
    return number >> places[level] & (1 << places[level + 1] - places[level]) - 1
