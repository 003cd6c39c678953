"""Controller registers. NVM Express 1.4, section 3.1."""

from __future__ import annotations

from enum import IntEnum

from softiommu.registers import Level, RegisterFile, array, reg, ro, rw, wo
from softiommu.words import Word, bit, bits

#: How many I/O queue pairs have doorbells. A controller may offer fewer.
MAX_PAIRS = 64
BAR_SIZE = 0x4000
MSIX_TABLE, MSIX_PENDING = 0x2000, 0x3000

VERSION_1_4 = 0x10400


class Capabilities(Word):
    """CAP (3.1.1)."""

    MQES = bits(15, 0)
    CQR = bit(16)
    AMS = bits(18, 17)
    TO = bits(31, 24)
    DSTRD = bits(35, 32)
    NSSRS = bit(36)
    CSS = bits(44, 37)
    BPS = bit(45)
    MPSMIN = bits(51, 48)
    MPSMAX = bits(55, 52)
    PMRS = bit(56)
    CMBS = bit(57)


class Value32(Word, width=32):
    """A register without fields."""

    VALUE = bits(31, 0)


class Shutdown(IntEnum):
    """CC.SHN and CSTS.SHST (3.1.5, 3.1.6)."""

    NONE = 0
    #: Of SHN: a normal one; of SHST: under way.
    NORMAL = 1
    #: Of SHN: an abrupt one; of SHST: complete.
    COMPLETE = 2


class Configuration(Word, width=32):
    """CC (3.1.5)."""

    EN = bit(0)
    CSS = bits(6, 4)
    MPS = bits(10, 7)
    AMS = bits(13, 11)
    SHN = bits(15, 14)
    IOSQES = bits(19, 16)
    IOCQES = bits(23, 20)


class ControllerStatus(Word, width=32):
    """CSTS (3.1.6)."""

    RDY = bit(0)
    CFS = bit(1)
    SHST = bits(3, 2, Shutdown)
    NSSRO = bit(4)
    PP = bit(5)


class AdminQueues(Word, width=32):
    """AQA (3.1.8): sizes, of which one less is written."""

    ASQS = bits(11, 0)
    ACQS = bits(27, 16)


class QueueBase(Word):
    """ASQ and ACQ (3.1.9, 3.1.10)."""

    BASE = bits(63, 12)


class Doorbell(Word, width=32):
    """SQyTDBL and CQyHDBL (3.1.24, 3.1.25)."""

    INDEX = bits(15, 0)


#: Queues of up to 1024 entries, contiguous; pages of 4 KiB to 64 KiB; the NVM command set; ready within a second.
CAPABILITIES = Capabilities.of(MQES=1023, CQR=1, TO=2, CSS=1, MPSMIN=0, MPSMAX=4)


class Registers(RegisterFile):
    """What BAR 0 shows, but for the MSI-X table. Doorbells are the submission queue's, then the completion queue's."""

    STARTERS = frozenset({"CC", "DOORBELL"})

    CAP = reg(0x00, Capabilities, ro, reset=CAPABILITIES)
    VS = reg(0x08, Value32, ro, reset=VERSION_1_4)
    INTMS = reg(0x0C, Value32, rw)
    INTMC = reg(0x10, Value32, rw)
    CC = reg(0x14, Configuration, rw)
    CSTS = reg(0x1C, ControllerStatus, ro)
    AQA = reg(0x24, AdminQueues, rw)
    ASQ = reg(0x28, QueueBase, rw)
    ACQ = reg(0x30, QueueBase, rw)
    DOORBELL = array(reg(0x1000, Doorbell, wo), count=2 * (MAX_PAIRS + 1), stride=4)

    def __init__(self, owner: object, pairs: int = MAX_PAIRS) -> None:
        super().__init__(owner)
        self._end = Registers.DOORBELL.at(2 * pairs + 1) + Doorbell.WIDTH // 8

    def levels(self) -> list[Level]:
        """Those of queues that the controller offers."""
        return [level for level in super().levels() if level.offset < self._end]
