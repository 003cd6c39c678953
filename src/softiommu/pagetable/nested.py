"""Two stages: the tables of the first lie at addresses that the second translates."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from softiommu.memory.physical import BadAddressError
from softiommu.pagetable.kinds import OK, READ, Table
from softiommu.pagetable.walk import Walk, walk, walk_by

if TYPE_CHECKING:
    from softiommu.memory.physical import PhysicalMemory


class Stage(NamedTuple):
    """A table of some format with its root."""

    table: Table
    root: int


class NestedWalk(NamedTuple):
    """How a nested walk ended. `stage2` is the second-stage walk that decided, of a table fetch or of the output."""

    status: int
    pa: int
    #: lg2 of what can be cached as one translation: the smaller of both leaves.
    lg2: int
    allowed: int
    stage1: Walk | None
    stage2: Walk | None
    #: Set when a fetch of a first-stage table failed in the second stage: the address of the table entry.
    fetch_ipa: int | None = None


class _Stage2FaultError(BadAddressError):
    def __init__(self, ipa: int, result: Walk) -> None:
        super().__init__(ipa, 8)
        self.ipa, self.result = ipa, result


def nested_walk(first: Stage, second: Stage, memory: PhysicalMemory, iova: int, want: int = 0) -> NestedWalk:
    """Translate `iova` by the first stage, its tables and its output by the second."""
    failed: list[_Stage2FaultError] = []

    def fetch(ipa: int) -> int:
        result = walk(second.table, memory, second.root, ipa, READ)
        if result.status != OK:
            failed.append(_Stage2FaultError(ipa, result))
            raise failed[-1]
        return memory.read_u64(result.oa)

    stage1 = walk_by(first.table, fetch, first.root, iova, want)
    if failed:
        fault = failed[-1]
        return NestedWalk(fault.result.status, 0, 0, 0, None, fault.result, fault.ipa)
    if stage1.status != OK:
        return NestedWalk(stage1.status, 0, 0, stage1.allowed, stage1, None)
    stage2 = walk(second.table, memory, second.root, stage1.oa, want)
    allowed = stage1.allowed & stage2.allowed
    return NestedWalk(stage2.status, stage2.oa, min(stage1.lg2, stage2.lg2), allowed, stage1, stage2)
