"""A driver's side of the AMD IOMMU's command buffer: commands in, the doorbell, and the store that says done."""

from __future__ import annotations

from itertools import islice

from softiommu.drivers.function import Bus
from softiommu.errors import ModelError
from softiommu.hardware.amd.commands import (
    COMMAND_SIZE,
    Iotlb0,
    Iotlb1,
    OfDevice,
    Opcode,
    Pages0,
    Pages1,
    Plain,
    Wait,
    span,
)
from softiommu.hardware.amd.registers import Registers, RingBase, Status
from softiommu.memory.physical import PhysicalMemory

Command = tuple[int, int]

_LEN = 9  # 512 commands, as in Linux
_SIZE = COMMAND_SIZE << _LEN
#: Commands before each wait.
_BATCH = 256
EVERYWHERE = (0, (1 << 64) - 1)


class CommandBuffer:
    """The command buffer of one IOMMU."""

    def __init__(self, memory: PhysicalMemory, bus: Bus) -> None:
        self._memory, self._bus = memory, bus
        self._base, self._done = memory.alloc(_SIZE), memory.alloc(8)
        self._tail = self._waits = 0
        bus.write(Registers.CMD_BASE.offset, 8, RingBase.of(LEN=_LEN, BASE=self._base >> 12))
        bus.write(Registers.CMD_HEAD.offset, 8, 0)
        bus.write(Registers.CMD_TAIL.offset, 8, 0)

    def submit(self, *commands: Command) -> None:
        """Put commands in the buffer, and return when the hardware has carried them out."""
        rest = iter(commands)
        while batch := list(islice(rest, _BATCH)):
            for command in batch:
                self._put(*command)
            self._wait()

    def _wait(self) -> None:
        self._waits += 1
        self._put(Wait.of(OPCODE=Opcode.COMPLETION_WAIT, S=1, StoreAddress=self._done >> 3), self._waits)
        self._bus.write(Registers.CMD_TAIL.offset, 8, self._tail)
        if self._memory.read_u64(self._done) != self._waits:
            status = Status(self._bus.read(Registers.STATUS.offset, 8))
            raise ModelError(f"the command buffer stopped: {status!r}")

    def _put(self, low: int, high: int) -> None:
        at = self._base + self._tail
        self._memory.write_u64(at, int(low))
        self._memory.write_u64(at + 8, int(high))
        self._tail = (self._tail + COMMAND_SIZE) % _SIZE


def all_of_it() -> Command:
    """Forget everything."""
    return Plain.of(OPCODE=Opcode.INVALIDATE_IOMMU_ALL), 0


def entry_of(sid: int) -> Command:
    """Forget a device's table entry."""
    return OfDevice.of(OPCODE=Opcode.INVALIDATE_DEVTAB_ENTRY, DeviceID=sid), 0


def pages_of(domain: int, pasid: int | None, first: int, last: int, upper: bool = True) -> Command:
    """Forget the smallest aligned power of two with `first`..`last`, in a domain or one of its PASIDs; with `upper`,
    entries of every level."""
    size, page = span(first, last)
    low = Pages0.of(OPCODE=Opcode.INVALIDATE_IOMMU_PAGES, DomainID=domain, PASID=pasid or 0)
    return low, Pages1.of(S=size, PDE=int(upper), GN=int(pasid is not None), Address=page)


def device_tlb(sid: int, pasid: int | None, first: int, last: int) -> Command:
    """The same in a device's own TLB."""
    size, page = span(first, last)
    number = pasid or 0
    low = Iotlb0.of(
        OPCODE=Opcode.INVALIDATE_IOTLB_PAGES,
        DeviceID=sid,
        QueueID=sid,
        PASID7_0=number & 0xFF,
        PASID15_8=number >> 8 & 0xFF,
        PASID19_16=number >> 16,
    )
    return low, Iotlb1.of(S=size, GN=int(pasid is not None), Address=page)
