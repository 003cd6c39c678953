"""What lies in a function's configuration space: the registers of the header and of the capabilities.

PCI Express Base Specification 5.0, chapter 7; PCI Bus Power Management 1.2, chapter 3.
"""

from __future__ import annotations

from enum import IntEnum

from softiommu.registers import RegisterFile, array, reg, ro, rw, w1c
from softiommu.words import Word, bit, bits


class CapabilityId(IntEnum):
    """Capabilities, by their id (PCI Code and ID Assignment 1.11, 2)."""

    POWER = 0x01
    MSI = 0x05
    VENDOR = 0x09
    EXPRESS = 0x10
    MSIX = 0x11


class ExtendedId(IntEnum):
    """Extended capabilities, by their id (PCI Code and ID Assignment 1.11, 3)."""

    ATS = 0x0F
    PRI = 0x13
    PASID = 0x1B


class Value8(Word, width=8):
    """A byte without fields."""

    VALUE = bits(7, 0)


class Value16(Word, width=16):
    """A word without fields."""

    VALUE = bits(15, 0)


class Value24(Word, width=24):
    """The class code: base class, subclass, programming interface."""

    VALUE = bits(23, 0)


class Value32(Word, width=32):
    """A double word without fields."""

    VALUE = bits(31, 0)


class Command(Word, width=16):
    """Command register (7.5.1.1.3). What PCI Express hardwires to 0 has no name."""

    IO = bit(0)
    MEMORY = bit(1)
    MASTER = bit(2)
    PARITY = bit(6)
    SERR = bit(8)
    INTX_DISABLE = bit(10)


class Status(Word, width=16):
    """Status register (7.5.1.1.4)."""

    INTERRUPT = bit(3)
    CAPABILITIES = bit(4)
    MASTER_PARITY = bit(8)
    SIGNALED_TARGET_ABORT = bit(11)
    RECEIVED_TARGET_ABORT = bit(12)
    RECEIVED_MASTER_ABORT = bit(13)
    SERR = bit(14)
    PARITY = bit(15)


class Bar(Word, width=32):
    """The first double word of a memory BAR (7.5.1.2.1), or of an I/O BAR, whose bit 1 is reserved."""

    IO = bit(0)
    WIDE = bit(2)
    PREFETCHABLE = bit(3)
    ADDRESS = bits(31, 4)


class Header(RegisterFile):
    """The type 0 header (7.5.1.1, 7.5.1.2)."""

    VENDOR = reg(0x00, Value16, ro)
    DEVICE = reg(0x02, Value16, ro)
    COMMAND = reg(0x04, Command, rw)
    STATUS = reg(0x06, Status, w1c, INTERRUPT=ro, CAPABILITIES=ro)
    REVISION = reg(0x08, Value8, ro)
    CLASS = reg(0x09, Value24, ro)
    CACHE_LINE = reg(0x0C, Value8, rw)
    LATENCY = reg(0x0D, Value8, ro)
    TYPE = reg(0x0E, Value8, ro)
    BIST = reg(0x0F, Value8, ro)
    BAR = array(reg(0x10, Value32, rw), count=6, stride=4)
    CARDBUS = reg(0x28, Value32, ro)
    SUBSYSTEM_VENDOR = reg(0x2C, Value16, ro)
    SUBSYSTEM_DEVICE = reg(0x2E, Value16, ro)
    ROM = reg(0x30, Value32, ro)
    CAPABILITIES = reg(0x34, Value8, ro)
    INTERRUPT_LINE = reg(0x3C, Value8, rw)
    INTERRUPT_PIN = reg(0x3D, Value8, ro)
    MIN_GRANT = reg(0x3E, Value8, ro)
    MAX_LATENCY = reg(0x3F, Value8, ro)


class CapabilityHeader(Word, width=16):
    """What a capability starts with (7.5.3.1)."""

    ID = bits(7, 0)
    NEXT = bits(15, 8)


