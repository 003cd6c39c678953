"""Translation by stage 1, stage 2, or both; and which fault a walk that failed is. Arm IHI 0070, 3.4 and 7.3.

A walk tells which rights its entries give. Of those a write is held back while the entry is not yet dirty: the next
write must walk again, so that the flag is set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from softiommu.hardware.iommu import Request
from softiommu.hardware.smmuv3.contexts import Context, Half
from softiommu.hardware.smmuv3.events import Class, Event
from softiommu.hardware.smmuv3.faults import SmmuFaultError, Where
from softiommu.memory.physical import BadAddressError
from softiommu.pagetable.formats import arm64
from softiommu.pagetable.kinds import (
    ADDRESS_SIZE,
    BAD_TABLE,
    DESCEND,
    FORBIDDEN,
    GLOBAL,
    HW_ACCESSED,
    HW_DIRTY,
    MALFORMED,
    NOT_ACCESSED,
    NOT_MAPPED,
    OK,
    OUT_OF_RANGE,
    PRIVILEGED,
    READ,
    RIGHTS,
    WRITE,
    Table,
)
from softiommu.pagetable.nested import NestedWalk, Stage, known_walk, nested_walk
from softiommu.pagetable.walk import Walk, entry, index, signed, walk
from softiommu.words import Word, bits

if TYPE_CHECKING:
    from softiommu.hardware.smmuv3.streams import Stream
    from softiommu.memory.physical import PhysicalMemory

_EVENTS = {
    OUT_OF_RANGE: Event.F_TRANSLATION,
    NOT_MAPPED: Event.F_TRANSLATION,
    MALFORMED: Event.F_TRANSLATION,
    ADDRESS_SIZE: Event.F_ADDR_SIZE,
    BAD_TABLE: Event.F_WALK_EABT,
    NOT_ACCESSED: Event.F_ACCESS,
    FORBIDDEN: Event.F_PERMISSION,
}


class _Stage2Leaf(Word):
    """Of MemAttr the half that tells device memory (0) from normal memory (D8.6)."""

    MEMORY = bits(5, 4)


class Found(NamedTuple):
    """A translation: the physical and the intermediate address, the size of both leaves together, and the rights."""

    pa: int
    ipa: int
    lg2: int
    allowed: int
    is_global: bool = False
    #: The size of the leaf of stage 1, which may be larger.
    leaf_lg2: int = 0


def half_of(context: Context, request: Request) -> Half:
    """The tables for an address. SmmuFaultError: it is in neither half, or walks of that half are disabled."""
    half = context.halves[request.iova >> 55 & 1]
    if half is None or request.iova & half.same != half.value or (half.privileged_only and not request.privileged):
        raise SmmuFaultError(Event.F_TRANSLATION, request, Where(), context.policy)
    return half


def first_stage(
    memory: PhysicalMemory, stream: Stream, context: Context, half: Half, request: Request, how: int
) -> Found:
    """Translate by stage 1, and by stage 2 where the stream has one. `how` may be LENIENT. SmmuFaultError."""
    iova = request.iova & ~half.same & (1 << half.stage.table.input_bits) - 1
    want = request.want | how | (PRIVILEGED if request.privileged else 0)
    if stream.second is None:
        found = walk(half.stage.table, memory, half.stage.root, iova, want)
        if found.status != OK:
            raise _first_fault(found, half.stage.table, context, request, found.at)
        allowed = _now(half.stage.table, found, found.allowed)
        return Found(found.oa, found.oa, found.lg2, allowed & RIGHTS, bool(allowed & GLOBAL))
    stages, both = (half.stage, stream.second), None
    if stream.protects_walks:
        shown: list[int] = []
        both = known_walk(*stages, memory, iova, want, shown)
        if both is None or not all(leaf & _Stage2Leaf.MEMORY.mask for leaf in shown):
            _check_tables(memory, stream, stream.second, half.stage, request._replace(iova=iova))
    if both is None:
        both = nested_walk(*stages, memory, iova, want)
    if both.stage1 is None or both.stage2 is None or both.status != OK:
        raise _nested_fault(memory, both, stream, context, half, request)
    allowed = _now(stream.second.table, both.stage2, _now(half.stage.table, both.stage1, both.allowed))
    return Found(both.pa, both.stage1.oa, both.lg2, allowed & RIGHTS, bool(allowed & GLOBAL), both.stage1.lg2)


def second_stage(
    memory: PhysicalMemory, stream: Stream, request: Request, ipa: int, want: int, doing: Class = Class.IN
) -> Found:
    """Translate an intermediate address by stage 2. SmmuFaultError."""
    second = stream.second
    assert second is not None, "the stream has stage 2"
    found = walk(second.table, memory, second.root, ipa, want)
    if found.status != OK:
        raise _second_fault(found, stream, request, Where(True, doing, ipa))
    if doing == Class.CD and stream.protects_walks and _is_device(found):
        raise SmmuFaultError(Event.F_PERMISSION, request, Where(True, doing, ipa), stream.policy)
    return Found(found.oa, ipa, found.lg2, _now(second.table, found, found.allowed) & RIGHTS)


def _check_tables(memory: PhysicalMemory, stream: Stream, second: Stage, first: Stage, request: Request) -> None:
    """S2PTW: an entry of stage 1 in device memory is a fault of stage 2. What else fails is not told here."""
    t, table, level = first.table, first.root, first.table.top
    status = DESCEND
    while status == DESCEND:
        ipa = table + (index(t, level, request.iova) << 3)
        outer = walk(second.table, memory, second.root, ipa, request.want and READ)
        if outer.status != OK:
            return
        if _is_device(outer):
            raise SmmuFaultError(Event.F_PERMISSION, request, Where(True, Class.TT, ipa), stream.policy)
        try:
            pte = memory.read_u64(outer.oa)
        except BadAddressError:
            return
        status, table, _, level = entry(t, level, request.iova, signed(pte))


def _is_device(found: Walk) -> bool:
    """Whether a leaf of stage 2 maps device memory."""
    return not found.pte & _Stage2Leaf.MEMORY.mask


def _now(table: Table, found: Walk, allowed: int) -> int:
    """The rights without that of a write that has to set the dirty flag first."""
    clean = table.option & HW_DIRTY and found.pte & arm64.DBM and not arm64.dirty(table, found.pte)
    return allowed & ~WRITE if clean else allowed


def _event(found: Walk, table: Table) -> Event:
    """The number of a walk's fault. That of the access flag comes before that of permissions (7.3)."""
    ignores = table.option & (HW_ACCESSED | arm64.AFFD)
    if found.status == FORBIDDEN and not ignores and not found.pte & arm64.AF:
        return Event.F_ACCESS
    return _EVENTS[found.status]


