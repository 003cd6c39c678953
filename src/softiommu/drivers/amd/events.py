"""The event log of an AMD IOMMU: what a kernel's driver does when its interrupt comes. AMD IOMMU 48882, 2.5."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from softiommu.drivers.faults import Blocked, words
from softiommu.hardware.amd.events import RECORD_SIZE, Code, CommandEvent, DeviceEvent, PprRecord, RequestEvent
from softiommu.hardware.amd.registers import Control, MsiHeader, Registers, RingBase, Status
from softiommu.words import Word

if TYPE_CHECKING:
    from softiommu.drivers.function import Bus
    from softiommu.memory.physical import PhysicalMemory

_LEN = 9  # 512 records, as in Linux
_SIZE = RECORD_SIZE << _LEN
#: Where the interrupt's message goes: to the first local APIC.
_ADDRESS, _VECTOR = 0xFEE00000, 0x24
#: Word 0 of events that are not as most are.
_WORDS: dict[Code, type[Word]] = {
    Code.ILLEGAL_COMMAND_ERROR: CommandEvent,
    Code.COMMAND_HARDWARE_ERROR: CommandEvent,
    Code.IOTLB_INV_TIMEOUT: CommandEvent,
    Code.INVALID_DEVICE_REQUEST: RequestEvent,
    Code.INVALID_PPR_REQUEST: PprRecord,
}
#: Events of requests that were blocked.
_BLOCKED = (
    Code.ILLEGAL_DEV_TABLE_ENTRY,
    Code.IO_PAGE_FAULT,
    Code.DEV_TAB_HARDWARE_ERROR,
    Code.PAGE_TAB_HARDWARE_ERROR,
    Code.INVALID_DEVICE_REQUEST,
)


class Trouble(NamedTuple):
    """An event of a command or of a page request."""

    reason: str
    record: str

    def __str__(self) -> str:
        """One line for the kernel's log."""
        return f"{self.reason}: {self.record}"


class EventLog:
    """The event log, and the interrupt that tells of it."""

    def __init__(self, memory: PhysicalMemory, bus: Bus, guest_hears: Callable[[int, int], bool]) -> None:
        self._memory, self._bus, self._guest_hears = memory, bus, guest_hears
        #: How many device TLBs did not answer in time.
        self.time_outs = 0
        self._base = memory.alloc(_SIZE)
        bus.write(Registers.EVENT_BASE.offset, 8, RingBase.of(LEN=_LEN, BASE=self._base >> 12))
        bus.write(Registers.EVENT_HEAD.offset, 8, 0)
        bus.write(Registers.EVENT_TAIL.offset, 8, 0)
        # Registers that only hardware with MsiCapMmioSup has; else its PCI configuration space has them.
        bus.write(Registers.MSI_ADDR_LOW.offset, 4, _ADDRESS)
        bus.write(Registers.MSI_ADDR_HIGH.offset, 4, 0)
        bus.write(Registers.MSI_DATA.offset, 4, _VECTOR)
        bus.write(Registers.MSI_HEADER.offset, 4, MsiHeader.of(MsiEn=1))

    def take(self) -> list[Blocked | Trouble]:
        """Every event that is no guest's, oldest first; the log is empty, and runs again if it was full."""
        status = Status(self._bus.read(Registers.STATUS.offset, 8))
        self._bus.write(Registers.STATUS.offset, 8, Status.of(EventLogInt=1, EventOverflow=status.EventOverflow))
        head, tail = (self._bus.read(r.offset, 8) for r in (Registers.EVENT_HEAD, Registers.EVENT_TAIL))
        found: list[Blocked | Trouble] = []
        while head != tail:
            at = self._base + head
            low, high = self._memory.read_u64(at), self._memory.read_u64(at + 8)
            self.time_outs += DeviceEvent(low).CODE == Code.IOTLB_INV_TIMEOUT
            if not self._guest_hears(low, high):
                found.append(_decoded(low, high))
            head = (head + RECORD_SIZE) % _SIZE
        self._bus.write(Registers.EVENT_HEAD.offset, 8, head)
        if status.EventOverflow:
            control = Control(self._bus.read(Registers.CONTROL.offset, 8))
            self._bus.write(Registers.CONTROL.offset, 8, control.replace(EventLogEn=0))
            self._bus.write(Registers.CONTROL.offset, 8, control)
        return found


def _decoded(low: int, high: int) -> Blocked | Trouble:
    event = DeviceEvent(low)
    code = event.CODE
    word = _WORDS[code](low) if code in _WORDS else event
    reason = f"{words(code.name)} ({int(code):#x})" if code in list(Code) else f"event {int(code):#x}"
    if code not in _BLOCKED:
        return Trouble(reason, f"{word!r} {high:#x}")
    pasid = event.PASID19_16 << 16 | event.DOMAIN if event.GN else None
    access = "execute" if word is event and event.GN and event.NX else "write" if event.RW else "read"
    return Blocked(event.DeviceID, pasid, high, access, reason, f"{word!r} {high:#x}")
