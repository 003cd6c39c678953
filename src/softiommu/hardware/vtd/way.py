"""What a request meets in a VT-d unit, for a trace: root, context and PASID structures, and both stages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from softiommu.hardware.iommu import TranslationFaultError
from softiommu.hardware.trace import Known, Raw, Script, stages, structure
from softiommu.hardware.vtd.registers import Ttm
from softiommu.hardware.vtd.tables import (
    ContextHigh,
    ContextLow,
    Pasid0,
    Pasid1,
    Pasid2,
    PasidDirectoryEntry,
    RootEntry,
    ScalableContext0,
    ScalableContext1,
    ScalableRootHalf,
)
from softiommu.hardware.vtd.walker import INTERRUPTS, WIDEST, Walker
from softiommu.pagetable.kinds import WRITE

if TYPE_CHECKING:
    from softiommu.hardware.iommu import Request
    from softiommu.hardware.vtd.model import Unit
    from softiommu.memory.physical import PhysicalMemory

_NAMES = ("first-stage", "second-stage")


def way(unit: Unit, memory: PhysicalMemory, request: Request) -> Script:
    """The structures on the way of a request."""
    registers = unit.registers
    if request.pasid is None and request.want & WRITE and request.iova in INTERRUPTS:
        return None
    yield Known("global status", registers.GSTS)
    if not registers.GSTS.TE:
        return request.iova
    yield Known("root table address", registers.RTADDR)
    walker = Walker(memory, registers.CAP, registers.ECAP, WIDEST)
    try:
        if registers.RTADDR.TTM == Ttm.SCALABLE:
            return (yield from _scalable(unit, walker, request))
        return (yield from _legacy(unit, walker, request))
    except TranslationFaultError:
        return None


def _legacy(unit: Unit, walker: Walker, request: Request) -> Script:
    rtaddr = unit.registers.RTADDR
    at = (rtaddr.RTA << 12) + 16 * (request.sid >> 8)
    root, _ = yield from structure(at, ("root entry", RootEntry), ("root entry, word 1", Raw))
    if not RootEntry(root).P:
        return None
    at = (RootEntry(root).CTP << 12) + 16 * (request.sid & 0xFF)
    yield from structure(at, ("context entry", ContextLow), ("context entry, word 1", ContextHigh))
    route = walker.legacy(rtaddr, request)
    return (yield from stages(route.first, route.second, request.iova, _NAMES))


def _scalable(unit: Unit, walker: Walker, request: Request) -> Script:
    rtaddr, sid = unit.registers.RTADDR, request.sid
    at = (rtaddr.RTA << 12) + 16 * (sid >> 8) + 8 * (sid >> 7 & 1)
    (root,) = yield from structure(at, ("scalable root entry, half", ScalableRootHalf))
    if not ScalableRootHalf(root).P:
        return None
    yield from structure(
        (ScalableRootHalf(root).CTP << 12) + 32 * (sid & 0x7F),
        ("scalable context entry", ScalableContext0),
        ("scalable context entry, word 1", ScalableContext1),
        ("scalable context entry, word 2", Raw),
        ("scalable context entry, word 3", Raw),
    )
    context = walker.context(rtaddr, request)
    pasid = walker.pasid_of(context, request)
    (entry,) = yield from structure(
        context.directory + 8 * (pasid >> 6), ("PASID directory entry", PasidDirectoryEntry)
    )
    if not PasidDirectoryEntry(entry).P:
        return None
    yield from structure(
        (PasidDirectoryEntry(entry).SMPTBLPTR << 12) + 64 * (pasid & 63),
        ("PASID entry", Pasid0),
        ("PASID entry, word 1", Pasid1),
        ("PASID entry, word 2", Pasid2),
        *((f"PASID entry, word {number}", Raw) for number in range(3, 8)),
    )
    route = walker.route(context, pasid, request)
    return (yield from stages(route.first, route.second, request.iova, _NAMES))