def _first_fault(found: Walk, table: Table, context: Context, request: Request, at: int) -> SmmuFaultError:
    doing = Class.TT if found.status == BAD_TABLE else Class.IN
    return SmmuFaultError(_event(found, table), request, Where(False, doing, at), context.policy)


def _second_fault(found: Walk, stream: Stream, request: Request, where: Where) -> SmmuFaultError:
    assert stream.second is not None, "the stream has stage 2"
    if found.status == BAD_TABLE:
        where = where._replace(address=found.at)
    return SmmuFaultError(_event(found, stream.second.table), request, where, stream.policy)


def _nested_fault(
    memory: PhysicalMemory, both: NestedWalk, stream: Stream, context: Context, half: Half, request: Request
) -> SmmuFaultError:
    if both.stage2 is None:
        assert both.stage1 is not None, "one of the stages decided"
        assert stream.second is not None, "there are two stages"
        at = both.stage1.at
        if both.status == BAD_TABLE:
            at = walk(stream.second.table, memory, stream.second.root, at).oa
        return _first_fault(both.stage1, half.stage.table, context, request, at)
    if both.fetch_ipa is not None:
        where = Where(True, Class.TT, both.fetch_ipa, both.fetch_want == WRITE)
    else:
        assert both.stage1 is not None, "stage 2 translated the output of stage 1"
        where = Where(True, Class.IN, both.stage1.oa)
    return _second_fault(both.stage2, stream, request, where)
