"""A device that a VMM passed to its guest: which HWPT each of its routes (the RID, a PASID) is attached to.

What the host refuses is not the guest's doing and must not stop the VMM: the route is blocked then, and noted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from softiommu.api import Hwpt, VfioDevice

R = TypeVar("R")
#: Told, in a sentence, of what the host refused.
Note = Callable[[str], None]


class Held(NamedTuple, Generic[R]):
    """What a route is attached to. `own`: nobody else uses the HWPT."""

    route: R
    hwpt: Hwpt
    own: bool


class PassedDevice(Generic[R]):
    """A device with its routes. `R` is what a guest's entries say of one: equal values are one attachment."""

    def __init__(self, sid: int, device: VfioDevice, note: Note) -> None:
        self.sid, self.device = sid, device
        self.held: dict[int | None, Held[R]] = {}
        self._note = note

    def attach(self, pasid: int | None, route: R, make: Callable[[], tuple[Hwpt, bool]]) -> None:
        """Attach a route in place of what it had: `make` gives the HWPT, and whether it is the route's own."""
        held = self.held.get(pasid)
        if held is not None and held.route == route:
            return
        hwpt: Hwpt | None = None
        own = False
        try:
            hwpt, own = make()
            self.device.attach(hwpt, pasid)
        except OSError as error:
            self._note(f"{self._name(pasid)} is blocked, since the host refuses {route}: {error}")
            if hwpt is not None and own:
                hwpt.destroy()
            self.detach(pasid)
            return
        self._let_go(self.held.get(pasid))
        self.held[pasid] = Held(route, hwpt, own)

    def detach(self, pasid: int | None) -> None:
        """Block a route."""
        held = self.held.pop(pasid, None)
        if held is not None:
            self.device.detach(pasid)
            self._let_go(held)

    def renew(self, pasid: int | None, make: Callable[[], tuple[Hwpt, bool]]) -> None:
        """Attach a route anew, so that nothing cached of it is left."""
        held = self.held[pasid]
        self.detach(pasid)
        self.attach(pasid, held.route, make)

    def close(self) -> None:
        """Block every route, the PASIDs first."""
        for pasid in sorted(self.held, key=lambda number: number is None):
            self.detach(pasid)

    def _let_go(self, held: Held[R] | None) -> None:
        if held is not None and held.own:
            held.hwpt.destroy()

    def _name(self, pasid: int | None) -> str:
        return f"stream {self.sid:#x}" + ("" if pasid is None else f", PASID {pasid:#x}")
