"""A blocked transaction: why, what it meets, and what is recorded of it. Arm IHI 0070, 3.12 and 7.3."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from softiommu.hardware.iommu import Request, TranslationFaultError
from softiommu.hardware.smmuv3.events import RECORDS, TRANSLATION_RELATED, Class, Event, Event0, Event1, Event3
from softiommu.pagetable.kinds import EXECUTE, WRITE


class Response(Enum):
    """What becomes of a transaction or an ATS request that is blocked."""

    ABORT = "abort"
    #: Reads as zero, and a write is ignored.
    RAZ_WI = "read as zero, write ignored"
    #: It waits until software resumes it.
    STALL = "stall"
    UNSUPPORTED = "unsupported request"
    COMPLETER_ABORT = "completer abort"


class Where(NamedTuple):
    """In which stage a fault arose, doing what, at which intermediate or fetch address."""

    stage2: bool = False
    doing: Class = Class.IN
    address: int = 0
    #: A stage-1 descriptor was to be written, not read.
    table_write: bool = False


class Policy(NamedTuple):
    """What a context (stage 1) or a stream (stage 2) wants done with faults."""

    stalls: bool = False
    records: bool = True
    raz_wi: bool = False


class SmmuFaultError(TranslationFaultError):
    """A blocked transaction. `event` is its number; `response` what the device sees; `stag` names a stalled one."""

    def __init__(
        self, event: Event, request: Request, where: Where | None = None, policy: Policy | None = None
    ) -> None:
        super().__init__(event, request)
        self.event, self.where = event, where or Where()
        #: An event is recorded (of stalled ones always).
        self.recorded = event != Event.SILENT
        self.response = Response.ABORT
        self.stag: int | None = None
        if policy is not None and event in TRANSLATION_RELATED:
            self.recorded = policy.records or policy.stalls
            if policy.stalls:
                self.response = Response.STALL
            elif policy.raz_wi:
                self.response = Response.RAZ_WI

    @property
    def waits(self) -> bool:
        """It is stalled, and has a name."""
        return self.stag is not None

    def record(self) -> tuple[int, int, int, int]:
        """The event record (7.3)."""
        request, fields, where = self.request, RECORDS[self.event], self.where
        first = Event0.of(TYPE=self.event, SID=request.sid)
        if fields.substream and request.pasid is not None:
            valid = int(self.event != Event.C_BAD_SUBSTREAMID)
            first = first.replace(SSV=valid, SSID=request.pasid)
        second = Event1(0)
        if self.stag is not None:
            second = second.replace(STALL=1, STAG=self.stag)
        if fields.direction:
            second = second.replace(RNW=int(not request.want & WRITE))
        if fields.access:
            fetch = int(bool(request.want & EXECUTE and not request.want & WRITE))
            second = second.replace(PNU=int(request.privileged), IND=fetch)
        if fields.place:
            second = second.replace(S2=int(where.stage2), CLASS=where.doing)
        if self.event == Event.F_PERMISSION and where.doing == Class.TT:
            second = second.replace(TTRNW=int(not where.table_write))
        address = where.address & Event3.ADDR.mask if fields.fetch else 0
        if fields.ipa and where.stage2:
            address = where.address & Event3.ADDR.mask & ~0xFFF
        return int(first), int(second), request.iova if fields.input_addr else 0, address
