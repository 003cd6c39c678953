"""The IOMMU's registers and its PCI capability block. AMD IOMMU specification 48882, chapter 3."""

from __future__ import annotations

from softiommu.registers import RegisterFile, array, reg, ro, rw, w1c
from softiommu.words import Word, bit, bits


class Efr(Word):
    """Extended features (3.4.3, MMIO 0x30)."""

    PreFSup = bit(0)
    PPRSup = bit(1)
    XTSup = bit(2)
    NXSup = bit(3)
    GTSup = bit(4)
    IASup = bit(6)
    GASup = bit(7)
    HESup = bit(8)
    PCSup = bit(9)
    HATS = bits(11, 10)
    GATS = bits(13, 12)
    GLXSup = bits(15, 14)
    SmiFSup = bits(17, 16)
    SmiFRC = bits(20, 18)
    GAMSup = bits(23, 21)
    DualPprLogSup = bits(25, 24)
    DualEventLogSup = bits(29, 28)
    PASmax = bits(36, 32)
    USSup = bit(37)
    DevTblSegSup = bits(39, 38)
    PprOvrflwEarlySup = bit(40)
    PprAutoRspSup = bit(41)
    MarcSup = bits(43, 42)
    BlkStopMrkSup = bit(44)
    PerfOptSup = bit(45)
    MsiCapMmioSup = bit(46)
    GIoSup = bit(48)
    HASup = bit(49)
    EPHSup = bit(50)
    AttrFWSup = bit(51)
    HDSup = bit(52)
    InvIotlbTypeSup = bit(54)
    GAUpdateDisSup = bit(61)
    ForcePhyDestSup = bit(62)
    SNPSup = bit(63)


class Efr2(Word):
    """Extended features 2 (MMIO 0x1A0)."""

    SEVSNPIOSup = bit(1)
    GCR3TRPModeSup = bit(3)
    SNPAVICSup = bits(7, 5)
    NumIntRemapSup = bits(9, 8)
    HTRangeIgnore = bit(11)


class Control(Word):
    """Control (3.4.2, MMIO 0x18)."""

    IommuEn = bit(0)
    HtTunEn = bit(1)
    EventLogEn = bit(2)
    EventIntEn = bit(3)
    ComWaitIntEn = bit(4)
    InvTimeOut = bits(7, 5)
    PassPW = bit(8)
    ResPassPW = bit(9)
    Coherent = bit(10)
    Isoc = bit(11)
    CmdBufEn = bit(12)
    PprLogEn = bit(13)
    PprIntEn = bit(14)
    PPREn = bit(15)
    GTEn = bit(16)
    GAEn = bit(17)
    CRW = bits(21, 18)
    SmiFEn = bit(22)
    SlfWBDis = bit(23)
    SmiFLogEn = bit(24)
    GAMEn = bits(27, 25)
    GALogEn = bit(28)
    GAIntEn = bit(29)
    DualPprLogEn = bits(31, 30)
    DualEventLogEn = bits(33, 32)
    DevTblSegEn = bits(36, 34)
    PrivAbrtEn = bits(38, 37)
    PprAutoRspEn = bit(39)
    MarcEn = bit(40)
    BlkStopMrkEn = bit(41)
    PprAutoRspAon = bit(42)
    NumIntRemapMode = bits(44, 43)
    EPHEn = bit(45)
    HADUpdate = bits(47, 46)
    GDUpdateDis = bit(48)
    XTEn = bit(50)
    IntCapXTEn = bit(51)
    GAUpdateDis = bit(54)
    GCR3TRPMode = bit(58)
    IRTCacheDis = bit(59)
    SNPAVICEn = bit(61)


class Status(Word):
    """Status (3.4.16, MMIO 0x2020)."""

    EventOverflow = bit(0)
    EventLogInt = bit(1)
    ComWaitInt = bit(2)
    EventLogRun = bit(3)
    CmdBufRun = bit(4)
    PprOverflow = bit(5)
    PprInt = bit(6)
    PprLogRun = bit(7)
    GALogRun = bit(8)
    GALOverflow = bit(9)
    GAInt = bit(10)
    PprOverflowB = bit(11)
    PprLogActive = bit(12)
    EvtOverflowB = bit(15)
    EvtLogActive = bit(16)
    PprOverflowEarlyB = bit(17)
    PprOverflowEarly = bit(18)