class ExtendedHeader(Word, width=32):
    """What an extended capability starts with (7.6.3)."""

    ID = bits(15, 0)
    VERSION = bits(19, 16)
    NEXT = bits(31, 20)


class PowerCapabilities(Word, width=16):
    """PMC (7.5.2.1). D3hot is always there."""

    VERSION = bits(2, 0)
    D1 = bit(9)
    D2 = bit(10)


class PowerControl(Word, width=16):
    """PMCSR (7.5.2.2)."""

    STATE = bits(1, 0)
    NO_SOFT_RESET = bit(3)


class Power(RegisterFile):
    """The power management capability (7.5.2)."""

    HEADER = reg(0x00, CapabilityHeader, ro)
    PMC = reg(0x02, PowerCapabilities, ro)
    PMCSR = reg(0x04, PowerControl, ro, STATE=rw)


class MsiControl(Word, width=16):
    """Message Control for MSI (7.7.1.2): CAPABLE and ENABLED are log2 of how many vectors."""

    ENABLE = bit(0)
    CAPABLE = bits(3, 1)
    ENABLED = bits(6, 4)
    WIDE = bit(7)
    MASKABLE = bit(8)


class MsiAddress(Word):
    """Message Address and Message Upper Address for MSI (7.7.1.3, 7.7.1.4)."""

    ADDRESS = bits(63, 2)


class Msi(RegisterFile):
    """The MSI capability with 64-bit addresses and per-vector masking (7.7.1)."""

    HEADER = reg(0x00, CapabilityHeader, ro)
    CONTROL = reg(0x02, MsiControl, ro, ENABLE=rw, ENABLED=rw)
    ADDRESS = reg(0x04, MsiAddress, rw)
    DATA = reg(0x0C, Value16, rw)
    MASK = reg(0x10, Value32, rw)
    PENDING = reg(0x14, Value32, ro)


class MsixControl(Word, width=16):
    """Message Control for MSI-X (7.7.2.2): LAST is the number of the last vector."""

    LAST = bits(10, 0)
    MASK = bit(14)
    ENABLE = bit(15)


class InBar(Word, width=32):
    """Where a structure lies (7.7.2.3): the number of a BAR, and a multiple of 8 in it."""

    BAR = bits(2, 0)
    OFFSET = bits(31, 3)


class Msix(RegisterFile):
    """The MSI-X capability (7.7.2)."""

    HEADER = reg(0x00, CapabilityHeader, ro)
    CONTROL = reg(0x02, MsixControl, ro, MASK=rw, ENABLE=rw)
    TABLE = reg(0x04, InBar, ro)
    PENDING = reg(0x08, InBar, ro)


class VectorControl(Word, width=32):
    """Vector Control of an MSI-X table entry (7.7.2.8)."""

    MASK = bit(0)


class MsixEntry(RegisterFile):
    """One entry of the MSI-X table (7.7.2.5 and following)."""

    ADDRESS = reg(0x0, MsiAddress, rw)
    DATA = reg(0x8, Value32, rw)
    CONTROL = reg(0xC, VectorControl, rw, reset=1)


class PortType(IntEnum):
    """Device/Port Type of a PCI Express function (7.5.3.2)."""

    ENDPOINT = 0
    ROOT_COMPLEX_ENDPOINT = 9


class ExpressCapabilities(Word, width=16):
    """PCI Express Capabilities register (7.5.3.2)."""

    VERSION = bits(3, 0)
    TYPE = bits(7, 4, PortType)


class DeviceCapabilities(Word, width=32):
    """Device Capabilities (7.5.3.3)."""

    MAX_PAYLOAD = bits(2, 0)
    EXTENDED_TAG = bit(5)
    ROLE_BASED_ERRORS = bit(15)
    FLR = bit(28)


