"""A guest's AMD IOMMU: its names for devices and for domains, and what it asks to forget."""

from __future__ import annotations

from collections.abc import Sequence
from errno import EINVAL
from functools import partial
from typing import TYPE_CHECKING

from softiommu.abi.amd_extension import VEVENTQ, AmdEvent
from softiommu.abi.generic_invalidation import Outcome, Target
from softiommu.drivers.amd_nested import AmdNested, read_entry
from softiommu.drivers.amd_queue import EVERYWHERE, Command, entry_of, pages_of
from softiommu.drivers.driver import (
    Device,
    Handled,
    NestedDomain,
    UserArray,
    UserData,
    Viommu,
    ViommuHost,
    unsupported,
)
from softiommu.drivers.generic_invalidation import Invalidation, carry_out, is_generic
from softiommu.errors import UapiError

if TYPE_CHECKING:
    from softiommu.drivers.amd_device import AmdDevice
    from softiommu.drivers.amd_domain import AmdDomain
    from softiommu.hardware.amd.events import DeviceEvent

_DEVICE_ID_BITS = 16
#: Where there are guest tables, requests without a PASID have this one.
_NO_PASID = 0


class AmdViommu:
    """A guest's IOMMU over a host table. Each of the guest's domain ids has one of the hardware's."""

    def __init__(self, parent: AmdDomain, host: ViommuHost) -> None:
        self.owner, self.parent, self._host = parent.owner, parent, host
        self.nested: list[AmdNested] = []
        #: The hardware's domain id by the guest's, and how many nested domains have it.
        self.dids: dict[int, tuple[int, int]] = {}
        self._names: dict[int, AmdDevice] = {}
        parent.viommus.append(self)

    def alloc_nested(self, device: Device, flags: int, data: UserData) -> NestedDomain:
        """The domain of a guest's device table entry. Errors as `read_entry`; ENOMEM."""
        return AmdNested(self, read_entry(self.owner, flags, data))

    # Names

    def take_did(self, name: int) -> int:
        """The hardware's id for a domain of the guest's. ENOMEM."""
        did, users = self.dids.get(name) or (self.owner.take_did(), 0)
        self.dids[name] = did, users + 1
        return did

    def give_did(self, name: int) -> None:
        """A user of a domain id is gone. What was cached under it went when devices left."""
        did, users = self.dids.pop(name)
        if users > 1:
            self.dids[name] = did, users - 1
            return
        self.owner.give_did(did)

    def add_vdevice(self, device: Device, virt_id: int) -> None:
        """Name a device. EINVAL: device ids have 16 bits."""
        from softiommu.drivers.amd_device import AmdDevice

        assert isinstance(device, AmdDevice), "devices behind one IOMMU are of its driver"
        if virt_id >> _DEVICE_ID_BITS:
            raise UapiError(EINVAL, f"a device id has {_DEVICE_ID_BITS} bits: {virt_id:#x} has more")
        self._names[virt_id] = device

    def remove_vdevice(self, device: Device) -> None:
        """Forget a name."""
        self._names = {name: named for name, named in self._names.items() if named is not device}

    def report(self, sid: int, event: DeviceEvent, high: int) -> bool:
        """Tell the guest of an event, by its name for the device; False: it has none, or nobody listens."""
        name = next((name for name, device in self._names.items() if sid in device.function.sids), None)
        if name is None:
            return False
        try:
            self._host.report_event(VEVENTQ, AmdEvent(int(event.replace(DeviceID=name)), high).to_bytes())
        except UapiError:  # no event queue
            return False
        return True

    # Invalidation

    def invalidate(self, entries: UserArray, handled: Handled) -> None:
        """Generic entries, for every domain of the guest's. Errors as `carry_out`."""
        self.carry_out(entries, handled, self.nested)

    def carry_out(self, entries: UserArray, handled: Handled, domains: list[AmdNested]) -> None:
        """Generic entries for some domains. EINVAL: another type, or a name that no device has; and the errors of the
        generic form."""
        if not is_generic(entries):
            raise UapiError(
                EINVAL, f"entries of type {entries.data_type:#x}: a guest of AMD's has the generic form only"
            )
        carry_out(entries, handled, partial(self._forget, domains))

    def _forget(self, domains: list[AmdNested], asked: Invalidation) -> Outcome:
        """Devices' own TLBs hold nothing: they may not use ATS."""
        sids = None
        if asked.device is not None:
            if asked.device not in self._names:
                raise UapiError(EINVAL, f"no vDEVICE has device id {asked.device:#x}")
            sids = self._names[asked.device].function.sids
        commands: dict[Command, None] = {}  # in order, each once
        for domain in domains:
            used = [route.sid for route in domain.routes if sids is None or route.sid in sids]
            if (sids is not None and not used) or asked.arch_id not in (None, domain.name):
                continue
            if asked.targets & Target.CONFIG:
                whole = asked.pasid is None
                commands |= dict.fromkeys(entry_of(sid) for sid in used if whole)
                commands[self._pages(domain.did, asked._replace(window=None), upper=True)] = None
            if asked.translations:
                commands[self._pages(domain.did, asked, upper=not asked.leaves_only)] = None
        self.owner.queue.submit(*commands)
        return Outcome.NONE

    @staticmethod
    def _pages(did: int, asked: Invalidation, upper: bool) -> Command:
        """No command names a range in all PASIDs: everything of the domain goes instead."""
        window = EVERYWHERE if asked.window is None else asked.window
        if asked.pasid is not None:
            return pages_of(did, asked.pasid, *window, upper=upper)
        if asked.reaches(_NO_PASID):
            return pages_of(did, None, *EVERYWHERE, upper=upper)
        return pages_of(did, _NO_PASID, *window, upper=upper)

    # Hardware queues

    def hw_queue_types(self) -> Sequence[int]:
        """None."""
        return ()

    def add_hw_queue(self, index: int, iova: int, pa: int, length: int) -> int | None:
        """There are none."""
        raise unsupported("this vIOMMU has no hardware queues")

    def remove_hw_queue(self, index: int) -> None:
        """There are none."""

    def free(self) -> None:
        """Its nested domains are gone, and with them all that the hardware had of it."""
        self.parent.viommus.remove(self)


_: type[Viommu] = AmdViommu
