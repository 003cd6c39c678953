"""The forms in which a guest's VT-d tables and invalidations are handed to the host: VT-d's own, or softiommu's generic
ones, which a host of any make takes that nests in software.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple, Protocol

from softiommu.abi.generic_invalidation import GENERIC, InvalidateV1, Scope, Target
from softiommu.abi.iommufd import (
    HwptDataType,
    HwptVtdS1,
    HwptVtdS1Invalidate,
    InvalidateDataType,
    VtdInvFlags,
    VtdS1Flags,
)
from softiommu.abi.software_nesting import BOUND, BoundFlags, HwptBound, TableFormat
from softiommu.hardware.vtd.tables import Pasid2, Pgtt

if TYPE_CHECKING:
    from softiommu.abi.struct import UserStruct
    from softiommu.hardware.vtd.walker import Route

_PAGE_LG2 = 12
_EVERYTHING = (1 << 64) - 1
_FLAGS = {Pasid2.SRE: VtdS1Flags.SRE, Pasid2.EAFE: VtdS1Flags.EAFE, Pasid2.WPE: VtdS1Flags.WPE}
Window = tuple[int, int]


class Nesting(Enum):
    """Who walks a guest's tables: the host's VT-d, or software, on whatever IOMMU the host has."""

    HARDWARE = "hardware"
    SOFTWARE = "software"


class GuestRoute(NamedTuple):
    """What a guest's entries say of a stream, or of one of its PASIDs. `root` None: its addresses are physical ones."""

    did: int = 0
    pgtt: Pgtt = Pgtt.PASS_THROUGH
    root: int | None = None
    width: int = 0
    flags: VtdS1Flags = VtdS1Flags(0)
    page_requests: bool = False

    @classmethod
    def of(cls, route: Route, page_requests: bool) -> GuestRoute:
        """What the walker found."""
        stage = route.first if route.first is not None else route.second
        if stage is None:
            return cls(route.did)
        flags = VtdS1Flags(0)
        for field, flag in _FLAGS.items():
            flags |= flag if int(route.stage1) & field.mask else 0
        return cls(route.did, route.pgtt, stage.root, stage.table.input_bits, flags, page_requests)

    def root_is_of(self, stages: frozenset[Pgtt]) -> bool:
        """Whether its table, if it has one, is of one of these stages."""
        return self.root is None or self.pgtt in stages


class Form(Protocol):
    """How the host is told."""

    #: The data_type of HWPT_INVALIDATE.
    entry_type: int
    #: Whose tables it has words for.
    stages: frozenset[Pgtt]

    def data(self, route: GuestRoute) -> tuple[int, UserStruct]:
        """The data of HWPT_ALLOC for a table, with its type."""
        ...

    def entry(self, window: Window | None, leaves_only: bool) -> UserStruct:
        """An entry of HWPT_INVALIDATE: an inclusive range of addresses, or all."""
        ...


class _Vtd:
    """Linux's types for VT-d."""

    entry_type = int(InvalidateDataType.HWPT_INVALIDATE_DATA_VTD_S1)
    stages = frozenset({Pgtt.FIRST})

    def data(self, route: GuestRoute) -> tuple[int, UserStruct]:
        """A first stage."""
        return HwptDataType.VTD_S1, HwptVtdS1(int(route.flags), route.root or 0, route.width)

    def entry(self, window: Window | None, leaves_only: bool) -> UserStruct:
        """Pages."""
        flags = int(VtdInvFlags.LEAF) if leaves_only else 0
        if window is None:
            return HwptVtdS1Invalidate(0, _EVERYTHING, flags)
        first, last = window
        return HwptVtdS1Invalidate(first, (last - first + 1) >> _PAGE_LG2, flags)


class _Generic:
    """softiommu's types: the guest is in caching mode, so that a shadow of its table can be kept."""

    entry_type = GENERIC
    stages = frozenset({Pgtt.FIRST, Pgtt.SECOND})

    def data(self, route: GuestRoute) -> tuple[int, UserStruct]:
        """A table of either stage."""
        kind = TableFormat.X86_64 if route.pgtt is Pgtt.FIRST else TableFormat.VTD_SECOND_STAGE
        return BOUND, HwptBound(int(BoundFlags.CACHING_MODE), route.root or 0, route.width, int(kind))

    def entry(self, window: Window | None, leaves_only: bool) -> UserStruct:
        """Pages of whichever PASIDs are attached."""
        targets = int(Target.LEAF) if leaves_only else int(Target.LEAF | Target.TABLES)
        if window is None:
            return InvalidateV1(scope=Scope.DOMAIN, targets=targets)
        first, last = window
        count = (last - first + 1) >> _PAGE_LG2
        return InvalidateV1(Scope.RANGE_ALL_PASIDS, _PAGE_LG2, targets, addr=first, count=count)


FORMS: dict[Nesting, Form] = {Nesting.HARDWARE: _Vtd(), Nesting.SOFTWARE: _Generic()}
