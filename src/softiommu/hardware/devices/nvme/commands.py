"""Commands, their double words, and status codes. NVM Express 1.4, sections 4.2, 4.6, 5 and 6."""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

from softiommu.words import Word, bit, bits

SUBMISSION_LG2, COMPLETION_LG2 = 6, 4
SUBMISSION_SIZE, COMPLETION_SIZE = 1 << SUBMISSION_LG2, 1 << COMPLETION_LG2
ALL_NAMESPACES = 0xFFFFFFFF

_COMMAND = struct.Struct("<IIQQQQ6I")
_COMPLETION = struct.Struct("<IIHHHH")


class Admin(IntEnum):
    """Opcodes of admin commands (5, figure 139)."""

    DELETE_SQ = 0x00
    CREATE_SQ = 0x01
    GET_LOG_PAGE = 0x02
    DELETE_CQ = 0x04
    CREATE_CQ = 0x05
    IDENTIFY = 0x06
    ABORT = 0x08
    SET_FEATURES = 0x09
    GET_FEATURES = 0x0A
    ASYNC_EVENT_REQUEST = 0x0C
    FORMAT_NVM = 0x80


class Nvm(IntEnum):
    """Opcodes of NVM commands (6, figure 346)."""

    FLUSH = 0x00
    WRITE = 0x01
    READ = 0x02
    COMPARE = 0x05
    WRITE_ZEROES = 0x08
    DATASET_MANAGEMENT = 0x09


#: Commands that name blocks in double words 10 to 12.
NAMES_BLOCKS = {Nvm.WRITE, Nvm.READ, Nvm.COMPARE, Nvm.WRITE_ZEROES}


class Status(IntEnum):
    """Status code type and status code (4.6.1)."""

    SUCCESS = 0x000
    INVALID_OPCODE = 0x001
    INVALID_FIELD = 0x002
    COMMAND_ID_CONFLICT = 0x003
    DATA_TRANSFER_ERROR = 0x004
    ABORT_REQUESTED = 0x007
    INVALID_NAMESPACE = 0x00B
    COMMAND_SEQUENCE_ERROR = 0x00C
    PRP_OFFSET_INVALID = 0x013
    LBA_OUT_OF_RANGE = 0x080
    COMPLETION_QUEUE_INVALID = 0x100
    INVALID_QUEUE_IDENTIFIER = 0x101
    INVALID_QUEUE_SIZE = 0x102
    ASYNC_EVENT_LIMIT = 0x105
    INVALID_INTERRUPT_VECTOR = 0x108
    INVALID_LOG_PAGE = 0x109
    INVALID_FORMAT = 0x10A
    INVALID_QUEUE_DELETION = 0x10C
    FEATURE_NOT_SAVEABLE = 0x10D
    FEATURE_NOT_CHANGEABLE = 0x10E
    FEATURE_NOT_NAMESPACE_SPECIFIC = 0x10F
    WRITE_FAULT = 0x280
    UNRECOVERED_READ_ERROR = 0x281
    COMPARE_FAILURE = 0x285


#: What may go away by itself: a command that failed so may be tried again.
RETRYABLE = {Status.DATA_TRANSFER_ERROR, Status.ABORT_REQUESTED}


class CommandError(Exception):
    """A command that fails: with which status, and why, where the status does not say it all."""

    def __init__(self, status: Status, why: str = "") -> None:
        super().__init__(f"{status.name}: {why}" if why else status.name)
        self.status = status


class Dword0(Word, width=32):
    """Command Dword 0 (4.2, figure 104)."""

    OPC = bits(7, 0)
    FUSE = bits(9, 8)
    PSDT = bits(15, 14)
    CID = bits(31, 16)


class Command(NamedTuple):
    """A submission queue entry (4.2, figure 105)."""

    dword0: Dword0
    nsid: int
    prp1: int
    prp2: int
    dword10: int
    dword11: int
    dword12: int
    dword13: int
    dword14: int
    dword15: int

    @classmethod
    def from_bytes(cls, raw: bytes) -> Command:
        """The command in these 64 bytes."""
        dword0, nsid, _, _, prp1, prp2, *rest = _COMMAND.unpack(raw)
        return cls(Dword0(dword0), nsid, prp1, prp2, *rest)

    @property
    def lba(self) -> int:
        """The first block of a command that names blocks."""
        return self.dword11 << 32 | self.dword10