class DeviceControl(Word, width=16):
    """Device Control (7.5.3.4). A write of 1 to FLR resets the function; it reads as 0."""

    CORRECTABLE = bit(0)
    NON_FATAL = bit(1)
    FATAL = bit(2)
    UNSUPPORTED = bit(3)
    RELAXED_ORDERING = bit(4)
    MAX_PAYLOAD = bits(7, 5)
    EXTENDED_TAG = bit(8)
    NO_SNOOP = bit(11)
    MAX_READ = bits(14, 12)
    FLR = bit(15)


class DeviceStatus(Word, width=16):
    """Device Status (7.5.3.5)."""

    CORRECTABLE = bit(0)
    NON_FATAL = bit(1)
    FATAL = bit(2)
    UNSUPPORTED = bit(3)
    PENDING = bit(5)


class Express(RegisterFile):
    """The PCI Express capability of an endpoint without a link of its own (7.5.3): the rest of its 60 bytes is 0."""

    HEADER = reg(0x00, CapabilityHeader, ro)
    CAPABILITIES = reg(0x02, ExpressCapabilities, ro)
    DEVICE_CAPABILITIES = reg(0x04, DeviceCapabilities, ro)
    DEVICE_CONTROL = reg(0x08, DeviceControl, rw, reset=DeviceControl.of(RELAXED_ORDERING=1, NO_SNOOP=1, MAX_READ=2))
    DEVICE_STATUS = reg(0x0A, DeviceStatus, w1c, PENDING=ro)
    DEVICE_CAPABILITIES_2 = reg(0x24, Value32, ro)
    DEVICE_CONTROL_2 = reg(0x28, Value16, ro)


class AtsCapabilities(Word, width=16):
    """ATS Capability register (10.5.1.2)."""

    QUEUE_DEPTH = bits(4, 0)
    PAGE_ALIGNED = bit(5)
    GLOBAL_INVALIDATE = bit(6)


class AtsControl(Word, width=16):
    """ATS Control register (10.5.1.3): STU is log2 of the smallest translation, in 4 KiB."""

    STU = bits(4, 0)
    ENABLE = bit(15)


class Ats(RegisterFile):
    """The ATS extended capability (10.5.1)."""

    HEADER = reg(0x00, ExtendedHeader, ro)
    CAPABILITIES = reg(0x04, AtsCapabilities, ro)
    ATS_CONTROL = reg(0x06, AtsControl, rw)


class PriControl(Word, width=16):
    """Page Request Control register (10.5.2.2)."""

    ENABLE = bit(0)
    RESET = bit(1)


class PriStatus(Word, width=16):
    """Page Request Status register (10.5.2.3)."""

    RESPONSE_FAILURE = bit(0)
    UNEXPECTED_GROUP = bit(1)
    STOPPED = bit(8)
    PASID_REQUIRED = bit(15)


class Pri(RegisterFile):
    """The page request extended capability (10.5.2)."""

    HEADER = reg(0x00, ExtendedHeader, ro)
    PRI_CONTROL = reg(0x04, PriControl, rw)
    STATUS = reg(0x06, PriStatus, ro, reset=PriStatus.of(STOPPED=1), RESPONSE_FAILURE=w1c, UNEXPECTED_GROUP=w1c)
    CAPACITY = reg(0x08, Value32, ro)
    ALLOCATION = reg(0x0C, Value32, rw)


class PasidCapabilities(Word, width=16):
    """PASID Capability register (7.8.8.2)."""

    EXECUTE = bit(1)
    PRIVILEGED = bit(2)
    BITS = bits(12, 8)


class PasidControl(Word, width=16):
    """PASID Control register (7.8.8.3)."""

    ENABLE = bit(0)
    EXECUTE = bit(1)
    PRIVILEGED = bit(2)


class Pasid(RegisterFile):
    """The PASID extended capability (7.8.8)."""

    HEADER = reg(0x00, ExtendedHeader, ro)
    CAPABILITIES = reg(0x04, PasidCapabilities, ro)
    PASID_CONTROL = reg(0x06, PasidControl, rw)
