"""What a request meets in an AMD IOMMU, for a trace: device table, GCR3 table, guest and host tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from softiommu.hardware.amd.ranges import is_interrupt, special
from softiommu.hardware.amd.tables import DTE_SIZE, Dte, Dte0, Dte1, Dte2, Dte3, Gcr3Entry
from softiommu.hardware.amd.walker import Walker
from softiommu.hardware.iommu import TranslationFaultError
from softiommu.hardware.trace import Known, Script, one, stages, structure
from softiommu.pagetable.nested import Stage

if TYPE_CHECKING:
    from softiommu.hardware.amd.model import AmdIommu
    from softiommu.hardware.amd.walker import Route
    from softiommu.hardware.iommu import Request
    from softiommu.memory.physical import PhysicalMemory

_NAMES = ("guest", "host")


def way(unit: AmdIommu, memory: PhysicalMemory, request: Request) -> Script:
    """The structures on the way of a request."""
    registers = unit.registers
    yield Known("control", registers.CONTROL)
    if not registers.CONTROL.IommuEn:
        return request.iova
    lg2 = min(registers.CONTROL.DevTblSegEn, unit.efr.DevTblSegSup)
    segment, number = request.sid >> 16 - lg2, request.sid & (1 << 16 - lg2) - 1
    base = registers.SEGMENT_BASE[segment - 1] if segment else registers.DEVTAB_BASE
    yield Known("device table base", base)
    if number * DTE_SIZE >= base.SIZE + 1 << 12:
        return None
    words = yield from structure(
        (base.BASE << 12) + number * DTE_SIZE,
        ("device table entry", Dte0),
        ("device table entry, word 1", Dte1),
        ("device table entry, word 2", Dte2),
        ("device table entry, word 3", Dte3),
    )
    dte = Dte(Dte0(words[0]), Dte1(words[1]), Dte2(words[2]), Dte3(words[3]))
    if is_interrupt(request):
        return None
    try:
        route = Walker(memory, registers, unit.efr, unit.efr2).route(dte, request)
        if request.pasid is None and special(registers, dte.q1, request) is not None:
            return request.iova
        return (yield from _translate(unit, route, request))
    except TranslationFaultError:
        return None


def _translate(unit: AmdIommu, route: Route, request: Request) -> Script:
    pasid = route.guest_pasid(request.pasid)
    if pasid is None or route.guest is None:
        return (yield from stages(None, route.host, request.iova, _NAMES))
    table = route.dte.gcr3_root
    behind_host = route.host is not None and unit.efr2.GCR3TRPModeSup and unit.registers.CONTROL.GCR3TRPMode
    for level in range(route.dte.q0.GLX, -1, -1):
        at: int | None = table + 8 * (pasid >> 9 * level & 0x1FF)
        if behind_host and route.host is not None and at is not None:
            at = yield from one(route.host, at, _NAMES[1])
        if at is None:
            return None
        (raw,) = yield from structure(at, (f"GCR3 table entry of level {level + 1}", Gcr3Entry))
        if not Gcr3Entry(raw).V:
            return None
        table = Gcr3Entry(raw).ADDR << 12
    return (yield from stages(Stage(route.guest, table), route.host, request.iova, _NAMES))