class CompletionStatus(Word, width=16):
    """The upper half of dword 3 of a completion (4.6, figure 124). P, the lowest bit, is added when it is posted."""

    P = bit(0)
    SC = bits(8, 1)
    SCT = bits(11, 9)
    CRD = bits(13, 12)
    M = bit(14)
    DNR = bit(15)


class Completion(NamedTuple):
    """A completion queue entry before it is posted, without its phase."""

    dword0: int
    sq_id: int
    sq_head: int
    cid: int
    status: CompletionStatus

    def to_bytes(self, phase: int) -> bytes:
        """The 16 bytes of the entry."""
        return _COMPLETION.pack(self.dword0, 0, self.sq_head, self.sq_id, self.cid, self.status | phase)


class QueueDword10(Word, width=32):
    """Dword 10 of queue commands (5.3 to 5.6). QSIZE is one less than the size."""

    QID = bits(15, 0)
    QSIZE = bits(31, 16)


class CreateCqDword11(Word, width=32):
    """Dword 11 of Create I/O Completion Queue (5.3)."""

    PC = bit(0)
    IEN = bit(1)
    IV = bits(31, 16)


class CreateSqDword11(Word, width=32):
    """Dword 11 of Create I/O Submission Queue (5.4)."""

    PC = bit(0)
    QPRIO = bits(2, 1)
    CQID = bits(31, 16)


class AbortDword10(Word, width=32):
    """Dword 10 of Abort (5.1)."""

    SQID = bits(15, 0)
    CID = bits(31, 16)


class IdentifyDword10(Word, width=32):
    """Dword 10 of Identify (5.15)."""

    CNS = bits(7, 0)
    CNTID = bits(31, 16)


class Cns(IntEnum):
    """What Identify asks for (5.15.1)."""

    NAMESPACE = 0
    CONTROLLER = 1
    ACTIVE_NAMESPACES = 2
    NAMESPACE_DESCRIPTORS = 3


class LogDword10(Word, width=32):
    """Dword 10 of Get Log Page (5.14)."""

    LID = bits(7, 0)
    LSP = bits(11, 8)
    RAE = bit(15)
    NUMDL = bits(31, 16)


class LogDword11(Word, width=32):
    """Dword 11 of Get Log Page (5.14)."""

    NUMDU = bits(15, 0)
    LSI = bits(31, 16)


class Select(IntEnum):
    """Which value Get Features returns (5.13)."""

    CURRENT = 0
    DEFAULT = 1
    SAVED = 2
    CAPABILITIES = 3


class FeatureDword10(Word, width=32):
    """Dword 10 of Get Features and Set Features (5.13, 5.21): SEL is of the former, SV of the latter."""

    FID = bits(7, 0)
    SEL = bits(10, 8, Select)
    SV = bit(31)


class FormatDword10(Word, width=32):
    """Dword 10 of Format NVM (5.23)."""

    LBAF = bits(3, 0)
    MSET = bit(4)
    PI = bits(7, 5)
    PIL = bit(8)
    SES = bits(11, 9)


class BlocksDword12(Word, width=32):
    """Dword 12 of commands that name blocks (6.6, 6.9, 6.15, 6.17). NLB is one less than their number."""

    NLB = bits(15, 0)
    DEAC = bit(25)
    PRINFO = bits(29, 26)
    FUA = bit(30)
    LR = bit(31)


class DatasetDword10(Word, width=32):
    """Dword 10 of Dataset Management (6.7): one less than the number of ranges."""

    NR = bits(7, 0)


class DatasetDword11(Word, width=32):
    """Dword 11 of Dataset Management (6.7)."""

    IDR = bit(0)
    IDW = bit(1)
    AD = bit(2)


class EventType(IntEnum):
    """Kinds of asynchronous events (5.2.1)."""

    ERROR = 0
    HEALTH = 1


class ErrorEvent(IntEnum):
    """What an error event tells (5.2.1, figure 146)."""

    INVALID_DOORBELL = 0
    INVALID_DOORBELL_VALUE = 1


class HealthEvent(IntEnum):
    """What a health event tells (5.2.1, figure 147)."""

    TEMPERATURE = 1


class LogPage(IntEnum):
    """Log page identifiers (5.14.1)."""

    ERRORS = 1
    HEALTH = 2
    FIRMWARE = 3


class EventDword0(Word, width=32):
    """Dword 0 of the completion of an Asynchronous Event Request (5.2.1)."""

    TYPE = bits(2, 0)
    INFORMATION = bits(15, 8)
    LOG_PAGE = bits(23, 16)
