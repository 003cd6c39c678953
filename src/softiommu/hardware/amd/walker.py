"""From a request to a translation: device table, GCR3 table, guest and host tables. AMD IOMMU 48882, 2.2.

The walker keeps links to tables, and nothing else. Hosts' addresses are "GPA" and guests' "GVA" in the manual; a
domain's v1 tables translate the first, a PASID's v2 tables the second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from softiommu.hardware.amd.events import Code
from softiommu.hardware.amd.faults import hardware_error, illegal_entry, page_fault
from softiommu.hardware.amd.tables import DTE_SIZE, GUEST_TABLES, HOST_TABLES, Dte, Dte0, Dte1, Gcr3Entry, Had
from softiommu.hardware.cache import PageCache, Shape
from softiommu.hardware.iommu import ALL, Request, Translation
from softiommu.hardware.links import LinkedWalker, Links
from softiommu.memory.physical import BadAddressError
from softiommu.pagetable.formats import VARIANTS, x86_64
from softiommu.pagetable.kinds import (
    BAD_TABLE,
    EXECUTE,
    FORBIDDEN,
    HW_ACCESSED,
    HW_DIRTY,
    LENIENT,
    NOT_MAPPED,
    OK,
    OUT_OF_RANGE,
    PRIVILEGED,
    READ,
    RIGHTS,
    WRITE,
    Table,
)
from softiommu.pagetable.nested import Stage, nested_walk
from softiommu.pagetable.walk import Walk

if TYPE_CHECKING:
    from softiommu.hardware.amd.registers import Efr, Efr2, Registers
    from softiommu.memory.physical import PhysicalMemory

_FLAGS = {Had.NONE: 0, Had.ACCESSED: HW_ACCESSED, Had.ACCESSED_AND_DIRTY: HW_ACCESSED | HW_DIRTY}


#: Tags of what is cached: of host tables; for privileged requests; and made by two stages.
NO_GUEST, PRIVILEGED_ACCESS, NESTED = -1, 1, 2


class Route(NamedTuple):
    """What a device table entry says, checked: how the requests of a device are translated."""

    #: DTE.V: if not, the device is not translated.
    valid: bool
    dte: Dte
    domain: int
    #: READ and WRITE, as DTE.IR and IW grant them; EXECUTE beside them.
    rights: int
    host: Stage | None
    #: The guest tables' format, where the entry has a GCR3 table.
    guest: Table | None
    #: DTE.TV: if not, what must be translated is blocked.
    translates: bool = False
    #: DTE.GIoV: requests without PASID have PASID 0.
    giov: bool = False
    #: Accesses set dirty flags in host tables.
    tracks: bool = False

    def guest_pasid(self, pasid: int | None) -> int | None:
        """The PASID whose guest tables translate a request; None: no guest tables do."""
        if self.guest is None:
            return None
        return 0 if pasid is None and self.giov else pasid


def tags(route: Route, request: Request, guest: int | None) -> tuple[int, ...]:
    """What is cached of host tables is the domain's; of guest tables the PASID's and the privilege's, too."""
    if guest is None:
        return (route.domain, NO_GUEST, 0)
    who = PRIVILEGED_ACCESS if request.privileged else 0
    return (route.domain, guest, who | (NESTED if route.host is not None else 0))


