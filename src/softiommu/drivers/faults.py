"""What a driver tells of requests that its IOMMU blocked: the same words for every make."""

from __future__ import annotations

from typing import NamedTuple


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


def words(reason: str) -> str:
    """The name of a reason as words."""
    return reason.lower().replace("_", " ")
