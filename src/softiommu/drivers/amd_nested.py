"""A guest's device table entry over host tables: what a guest may say in it, and the entry that the hardware reads.

The guest's GCR3 table and its guest tables lie in its own memory, at guest-physical addresses (Control.GCR3TRPMode).
"""

from __future__ import annotations

from errno import EINVAL
from typing import TYPE_CHECKING

from softiommu.abi.iommufd import HwptAmdGuest, HwptDataType
from softiommu.drivers.driver import Handled, NestedDomain, UserArray, UserData, unsupported
from softiommu.errors import UapiError
from softiommu.hardware.amd.events import Code, DeviceEvent
from softiommu.hardware.amd.tables import GUEST_TABLES, Dte, Dte1, Dte2

if TYPE_CHECKING:
    from softiommu.drivers.amd import AmdDriver
    from softiommu.drivers.amd_routes import Route
    from softiommu.drivers.amd_viommu import AmdViommu

_RESERVED_GLX = 3


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
        """The entry for the hardware, from that of the parent. Devices may not use ATS: nobody could empty their TLBs
        of the guest's PASIDs when the host's table changes."""
        guest = self._entry.q0
        q0 = host.q0.replace(GV=1, GIoV=guest.GIoV, GLX=guest.GLX, PPR=host.q0.PPR & guest.PPR)
        q2 = Dte2.of(GuestPagingMode=self._entry.q2.GuestPagingMode)
        return Dte(q0, Dte1.of(DomainID=self.did), q2).with_gcr3_root(self._entry.gcr3_root)

    def hears(self, sid: int, low: int, high: int) -> bool:
        """Tell the guest of a fault at an address of one of its PASIDs; False: it is not so, or nobody listens."""
        event = DeviceEvent(low)
        return event.CODE == Code.IO_PAGE_FAULT and bool(event.GN) and self.viommu.report(sid, event, high)

    def invalidate(self, entries: UserArray, handled: Handled) -> None:
        """As the vIOMMU does."""
        self.viommu.carry_out(entries, handled, [self])

    def free(self) -> None:
        """Nothing is attached any more."""
        self.viommu.nested.remove(self)
        self.viommu.give_did(self.name)


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
