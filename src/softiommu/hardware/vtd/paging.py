"""Page tables of a route: walks with the rights that a request wants, and the reason where one does not end well.

VT-d 3.6 to 3.8. Flags of entries are set by the walk (3.6.2, 3.7.2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from softiommu.hardware.iommu import ALL, Request
from softiommu.hardware.links import LinkedWalker, Links
from softiommu.hardware.vtd.events import Reason
from softiommu.hardware.vtd.tables import Pgtt
from softiommu.hardware.vtd.walker import INTERRUPTS, Route, fault_kind
from softiommu.memory.physical import BadAddressError
from softiommu.pagetable.formats import dirty
from softiommu.pagetable.kinds import (
    ADDRESS_SIZE,
    BAD_TABLE,
    HW_ACCESSED,
    LENIENT,
    MALFORMED,
    NOT_MAPPED,
    OK,
    OUT_OF_RANGE,
    PRIVILEGED,
    READ,
    RIGHTS,
    WRITE,
)
from softiommu.pagetable.nested import NestedWalk, Stage, nested_walk
from softiommu.pagetable.walk import Walk, new

if TYPE_CHECKING:
    from softiommu.hardware.vtd.registers import Cap
    from softiommu.memory.physical import PhysicalMemory


class Found(NamedTuple):
    """Where a request goes: the rights there, and those that may be cached, since what they need is in the tables."""

    pa: int
    lg2: int
    allowed: int
    cacheable: int


#: A look into an enumeration takes as long as ten into a module.
PASS_THROUGH = Pgtt.PASS_THROUGH
#: No entry is there.
NOTHING = Found(0, 12, 0, 0)


class Paging:
    """Walks tables in one memory."""

    def __init__(self, memory: PhysicalMemory, cap: Cap, links: Links) -> None:
        self._memory, self._cap, self._tables = memory, cap, LinkedWalker(memory, links)
        #: Walks of both stages, and the tables of first stages that were read for them.
        self.nested_walks = self.first_stage_tables = 0

    def counts(self) -> dict[str, int]:
        """Walks of both stages, and the first stage's tables that were read for them."""
        return {"nested_walks": self.nested_walks, "first_stage_tables": self.first_stage_tables}

    def translate(self, route: Route, request: Request, lenient: bool = False) -> Found:
        """Walk the route's tables; `lenient` tells what is allowed, also when that is less than is wanted.
        TranslationFaultError; NOTHING where nothing is mapped."""
        if route.pgtt == PASS_THROUGH:
            if request.iova >> self._cap.MGAW + 1:
                beyond = Reason.BEYOND_WIDTH if route.scalable else Reason.ADDRESS_BEYOND_WIDTH
                raise fault_kind(route.quiet)(beyond, request)
            return Found(request.iova, self._cap.MGAW + 1, ALL, ALL)
        try:
            found = self._walk(route, request, self._want(request, lenient))
        except BadAddressError as error:
            reason = Reason.FIRST_FLAGS_FAILED if route.first else Reason.SECOND_FLAGS_FAILED
            raise fault_kind(route.quiet)(reason, request) from error
        if found.pa in INTERRUPTS:
            blocked = Reason.SCALABLE_OUTPUT_IN_INTERRUPT_RANGE if route.scalable else Reason.OUTPUT_IN_INTERRUPT_RANGE
            raise fault_kind(route.quiet)(blocked, request)
        return found

    def _want(self, request: Request, lenient: bool) -> int:
        """What a walk is asked for. A read of no bytes needs any right where the hardware knows such reads (ZLR)."""
        want = request.want & RIGHTS
        if not want:
            want = READ | LENIENT if self._cap.ZLR else READ
        return want | (PRIVILEGED if request.privileged else 0) | (LENIENT if lenient else 0)

    def _walk(self, route: Route, request: Request, want: int) -> Found:
        if route.first is None:
            assert route.second is not None, "a route translates by some stage"
            return self._second(route, route.second, request, want)
        iova = self._canonical(route, route.first, request)
        if route.second is None:
            return self._first(route, route.first, request, (iova, want))
        return self._nested(route, (route.first, route.second), request, (iova, want))

    def _second(self, route: Route, second: Stage, request: Request, want: int) -> Found:
        found = self._one(route, second, request, (request.iova, want))
        if found.status == NOT_MAPPED:
            return NOTHING
        beyond = Reason.BEYOND_WIDTH if route.scalable else Reason.ADDRESS_BEYOND_WIDTH
        self._check_second(found, route, request, beyond)
        return new(Found, (found.oa, found.lg2, found.allowed, _cacheable(second, found, want)))

    def _first(self, route: Route, first: Stage, request: Request, asked: tuple[int, int]) -> Found:
        found = self._one(route, first, request, asked)
        if found.status == NOT_MAPPED:
            return NOTHING
        self._check_first(found, route, request)
        return new(Found, (found.oa, found.lg2, found.allowed & RIGHTS, _cacheable(first, found, asked[1])))

    def _one(self, route: Route, stage: Stage, request: Request, asked: tuple[int, int]) -> Walk:
        """Walk one stage, from the lowest link to a table of it that is cached."""
        refuse = None
        if route.stale and stage.table.option & HW_ACCESSED:
            reason = Reason.FIRST_FLAGS_NOT_SNOOPED if route.first else Reason.SECOND_FLAGS_NOT_SNOOPED
            refuse = fault_kind(route.quiet)(reason, request)
        return self._tables.walk(route.tags, stage, *asked, refuse=refuse)

    def _nested(self, route: Route, stages: tuple[Stage, Stage], request: Request, asked: tuple[int, int]) -> Found:
        both = nested_walk(*stages, self._memory, *asked)
        self.nested_walks += 1
        if both.stage1 is not None:
            self.first_stage_tables += stages[0].table.top - both.stage1.level + 1
        if both.fetch_ipa is not None and both.stage2 is not None:
            self._check_fetch(both.stage2, both, route, request)
        if both.stage1 is not None and both.stage1.status == NOT_MAPPED:
            return NOTHING
        if both.stage1 is not None:
            self._check_first(both.stage1, route, request)
        if both.stage2 is not None:
            self._check_second(both.stage2, route, request, Reason.GUEST_ADDRESS_BEYOND_WIDTH)
        assert both.stage1 is not None, "the first stage translated"
        assert both.stage2 is not None, "the second stage translated"
        cacheable = _cacheable(stages[0], both.stage1, asked[1]) & _cacheable(stages[1], both.stage2, asked[1])
        return Found(both.pa, both.lg2, both.allowed & RIGHTS, cacheable)

    # Reasons

    def _canonical(self, route: Route, first: Stage, request: Request) -> int:
        """The bits of an address that a first stage translates."""
        width = first.table.input_bits
        if request.iova >> width - 1 not in (0, (1 << 65 - width) - 1):
            raise fault_kind(route.quiet)(Reason.NOT_CANONICAL, request)
        return request.iova & (1 << width) - 1

    def _check_second(self, found: Walk, route: Route, request: Request, beyond: Reason) -> None:
        """The reason of a second-stage walk that does not allow the request."""
        if found.status == OK and found.allowed & (READ | WRITE):
            return
        fault, scalable = fault_kind(route.quiet), route.scalable
        if found.status == OUT_OF_RANGE:
            raise fault(beyond, request)
        if found.status == BAD_TABLE:
            top = route.second is not None and found.level == route.second.table.top
            if scalable:
                raise fault(Reason.SECOND_TOP_ACCESS if top else Reason.SECOND_ACCESS, request)
            raise fault(Reason.CONTEXT_INVALID if top else Reason.PAGING_ACCESS, request)
        if found.status in (MALFORMED, ADDRESS_SIZE):
            raise fault(Reason.SECOND_RESERVED if scalable else Reason.PAGING_RESERVED, request)
        if found.status == NOT_MAPPED:
            raise fault(Reason.SECOND_NOT_PRESENT, request)
        lacks_write = request.want & WRITE and not found.allowed & WRITE
        if scalable:
            raise fault(Reason.SCALABLE_NO_WRITE if lacks_write else Reason.SCALABLE_NO_READ, request)
        raise fault(Reason.NO_WRITE if lacks_write else Reason.NO_READ, request)

    def _check_fetch(self, found: Walk, both: NestedWalk, route: Route, request: Request) -> None:
        """The reason of a second-stage walk for an entry of the first stage, which failed."""
        fault = fault_kind(route.quiet)
        if found.status in (BAD_TABLE, MALFORMED, ADDRESS_SIZE):
            self._check_second(found, route, request, Reason.FIRST_TABLE_BEYOND_WIDTH)
        if found.status == OUT_OF_RANGE:
            raise fault(Reason.FIRST_TABLE_BEYOND_WIDTH, request)
        if both.fetch_want == WRITE:
            raise fault(Reason.FIRST_TABLE_WRITE, request)
        top = route.first is not None and both.fetch_ipa is not None and both.fetch_ipa >> 12 == route.first.root >> 12
        raise fault(Reason.FIRST_TOP_TABLE_READ if top else Reason.FIRST_TABLE_READ, request)

    def _check_first(self, found: Walk, route: Route, request: Request) -> None:
        if found.status == OK and found.allowed & READ:
            return
        fault = fault_kind(route.quiet)
        if found.status == BAD_TABLE:
            top = route.first is not None and found.level == route.first.table.top
            raise fault(Reason.FIRST_TOP_ACCESS if top else Reason.FIRST_ACCESS, request)
        if found.status in (MALFORMED, ADDRESS_SIZE):
            raise fault(Reason.FIRST_RESERVED, request)
        if not found.allowed & READ:
            raise fault(Reason.USER, request)
        if found.status == OK:
            return
        if request.want & WRITE and not found.allowed & WRITE:
            raise fault(Reason.SCALABLE_NO_WRITE, request)
        raise fault(Reason.NO_EXECUTE, request)


def absent(route: Route, request: Request) -> Reason:
    """The reason of a request for an address where nothing is."""
    if route.scalable:
        return Reason.SECOND_NOT_PRESENT if route.first is None else Reason.FIRST_NOT_PRESENT
    return Reason.NO_WRITE if request.want & WRITE else Reason.NO_READ


def _cacheable(stage: Stage, found: Walk, want: int) -> int:
    """The rights that need no flag that is not set yet: a first write must walk again to set the dirty flag."""
    clean = stage.table.option & HW_ACCESSED and not (want & found.allowed & WRITE or dirty(stage.table, found.pte))
    return found.allowed & (RIGHTS & ~WRITE if clean else RIGHTS)
