"""What a driver tells of requests that its IOMMU blocked, in the same words for every make; and what is no fault."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from softiommu.abi.iommufd import PgfaultPerm

if TYPE_CHECKING:
    from softiommu.drivers.driver import PageFault

_READ_OR_WRITE = int(PgfaultPerm.READ | PgfaultPerm.WRITE)


class Blocked(NamedTuple):
    """A request that was blocked, as the IOMMU recorded it. `record` is the record, decoded."""

    sid: int
    pasid: int | None
    iova: int
    access: str
    reason: str
    record: str

    def __str__(self) -> str:
        """One line for the kernel's log."""
        who = f"{self.sid >> 8:02x}:{self.sid >> 3 & 31:02x}.{self.sid & 7}"
        with_pasid = "" if self.pasid is None else f" with PASID {self.pasid:#x}"
        return f"DMA {self.access} by {who}{with_pasid} at iova {self.iova:#x} is blocked: {self.reason}; {self.record}"


def is_stop_marker(fault: PageFault) -> bool:
    """Whether a page request only says that its PASID's requests end: it is no fault, and nobody waits for an answer
    (PCI Express 5.0, 10.4.1.2.2). The kernel demands of drivers that they keep such to themselves."""
    return fault.last and fault.pasid is not None and not fault.perm & _READ_OR_WRITE


def words(reason: str) -> str:
    """The name of a reason as words."""
    return reason.lower().replace("_", " ")
