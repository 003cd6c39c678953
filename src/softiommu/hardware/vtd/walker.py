"""From a request to a translation: root, context and PASID structures, then page tables. VT-d 3.4 to 3.8.

Each step checks in the order of the architecture and raises its own reason. What was found on the way is cached by the
model, tagged as the architecture tags it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from softiommu.hardware.iommu import ALL, Request, Translation, TranslationFaultError
from softiommu.hardware.vtd.events import Reason
from softiommu.hardware.vtd.registers import Ttm
from softiommu.hardware.vtd.tables import (
    WIDTHS,
    ContextHigh,
    ContextLow,
    Pasid0,
    Pasid1,
    Pasid2,
    PasidDirectoryEntry,
    Pgtt,
    RootEntry,
    ScalableContext0,
    ScalableContext1,
    ScalableRootHalf,
    TranslationType,
)
from softiommu.memory.physical import BadAddressError
from softiommu.pagetable.formats import vtdss, x86_64
from softiommu.pagetable.kinds import BAD_TABLE, EXECUTE, MALFORMED, NOT_MAPPED, OUT_OF_RANGE, PRIVILEGED, READ, WRITE
from softiommu.pagetable.nested import Stage, nested_walk
from softiommu.pagetable.walk import Walk, walk

if TYPE_CHECKING:
    from softiommu.hardware.vtd.registers import Cap, Ecap, Rtaddr
    from softiommu.memory.physical import PhysicalMemory

INTERRUPTS = range(0xFEE00000, 0xFEF00000)


class Route(NamedTuple):
    """What the structures say of a request: how it is translated, and the tags of what may be cached."""

    did: int
    pgtt: Pgtt
    first: Stage | None
    second: Stage | None
    #: FPD: faults from here on are blocked but not recorded.
    quiet: bool
    scalable: bool
    #: The PASID entry's word of the first stage, with what kinds of requests it admits.
    stage1: Pasid2 = Pasid2(0)


class QuietFaultError(TranslationFaultError):
    """A fault that FPD keeps from being recorded."""


class Walker:
    """Reads the structures of one remapping hardware. It keeps nothing."""

    def __init__(self, memory: PhysicalMemory, cap: Cap, ecap: Ecap) -> None:
        self._memory, self._cap, self._ecap = memory, cap, ecap

    # Structures

    def route(self, rtaddr: Rtaddr, request: Request) -> Route:
        """The route of a request. TranslationFaultError with the reason of the step that stopped it."""
        if rtaddr.TTM == Ttm.LEGACY:
            if request.pasid is not None:
                raise TranslationFaultError(Reason.RTA_PASID, request)
            return self._legacy(rtaddr.RTA << 12, request)
        if rtaddr.TTM == Ttm.SCALABLE and self._ecap.SMTS:
            return self._scalable(rtaddr.RTA << 12, request)
        raise TranslationFaultError(Reason.RTA_ABORT if rtaddr.TTM == Ttm.ABORT else Reason.RTA_INVALID, request)

    def _load(self, pa: int, words: int, reason: Reason, request: Request) -> list[int]:
        try:
            return [self._memory.read_u64(pa + 8 * n) for n in range(words)]
        except BadAddressError as error:
            raise TranslationFaultError(reason, request) from error

    def _legacy(self, table: int, request: Request) -> Route:
        low, high = self._load(table + 16 * (request.sid >> 8), 2, Reason.ROOT_ACCESS, request)
        root = RootEntry(low)
        if not root.P:
            raise TranslationFaultError(Reason.ROOT_NOT_PRESENT, request)
        if root.reserved or high:
            raise TranslationFaultError(Reason.ROOT_RESERVED, request)
        at = (root.CTP << 12) + 16 * (request.sid & 0xFF)
        words = self._load(at, 2, Reason.CONTEXT_ACCESS, request)
        context, tags = ContextLow(words[0]), ContextHigh(words[1])
        fault = QuietFaultError if context.FPD else TranslationFaultError
        if not context.P:
            raise fault(Reason.CONTEXT_NOT_PRESENT, request)
        if context.reserved or tags.reserved:
            raise fault(Reason.CONTEXT_RESERVED, request)
        passes = context.TT == TranslationType.PASS_THROUGH
        if context.TT == 3 or not self._supports(tags.AW) or (passes and not self._ecap.PT):
            raise fault(Reason.CONTEXT_INVALID, request)
        if passes:
            return Route(tags.DID, Pgtt.PASS_THROUGH, None, None, bool(context.FPD), False)
        second = Stage(vtdss.VARIANTS[WIDTHS[tags.AW]], context.SSPTPTR << 12)
        return Route(tags.DID, Pgtt.SECOND, None, second, bool(context.FPD), False)

    def _supports(self, aw: int) -> bool:
        """Whether the hardware has second-stage tables of this width (SAGAW)."""
        return aw in WIDTHS and bool(self._cap.SAGAW >> aw & 1)

    def _scalable(self, table: int, request: Request) -> Route:
        half = self._load(
            table + 16 * (request.sid >> 8) + 8 * (request.sid >> 7 & 1), 1, Reason.SCALABLE_ROOT_ACCESS, request
        )
        root = ScalableRootHalf(half[0])
        if not root.P:
            raise TranslationFaultError(Reason.SCALABLE_ROOT_NOT_PRESENT, request)
        if root.reserved:
            raise TranslationFaultError(Reason.SCALABLE_ROOT_RESERVED, request)
        at = (root.CTP << 12) + 32 * (request.sid & 0x7F)
        words = self._load(at, 4, Reason.SCALABLE_CONTEXT_ACCESS, request)
        context, rid = ScalableContext0(words[0]), ScalableContext1(words[1])
        fault = QuietFaultError if context.FPD else TranslationFaultError
        if not context.P:
            raise fault(Reason.SCALABLE_CONTEXT_NOT_PRESENT, request)
        if context.reserved or rid.reserved or words[2] or words[3]:
            raise fault(Reason.SCALABLE_CONTEXT_RESERVED, request)
        if request.pasid is not None and not context.PASIDE:
            raise fault(Reason.PASID_NOT_ENABLED, request)
        pasid = request.pasid if request.pasid is not None else rid.RID_PASID if self._ecap.RPS else 0
        if pasid >> context.PDTS + 13:
            raise fault(Reason.PASID_TOO_LARGE, request)
        return self._pasid(context.PASIDDIRPTR << 12, pasid, bool(context.FPD), request)

    def _pasid(self, directory: int, pasid: int, quiet: bool, request: Request) -> Route:
        (raw,) = self._load(directory + 8 * (pasid >> 6), 1, Reason.PASID_DIRECTORY_ACCESS, request)
        entry = PasidDirectoryEntry(raw)
        quiet = quiet or bool(entry.FPD)
        fault = QuietFaultError if quiet else TranslationFaultError
        if not entry.P:
            raise fault(Reason.PASID_DIRECTORY_NOT_PRESENT, request)
        if entry.reserved:
            raise fault(Reason.PASID_DIRECTORY_RESERVED, request)
        words = self._load((entry.SMPTBLPTR << 12) + 64 * (pasid & 63), 8, Reason.PASID_ENTRY_ACCESS, request)
        return self._pasid_entry(words, quiet, request)

    def _pasid_entry(self, words: list[int], quiet: bool, request: Request) -> Route:
        how, tags, stage1 = Pasid0(words[0]), Pasid1(words[1]), Pasid2(words[2])
        quiet = quiet or bool(how.FPD)
        fault = QuietFaultError if quiet else TranslationFaultError
        if not how.P:
            raise fault(Reason.PASID_ENTRY_NOT_PRESENT, request)
        if how.reserved or tags.reserved or stage1.reserved or any(words[3:]):
            raise fault(Reason.PASID_ENTRY_RESERVED, request)
        has_first, has_second = how.PGTT in (Pgtt.FIRST, Pgtt.NESTED), how.PGTT in (Pgtt.SECOND, Pgtt.NESTED)
        levels_missing = has_first and (1 if self._cap.FS5LP else 0) < stage1.FSPM
        supported = {
            Pgtt.FIRST: self._ecap.FSTS,
            Pgtt.SECOND: self._ecap.SSTS,
            Pgtt.NESTED: self._ecap.NEST,
            Pgtt.PASS_THROUGH: self._ecap.PT,
        }
        if not supported.get(Pgtt(how.PGTT) if how.PGTT in supported else Pgtt.FIRST, 0) or how.PGTT not in supported:
            raise fault(Reason.PASID_ENTRY_INVALID, request)
        if levels_missing or (has_second and not self._supports(how.AW)):
            raise fault(Reason.PASID_ENTRY_INVALID, request)
        name = "x86-64-5level" if stage1.FSPM else "x86-64-4level"
        first = Stage(x86_64.VARIANTS[name], stage1.FSPTPTR << 12) if has_first else None
        second = Stage(vtdss.VARIANTS[WIDTHS[how.AW]], how.SSPTPTR << 12) if has_second else None
        return Route(tags.DID, how.PGTT, first, second, quiet, True, stage1)

    # Tables

    def admit(self, route: Route, request: Request) -> None:
        """Whether the PASID entry takes this kind of request, whatever is cached. TranslationFaultError."""
        if not route.scalable:
            return
        fault = QuietFaultError if route.quiet else TranslationFaultError
        if request.want & EXECUTE and not route.stage1.ERE:
            raise fault(Reason.EXECUTE_REQUESTS_DISABLED, request)
        if request.privileged and not route.stage1.SRE:
            raise fault(Reason.SUPERVISOR_REQUESTS_DISABLED, request)

    def translate(self, route: Route, request: Request) -> Translation:
        """Walk the route's tables. TranslationFaultError."""
        fault = QuietFaultError if route.quiet else TranslationFaultError
        if route.pgtt == Pgtt.PASS_THROUGH:
            if request.iova >> self._cap.MGAW + 1:
                raise fault(Reason.BEYOND_WIDTH if route.scalable else Reason.ADDRESS_BEYOND_WIDTH, request)
            return Translation(request.iova, self._cap.MGAW + 1, ALL)
        if route.first is None:
            assert route.second is not None, "a route translates by some stage"
            found = self._second(route, route.second, request, fault)
        else:
            found = self._first(route, route.first, request, fault)
        if found.pa in INTERRUPTS:
            blocked = Reason.SCALABLE_OUTPUT_IN_INTERRUPT_RANGE if route.scalable else Reason.OUTPUT_IN_INTERRUPT_RANGE
            raise fault(blocked, request)
        return found

    def _second(self, route: Route, second: Stage, request: Request, fault: type[TranslationFaultError]) -> Translation:
        beyond = Reason.BEYOND_WIDTH if route.scalable else Reason.ADDRESS_BEYOND_WIDTH
        if request.iova >> self._cap.MGAW + 1:
            raise fault(beyond, request)
        found = walk(second.table, self._memory, second.root, request.iova)
        self._check(found, route, request, fault, beyond)
        return Translation(found.oa, found.lg2, found.allowed)

    def _check(
        self, found: Walk, route: Route, request: Request, fault: type[TranslationFaultError], beyond: Reason
    ) -> None:
        """The reason of a second-stage walk that does not allow the request."""
        if found.status == OUT_OF_RANGE:
            raise fault(beyond, request)
        if found.status == BAD_TABLE:
            raise fault(Reason.SECOND_ACCESS if route.scalable else Reason.PAGING_ACCESS, request)
        if found.status == MALFORMED:
            raise fault(Reason.SECOND_RESERVED if route.scalable else Reason.PAGING_RESERVED, request)
        # An entry without any right is not present: it lacks what the request wants.
        allowed = 0 if found.status == NOT_MAPPED else found.allowed
        if request.want & WRITE and not allowed & WRITE:
            raise fault(Reason.SCALABLE_NO_WRITE if route.scalable else Reason.NO_WRITE, request)
        if request.want & READ and not allowed & READ:
            raise fault(Reason.SCALABLE_NO_READ if route.scalable else Reason.NO_READ, request)
        if found.status == NOT_MAPPED:
            raise fault(Reason.SCALABLE_NO_READ if route.scalable else Reason.NO_READ, request)

    def _first(self, route: Route, first: Stage, request: Request, fault: type[TranslationFaultError]) -> Translation:
        width = first.table.input_bits
        if request.iova >> width - 1 not in (0, (1 << 65 - width) - 1):
            raise fault(Reason.NOT_CANONICAL, request)
        iova = request.iova & (1 << width) - 1
        who = PRIVILEGED if request.privileged else 0
        if route.second is None:
            found = walk(first.table, self._memory, first.root, iova, who)
            self._check_first(found, route, request, fault)
            return Translation(found.oa, found.lg2, found.allowed)
        both = nested_walk(first, route.second, self._memory, iova, who)
        if both.stage1 is not None:
            self._check_first(both.stage1, route, request, fault)
        if both.stage2 is not None:
            # The tables of the first stage are read, whatever the request wants.
            wanted = READ if both.fetch_ipa is not None else request.want
            self._check(both.stage2, route, request._replace(want=wanted), fault, Reason.BEYOND_WIDTH)
        return Translation(both.pa, both.lg2, both.allowed)

    def _check_first(self, found: Walk, route: Route, request: Request, fault: type[TranslationFaultError]) -> None:
        if found.status == BAD_TABLE:
            top = found.level == (route.first.table.top if route.first else 0)
            raise fault(Reason.FIRST_TOP_ACCESS if top else Reason.FIRST_ACCESS, request)
        if found.status == NOT_MAPPED:
            raise fault(Reason.FIRST_NOT_PRESENT, request)
        if found.status == MALFORMED:
            raise fault(Reason.FIRST_RESERVED, request)
        if not request.privileged and not found.pte & x86_64.US:
            raise fault(Reason.USER, request)
        ignores_protection = request.privileged and not route.stage1.WPE
        if request.want & WRITE and not found.allowed & WRITE and not ignores_protection:
            raise fault(Reason.SCALABLE_NO_WRITE, request)
        if request.want & EXECUTE and not found.allowed & EXECUTE:
            raise fault(Reason.NO_EXECUTE, request)
