"""What a transaction meets in an SMMU, for a trace: stream table, STE, context descriptors, and both stages."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

from softiommu.hardware.iommu import TranslationFaultError
from softiommu.hardware.smmuv3.contexts import read_context
from softiommu.hardware.smmuv3.streams import read_stream
from softiommu.hardware.smmuv3.tables import (
    CD_BYTES,
    LEAF_LG2,
    STE_BYTES,
    Cd0,
    Cd1,
    Cd2,
    Cd3,
    Config,
    L1Cd,
    L1Std,
    S1Dss,
    Ste0,
    Ste1,
    Ste2,
    Ste3,
)
from softiommu.hardware.smmuv3.walker import half_of
from softiommu.hardware.trace import Expect, Known, Raw, Script, one, stages, structure

if TYPE_CHECKING:
    from softiommu.hardware.iommu import Request
    from softiommu.hardware.smmuv3.model import Smmu
    from softiommu.hardware.smmuv3.streams import Stream
    from softiommu.memory.physical import PhysicalMemory

_NAMES = ("stage 1", "stage 2")


def way(unit: Smmu, memory: PhysicalMemory, request: Request) -> Script:
    """The structures on the way of a transaction."""
    registers = unit.registers
    yield Known("CR0ACK", registers.CR0ACK)
    if not unit.enabled:
        yield Known("GBPA", registers.GBPA)
        return request.iova
    yield Known("STRTAB_BASE", registers.STRTAB_BASE)
    yield Known("STRTAB_BASE_CFG", registers.STRTAB_BASE_CFG)
    at = yield from _entry(unit, request)
    if at is None:
        return None
    words = yield from structure(
        at,
        ("STE", Ste0),
        *((f"STE, word {number + 1}", kind) for number, kind in enumerate((Ste1, Ste2, Ste3, Raw, Raw, Raw, Raw))),
    )
    stream = read_stream(words, unit.identity, registers.CR2)
    if stream is None or stream.config == Config.ABORT:
        return None
    try:
        return (yield from _translate(unit, stream, stream.override(request)))
    except TranslationFaultError:
        return None


def _entry(unit: Smmu, request: Request) -> Script:
    """The address of the STE."""
    base, shape = unit.registers.STRTAB_BASE.ADDR << 6, unit.registers.STRTAB_BASE_CFG
    split, lg2 = unit.configuration.split, min(shape.LOG2SIZE, unit.identity.idr1.SIDSIZE)
    if request.sid >> lg2:
        return None
    if not split:
        return (base & ~((1 << lg2 + 6) - 1)) + STE_BYTES * request.sid
    base &= ~((1 << max(6, lg2 - split + 3)) - 1)
    (raw,) = yield from structure(base + 8 * (request.sid >> split), ("level-1 stream table descriptor", L1Std))
    descriptor, number = L1Std(raw), request.sid & (1 << split) - 1
    if not 1 <= descriptor.SPAN <= min(11, split + 1) or number >> descriptor.SPAN - 1:
        return None
    return ((descriptor.L2PTR << 6) & ~((1 << descriptor.SPAN + 5) - 1)) + STE_BYTES * number


def _translate(unit: Smmu, stream: Stream, request: Request) -> Script:
    ssid = request.pasid
    if ssid is None:
        ssid = 0
        if stream.cdmax and stream.s1dss == S1Dss.BYPASS:
            return (yield from stages(None, stream.second, request.iova, _NAMES))
    if not stream.has_stage1:
        return (yield from stages(None, stream.second, request.iova, _NAMES))
    words = yield from _context(stream, ssid)
    context = read_context(words, unit.identity, stream) if len(words) == CD_BYTES // 8 else None
    if context is None:
        return None
    half = half_of(context, request)
    iova = request.iova & ~half.same
    return (yield from stages(half.stage, stream.second, iova, _NAMES))


def _context(stream: Stream, ssid: int) -> Generator[Known | Expect, int, list[int]]:
    """The words of a context descriptor; none where the way ends before."""
    table, leaf_lg2 = stream.context_table, LEAF_LG2.get(stream.s1fmt) if stream.cdmax else None
    if leaf_lg2 is not None:
        at = yield from _physical(stream, table + 8 * (ssid >> leaf_lg2))
        if at is None:
            return []
        (raw,) = yield from structure(at, ("level-1 context descriptor", L1Cd))
        if not L1Cd(raw).V:
            return []
        table, ssid = (L1Cd(raw).L2PTR << 12) & ~((1 << leaf_lg2 + 6) - 1), ssid & (1 << leaf_lg2) - 1
    at = yield from _physical(stream, table + CD_BYTES * ssid)
    if at is None:
        return []
    return (
        yield from structure(
            at,
            ("CD", Cd0),
            *((f"CD, word {number + 1}", kind) for number, kind in enumerate((Cd1, Cd2, Cd3, Raw, Raw, Raw, Raw))),
        )
    )


def _physical(stream: Stream, ipa: int) -> Script:
    """Where a context descriptor's table lies: its address is an intermediate one where there are two stages."""
    return ipa if stream.second is None else (yield from one(stream.second, ipa, _NAMES[1]))
