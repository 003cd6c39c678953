"""Address translation services and page requests. Arm IHI 0070, 3.9 and chapter 8."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from softiommu.hardware.iommu import Endpoint, PageRequest, Request, ResponseCode, Translation
from softiommu.hardware.smmuv3.commands import Resp
from softiommu.hardware.smmuv3.events import TRANSLATION_RELATED, Event, Request0, Request1
from softiommu.hardware.smmuv3.faults import Response, SmmuFaultError
from softiommu.hardware.smmuv3.tables import Config, Eats
from softiommu.pagetable.kinds import EXECUTE, LENIENT, READ, WRITE

if TYPE_CHECKING:
    from softiommu.hardware.smmuv3.model import Smmu
    from softiommu.hardware.smmuv3.records import RecordQueue
    from softiommu.hardware.smmuv3.streams import Stream

_PAGE_LG2 = 12
_CODES = {Resp.DENY: ResponseCode.FAILURE, Resp.FAIL: ResponseCode.INVALID, Resp.SUCCESS: ResponseCode.SUCCESS}


#: What an ATC_INV names: stream, PASID, whether every PASID, and the first and the last address.
Invalidation = tuple[int, int | None, int, int, int]


class Ats:
    """The side of one SMMU that talks to devices with their own TLBs."""

    def __init__(self, smmu: Smmu, requests: RecordQueue) -> None:
        self._smmu, self._requests = smmu, requests
        self._endpoints: dict[int, Endpoint] = {}
        #: The PASIDs for which a device asked: a global invalidation meets them all.
        self._pasids: dict[int, set[int]] = {}

    def connect(self, sid: int, endpoint: Endpoint) -> None:
        """A device's function is there."""
        self._endpoints[sid] = endpoint

    # Translation

    def translate(self, request: Request) -> Translation:
        """Answer a translation request (3.9.1)."""
        if not self._smmu.identity.idr0.ATS or not self._smmu.enabled:
            raise self._refusal(Event.F_BAD_ATS_TREQ, request, True)
        try:
            stream = self._smmu.configuration.stream(request)
            if stream.config == Config.ABORT:
                raise self._refusal(Event.SILENT, request, False)
            eats = self._eats(stream)
            if eats == Eats.OFF:
                raise self._refusal(Event.F_BAD_ATS_TREQ, request, True)
            if request.pasid is not None:
                self._pasids.setdefault(request.sid, set()).add(request.pasid)
            answer = self._smmu.to_intermediate if eats == Eats.SPLIT else self._smmu.lookup
            return _completion(answer(stream, stream.override(request), LENIENT), request)
        except SmmuFaultError as fault:
            if fault.event in TRANSLATION_RELATED:
                return Translation(0, self._smmu.identity.smallest_granule, 0)
            if fault.response is Response.ABORT:
                fault.response = Response.COMPLETER_ABORT
                fault.recorded = fault.recorded and self._records_configuration
            raise

    def _eats(self, stream: Stream) -> Eats:
        """The ATS that a stream may use (5.2, EATS)."""
        if stream.config == Config.BYPASS:
            return Eats.OFF
        if stream.eats == Eats.SPLIT and not self._smmu.registers.CR0ACK.ATSCHK:
            return Eats.OFF
        return stream.eats

    @property
    def _records_configuration(self) -> bool:
        """CR2.REC_CFG_ATS, where the hardware has it."""
        return bool(self._smmu.registers.CR2.REC_CFG_ATS and self._smmu.identity.idr0.ATSRECERR)

    @staticmethod
    def _refusal(event: Event, request: Request, recorded: bool) -> SmmuFaultError:
        fault = SmmuFaultError(event, request)
        fault.response, fault.recorded = Response.UNSUPPORTED, recorded
        return fault

    def admit(self, request: Request) -> Translation:
        """Where a transaction with a translated address goes (3.9.1.3): as data, unprivileged, without substream."""
        smmu, want = self._smmu, request.want
        request = Request(request.sid, request.iova, want & ~EXECUTE | (READ if want & EXECUTE else 0))
        if not smmu.identity.idr0.ATS or not smmu.enabled:
            raise SmmuFaultError(Event.F_TRANSL_FORBIDDEN, request)
        if request.iova >> smmu.identity.oas:
            raise SmmuFaultError(Event.SILENT, request)
        if not smmu.registers.CR0ACK.ATSCHK:
            return smmu.untranslated(request)
        try:
            stream = smmu.configuration.stream(request)
        except SmmuFaultError as fault:
            fault.recorded = self._records_configuration
            raise
        if stream.config == Config.ABORT:
            raise SmmuFaultError(Event.SILENT, request)
        eats = self._eats(stream)
        if eats == Eats.OFF:
            raise SmmuFaultError(Event.F_TRANSL_FORBIDDEN, request)
        if eats == Eats.SPLIT:
            return smmu.by_stage2(stream, stream.override(request), 0)
        return smmu.untranslated(request)

    def invalidate(self, asked: Iterable[Invalidation]) -> bool:
        """ATC_INV, one or more in their order; False: for one no completion came in time. They are ignored while
        translation is off."""
        endpoints, good = self._endpoints, True
        for sid, pasid, every, first, last in asked:
            endpoint = endpoints.get(sid)
            if endpoint is None or not self._smmu.enabled:
                continue
            if pasid is None or not every:
                good = endpoint.invalidate(pasid, first, last) and good
                continue
            for each in sorted({pasid, *self._pasids.get(sid, ())}):
                good = endpoint.invalidate(each, first, last) and good
        return good

    # Page requests

    def page_request(self, request: PageRequest) -> None:
        """Queue a page request, or answer it without software (8.1, 8.2)."""
        queue = self._requests
        if not self._smmu.identity.idr1.SSIDSIZE:
            request = request._replace(pasid=None)
        if not self._smmu.enabled or not queue.enabled:
            self._answer(request, None, ResponseCode.FAILURE)
        elif queue.full or queue.overflowed:
            queue.overflow()
            if request.last:
                self._answer_lost(request)
        else:
            # With LO the last request of a group interrupts, instead of the first in the queue.
            interrupts = request.last if self._smmu.registers.PRIQ_IRQ_CFG2.LO else None
            if not queue.push(*_words(request), interrupts=interrupts):
                self._answer(request, None, ResponseCode.FAILURE)

    def _answer_lost(self, request: PageRequest) -> None:
        """The automatic answer of an overflow: with the PASID, where the device expects it (8.1)."""
        pasid = request.pasid
        if pasid is not None and not self._smmu.identity.idr3.PPS:
            try:
                stream = self._smmu.configuration.stream(Request(request.sid, request.iova, request.want, pasid))
            except SmmuFaultError as fault:
                fault.recorded = fault.recorded and self._records_configuration
                self._smmu.stalls.report(fault)
                self._answer(request, None, ResponseCode.FAILURE)
                return
            pasid = pasid if stream.ppar else None
        self._answer(request, pasid, ResponseCode.SUCCESS)

    def _answer(self, request: PageRequest, pasid: int | None, code: ResponseCode) -> None:
        endpoint = self._endpoints.get(request.sid)
        if endpoint is not None and not request.is_stop_marker:
            endpoint.page_response(pasid, request.group, code)

    def respond(self, sid: int, pasid: int | None, group: int, answer: Resp) -> None:
        """PRI_RESP; ignored while translation is off."""
        endpoint = self._endpoints.get(sid)
        if endpoint is not None and self._smmu.enabled:
            endpoint.page_response(pasid, group, _CODES[answer])


def _completion(found: Translation, request: Request) -> Translation:
    """The answer to a request: execution only where it was asked for, and nothing to what cannot be read or written."""
    allowed = found.allowed if request.want & EXECUTE else found.allowed & ~EXECUTE
    return found._replace(allowed=allowed if allowed & (READ | WRITE) else 0)


def _words(request: PageRequest) -> tuple[int, int]:
    """A page request as it lies in the queue."""
    low = Request0.of(
        SID=request.sid,
        R=int(bool(request.want & READ)),
        W=int(bool(request.want & WRITE)),
        LAST=int(request.last),
    )
    if request.pasid is not None:
        executes = int(bool(request.want & EXECUTE))
        low = low.replace(SSV=1, SSID=request.pasid, X=executes, PRIV=int(request.privileged))
    return int(low), int(Request1.of(PRGINDEX=request.group, ADDR=request.iova >> _PAGE_LG2))
