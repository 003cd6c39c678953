"""A guest's device table entry over host tables: what a guest may say in it, and the entry that the hardware reads.

The guest's GCR3 table and its guest tables lie in its own memory, at guest-physical addresses (Control.GCR3TRPMode).
"""

from __future__ import annotations

from errno import EINVAL
from typing import TYPE_CHECKING

from softiommu.abi.generic_invalidation import Target
from softiommu.abi.iommufd import HwptAmdGuest, HwptDataType
from softiommu.drivers.amd.queue import EVERYWHERE, Command, device_tlb, entry_of, pages_of
from softiommu.drivers.driver import NestedDomain, unsupported
from softiommu.drivers.user_data import Handled, UserArray, UserData
from softiommu.errors import UapiError
from softiommu.hardware.amd.events import Code, DeviceEvent
from softiommu.hardware.amd.tables import GUEST_TABLES, Dte, Dte2

if TYPE_CHECKING:
    from softiommu.drivers.amd.driver import AmdDriver
    from softiommu.drivers.amd.routes import Route
    from softiommu.drivers.amd.viommu import AmdViommu
    from softiommu.drivers.generic_invalidation import Invalidation

_RESERVED_GLX = 3
#: Where there are guest tables, requests without a PASID have this one.
_NO_PASID = 0


class AmdNested:
    """A guest's device table entry, which devices are attached to."""

    #: Its PASIDs are the guest's: the host has no GCR3 table for them.
    guest = False

    def __init__(self, viommu: AmdViommu, entry: Dte) -> None:
        self.owner, self.viommu, self._entry = viommu.owner, viommu, entry
        #: The guest's domain id, and what the hardware calls it.
        self.name = entry.q1.DomainID
        self.did = viommu.take_did(self.name)
        self.routes: list[Route] = []
        viommu.nested.append(self)

    def entry(self, host: Dte) -> Dte:
        """The entry for the hardware, from that of the parent."""
        guest = self._entry.q0
        q0 = host.q0.replace(GV=1, GIoV=guest.GIoV, GLX=guest.GLX, PPR=host.q0.PPR & guest.PPR)
        q2 = Dte2.of(GuestPagingMode=self._entry.q2.GuestPagingMode)
        return Dte(q0, host.q1.replace(DomainID=self.did), q2).with_gcr3_root(self._entry.gcr3_root)

    @property
    def uses_ats(self) -> bool:
        """Whether devices may ask for translations: only a guest that says so has their TLBs emptied."""
        return bool(self._entry.q1.I)

    def iotlb(self, asked: Invalidation, sids: tuple[int, ...] | None) -> list[Command]:
        """What makes the IOMMU forget; `sids`: configuration of these devices only."""
        used = self._meant(sids)
        if asked.arch_id not in (None, self.name):
            return []
        commands = []
        if asked.targets & Target.CONFIG and (sids is None or used):
            commands += [entry_of(sid) for sid in used if asked.pasid is None]
            commands.append(_pages(self.did, asked._replace(window=None), upper=True))
        if asked.translations:
            commands.append(_pages(self.did, asked, upper=not asked.leaves_only))
        return commands

    def device_tlbs(self, asked: Invalidation, sids: tuple[int, ...] | None) -> list[Command]:
        """The same of devices' own TLBs. What names no PASID there is for all."""
        if not self.uses_ats or not asked.targets & Target.DEVICE_TLB or asked.arch_id not in (None, self.name):
            return []
        window, streams = asked.window or EVERYWHERE, self.owner.routes.streams
        return [device_tlb(sid, asked.pasid, *window) for sid in self._meant(sids) if streams[sid].ats]

    def _meant(self, sids: tuple[int, ...] | None) -> list[int]:
        return [route.sid for route in self.routes if sids is None or route.sid in sids]

    def hears(self, sid: int, low: int, high: int) -> bool:
        """Tell the guest of a fault at an address of one of its PASIDs; False: it is not so, or nobody listens."""
        event = DeviceEvent(low)
        return event.CODE == Code.IO_PAGE_FAULT and bool(event.GN) and self.viommu.report(sid, event, high)

    def invalidate(self, entries: UserArray, handled: Handled) -> None:
        """As the vIOMMU does."""
        self.viommu.carry_out(entries, handled, self)

    def free(self) -> None:
        """Nothing is attached any more."""
        self.viommu.nested.remove(self)
        self.viommu.give_did(self.name)


def _pages(did: int, asked: Invalidation, upper: bool) -> Command:
    """No command names a range in all PASIDs: everything of the domain goes instead."""
    window = asked.window or EVERYWHERE
    if asked.pasid is not None:
        return pages_of(did, asked.pasid, *window, upper=upper)
    if asked.reaches(_NO_PASID):
        return pages_of(did, None, *EVERYWHERE, upper=upper)
    return pages_of(did, _NO_PASID, *window, upper=upper)


def read_entry(driver: AmdDriver, flags: int, data: UserData) -> Dte:
    """A guest's device table entry. EOPNOTSUPP: flags, or what the hardware has not; EINVAL: another type or length,
    fields of the host, reserved bits and values, or guest tables without a root; EFAULT."""
    if flags:
        raise unsupported(f"flags {flags:#x} for a nested domain")
    entry = Dte.from_bytes(data.copy(HwptAmdGuest, HwptDataType.AMD_GUEST).to_bytes())
    q0, mode = entry.q0, entry.q2.GuestPagingMode
    wrong = (
        ("reserved bits", any(word.reserved for word in entry)),
        ("a host table", q0.Mode or q0.HostPageTableRoot),
        ("no GCR3 table", q0.V and q0.GV and not entry.gcr3_root),
        ("a guest paging mode that there is not", mode not in GUEST_TABLES),
        ("GLX 3, which is reserved", q0.GLX == _RESERVED_GLX),
    )
    for what, found in wrong:
        if found:
            raise UapiError(EINVAL, f"a guest's device table entry has {what}: {entry}")
    efr = driver.efr
    if mode > efr.GATS or efr.GLXSup < q0.GLX or q0.GIoV > efr.GIoSup:
        raise unsupported(f"the hardware has no such guest tables: {entry}")
    return entry


_: type[NestedDomain] = AmdNested
