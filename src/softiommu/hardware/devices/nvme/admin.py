"""Admin commands. NVM Express 1.4, section 5. A handler gives dword 0 of the completion, or None: it comes later."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from softiommu.hardware.devices.nvme import events
from softiommu.hardware.devices.nvme.commands import (
    ALL_NAMESPACES,
    COMPLETION_LG2,
    SUBMISSION_LG2,
    AbortDword10,
    Admin,
    Command,
    CommandError,
    CreateCqDword11,
    CreateSqDword11,
    EventType,
    FormatDword10,
    HealthEvent,
    IdentifyDword10,
    LogDword10,
    LogDword11,
    LogPage,
    QueueDword10,
    Status,
)
from softiommu.hardware.devices.nvme.queues import CompletionQueue, SubmissionQueue

if TYPE_CHECKING:
    from softiommu.hardware.devices.nvme.controller import Nvme

#: Format NVM may erase (1), but has no keys to forget (2).
_ERASE_SETTINGS = (0, 1)
#: Dword 0 of Abort: the command was not aborted.
_NOT_ABORTED = 1


def _new_queue(nvme: Nvme, command: Command, contiguous: int, taken: bool, entry_lg2: int, expected: int) -> int:
    """The size of a queue that may be made. CommandError: it may not."""
    dword10 = QueueDword10(command.dword10)
    if not 1 <= dword10.QID <= nvme.pairs or taken:
        raise CommandError(Status.INVALID_QUEUE_IDENTIFIER)
    if not 1 <= dword10.QSIZE <= nvme.registers.CAP.MQES or entry_lg2 != expected:
        raise CommandError(Status.INVALID_QUEUE_SIZE)
    if not contiguous:
        raise CommandError(Status.INVALID_FIELD)
    if command.prp1 % nvme.page:
        raise CommandError(Status.PRP_OFFSET_INVALID)
    return dword10.QSIZE + 1


def create_cq(nvme: Nvme, command: Command) -> int:
    """Create I/O Completion Queue (5.3)."""
    id, dword11 = QueueDword10(command.dword10).QID, CreateCqDword11(command.dword11)
    entry_lg2 = nvme.registers.CC.IOCQES
    size = _new_queue(nvme, command, dword11.PC, id in nvme.cqs, entry_lg2, COMPLETION_LG2)
    if nvme.vectors <= dword11.IV:
        raise CommandError(Status.INVALID_INTERRUPT_VECTOR)
    nvme.cqs[id] = CompletionQueue(id, command.prp1, size, dword11.IV, bool(dword11.IEN))
    return 0


def create_sq(nvme: Nvme, command: Command) -> int:
    """Create I/O Submission Queue (5.4)."""
    id, dword11 = QueueDword10(command.dword10).QID, CreateSqDword11(command.dword11)
    entry_lg2 = nvme.registers.CC.IOSQES
    size = _new_queue(nvme, command, dword11.PC, id in nvme.sqs, entry_lg2, SUBMISSION_LG2)
    if not 1 <= dword11.CQID <= nvme.pairs:
        raise CommandError(Status.INVALID_QUEUE_IDENTIFIER)
    cq = nvme.cqs.get(dword11.CQID)
    if cq is None:
        raise CommandError(Status.COMPLETION_QUEUE_INVALID)
    nvme.sqs[id] = SubmissionQueue(id, command.prp1, size, cq)
    return 0


def delete_sq(nvme: Nvme, command: Command) -> int:
    """Delete I/O Submission Queue (5.6). What was not fetched is forgotten."""
    id = QueueDword10(command.dword10).QID
    if id == 0 or id not in nvme.sqs:
        raise CommandError(Status.INVALID_QUEUE_IDENTIFIER)
    del nvme.sqs[id]
    nvme.function.changed()
    return 0


def delete_cq(nvme: Nvme, command: Command) -> int:
    """Delete I/O Completion Queue (5.5)."""
    id = QueueDword10(command.dword10).QID
    if id == 0 or id not in nvme.cqs:
        raise CommandError(Status.INVALID_QUEUE_IDENTIFIER)
    if any(sq.cq.id == id for sq in nvme.sqs.values()):
        raise CommandError(Status.INVALID_QUEUE_DELETION)
    del nvme.cqs[id]
    nvme.function.changed()
    nvme.refresh_line()
    return 0


def identify(nvme: Nvme, command: Command) -> int:
    """Identify (5.15)."""
    nvme.send(command, nvme.subsystem.identify(IdentifyDword10(command.dword10).CNS, command.nsid))
    return 0


def get_log_page(nvme: Nvme, command: Command) -> int:
    """Get Log Page (5.14). Past the end of a page there are zeros."""
    dword10 = LogDword10(command.dword10)
    length = ((LogDword11(command.dword11).NUMDU << 16 | dword10.NUMDL) + 1) * 4
    offset = command.dword13 << 32 | command.dword12
    if command.nsid not in (0, ALL_NAMESPACES):
        raise CommandError(Status.INVALID_FIELD)
    try:
        number = LogPage(dword10.LID)
    except ValueError:
        raise CommandError(Status.INVALID_LOG_PAGE) from None
    nvme.check_length(length)
    page = nvme.logs.page(number)
    if offset % 4 or offset > len(page):
        raise CommandError(Status.INVALID_FIELD)
    nvme.send(command, page[offset : offset + length].ljust(length, b"\0"))
    if not dword10.RAE:
        nvme.events.clear(number)
    return 0


def abort(nvme: Nvme, command: Command) -> int:
    """Abort (5.1). All but event requests are done before an Abort is seen."""
    dword10 = AbortDword10(command.dword10)
    if dword10.SQID != 0 or dword10.CID not in nvme.events.requests:
        return _NOT_ABORTED
    nvme.events.requests.remove(dword10.CID)
    nvme.complete(nvme.sqs[0], dword10.CID, 0, Status.ABORT_REQUESTED)
    return 0


def get_features(nvme: Nvme, command: Command) -> int:
    """Get Features (5.13)."""
    return nvme.features.get(command)


def set_features(nvme: Nvme, command: Command) -> int:
    """Set Features (5.21). A threshold that the temperature is past is an event."""
    dword0 = nvme.features.set(command, queues_exist=len(nvme.sqs) + len(nvme.cqs) > 2)
    past = nvme.features.temperature_warning
    if past and not nvme.logs.temperature_warning and nvme.features.temperature_event:
        nvme.events.happened(EventType.HEALTH, HealthEvent.TEMPERATURE)
    nvme.logs.temperature_warning = past
    return dword0


def async_event_request(nvme: Nvme, command: Command) -> None:
    """Asynchronous Event Request (5.2)."""
    if len(nvme.events.requests) == events.LIMIT:
        raise CommandError(Status.ASYNC_EVENT_LIMIT)
    nvme.events.request(command.dword0.CID)


def format_nvm(nvme: Nvme, command: Command) -> int:
    """Format NVM (5.23)."""
    dword10 = FormatDword10(command.dword10)
    namespaces = nvme.subsystem.namespaces
    chosen = namespaces if command.nsid == ALL_NAMESPACES else [nvme.subsystem.find(command.nsid)]
    if dword10.PI or any(len(namespace.formats) <= dword10.LBAF for namespace in chosen):
        raise CommandError(Status.INVALID_FORMAT)
    if dword10.SES not in _ERASE_SETTINGS:
        raise CommandError(Status.INVALID_FIELD)
    for namespace in chosen:
        namespace.reformat(dword10.LBAF)
    return 0


HANDLERS: dict[int, Callable[[Nvme, Command], int | None]] = {
    Admin.DELETE_SQ: delete_sq,
    Admin.CREATE_SQ: create_sq,
    Admin.GET_LOG_PAGE: get_log_page,
    Admin.DELETE_CQ: delete_cq,
    Admin.CREATE_CQ: create_cq,
    Admin.IDENTIFY: identify,
    Admin.ABORT: abort,
    Admin.SET_FEATURES: set_features,
    Admin.GET_FEATURES: get_features,
    Admin.ASYNC_EVENT_REQUEST: async_event_request,
    Admin.FORMAT_NVM: format_nvm,
}
