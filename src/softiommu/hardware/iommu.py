"""What all IOMMUs share: a request comes in, a translation or a fault comes out."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from softiommu.pagetable.kinds import EXECUTE, READ, WRITE


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


ALL = READ | WRITE | EXECUTE
