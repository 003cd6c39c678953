"""One RISC-V IOMMU: registers, queues, faults, and what devices ask of it.

It knows memory, its registers and its queues.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from softiommu.hardware.iommu import AtsIommu, Endpoint, PageRequest, Request, ResponseCode, Translation
from softiommu.hardware.riscv.contexts import NO_ID
from softiommu.hardware.riscv.control import Control
from softiommu.hardware.riscv.counters import Who
from softiommu.hardware.riscv.events import (
    NOTHING_THERE,
    PAGE_REQUEST_MESSAGE,
    Cause,
    Fault0,
    PageRequest0,
    PageRequest1,
    Ttyp,
)
from softiommu.hardware.riscv.mrif import store_interrupt
from softiommu.hardware.riscv.presets import QEMU, check
from softiommu.hardware.riscv.registers import Capabilities, TrReqCtl, TrResponse
from softiommu.hardware.riscv.translator import Found, Kind, Shapes, Translator
from softiommu.hardware.riscv.walker import BlockedError
from softiommu.memory.physical import BadAddressError
from softiommu.pagetable.kinds import EXECUTE, LENIENT, READ, WRITE
from softiommu.pagetable.walk import new

if TYPE_CHECKING:
    from softiommu.clock import Clock
    from softiommu.memory.physical import PhysicalMemory


class RiscvIommu:
    """An IOMMU with these capabilities, and a device directory of up to `levels`.

    `interrupt(address, data)` is an MSI's write, `wire(vector, level)` a wire. The cycle counter counts `clock`.
    """

    def __init__(
        self,
        memory: PhysicalMemory,
        capabilities: Capabilities = QEMU,
        shapes: Shapes | None = None,
        interrupt: Callable[[int, int], None] | None = None,
        wire: Callable[[int, bool], None] | None = None,
        clock: Clock | None = None,
        levels: int = 3,
    ) -> None:
        check(capabilities)
        self._memory = memory
        self._endpoints: dict[int, Endpoint] = {}
        self.control = Control(self, memory, capabilities, levels, (interrupt, wire), clock)
        self.registers, self._counters = self.control.registers, self.control.counters
        self.translator = Translator(self.registers, memory, shapes or Shapes(), self.control.counters)

    def read(self, offset: int, width: int) -> int:
        """Software reads a register (4 or 8 bytes)."""
        return self.registers.read(offset, width)

    def write(self, offset: int, width: int, value: int) -> None:
        """Software writes a register (4 or 8 bytes)."""
        self.registers.write(offset, width, value)

    def counts(self) -> dict[str, int]:
        """As `machine.counts.CountingIommu` has it. First and second stages are cached, and counted, each by itself."""
        first, second = (each.cache.counters.told() for each in (self.translator.first, self.translator.second))
        return {name: count + second[name] for name, count in first.items()}

    # Requests

    def translate(
        self, sid: int, iova: int, want: int, pasid: int | None = None, privileged: bool = False
    ) -> Translation:
        """Where an untranslated request goes. TranslationFaultError: it is blocked."""
        request = new(Request, (sid, iova, want, pasid, privileged and pasid is not None))
        return self._memory_at(request, Kind.UNTRANSLATED)

    def _memory_at(self, request: Request, kind: Kind) -> Translation:
        found = self._serve(request, kind)
        if found.mrif is not None:
            # An interrupt file in memory is no memory to a device: `store` takes what is written to it.
            raise self._blocked(BlockedError(Cause.TRANSACTION_TYPE_DISALLOWED, request), kind)
        return found.at

    def store(self, sid: int, iova: int, data: bytes, pasid: int | None = None) -> None:
        """A device's write that may be an interrupt's: to memory, or to an interrupt file in memory.
        TranslationFaultError: it is blocked."""
        request = Request(sid, iova, WRITE, pasid)
        found = self._serve(request, Kind.UNTRANSLATED)
        try:
            if found.mrif is None:
                self._memory.write(found.at.pa, data)
            elif store_interrupt(self._memory, found.mrif, data, request):
                self.control.interrupts.send(found.mrif.notice_pa, found.mrif.notice)
        except BadAddressError as error:
            fault = BlockedError(Cause.WRITE_ACCESS_FAULT, request)
            raise self._blocked(fault, Kind.UNTRANSLATED) from error
        except BlockedError as fault:
            raise self._blocked(fault, Kind.UNTRANSLATED) from None

    def _serve(self, request: Request, kind: Kind) -> Found:
        if self._counters.counted:
            self._counters.count(kind.event, _who(request))
        try:
            return self.translator.serve(request, kind)
        except BlockedError as fault:
            self._blocked(fault, kind)
            raise

    def _blocked(self, fault: BlockedError, kind: Kind) -> BlockedError:
        """A request is blocked: its record goes to the fault queue, unless there is none of it."""
        if fault.quiet or (kind is Kind.ATS and fault.cause in NOTHING_THERE):
            return fault
        request = fault.request
        iotval = PAGE_REQUEST_MESSAGE if kind is Kind.MESSAGE else request.iova
        word = Fault0.of(CAUSE=fault.cause, TTYP=kind.ttyp(request.want), DID=request.sid)
        if request.pasid is not None:
            word = word.replace(PV=1, PID=request.pasid, PRIV=int(request.privileged))
        self.control.faults.put((word, 0, iotval, fault.iotval2))
        return fault

    def message_failed(self, address: int) -> None:
        """No memory took an interrupt's message."""
        word = Fault0.of(CAUSE=Cause.MSI_WRITE_ACCESS_FAULT, TTYP=Ttyp.NONE)
        self.control.faults.put((word, 0, address, 0))

    # Debug

    def debug_translate(self, control: TrReqCtl, iova: int) -> TrResponse:
        """The debug interface's answer (tr_req_iova to tr_response)."""
        want = EXECUTE | READ if control.EXE else READ if control.NW else READ | WRITE
        pasid = control.PID if control.PV else None
        request = Request(control.DID, iova, want, pasid, bool(control.PRIV) and pasid is not None)
        if control.EXE and not control.NW:
            return TrResponse.of(FAULT=1)
        try:
            found = self._serve(request, Kind.UNTRANSLATED)
            if found.mrif is not None:
                raise self._blocked(BlockedError(Cause.TRANSACTION_TYPE_DISALLOWED, request), Kind.UNTRANSLATED)
        except BlockedError:
            return TrResponse.of(FAULT=1)
        page = found.at.pa >> 12 & (1 << TrResponse.PPN.width) - 1
        lg2 = found.at.lg2 - 12
        if not 0 < lg2 < TrResponse.PPN.width:
            return TrResponse.of(PPN=page, PBMT=found.pbmt)
        return TrResponse.of(PPN=page >> lg2 << lg2 | (1 << lg2 - 1) - 1, S=1, PBMT=found.pbmt)

    # ATS

    def connect(self, sid: int, endpoint: Endpoint) -> None:
        """From now on this function hears of invalidations and responses."""
        self._endpoints[sid] = endpoint

    def ats_translate(
        self, sid: int, iova: int, want: int, pasid: int | None = None, privileged: bool = False
    ) -> Translation:
        """Answer a translation request; `allowed` without READ: nothing is there. TranslationFaultError: the completion
        is UR or CA. WRITE may be allowed though it was not asked for, if the page is dirty."""
        request = Request(sid, iova, want | READ | LENIENT, pasid, privileged and pasid is not None)
        try:
            found = self._serve(request, Kind.ATS)
        except BlockedError as fault:
            if fault.cause not in NOTHING_THERE:
                raise
            return _NOTHING
        executes = found.at.allowed & EXECUTE & want
        # Only untranslated requests reach an interrupt file in memory.
        if not found.at.allowed & READ or found.mrif is not None:
            return _NOTHING
        return found.at._replace(allowed=found.at.allowed & (READ | WRITE) | executes)

    def admit_translated(self, sid: int, pa: int, want: int, pasid: int | None = None) -> Translation:
        """Where a request with a translated address goes. TranslationFaultError: the device may not send such."""
        return self._memory_at(Request(sid, pa, want, pasid), Kind.TRANSLATED)

    def invalidate_device(self, sid: int, pasid: int | None, first: int, last: int) -> bool:
        """Send ATS.INVAL; False: no completion came."""
        endpoint = self._endpoints.get(sid)
        return endpoint is not None and endpoint.invalidate(pasid, first, last)

    # PRI

    def page_request(self, request: PageRequest) -> None:
        """Queue a page request; where it cannot be queued, the last of its group is answered."""
        who = Request(request.sid, request.iova, request.want, request.pasid, request.privileged)
        keeps_pasid = False
        try:
            device = self.translator.device(who)
            keeps_pasid = bool(device.tc.PRPR)
            if not device.tc.EN_PRI:
                fault = BlockedError(Cause.TRANSACTION_TYPE_DISALLOWED, who)
                fault.quiet = bool(device.tc.DTF)
                raise fault
        except BlockedError as fault:
            self._blocked(fault, Kind.MESSAGE)
            invalid = fault.cause is Cause.TRANSACTION_TYPE_DISALLOWED
            self._refuse(request, ResponseCode.INVALID if invalid else ResponseCode.FAILURE, keeps_pasid)
            return
        if not self.control.requests.put(_record(request)):
            csr = self.control.requests.csr
            code = ResponseCode.FAILURE if csr.MF or not csr.ON else ResponseCode.SUCCESS
            self._refuse(request, code, keeps_pasid)

    def _refuse(self, request: PageRequest, code: ResponseCode, keeps_pasid: bool) -> None:
        """Answer for software. A stop marker, and any but the last of a group, has no answer."""
        if request.last and not request.is_stop_marker:
            pasid = request.pasid if keeps_pasid or code is ResponseCode.FAILURE else None
            self._respond(request.sid, pasid, request.group, code)

    def _respond(self, sid: int, pasid: int | None, group: int, code: ResponseCode) -> None:
        endpoint = self._endpoints.get(sid)
        if endpoint is not None:
            endpoint.page_response(pasid, group, code)

    def respond(self, sid: int, pasid: int | None, group: int, code: int) -> None:
        """Send ATS.PRGR. Codes that PCIe reserves are a failure."""
        known = code in ResponseCode.__members__.values()
        self._respond(sid, pasid, group, ResponseCode(code) if known else ResponseCode.FAILURE)


_: type[AtsIommu] = RiscvIommu

#: The completion of a translation request without any right.
_NOTHING = Translation(0, 12, 0)


def _who(request: Request) -> Who:
    return Who(request.sid, NO_ID if request.pasid is None else request.pasid)


def _record(request: PageRequest) -> tuple[int, int]:
    """A page request as the queue holds it."""
    low = PageRequest0.of(DID=request.sid)
    if request.pasid is not None:
        execute = int(bool(request.want & EXECUTE))
        low = low.replace(PV=1, PID=request.pasid, PRIV=int(request.privileged), EXEC=execute)
    high = PageRequest1.of(
        R=int(bool(request.want & READ)),
        W=int(bool(request.want & WRITE)),
        L=int(request.last),
        PRGI=request.group,
        PAGE=request.iova >> 12,
    )
    return low, high
