"""A guest's first-stage table over a second-stage domain of VT-d (PGTT = 3), and the invalidations a guest asks for.

The hardware walks both: the guest's table lies in its memory, at guest-physical addresses. Every nested domain has a
domain id of its own, so that a change of the parent can name the translations that went through it.
"""

from __future__ import annotations

from errno import EINVAL
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from softiommu.abi.generic_invalidation import Hint, Outcome, Scope, Target
from softiommu.abi.iommufd import (
    HwptDataType,
    HwptVtdS1,
    HwptVtdS1Invalidate,
    InvalidateDataType,
    VtdInvFlags,
    VtdS1Flags,
)
from softiommu.drivers.driver import NestedDomain, Range, unsupported
from softiommu.drivers.generic_invalidation import Invalidation, carry_out, is_generic
from softiommu.drivers.user_data import Handled, UserArray, UserData
from softiommu.drivers.vtd.domain import Route, VtdDomain, smallest_block
from softiommu.drivers.vtd.queue import ALL_OF_PASID, DOMAIN, ONE_PASID, PAGES_OF_PASID, Descriptor, device_tlb
from softiommu.drivers.vtd.routes import EVERYWHERE
from softiommu.errors import UapiError
from softiommu.hardware.vtd.commands import Iotlb0, PasidCache0, PasidIotlb0, Range as Pages, Type
from softiommu.hardware.vtd.tables import Pasid0, Pasid1, Pasid2, Pgtt

if TYPE_CHECKING:
    from softiommu.hardware.vtd.registers import Cap, Ecap

_FLAGS, _LEAF = sum(VtdS1Flags), int(VtdInvFlags.LEAF)
#: First-stage tables of four and of five levels.
_FOUR_LEVELS, _FIVE_LEVELS = 48, 57
_PAGE_LG2 = 12
_LAST = (1 << 64) - 1
_ALL_PAGES = (1 << 64) - 1


class Part(NamedTuple):
    """What must be forgotten of a nested domain: a range or everything, of some of its routes."""

    window: Range | None
    leaves_only: bool
    routes: list[Route]


def nested_data(data: UserData) -> HwptVtdS1:
    """What the program says of a guest's table. EINVAL: another length, or a root that is no page; EOPNOTSUPP:
    unknown flags."""
    config = data.copy(HwptVtdS1, HwptDataType.VTD_S1)
    if config.flags & ~_FLAGS or config.reserved:
        raise unsupported(f"flags {config.flags:#x} or reserved {config.reserved:#x} of a first-stage table")
    if config.pgtbl_addr & (1 << _PAGE_LG2) - 1:
        raise UapiError(EINVAL, f"a first-stage table cannot begin at {config.pgtbl_addr:#x}")
    return config