class DeviceTableBase(Word):
    """Device table base: (SIZE + 1) pages at BASE (3.4.1)."""

    SIZE = bits(8, 0)
    BASE = bits(51, 12)


class SegmentBase(Word):
    """Base of a further device table segment."""

    SIZE = bits(7, 0)
    BASE = bits(51, 12)


class RingBase(Word):
    """Base of the command buffer or of a log, which has 2**LEN entries."""

    BASE = bits(51, 12)
    LEN = bits(59, 56)


class RingPointer(Word):
    """Head or tail of the command buffer or of a log: a byte offset."""

    OFFSET = bits(18, 4)


class ExclusionBase(Word):
    """Exclusion range, first page (3.4.4)."""

    ExEn = bit(0)
    Allow = bit(1)
    ADDR = bits(51, 12)


class ExclusionLimit(Word):
    """Exclusion range, last page."""

    ADDR = bits(51, 12)


class HardwareEventStatus(Word):
    """Whether the hardware event registers hold an event."""

    HEV = bit(0)
    HEO = bit(1)


class Plain(Word):
    """A register without fields."""

    VALUE = bits(63, 0)


class Plain32(Word, width=32):
    """Half of one."""

    VALUE = bits(31, 0)


class MsiHeader(Word, width=32):
    """The header of the MSI capability, as MMIO shows it (0x158)."""

    CapId = bits(7, 0)
    Next = bits(15, 8)
    MsiEn = bit(16)
    MultMessCap = bits(19, 17)
    MultMessEn = bits(22, 20)
    Msi64En = bit(23)


class CapabilityHeader(Word, width=32):
    """PCI capability block, offset 0 (3.2.1)."""

    CapId = bits(7, 0)
    Next = bits(15, 8)
    CapType = bits(18, 16)
    CapRev = bits(23, 19)
    IotlbSup = bit(24)
    HtTunnel = bit(25)
    NpCache = bit(26)
    EFRSup = bit(27)
    CapExt = bit(28)


class BaseLow(Word, width=32):
    """PCI capability block, offset 4: where the registers are."""

    Enable = bit(0)
    ADDR = bits(31, 14)


class DeviceRange(Word, width=32):
    """PCI capability block, offset 0xC: which functions are behind the IOMMU."""

    UnitID = bits(4, 0)
    RngValid = bit(7)
    BusNumber = bits(15, 8)
    FirstDevice = bits(23, 16)
    LastDevice = bits(31, 24)


class MiscInfo0(Word, width=32):
    """PCI capability block, offset 0x10: widths of addresses, and MSI numbers."""

    MsiNum = bits(4, 0)
    GVAsize = bits(7, 5)
    PAsize = bits(14, 8)
    VAsize = bits(21, 15)
    HtAtsResv = bit(22)
    MsiNumPPR = bits(31, 27)


class MiscInfo1(Word, width=32):
    """PCI capability block, offset 0x14."""

    MsiNumGA = bits(4, 0)


class CapabilityBlock(RegisterFile):
    """What software finds in the IOMMU's PCI configuration space, from the capability's own offset on.

    HEADER is set when the hardware is made.
    """

    HEADER = reg(0x00, CapabilityHeader, ro)
    BASE_LOW = reg(0x04, BaseLow, rw)
    BASE_HIGH = reg(0x08, Plain32, rw)
    RANGE = reg(0x0C, DeviceRange, ro)
    MISC0 = reg(0x10, MiscInfo0, ro, MiscInfo0.of(GVAsize=2, PAsize=52, VAsize=64))
    MISC1 = reg(0x14, MiscInfo1, ro)


