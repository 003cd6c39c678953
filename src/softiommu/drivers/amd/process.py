"""A guest's page table for one PASID over a host table: a GCR3 entry of the driver's leads to it."""

from __future__ import annotations

from errno import EINVAL
from functools import partial
from typing import TYPE_CHECKING

from softiommu.abi.amd_extension import PROCESS, HwptAmdProcess, ProcessFlags
from softiommu.abi.generic_invalidation import Outcome, Target
from softiommu.abi.iommufd import HwptAllocFlags
from softiommu.drivers.amd.queue import EVERYWHERE, Command, device_tlb, pages_of
from softiommu.drivers.driver import NestedDomain, unsupported
from softiommu.drivers.generic_invalidation import Invalidation, carry_out, is_generic
from softiommu.drivers.user_data import Handled, UserArray, UserData
from softiommu.errors import UapiError
from softiommu.hardware.amd.tables import Gcr3Entry
from softiommu.memory.physical import PAGE

if TYPE_CHECKING:
    from softiommu.drivers.amd.domain import AmdDomain
    from softiommu.drivers.amd.driver import AmdDriver
    from softiommu.drivers.amd.routes import Route
    from softiommu.drivers.amd.viommu import AmdViommu
    from softiommu.hardware.amd.events import DeviceEvent

_FLAGS = sum(ProcessFlags)
_HWPT_PASID = int(HwptAllocFlags.ALLOC_PASID)
_LEVELS = (4, 5)


class AmdProcess:
    """A guest's table. `viommu` hears of its faults, if it is on one."""

    #: A GCR3 entry leads to it.
    guest = True

    def __init__(self, parent: AmdDomain, data: HwptAmdProcess, viommu: AmdViommu | None = None) -> None:
        self.owner, self.parent, self._data, self._viommu = parent.owner, parent, data, viommu
        self.routes: list[Route] = []
        parent.processes.append(self)
        if viommu is not None:
            viommu.nested.append(self)

    @property
    def levels(self) -> int:
        """How many levels the table has."""
        return self._data.levels

    @property
    def uses_ats(self) -> bool:
        """Whether devices may ask for translations: only a guest that says so has their TLBs emptied."""
        return bool(self._data.flags & ProcessFlags.ATS)

    @property
    def gcr3(self) -> Gcr3Entry:
        """The GCR3 entry that leads to it."""
        return Gcr3Entry.of(V=1, ADDR=self._data.root // PAGE)

    def hears(self, sid: int, event: DeviceEvent, high: int) -> bool:
        """Tell the guest of a fault in the table; False: nobody listens."""
        return self._viommu is not None and self._viommu.report(sid, event, high)

    def iotlb(self, asked: Invalidation, sids: tuple[int, ...] | None) -> list[Command]:
        """What makes the IOMMU forget; `sids`: configuration of these devices only."""
        commands = []
        for route in self._meant(asked, None):
            did, pasid = self.owner.routes.streams[route.sid].nested_did, route.pasid or 0
            if asked.targets & Target.CONFIG and (sids is None or route.sid in sids):
                commands.append(pages_of(did, pasid, *EVERYWHERE))
            if asked.translations:
                commands.append(pages_of(did, pasid, *(asked.window or EVERYWHERE), upper=not asked.leaves_only))
        return commands

    def device_tlbs(self, asked: Invalidation, sids: tuple[int, ...] | None) -> list[Command]:
        """The same of devices' own TLBs."""
        if not self.uses_ats or not asked.targets & Target.DEVICE_TLB:
            return []
        window, streams = asked.window or EVERYWHERE, self.owner.routes.streams
        return [device_tlb(*route, *window) for route in self._meant(asked, sids) if streams[route.sid].ats]

    def _meant(self, asked: Invalidation, sids: tuple[int, ...] | None) -> list[Route]:
        return [route for route in self.routes if (sids is None or route.sid in sids) and asked.reaches(route.pasid)]

    def invalidate(self, entries: UserArray, handled: Handled) -> None:
        """Generic entries. EINVAL: another type, or a device by its name; and the errors of `carry_out`."""
        if self._viommu is not None:
            self._viommu.carry_out(entries, handled, self)
            return
        if not is_generic(entries):
            raise UapiError(EINVAL, f"entries of type {entries.data_type:#x}: a guest of AMD's has the generic form")
        carry_out(entries, handled, partial(self._forget))

    def _forget(self, asked: Invalidation) -> Outcome:
        if asked.device is not None:
            raise UapiError(EINVAL, f"no vIOMMU names a device {asked.device:#x}")
        answered = self.owner.forget(*self.iotlb(asked, None), *self.device_tlbs(asked, None))
        return Outcome.NONE if answered else Outcome.DEVICE_TIMEOUT

    def free(self) -> None:
        """Nothing is attached any more: what was cached went when devices left."""
        self.parent.processes.remove(self)
        if self._viommu is not None:
            self._viommu.nested.remove(self)


def read_process(driver: AmdDriver, flags: int, data: UserData) -> HwptAmdProcess:
    """What a guest says of a table. EOPNOTSUPP: flags, or what the hardware has not; EINVAL: another type or length, a
    root that is no page, or a number of levels that there is not; EFAULT."""
    if flags & ~_HWPT_PASID or not driver.nests or not driver.has_guest_tables:
        raise unsupported(f"no guest's table is nested with flags {flags:#x} on this hardware")
    found = data.copy(HwptAmdProcess, PROCESS)
    if found.flags & ~_FLAGS:
        raise unsupported(f"flags {found.flags:#x} of a guest's table")
    if found.root % PAGE or found.root // PAGE >> Gcr3Entry.ADDR.width:
        raise UapiError(EINVAL, f"a guest's table cannot begin at {found.root:#x}")
    if found.levels not in _LEVELS:
        raise UapiError(EINVAL, f"a guest's table has 4 or 5 levels, not {found.levels}")
    if found.levels - _LEVELS[0] > driver.efr.GATS:
        raise unsupported("the hardware has no guest tables of five levels")
    return found


_: type[NestedDomain] = AmdProcess
