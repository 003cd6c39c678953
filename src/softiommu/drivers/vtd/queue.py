"""A driver's side of VT-d's invalidation queue: descriptors in, the doorbell, and the status word that says done."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from softiommu.drivers.function import Bus
from softiommu.errors import ModelError
from softiommu.hardware.vtd.commands import (
    DeviceTlb0,
    DeviceTlb1,
    PasidDeviceTlb0,
    PasidDeviceTlb1,
    Type,
    Wait0,
    Wait1,
)
from softiommu.hardware.vtd.registers import Fsts, Gcmd, Iqa, Registers
from softiommu.memory.physical import PAGE, PhysicalMemory

Descriptor = tuple[int, int]

#: Granularities: context cache and IOTLB; PASID cache; PASID-based IOTLB.
GLOBAL, DOMAIN, DEVICE, PAGES = 1, 2, 3, 3
DOMAIN_PASIDS, ONE_PASID, ALL_PASIDS = 0, 1, 3
ALL_OF_PASID, PAGES_OF_PASID = 2, 3

#: Fewer than the shorter form of the queue has room for.
_BATCH = 100


class InvalidationQueue:
    """One page of descriptors, of 256 bits where the unit has scalable mode."""

    def __init__(self, memory: PhysicalMemory, bus: Bus, wide: bool) -> None:
        self._memory, self._bus = memory, bus
        self._step = 32 if wide else 16
        self._base, self._status = memory.alloc(PAGE), memory.alloc(PAGE)
        self._tail = self._tickets = 0
        self._busy = False
        self._posted: list[Descriptor] = []
        bus.write(Registers.IQA.offset, 8, Iqa.of(DW=int(wide), IQA=self._base >> 12))
        bus.write(Registers.IQT.offset, 8, 0)

    def submit(self, *descriptors: Descriptor) -> bool:
        """Put descriptors in the queue, and return when the hardware has carried them out; False: a device TLB did
        not answer. If what others do that are waited for led here, they are carried out behind those."""
        if self._busy:
            self._posted.extend(descriptors)
            return True
        rest = iter(descriptors)
        answered = self._busy = True
        try:
            while batch := list(islice(rest, _BATCH)) or self._take_posted():
                answered &= self._submit(batch)
        finally:
            self._busy = False
        return answered

    def _take_posted(self) -> list[Descriptor]:
        taken, self._posted = self._posted[:_BATCH], self._posted[_BATCH:]
        return taken

    def _submit(self, batch: Iterable[Descriptor]) -> bool:
        for descriptor in batch:
            self._put(*descriptor)
        if self._wait():
            return True
        self._acknowledge()
        return False

    def _wait(self) -> bool:
        """Put a wait descriptor, ring the doorbell, and see whether the hardware got there."""
        self._tickets = self._tickets % 0xFFFF + 1
        self._put(Wait0.of(TYPE=Type.WAIT, SW=1, FN=1, DATA=self._tickets), Wait1.of(ADDR=self._status >> 2))
        self._bus.write(Registers.IQT.offset, 8, self._tail)
        return self._memory.read_u32(self._status) == self._tickets

    def _acknowledge(self) -> None:
        """A device TLB did not answer, and the wait was given up (6.5.2.11). All else is done: ask once more."""
        status = Fsts(self._bus.read(Registers.FSTS.offset, 4))
        if status.ITE and not status.IQE:
            self._bus.write(Registers.FSTS.offset, 4, Fsts.of(ITE=1))
            if self._wait():
                return
        raise ModelError(f"the invalidation queue stopped: {status!r}")

    def _put(self, low: int, high: int) -> None:
        at = self._base + self._tail
        self._memory.write_u64(at, int(low))
        self._memory.write_u64(at + 8, int(high))
        self._tail = (self._tail + self._step) % PAGE


def device_tlb(sid: int, pasid: int | None, at: int, am: int) -> Descriptor:
    """Forget 2**am pages from `at` in a device's own TLB."""
    size, page = int(am > 0), at >> 12 | (1 << am >> 1) - 1 if am else at >> 12
    if pasid is None:
        return DeviceTlb0.of(TYPE=Type.DEVICE_TLB, SID=sid), DeviceTlb1.of(S=size, ADDR=page)
    low = PasidDeviceTlb0.of(TYPE=Type.PASID_DEVICE_TLB, SID=sid, PASID=pasid)
    return low, PasidDeviceTlb1.of(S=size, ADDR=page)


def command(bus: Bus, levels: int, bits: int) -> None:
    """Give the global command `bits` beside the levels that hold. ModelError: the hardware does not take it."""
    bus.write(Registers.GCMD.offset, 4, levels | bits)
    if bus.read(Registers.GSTS.offset, 4) & bits != bits:
        raise ModelError(f"the hardware does not take the global command {Gcmd(bits)!r}")
