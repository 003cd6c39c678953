"""What stops a request, with the record that the event log gets of it. AMD IOMMU specification 48882, 2.5."""

from __future__ import annotations

from enum import IntEnum

from softiommu.hardware.amd.events import (
    BadRequest,
    BadTranslationRequest,
    Code,
    CommandEvent,
    DeviceEvent,
    HardwareError,
    PprRecord,
    Record,
    RequestEvent,
)
from softiommu.hardware.iommu import PageRequest, Request, TranslationFaultError
from softiommu.pagetable.kinds import EXECUTE, READ, WRITE


class EventError(TranslationFaultError):
    """A blocked request, and its record."""

    def __init__(self, reason: IntEnum, request: Request, record: Record) -> None:
        super().__init__(reason, request)
        self.record = record


class PageFaultError(EventError):
    """An I/O page fault: for a translation request it is an answer, and no event. DTE.SA and SE hide it."""


def illegal_entry(request: Request, reserved: bool, **flags: int) -> EventError:
    """ILLEGAL_DEV_TABLE_ENTRY: `reserved` bits are set, or a level or a type that there is not."""
    low = DeviceEvent.of(
        CODE=Code.ILLEGAL_DEV_TABLE_ENTRY, DeviceID=request.sid, RZ=int(reserved), RW=_writes(request), **flags
    )
    low = low if request.pasid is None else _with_pasid(low, request.pasid)
    return EventError(Code.ILLEGAL_DEV_TABLE_ENTRY, request, Record(low, request.iova & ~3))


def page_fault(request: Request, domain: int, guest: int | None, **flags: int) -> PageFaultError:
    """IO_PAGE_FAULT at a host address of a domain, or at an address of a `guest` PASID."""
    low = DeviceEvent.of(CODE=Code.IO_PAGE_FAULT, DeviceID=request.sid, RW=_writes(request), **flags)
    if guest is None:
        low = low.replace(DOMAIN=domain)
    else:
        low = _with_pasid(low, guest).replace(NX=int(bool(request.want & EXECUTE)), US=int(not request.privileged))
    return PageFaultError(Code.IO_PAGE_FAULT, request, Record(low, request.iova))


def hardware_error(code: Code, request: Request, domain: int, guest: int | None, at: int) -> EventError:
    """DEV_TAB_HARDWARE_ERROR or PAGE_TAB_HARDWARE_ERROR: there is no memory at `at`, where an entry should be."""
    low = DeviceEvent.of(CODE=code, DeviceID=request.sid, RW=_writes(request), TYPE=HardwareError.MASTER_ABORT)
    low = low.replace(DOMAIN=domain) if guest is None else _with_pasid(low, guest)
    return EventError(code, request, Record(low, at & ((1 << 64) - 1) & ~0xF))


def bad_request(request: Request, kind: BadRequest | BadTranslationRequest) -> EventError:
    """INVALID_DEVICE_REQUEST."""
    low = RequestEvent.of(
        CODE=Code.INVALID_DEVICE_REQUEST,
        DeviceID=request.sid,
        TYPE=kind,
        TR=int(isinstance(kind, BadTranslationRequest)),
        US=int(not request.privileged),
    )
    if request.pasid is not None:
        low = low.replace(GN=1, DOMAIN=request.pasid & 0xFFFF, PASID19_16=request.pasid >> 16 & 0xF)
    return EventError(Code.INVALID_DEVICE_REQUEST, request, Record(low, request.iova))


def command_event(code: Code, at: int, **fields: int) -> Record:
    """The record of a command at `at` that is illegal, that failed, or that a device did not complete."""
    return Record(CommandEvent.of(CODE=code, **fields), at & ~0xF)


def page_request(request: PageRequest, code: int) -> Record:
    """A page request as the PPR log has it, or as event 9 (without flags)."""
    pasid = request.pasid or 0
    low = PprRecord.of(
        CODE=code,
        DeviceID=request.sid,
        PASID15_0=pasid & 0xFFFF,
        PASID19_16=pasid >> 16 & 0xF,
        TAG=request.group & PprRecord.TAG.mask >> PprRecord.TAG.low,
        LAST=int(request.last),
    )
    if code != Code.INVALID_PPR_REQUEST:
        low = low.replace(
            GN=int(request.pasid is not None),
            USER=int(not request.privileged),
            READ=int(bool(request.want & READ)),
            WRITE=int(bool(request.want & WRITE)),
            EXEC=int(bool(request.want & EXECUTE)),
        )
    return Record(low, request.iova & ~0xFFF)


def _writes(request: Request) -> int:
    return int(bool(request.want & WRITE))


def _with_pasid(low: DeviceEvent, pasid: int) -> DeviceEvent:
    return low.replace(GN=1, DOMAIN=pasid & 0xFFFF, PASID19_16=pasid >> 16 & 0xF)
