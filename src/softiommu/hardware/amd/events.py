"""Records of the event log and of the PPR log. AMD IOMMU specification 48882, 2.5 and 2.6."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from softiommu.words import Word, bit, bits

RECORD_SIZE = 16


class Code(IntEnum):
    """Event codes (bits 63:60 of a record's first word)."""

    ILLEGAL_DEV_TABLE_ENTRY = 1
    IO_PAGE_FAULT = 2
    DEV_TAB_HARDWARE_ERROR = 3
    PAGE_TAB_HARDWARE_ERROR = 4
    ILLEGAL_COMMAND_ERROR = 5
    COMMAND_HARDWARE_ERROR = 6
    IOTLB_INV_TIMEOUT = 7
    INVALID_DEVICE_REQUEST = 8
    INVALID_PPR_REQUEST = 9
    EVENT_COUNTER_ZERO = 0xA
    GUEST_EVENT_FAULT = 0xB
    VIOMMU_HARDWARE_ERROR = 0xC
    RMP_PAGE_FAULT = 0xD
    RMP_HARDWARE_ERROR = 0xE


class HardwareError(IntEnum):
    """What kind of hardware error (events 3, 4 and 6)."""

    MASTER_ABORT = 1
    TARGET_ABORT = 2
    DATA_ERROR = 3


class BadRequest(IntEnum):
    """INVALID_DEVICE_REQUEST, type of a request that is not a translation request (2.5.9)."""

    READ_IN_INTERRUPT_RANGE = 0
    PRETRANSLATED = 1
    PORT_IO = 2
    SYSTEM_MANAGEMENT_WRITE = 3
    SYSTEM_MANAGEMENT_READ = 4
    INTERRUPT = 5
    #: A PASID of a device that has no guest tables. The number is our reading: the list we know does not name it.
    PASID = 7


class BadTranslationRequest(IntEnum):
    """INVALID_DEVICE_REQUEST, type of a translation request (2.5.9)."""

    NOT_ALLOWED = 0
    BAD_PASID = 2


class DeviceEvent(Word):
    """Word 0 of events 1 to 4. DOMAIN is PASID[15:0] when GN is set."""

    DeviceID = bits(15, 0)
    PASID19_16 = bits(19, 16)
    DOMAIN = bits(47, 32)
    GN = bit(48)
    NX = bit(49)
    US = bit(50)
    I = bit(51)  # noqa: E741 - the manual's name
    PR = bit(52)
    RW = bit(53)
    PE = bit(54)
    RZ = bit(55)
    TR = bit(56)
    TYPE = bits(58, 57)
    CODE = bits(63, 60, Code)


class RequestEvent(Word):
    """Word 0 of event 8, whose type has three bits, and which has other flags."""

    DeviceID = bits(15, 0)
    PASID19_16 = bits(19, 16)
    DOMAIN = bits(47, 32)
    GN = bit(48)
    US = bit(49)
    TR = bit(56)
    TYPE = bits(59, 57)
    CODE = bits(63, 60, Code)


class CommandEvent(Word):
    """Word 0 of events 5 to 7, whose word 1 is the command's address. DeviceID: event 7; TYPE: event 6."""

    DeviceID = bits(15, 0)
    TYPE = bits(58, 57)
    CODE = bits(63, 60, Code)


class PprRecord(Word):
    """Word 0 of a PPR log record, and of event 9."""

    DeviceID = bits(15, 0)
    PASID15_0 = bits(31, 16)
    TAG = bits(40, 32)
    LAST = bit(41)
    PASID19_16 = bits(45, 42)
    EXEC = bit(49)
    READ = bit(50)
    WRITE = bit(53)
    USER = bit(54)
    RESERVED_BIT = bit(55)
    GN = bit(56)
    CODE = bits(63, 60)


class Record(NamedTuple):
    """A record as it lies in a log."""

    low: int
    high: int
