"""The invalidation queue: descriptors are fetched, checked and carried out in order. VT-d 6.5.2."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from softiommu.hardware.iommu import ResponseCode
from softiommu.hardware.vtd.caches import Selection
from softiommu.hardware.vtd.commands import (
    LAYOUTS,
    Context,
    DeviceTlb0,
    DeviceTlb1,
    Interrupt0,
    Iotlb0,
    PageGroupResponse0,
    PageGroupResponse1,
    PasidCache0,
    PasidDeviceTlb0,
    PasidDeviceTlb1,
    PasidIotlb0,
    Range,
    Type,
    Wait0,
    Wait1,
)
from softiommu.hardware.vtd.registers import Fsts, Iqa, Iva, QueueErrorInfo, Ttm
from softiommu.hardware.vtd.tables import FUNCTION_MASKS
from softiommu.memory.physical import BadAddressError
from softiommu.words import Word

if TYPE_CHECKING:
    from softiommu.hardware.vtd.model import Unit
    from softiommu.memory.physical import PhysicalMemory

_EVERYTHING = (1 << 64) - 1
_STOPPED = Fsts.IQE.mask | Fsts.ITE.mask


class QueueError(Exception):
    """A descriptor that cannot be carried out."""

    def __init__(self, info: QueueErrorInfo) -> None:
        super().__init__(info.name)
        self.info = info


class _Form(NamedTuple):
    """The words of a descriptor, their reserved bits, and what carries it out."""

    low: type[Word]
    high: type[Word]
    low_reserved: int
    high_reserved: int
    carry_out: Callable[[Any, Any], None]


class Queue:
    """The queue of one unit."""

    def __init__(self, unit: Unit, memory: PhysicalMemory) -> None:
        self._unit, self._memory = unit, memory
        self._running = False
        #: A function whose device TLB did not answer since the last wait.
        self._late: int | None = None
        #: The queue that was checked last: its register, the tail, and the mode of the root table.
        self._checked: tuple[Iqa, int, Ttm] | None = None
        self._start = self._size = self._step = 0
        capabilities = unit.registers
        self._mamv, has = capabilities.CAP.MAMV, int(capabilities.ECAP)
        handlers: dict[int, Callable[[Any, Any], None]] = {
            Type.CONTEXT: self._context,
            Type.IOTLB: self._iotlb,
            Type.DEVICE_TLB: self._device_tlb,
            Type.INTERRUPT: self._interrupt,
            Type.WAIT: self._wait,
            Type.PASID_IOTLB: self._pasid_iotlb,
            Type.PASID_CACHE: self._pasid_cache,
            Type.PASID_DEVICE_TLB: self._pasid_device_tlb,
            Type.PAGE_GROUP_RESPONSE: self._response,
        }
        #: Those that the unit has, by type.
        self._forms = {
            int(kind): _Form(low, high or Word, low.RESERVED, (high or Word).RESERVED, handlers[kind])
            for kind, (low, high, needs) in LAYOUTS.items()
            if not needs & ~has
        }

    def run(self) -> None:
        """Carry descriptors out until the queue is empty or one is wrong."""
        if self._running:  # a device that is told to forget rings the doorbell again
            return
        self._running = True
        try:
            self._run()
        except QueueError as error:
            self._unit.log.report_queue(error.info)
        finally:
            self._running = False

    def _run(self) -> None:
        registers = self._unit.registers
        while registers.GSTS.QIE and not registers.FSTS & _STOPPED:
            head, tail = registers.IQH.OFFSET << 4, registers.IQT.OFFSET << 4
            if head == tail:
                self._time_out()
                return
            now = (registers.IQA, tail, self._unit.table_mode)
            if now != self._checked:
                self._check_queue(*now)
                self._checked = now
            # The head stays on a descriptor that is wrong.
            self._carry_out(self._start + head)
            registers.IQH = (head + self._step) % self._size

    def _time_out(self) -> None:
        """Report a device TLB that did not answer."""
        if self._late is not None:
            late, self._late = self._late, None
            self._unit.log.report_timeout(late)

    def _check_queue(self, iqa: Iqa, tail: int, mode: Ttm) -> None:
        self._start, self._size, self._step = iqa.IQA << 12, 4096 << iqa.QS, 32 if iqa.DW else 16
        if mode == Ttm.RESERVED:
            raise QueueError(QueueErrorInfo.TTM)
        if tail >= self._size:
            raise QueueError(QueueErrorInfo.TAIL)
        if iqa.DW and tail & 16:
            raise QueueError(QueueErrorInfo.TAIL_MISALIGNED)
        # Whether the short descriptors are wrong in scalable mode is left open: they are taken, as by QEMU.
        if iqa.DW and not self._unit.registers.ECAP.SMTS:
            raise QueueError(QueueErrorInfo.WIDTH)

    def _carry_out(self, at: int) -> None:
        read = self._memory.read_u64
        try:
            first, second = read(at), read(at + 8)
            rest = read(at + 16) | read(at + 24) if self._step == 32 else 0
        except BadAddressError as error:
            raise QueueError(QueueErrorInfo.FETCH) from error
        form = self._forms.get(first & 0xF | first >> 5 & 0x70)
        if form is None:
            raise QueueError(QueueErrorInfo.TYPE)
        low, high, low_reserved, high_reserved, carry_out = form
        if first & low_reserved | second & high_reserved | rest:
            raise QueueError(QueueErrorInfo.RESERVED)
        # What is read as 64 bits has no more: nothing is left to be checked.
        carry_out(int.__new__(low, first), int.__new__(high, second))

    # What each does

    def _context(self, command: Context, _: Word) -> None:
        one = Selection(sid=command.SID, sid_mask=FUNCTION_MASKS[command.FM])
        self._unit.caches.forget_contexts(_choose({1: Selection(), 2: Selection(did=command.DID), 3: one}, command.G))

    def _pasid_cache(self, command: PasidCache0, _: Word) -> None:
        one = Selection(did=command.DID, pasid=command.PASID)
        self._unit.caches.forget_pasids(_choose({0: Selection(did=command.DID), 1: one, 3: Selection()}, command.G))

    def _iotlb(self, command: Iotlb0, where: Range) -> None:
        granularity = command.G
        if granularity == 3:
            chosen = self._pages(command.DID, None, where)
        else:
            chosen = _choose({1: Selection(), 2: Selection(command.DID)}, granularity)
        self._unit.caches.forget_translations(chosen)

    def _pasid_iotlb(self, command: PasidIotlb0, where: Range) -> None:
        granularity = command.G
        if granularity == 3:
            chosen = self._pages(command.DID, command.PASID, where)
        else:
            chosen = _choose({2: Selection(command.DID, command.PASID)}, granularity)
        self._unit.caches.forget_pasid_translations(chosen)

    def _pages(self, did: int, pasid: int | None, where: Range) -> Selection:
        """What a page-selective command names of a domain or a PASID."""
        found = window(where, self._mamv)
        if found is None:
            raise QueueError(QueueErrorInfo.RESERVED)
        return Selection(did, pasid, window=found, leaves_only=bool(where.IH))

    def _interrupt(self, command: Interrupt0, _: Word) -> None:
        if not command.G:
            return self._unit.caches.forget_interrupts(0, 0xFFFF)
        first = command.IIDX & ~((1 << command.IM) - 1)
        return self._unit.caches.forget_interrupts(first, first + (1 << command.IM) - 1)

    def _device_tlb(self, command: DeviceTlb0, where: DeviceTlb1) -> None:
        self._forget_on_device(command.SID, None, where.S, where.ADDR)

    def _pasid_device_tlb(self, command: PasidDeviceTlb0, where: PasidDeviceTlb1) -> None:
        self._forget_on_device(command.SID, command.PASID, where.S, where.ADDR)

    def _forget_on_device(self, sid: int, pasid: int | None, sized: int, page: int) -> None:
        """Tell a function to forget: with a size, the ones from the lowest bit on and the zero after them say it."""
        ones = (page ^ page + 1) if sized else 0
        first = (page & ~ones) << 12 & _EVERYTHING
        last = min((page | ones) << 12 | 0xFFF, _EVERYTHING)
        endpoint = self._unit.pages.endpoints.get(sid)
        if endpoint is None or not endpoint.invalidate(pasid, first, last):
            self._late = sid

    def _wait(self, command: Wait0, where: Wait1) -> None:
        if command.PD and not self._unit.registers.ECAP.PDS:
            raise QueueError(QueueErrorInfo.RESERVED)
        if self._late is not None:
            return self._time_out()  # and the wait is given up: its status is not written
        if command.SW:
            try:
                self._memory.write_u32(where.ADDR << 2, command.DATA)
            except BadAddressError as error:
                raise QueueError(QueueErrorInfo.FETCH) from error
        if command.IF:
            self._unit.complete_wait()
        return None

    def _response(self, command: PageGroupResponse0, where: PageGroupResponse1) -> None:
        known = command.CODE in ResponseCode.__members__.values()
        code = ResponseCode(command.CODE) if known else ResponseCode.FAILURE
        self._unit.pages.respond(command.RID, command.PASID if command.PP else None, where.PRGI, code)


def window(where: Range | Iva, mamv: int) -> tuple[int, int] | None:
    """The addresses of a page-selective command; None when it names more pages than the hardware takes."""
    lg2 = where.AM
    if mamv < lg2:
        return None
    size = 4096 << lg2
    first = (where.ADDR << 12) & ~(size - 1)
    return first, first + size - 1


def _choose(by_granularity: dict[int, Selection], granularity: int) -> Selection:
    if granularity not in by_granularity:
        raise QueueError(QueueErrorInfo.RESERVED)
    return by_granularity[granularity]
