"""A device behind a virtual VT-d: what the guest's entries say of it, as HWPTs of the host, and its page requests."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from softiommu.abi.iommufd import HwptAllocFlags, PgfaultPerm
from softiommu.hardware.iommu import PageRequest, ResponseCode
from softiommu.pagetable.kinds import EXECUTE, READ, WRITE
from softiommu.vmm.passed import PassedDevice
from softiommu.vmm.vtd_forms import FORMS, GuestRoute, Nesting

if TYPE_CHECKING:
    from softiommu.abi.struct import UserStruct
    from softiommu.api import Fault, FaultQueue, Hwpt, VfioDevice
    from softiommu.hardware.vtd.tables import Pgtt
    from softiommu.vmm.passed import Note

#: A group has a number of nine bits (PCIe 10.4.1).
_GROUPS = 0x1FF
_RIGHTS = {PgfaultPerm.READ: READ, PgfaultPerm.WRITE: WRITE, PgfaultPerm.EXEC: EXECUTE}


class Host(NamedTuple):
    """What the devices of one virtual unit share: the parent that shows the guest's RAM, and where page faults go."""

    parent: Hwpt
    faults: FaultQueue | None
    nesting: Nesting
    #: How wide the guest's PASIDs are; 0: it has none.
    pasid_bits: int
    note: Note


class VtdPassed:
    """A device, with the guest's name for it. As an endpoint of the unit it hears what the guest answers."""

    def __init__(self, sid: int, device: VfioDevice, host: Host) -> None:
        self.sid, self.passed = sid, PassedDevice[GuestRoute](sid, device, host.note)
        self.pasid_bits = min(device.hw_info().pasid_bits, host.pasid_bits)
        self._host = host
        self._form = FORMS[host.nesting]
        #: What the host is to forget, by PASID.
        self._waiting: dict[int | None, list[UserStruct]] = {}
        self._flags = int(HwptAllocFlags.ALLOC_PASID) if self.pasid_bits else 0
        #: Groups of page requests that wait for the guest: their cookies, by PASID and group.
        self._open: dict[tuple[int | None, int], int] = {}

    @property
    def id(self) -> int:
        """The host's id of the device."""
        return self.passed.device.id

    # Routes

    def use(self, pasid: int | None, route: GuestRoute | None) -> None:
        """Attach a route as the guest wants it; None: block it, as is done with what the unit does not offer."""
        if route is None or not route.root_is_of(self._form.stages):
            self.passed.detach(pasid)
        else:
            self.passed.attach(pasid, route, partial(self._make, route))

    def use_only(self, pasids: set[int | None]) -> None:
        """Block all other routes."""
        for pasid in set(self.passed.held) - pasids:
            self.passed.detach(pasid)

    def _make(self, route: GuestRoute) -> tuple[Hwpt, bool]:
        if route.root is None:
            return self._host.parent, False
        faults = self._host.faults if route.page_requests else None
        return self.passed.device.hwpt(self._host.parent, self._flags, self._form.data(route), faults), True

    # Invalidation

    def forget(self, chosen: list[int | None], window: tuple[int, int] | None, leaves_only: bool) -> None:
        """Forget a range of some routes, or all of it, when `flush` is called."""
        for pasid in chosen:
            self._waiting.setdefault(pasid, []).append(self._form.entry(window, leaves_only))

    def flush(self) -> None:
        """Hand what waits to the host, in one call for each route. What it cannot forget so is attached anew."""
        waiting, self._waiting = self._waiting, {}
        for pasid, entries in waiting.items():
            held = self.passed.held.get(pasid)
            if held is None:
                continue
            try:
                held.hwpt.invalidate(self._form.entry_type, entries)
            except OSError as error:
                self._host.note(f"stream {self.sid:#x}: the host does not invalidate: {error}")
                self.passed.renew(pasid, partial(self._make, held.route))

    def chosen(self, did: int | None, pasid: int | None, pgtt: Pgtt | None = None) -> list[int | None]:
        """The routes by tables of a domain, of a PASID, of a stage; None is any."""
        return [
            number
            for number, held in self.passed.held.items()
            if held.route.root is not None
            and did in (None, held.route.did)
            and pasid in (None, number or 0)
            and pgtt in (None, held.route.pgtt)
        ]

    # Page requests, and the unit's endpoint

    def request(self, fault: Fault) -> PageRequest:
        """A page request of the device, as the guest is to see it."""
        want = sum(right for perm, right in _RIGHTS.items() if fault.perm & perm)
        group = fault.group & _GROUPS
        self._open[fault.pasid, group] = fault.cookie
        privileged = bool(fault.perm & PgfaultPerm.PRIV)
        return PageRequest(self.sid, fault.addr, want, group, fault.last, fault.pasid, privileged)

    def invalidate(self, pasid: int | None, first: int, last: int) -> bool:
        """A device TLB is to forget: the host's kernel has seen to that with the translations themselves."""
        return True

    def page_response(self, pasid: int | None, group: int, code: ResponseCode) -> None:
        """The guest, or the unit for it, answered a group. One that nobody asked for is dropped."""
        cookie = self._open.pop((pasid, group), None)
        if cookie is None or self._host.faults is None:
            return
        try:
            self._host.faults.respond(cookie, code == ResponseCode.SUCCESS)
        except OSError as error:  # the route has changed meanwhile: the host has answered
            self._host.note(f"stream {self.sid:#x}: the answer to group {group} comes late: {error}")

    def close(self) -> None:
        """Block it, and let go of everything."""
        self.passed.close()
