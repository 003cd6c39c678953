"""A guest's AMD IOMMU: its names for devices and for domains, and what it asks to forget."""

from __future__ import annotations

from collections.abc import Sequence
from errno import EINVAL
from functools import partial
from typing import TYPE_CHECKING

from softiommu.abi.amd_extension import PROCESS, VEVENTQ, AmdEvent
from softiommu.abi.generic_invalidation import Outcome
from softiommu.drivers.amd.nested import AmdNested, read_entry
from softiommu.drivers.amd.process import AmdProcess, read_process
from softiommu.drivers.driver import Device, NestedDomain, Viommu, ViommuHost, unsupported
from softiommu.drivers.generic_invalidation import Invalidation, carry_out, is_generic
from softiommu.drivers.user_data import Handled, UserArray, UserData
from softiommu.errors import UapiError

if TYPE_CHECKING:
    from softiommu.drivers.amd.device import AmdDevice
    from softiommu.drivers.amd.domain import AmdDomain
    from softiommu.hardware.amd.events import DeviceEvent

_DEVICE_ID_BITS = 16


class AmdViommu:
    """A guest's IOMMU over a host table. Each of the guest's domain ids has one of the hardware's."""

    def __init__(self, parent: AmdDomain, host: ViommuHost) -> None:
        self.owner, self.parent, self._host = parent.owner, parent, host
        self.nested: list[AmdNested | AmdProcess] = []
        #: The hardware's domain id by the guest's, and how many nested domains have it.
        self.dids: dict[int, tuple[int, int]] = {}
        self._names: dict[int, AmdDevice] = {}
        parent.viommus.append(self)

    def alloc_nested(self, device: Device, flags: int, data: UserData) -> NestedDomain:
        """The domain of a guest's device table entry, or of a table for one PASID. Errors as `read_entry`,
        `read_process`; ENOMEM."""
        if data.data_type == PROCESS:
            return AmdProcess(self.parent, read_process(self.owner, flags, data), self)
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
        from softiommu.drivers.amd.device import AmdDevice

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
        self.carry_out(entries, handled)

    def carry_out(self, entries: UserArray, handled: Handled, of: AmdNested | AmdProcess | None = None) -> None:
        """Generic entries; `of`: for one domain. EINVAL: another type, or a name that no device has, or which a domain
        does not know; and the errors of the generic form."""
        if not is_generic(entries):
            raise UapiError(
                EINVAL, f"entries of type {entries.data_type:#x}: a guest of AMD's has the generic form only"
            )
        carry_out(entries, handled, partial(self._forget, of))

    def _forget(self, of: AmdNested | AmdProcess | None, asked: Invalidation) -> Outcome:
        """A device's TLB is emptied after the IOTLB, from which it would be filled again."""
        sids = None
        if asked.device is not None:
            if of is not None or asked.device not in self._names:
                raise UapiError(EINVAL, f"{asked.device:#x} is no device of a vIOMMU's")
            sids = self._names[asked.device].function.sids
        domains = self.nested if of is None else [of]
        commands = [command for domain in domains for command in domain.iotlb(asked, sids)]
        commands += [command for domain in domains for command in domain.device_tlbs(asked, sids)]
        answered = self.owner.forget(*dict.fromkeys(commands))
        return Outcome.NONE if answered else Outcome.DEVICE_TIMEOUT

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