class VtdNestedDomain:
    """A guest's table under a parent's."""

    def __init__(self, parent: VtdDomain, config: HwptVtdS1) -> None:
        self.owner, self.parent, self._config = parent.owner, parent, config
        self.did = parent.owner.take_did()
        self.routes: list[Route] = []
        self._named: dict[int, tuple[PasidIotlb0, PasidIotlb0]] = {}
        parent.children.append(self)

    def check(self, cap: Cap, ecap: Ecap) -> None:
        """Whether the hardware can walk the guest's table. EINVAL."""
        width, flags = self._config.addr_width, self._config.flags
        if width not in (_FOUR_LEVELS, _FIVE_LEVELS if cap.FS5LP else _FOUR_LEVELS):
            raise UapiError(EINVAL, f"the hardware has no first stage of {width} bits")
        if flags & VtdS1Flags.SRE and not ecap.SRS:
            raise UapiError(EINVAL, "SRE: the hardware takes no supervisor requests")
        if flags & VtdS1Flags.EAFE and not ecap.EAFS:
            raise UapiError(EINVAL, "EAFE: the hardware has no extended accessed flags")

    def pasid_words(self) -> tuple[Pasid0, Pasid1, Pasid2]:
        """The PASID entry: both roots, the parent's options, the guest's flags."""
        parent, flags = self.parent, self._config.flags
        supervisor = int(bool(flags & VtdS1Flags.SRE))
        how = parent.pasid_words()[0].replace(PGTT=Pgtt.NESTED)
        tags = Pasid1.of(DID=self.did, PWSNP=self.owner.ecap.SMPWCS, PGSNP=int(parent.snoops))
        stage1 = Pasid2.of(
            SRE=supervisor,
            WPE=int(bool(supervisor and flags & VtdS1Flags.WPE)),
            EAFE=int(bool(flags & VtdS1Flags.EAFE)),
            FSPM=int(self._config.addr_width == _FIVE_LEVELS),
            FSPTPTR=self._config.pgtbl_addr >> _PAGE_LG2,
        )
        return how, tags, stage1

    def refresh(self) -> None:
        """The parent's options changed."""
        for route in self.routes:
            self.owner.routes.refresh(*route, self)

    # What is forgotten

    def forget_all(self) -> None:
        """The parent changed. Nobody knows which guest addresses led there, so all go, also in devices."""
        self.owner.queue.submit((Iotlb0.of(TYPE=Type.IOTLB, G=DOMAIN, DID=self.did), 0))
        self._forget_devices([Part(None, False, self.routes)])

    def invalidate(self, entries: UserArray, handled: Handled) -> None:
        """Entries of VT-d's type, or of the generic one. EINVAL: another type; EINVAL, EOPNOTSUPP, E2BIG, EFAULT,
        EOVERFLOW at the first wrong entry: those before it are done."""
        if is_generic(entries):
            waiting: list[Descriptor] = []
            try:
                carry_out(entries, handled, partial(self._generic, waiting))
            finally:
                self.owner.queue.submit(*waiting)
            return
        parts: list[Part] = []
        try:
            self._read(entries, parts)
        except UapiError:
            self._forget(parts, handled)
            raise
        self._forget(parts, handled)

    def _read(self, entries: UserArray, parts: list[Part]) -> None:
        """The parts that VT-d's entries name, as far as these are right."""
        kind = InvalidateDataType.HWPT_INVALIDATE_DATA_VTD_S1
        if entries.data_type != kind:
            raise UapiError(EINVAL, f"entries of type {entries.data_type:#x} are not for a table of VT-d")
        for index in range(entries.entry_num):
            entry = entries.entry(index, HwptVtdS1Invalidate, kind)
            if entry.flags & ~_LEAF or entry.reserved:
                raise unsupported(f"entry {index} has flags {entry.flags:#x}, reserved {entry.reserved:#x}")
            if entry.addr & (1 << _PAGE_LG2) - 1 or (entry.npages == _ALL_PAGES and entry.addr):
                raise UapiError(EINVAL, f"entry {index}: {entry.npages:#x} pages from {entry.addr:#x} are no range")
            last = min(entry.addr + (entry.npages << _PAGE_LG2) - 1, _LAST)
            window = None if entry.npages == _ALL_PAGES else Range(entry.addr, last)
            routes = self.routes if entry.npages else []
            parts.append(Part(window, bool(entry.flags & _LEAF), routes))

    def _forget(self, parts: list[Part], handled: Handled) -> None:
        self.owner.queue.submit(*(one for part in parts for one in self._translations(part)))
        # A device TLB is emptied after the IOTLB, from which it would be filled again.
        self._forget_devices(parts)
        handled.count = len(parts)

    def _generic(self, waiting: list[Descriptor], asked: Invalidation) -> Outcome:
        """Put commands to those that wait; they are done when a device must answer. EINVAL: a device by its name, which
        only a vIOMMU gives."""
        if asked.device is not None:
            raise UapiError(EINVAL, f"no vIOMMU names a device {asked.device:#x}")
        part = Part(asked.window, asked.leaves_only, [route for route in self.routes if asked.reaches(route.pasid)])
        if asked.targets & Target.CONFIG:
            waiting += [self._configuration(pasid) for pasid in _pasids(part.routes)]
        if asked.translations and asked.scope is Scope.DOMAIN:
            reads, writes = (int(bool(asked.hints & hint)) for hint in (Hint.DRAIN_READS, Hint.DRAIN_WRITES))
            waiting.append((Iotlb0.of(TYPE=Type.IOTLB, G=DOMAIN, DID=self.did, DR=reads, DW=writes), 0))
        elif asked.translations:
            waiting += self._translations(part)
        if not asked.targets & Target.DEVICE_TLB:
            return Outcome.NONE
        self.owner.queue.submit(*waiting)
        waiting.clear()
        return Outcome.NONE if self._forget_devices([part]) else Outcome.DEVICE_TIMEOUT

    def _translations(self, part: Part) -> list[Descriptor]:
        """Forget a range of the PASIDs, in a block of 2**am pages; all of each where the hardware takes no such
        block."""
        words = [self._words(pasid) for pasid in _pasids(part.routes)]
        cap = self.owner.cap
        if part.window is None or not cap.PSI:
            return [(every, 0) for every, _ in words]
        at, am = smallest_block(*part.window)
        if am > cap.MAMV:
            return [(every, 0) for every, _ in words]
        where = Pages.of(ADDR=at >> _PAGE_LG2, AM=am, IH=int(part.leaves_only))
        return [(pages, where) for _, pages in words]

    def _words(self, pasid: int) -> tuple[PasidIotlb0, PasidIotlb0]:
        """The words that name all of a PASID, and pages of it."""
        found = self._named.get(pasid)
        if found is None:
            every = PasidIotlb0.of(TYPE=Type.PASID_IOTLB, G=ALL_OF_PASID, DID=self.did, PASID=pasid)
            found = self._named[pasid] = every, every.replace(G=PAGES_OF_PASID)
        return found

    def _forget_devices(self, parts: list[Part]) -> bool:
        """Empty device TLBs; False: one did not answer."""
        return self.owner.queue.submit(
            *(
                device_tlb(*route, *((0, EVERYWHERE) if part.window is None else smallest_block(*part.window)))
                for part in parts
                for route in part.routes
                if self.owner.routes.uses_ats(route.sid)
            )
        )

    def _configuration(self, pasid: int) -> Descriptor:
        return PasidCache0.of(TYPE=Type.PASID_CACHE, G=ONE_PASID, DID=self.did, PASID=pasid), 0

    def free(self) -> None:
        """Nothing is attached any more: forget what is left, and give the id back."""
        self.forget_all()
        self.parent.children.remove(self)
        self.owner.give_did(self.did)


def _pasids(routes: list[Route]) -> list[int]:
    """The PASIDs that tag what is cached of these routes."""
    return sorted({route.pasid or 0 for route in routes})


_: type[NestedDomain] = VtdNestedDomain