class Walker:
    """Reads the structures of one IOMMU."""

    def __init__(
        self, memory: PhysicalMemory, registers: Registers, efr: Efr, efr2: Efr2, links: Links | None = None
    ) -> None:
        self._memory, self._registers, self._efr, self._efr2 = memory, registers, efr, efr2
        self._tables = LinkedWalker(memory, links if links is not None else PageCache(Shape(1, 0)))
        self._absent0, self._absent1 = _absent_fields(efr)
        x86 = x86_64.NXE if efr.NXSup else 0
        self._guests = {
            mode: VARIANTS[name]._replace(option=VARIANTS[name].option & ~x86_64.NXE | x86)
            for mode, name in GUEST_TABLES.items()
        }

    # The device table

    def entry(self, request: Request, **flags: int) -> Dte:
        """The device table entry of a request's device. EventError."""
        registers = self._registers
        lg2 = min(registers.CONTROL.DevTblSegEn, self._efr.DevTblSegSup)
        segment, index = request.sid >> 16 - lg2, request.sid & (1 << 16 - lg2) - 1
        base = registers.SEGMENT_BASE[segment - 1] if segment else registers.DEVTAB_BASE
        if index * DTE_SIZE >= base.SIZE + 1 << 12:
            raise illegal_entry(request, False, **flags)
        at = (base.BASE << 12) + index * DTE_SIZE
        try:
            return Dte.from_bytes(self._memory.read(at, DTE_SIZE))
        except BadAddressError as error:
            raise hardware_error(Code.DEV_TAB_HARDWARE_ERROR, request, 0, None, at) from error

    def route(self, dte: Dte, request: Request) -> Route:
        """What a device's entry says. EventError: nothing that can be."""
        q0, q1, q2, _ = dte
        if not q0.V:
            return Route(False, dte, 0, ALL, None, None)
        if q0.reserved | q1.reserved | q0 & self._absent0 | q1 & self._absent1:
            raise illegal_entry(request, True)
        host = guest = None
        if q0.TV:
            if q0.Mode > min(4 + self._efr.HATS, 6) or q0.HAD not in _FLAGS:
                raise illegal_entry(request, False)
            if q0.Mode:
                table = VARIANTS[HOST_TABLES[q0.Mode]]._replace(option=_FLAGS[q0.HAD])
                host = Stage(table, q0.HostPageTableRoot << 12)
            if q0.GV and self._registers.CONTROL.GTEn:
                if self._efr.GLXSup < q0.GLX or q2.GuestPagingMode > min(self._efr.GATS, 1):
                    raise illegal_entry(request, False)
                guest = self._guests[q2.GuestPagingMode]
        rights = EXECUTE | (READ if q0.IR else 0) | (WRITE if q0.IW else 0)
        tracks = host is not None and q0.HAD == Had.ACCESSED_AND_DIRTY
        return Route(True, dte, q1.DomainID, rights, host, guest, bool(q0.TV), bool(q0.GIoV), tracks)

    # Host tables

    def host(self, route: Route, request: Request) -> Translation:
        """A request without guest tables. EventError."""
        self._check_entry(route, request, None)
        if route.host is None:
            return Translation(request.iova, 52 if request.iova >> 52 == 0 else 64, ALL)
        found = self._tables.walk(tags(route, request, None), route.host, request.iova, request.want)
        self._check(found, route, request, None)
        return Translation(found.oa, found.lg2, found.allowed & RIGHTS)

    def _check_entry(self, route: Route, request: Request, guest: int | None) -> None:
        """The device table entry is the first that must have a right."""
        if request.want & LENIENT == 0 and request.want & (READ | WRITE) & ~route.rights:
            raise page_fault(request, route.domain, guest, PR=1, PE=1)

    def _check(self, found: Walk, route: Route, request: Request, guest: int | None) -> None:
        """The event of a walk that did not reach a leaf with the rights that the request wants."""
        if found.status == OK:
            return
        if found.status == BAD_TABLE:
            raise hardware_error(Code.PAGE_TAB_HARDWARE_ERROR, request, route.domain, guest, found.at)
        # An entry that skips levels is present, also where the address has bits of them.
        present = found.status not in (NOT_MAPPED, OUT_OF_RANGE) or (found.status == NOT_MAPPED and found.pte & 1)
        forbidden = found.status == FORBIDDEN
        reserved = bool(present) and found.status not in (FORBIDDEN, NOT_MAPPED)
        raise page_fault(request, route.domain, guest, PR=int(present), PE=int(forbidden), RZ=int(reserved))

    # Guest tables

    def guest_root(self, route: Route, request: Request, pasid: int) -> int:
        """The GCR3 table's entry of a PASID: the address of its guest tables (2.2.6.3). EventError."""
        levels = route.dte.q0.GLX + 1
        if pasid >> 9 * levels or pasid >> self._efr.PASmax + 1:
            raise page_fault(request, route.domain, pasid)
        table = route.dte.gcr3_root
        for level in reversed(range(levels)):
            at = self._gcr3_address(route, request, table + 8 * (pasid >> 9 * level & 0x1FF))
            try:
                entry = Gcr3Entry(self._memory.read_u64(at))
            except BadAddressError as error:
                raise hardware_error(Code.PAGE_TAB_HARDWARE_ERROR, request, route.domain, pasid, at) from error
            if not entry.V:
                raise page_fault(request, route.domain, pasid)
            if entry.reserved:
                raise page_fault(request, route.domain, pasid, PR=1, RZ=1)
            table = entry.ADDR << 12
        return table

    def _gcr3_address(self, route: Route, request: Request, at: int) -> int:
        """Where a GCR3 table's entry lies: with GCR3TRPMode its address is a guest's physical one."""
        if route.host is None or not (self._efr2.GCR3TRPModeSup and self._registers.CONTROL.GCR3TRPMode):
            return at
        return self.host(route, request._replace(iova=at, want=READ, pasid=None)).pa

    def guest(self, route: Route, request: Request, pasid: int, root: int) -> Translation:
        """A request through the guest tables at `root`, and the host tables below them if there are any. EventError."""
        table = route.guest
        assert table is not None, "a route that gives a guest PASID has guest tables"
        self._check_entry(route, request, pasid)
        width = table.input_bits
        if request.iova >> width - 1 not in (0, (1 << 65 - width) - 1):
            raise page_fault(request, route.domain, pasid)
        iova = request.iova & (1 << width) - 1
        want = request.want | (PRIVILEGED if request.privileged else 0)
        if route.host is None:
            found = self._tables.walk(tags(route, request, pasid), Stage(table, root), iova, want, request.iova)
            self._check(found, route, request, pasid)
            return Translation(found.oa, found.lg2, found.allowed & RIGHTS)
        both = nested_walk(Stage(table, root), route.host, self._memory, iova, want)
        if both.stage1 is not None:
            self._check(both.stage1, route, request, pasid)
        if both.stage2 is not None and both.stage2.status != OK:
            self._check(both.stage2, route, _host_request(request, both.fetch_ipa, both.fetch_want, both.stage1), None)
        return Translation(both.pa, both.lg2, both.allowed & RIGHTS)


def _host_request(request: Request, fetch: int | None, fetch_want: int, stage1: Walk | None) -> Request:
    """The access that the host tables refused: a fetch of a guest table's entry, or the request at its guest-physical
    address."""
    if fetch is not None:
        return request._replace(iova=fetch, want=fetch_want, pasid=None)
    assert stage1 is not None, "the output of the first stage was translated"
    return request._replace(iova=stage1.oa, pasid=None)


def _absent_fields(efr: Efr) -> tuple[int, int]:
    """The bits of a device table entry's first two words that are reserved on hardware without their feature."""
    low = high = 0
    if not efr.PPRSup:
        low |= Dte0.PPR.mask | Dte0.GPRP.mask
    if not efr.GIoSup:
        low |= Dte0.GIoV.mask
    if not efr.GTSup:
        low |= Dte0.GV.mask | Dte0.GLX.mask | Dte0.GCR3Root14_12.mask
        high |= Dte1.GCR3Root30_15.mask | Dte1.GCR3Root51_31.mask
    if not efr.HASup:
        low |= Dte0.HAD.mask
    return low, high
