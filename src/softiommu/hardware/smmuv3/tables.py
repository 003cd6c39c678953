"""Stream table entries and context descriptors. Arm IHI 0070, chapter 5."""

from __future__ import annotations

from enum import IntEnum

from softiommu.words import Word, bit, bits

STE_BYTES = CD_BYTES = 64


class Config(IntEnum):
    """STE.Config (5.2); 0 to 3 abort."""

    ABORT = 0
    BYPASS = 4
    S1 = 5
    S2 = 6
    NEST = 7


class S1Fmt(IntEnum):
    """How the table of context descriptors is built."""

    LINEAR = 0
    LEAVES_4K = 1
    LEAVES_64K = 2


#: Of a two-level table of context descriptors: log2 of the descriptors in a leaf.
LEAF_LG2 = {S1Fmt.LEAVES_4K: 6, S1Fmt.LEAVES_64K: 10}


class S1Dss(IntEnum):
    """What happens to transactions without substream."""

    TERMINATE = 0
    BYPASS = 1
    SSID0 = 2


class Eats(IntEnum):
    """What ATS the stream may use."""

    OFF = 0
    FULL = 1
    SPLIT = 2


class Strw(IntEnum):
    """Whose translation regime stage 1 is (StreamWorld)."""

    NS_EL1 = 0
    EL2 = 2


class Override(IntEnum):
    """STE.PRIVCFG and INSTCFG: 0 and 1 leave what came in."""

    OFF = 2
    ON = 3


class L1Std(Word):
    """Level-1 stream table descriptor (5.1)."""

    SPAN = bits(4, 0)
    L2PTR = bits(51, 6)


class Ste0(Word):
    """STE, word 0 (5.2)."""

    V = bit(0)
    CONFIG = bits(3, 1, Config)
    S1FMT = bits(5, 4, S1Fmt)
    S1CONTEXTPTR = bits(55, 6)
    S1CDMAX = bits(63, 59)


class Ste1(Word):
    """STE, word 1."""

    S1DSS = bits(1, 0, S1Dss)
    S1CIR = bits(3, 2)
    S1COR = bits(5, 4)
    S1CSH = bits(7, 6)
    S2HWU = bits(11, 8)
    DRE = bit(12)
    CONT = bits(16, 13)
    DCP = bit(17)
    PPAR = bit(18)
    MEV = bit(19)
    SW = bits(23, 20)
    S1PIE = bit(24)
    S2FWB = bit(25)
    S1MPAM = bit(26)
    S1STALLD = bit(27)
    EATS = bits(29, 28, Eats)
    STRW = bits(31, 30, Strw)
    MEMATTR = bits(35, 32)
    MTCFG = bit(36)
    ALLOCCFG = bits(40, 37)
    SHCFG = bits(45, 44)
    NSCFG = bits(47, 46)
    PRIVCFG = bits(49, 48)
    INSTCFG = bits(51, 50)


class Ste2(Word):
    """STE, word 2."""

    S2VMID = bits(15, 0)
    S2T0SZ = bits(37, 32)
    S2SL0 = bits(39, 38)
    S2IR0 = bits(41, 40)
    S2OR0 = bits(43, 42)
    S2SH0 = bits(45, 44)
    S2TG = bits(47, 46)
    S2PS = bits(50, 48)
    S2AA64 = bit(51)
    S2ENDI = bit(52)
    S2AFFD = bit(53)
    S2PTW = bit(54)
    S2HD = bit(55)
    S2HA = bit(56)
    S2S = bit(57)
    S2R = bit(58)


class Ste3(Word):
    """STE, word 3."""

    S2NSW = bit(0)
    S2NSA = bit(1)
    S2SL0_2 = bit(2)
    S2DS = bit(3)
    S2TTB = bits(55, 4)


class L1Cd(Word):
    """Level-1 context descriptor (5.3)."""

    V = bit(0)
    L2PTR = bits(55, 12)


class Cd0(Word):
    """Context descriptor, word 0 (5.4)."""

    T0SZ = bits(5, 0)
    TG0 = bits(7, 6)
    IR0 = bits(9, 8)
    OR0 = bits(11, 10)
    SH0 = bits(13, 12)
    EPD0 = bit(14)
    ENDI = bit(15)
    T1SZ = bits(21, 16)
    TG1 = bits(23, 22)
    IR1 = bits(25, 24)
    OR1 = bits(27, 26)
    SH1 = bits(29, 28)
    EPD1 = bit(30)
    V = bit(31)
    IPS = bits(34, 32)
    AFFD = bit(35)
    WXN = bit(36)
    UWXN = bit(37)
    TBI0 = bit(38)
    TBI1 = bit(39)
    PAN = bit(40)
    AA64 = bit(41)
    HD = bit(42)
    HA = bit(43)
    S = bit(44)
    R = bit(45)
    A = bit(46)
    ASET = bit(47)
    ASID = bits(63, 48)


class Cd1(Word):
    """Context descriptor, word 1."""

    NSCFG0 = bit(0)
    HAD0 = bit(1)
    E0PD0 = bit(2)
    HAFT = bit(3)
    TTB0 = bits(55, 4)
    HWU0 = bits(63, 60)


class Cd2(Word):
    """Context descriptor, word 2."""

    NSCFG1 = bit(0)
    HAD1 = bit(1)
    E0PD1 = bit(2)
    AIE = bit(3)
    TTB1 = bits(55, 4)
    DS = bit(58)
    PIE = bit(59)
    HWU1 = bits(63, 60)


class Cd3(Word):
    """Context descriptor, word 3."""

    MAIR0 = bits(31, 0)
    MAIR1 = bits(63, 32)


#: log2 of a granule by its code, which is one for TTB0 and stage 2, and another one for TTB1.
TG0 = {0: 12, 1: 16, 2: 14}
TG1 = {1: 14, 2: 12, 3: 16}

#: The level (3 holds pages) at which stage 2 starts, by the granule and S2SL0.
START_LEVELS = {
    12: {0: 2, 1: 1, 2: 0, 3: 3},
    14: {0: 3, 1: 2, 2: 1, 3: 0},
    16: {0: 3, 1: 2, 2: 1},
}