class Registers(RegisterFile):
    """What software sees at the MMIO base. EFR and EFR2 are set when the hardware is made."""

    DEVTAB_BASE = reg(0x0000, DeviceTableBase, rw)
    CMD_BASE = reg(0x0008, RingBase, rw, RingBase.of(LEN=8))
    EVENT_BASE = reg(0x0010, RingBase, rw, RingBase.of(LEN=8))
    CONTROL = reg(0x0018, Control, rw)
    EXCL_BASE = reg(0x0020, ExclusionBase, rw)
    EXCL_LIMIT = reg(0x0028, ExclusionLimit, rw)
    EFR = reg(0x0030, Efr, ro)
    PPR_BASE = reg(0x0038, RingBase, rw, RingBase.of(LEN=8))
    HWEV_HIGH = reg(0x0040, Plain, rw)
    HWEV_LOW = reg(0x0048, Plain, rw)
    HWEV_STATUS = reg(0x0050, HardwareEventStatus, w1c)
    SEGMENT_BASE = array(reg(0x0100, SegmentBase, rw), count=7, stride=8)
    DEVICE_FEATURE = reg(0x0138, Plain, ro)
    DEVICE_CONTROL = reg(0x0140, Plain, rw)
    DEVICE_STATUS = reg(0x0148, Plain, ro)
    MSI_VECTOR0 = reg(0x0150, Plain32, ro)
    MSI_VECTOR1 = reg(0x0154, Plain32, ro)
    MSI_HEADER = reg(0x0158, MsiHeader, ro, MsiHeader.of(CapId=5, Msi64En=1), MsiEn=rw, MultMessEn=rw)
    MSI_ADDR_LOW = reg(0x015C, Plain32, rw)
    MSI_ADDR_HIGH = reg(0x0160, Plain32, rw)
    MSI_DATA = reg(0x0164, Plain32, rw)
    EFR2 = reg(0x01A0, Efr2, ro)
    CMD_HEAD = reg(0x2000, RingPointer, rw)
    CMD_TAIL = reg(0x2008, RingPointer, rw)
    EVENT_HEAD = reg(0x2010, RingPointer, rw)
    EVENT_TAIL = reg(0x2018, RingPointer, rw)
    STATUS = reg(
        0x2020,
        Status,
        ro,
        EventOverflow=w1c,
        EventLogInt=w1c,
        ComWaitInt=w1c,
        PprOverflow=w1c,
        PprInt=w1c,
        GALOverflow=w1c,
        GAInt=w1c,
    )
    PPR_HEAD = reg(0x2030, RingPointer, rw)
    PPR_TAIL = reg(0x2038, RingPointer, rw)


#: Registers that only hardware with a feature has.
REQUIRED_FEATURE = {
    "HWEV_HIGH": "HESup",
    "HWEV_LOW": "HESup",
    "HWEV_STATUS": "HESup",
    "PPR_BASE": "PPRSup",
    "PPR_HEAD": "PPRSup",
    "PPR_TAIL": "PPRSup",
    "SEGMENT_BASE": "DevTblSegSup",
    "MSI_HEADER": "MsiCapMmioSup",
    "MSI_ADDR_LOW": "MsiCapMmioSup",
    "MSI_ADDR_HIGH": "MsiCapMmioSup",
    "MSI_DATA": "MsiCapMmioSup",
}

#: Fields of Control that stay 0 on hardware without a feature.
REQUIRED_FOR_CONTROL = {
    "PprLogEn": "PPRSup",
    "PprIntEn": "PPRSup",
    "PPREn": "PPRSup",
    "GTEn": "GTSup",
    "GAEn": "GASup",
    "GALogEn": "GASup",
    "GAIntEn": "GASup",
    "GAMEn": "GAMSup",
    "SmiFEn": "SmiFSup",
    "SmiFLogEn": "SmiFSup",
    "DualPprLogEn": "DualPprLogSup",
    "DualEventLogEn": "DualEventLogSup",
    "DevTblSegEn": "DevTblSegSup",
    "PprAutoRspEn": "PprAutoRspSup",
    "PprAutoRspAon": "PprAutoRspSup",
    "MarcEn": "MarcSup",
    "BlkStopMrkEn": "BlkStopMrkSup",
    "EPHEn": "EPHSup",
    "XTEn": "XTSup",
    "IntCapXTEn": "XTSup",
}
