"""What all IOMMUs share: a request comes in, a translation or a fault comes out; and ATS between them and devices."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple, Protocol, runtime_checkable

from softiommu.pagetable.kinds import EXECUTE, READ, WRITE

ALL = READ | WRITE | EXECUTE


class Request(NamedTuple):
    """One memory request of a device: who (stream), with which PASID, where, and the rights it wants."""

    sid: int
    iova: int
    #: READ, WRITE and EXECUTE of pagetable.kinds.
    want: int
    pasid: int | None = None
    privileged: bool = False


class Translation(NamedTuple):
    """Where a request goes: the physical address, and what a device may do in the 2**lg2 bytes around it."""

    pa: int
    lg2: int
    allowed: int


class TranslationFaultError(Exception):
    """A request that is blocked. `reason` is the architecture's number for it."""

    def __init__(self, reason: IntEnum, request: Request) -> None:
        super().__init__(f"{reason.name} ({int(reason):#x}) for iova {request.iova:#x} of stream {request.sid:#x}")
        self.reason, self.request = reason, request

    @property
    def waits(self) -> bool:
        """The request is not over: who sent it will hear how it goes on (`StallingIommu`)."""
        return False


class PageRequest(NamedTuple):
    """A device asks software for a page (PCIe PRI). `group` is answered when its `last` request has come."""

    sid: int
    iova: int
    want: int
    group: int
    last: bool
    pasid: int | None = None
    privileged: bool = False

    @property
    def is_stop_marker(self) -> bool:
        """The device says that a PASID's requests end. It expects no answer (10.4.1.2.2)."""
        return self.last and self.pasid is not None and not self.want & (READ | WRITE)


class ResponseCode(IntEnum):
    """How software answered a group of page requests (PCIe 10.4.2)."""

    SUCCESS = 0
    INVALID = 1
    FAILURE = 15


class Endpoint(Protocol):
    """The device's side of ATS and PRI: what an IOMMU tells a function."""

    def invalidate(self, pasid: int | None, first: int, last: int) -> bool:
        """Drop cached translations of `first`..`last`, of a PASID, or without one of all; False: no completion came (it
        timed out)."""
        ...

    def page_response(self, pasid: int | None, group: int, code: ResponseCode) -> None:
        """A group of page requests is answered."""
        ...


class Iommu(Protocol):
    """What every model offers: registers to software, translations to devices."""

    def read(self, offset: int, width: int) -> int:
        """Software reads a register."""
        ...

    def write(self, offset: int, width: int, value: int) -> None:
        """Software writes a register."""
        ...

    def translate(
        self, sid: int, iova: int, want: int, pasid: int | None = None, privileged: bool = False
    ) -> Translation:
        """Where an untranslated request goes. TranslationFaultError: it is blocked, and recorded as the hardware
        records it."""
        ...


@runtime_checkable
class StallingIommu(Iommu, Protocol):
    """An IOMMU that holds requests until software has looked at them."""

    def listen(self, sid: int, heard: Callable[[bool], None]) -> None:
        """From now on this function hears of each of its requests that waited: whether to send it again. That may
        be before the request itself is answered."""
        ...


@runtime_checkable
class AtsIommu(Iommu, Protocol):
    """An IOMMU that serves address translation and page requests of devices."""

    def connect(self, sid: int, endpoint: Endpoint) -> None:
        """From now on this function hears of invalidations and responses."""
        ...

    def ats_translate(
        self, sid: int, iova: int, want: int, pasid: int | None = None, privileged: bool = False
    ) -> Translation:
        """Answer a translation request; `allowed` without READ and WRITE: nothing is there (no fault is recorded).
        TranslationFaultError: the completion is UR or CA."""
        ...

    def admit_translated(self, sid: int, pa: int, want: int, pasid: int | None = None) -> Translation:
        """Where a request with a translated address goes. TranslationFaultError: the device may not send such."""
        ...

    def page_request(self, request: PageRequest) -> None:
        """Queue a page request for software; what cannot be queued is answered as the architecture says."""
        ...
