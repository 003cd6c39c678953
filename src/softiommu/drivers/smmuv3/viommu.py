"""A guest's slice of an SMMUv3: its names for streams, its commands, and the events it is told of.

Commands are taken whole and in order. The VMID becomes the parent's, virtual stream ids become those of the vdevices,
and what a guest has no business with is refused at its entry.
"""

from __future__ import annotations

from collections.abc import Sequence
from errno import EINVAL, EIO
from typing import TYPE_CHECKING

from softiommu.abi.iommufd import InvalidateDataType, VeventArmSmmuv3, VeventqType, ViommuArmSmmuv3Invalidate
from softiommu.abi.smmuv3_extension import ViommuBtm
from softiommu.drivers.driver import Device, NestedDomain, Viommu, ViommuHost, unsupported
from softiommu.drivers.generic_invalidation import gather, is_generic
from softiommu.drivers.smmuv3.commands import WORDS, convert
from softiommu.drivers.smmuv3.generic import Gathered
from softiommu.drivers.smmuv3.nested import read_nested
from softiommu.drivers.user_data import Handled, UserArray, UserData
from softiommu.errors import UapiError
from softiommu.hardware.smmuv3.commands import COMMAND_BYTES
from softiommu.hardware.smmuv3.events import Event, Event0, Event1

if TYPE_CHECKING:
    from softiommu.drivers.smmuv3.domain import SmmuDomain
    from softiommu.drivers.smmuv3.driver import SmmuDriver
    from softiommu.drivers.smmuv3.nested import SmmuNested

#: What a guest is told of.
_GUESTS_EVENTS = frozenset(
    {
        Event.C_BAD_STE,
        Event.F_STREAM_DISABLED,
        Event.C_BAD_SUBSTREAMID,
        Event.C_BAD_CD,
        Event.F_TRANSLATION,
        Event.F_ADDR_SIZE,
        Event.F_ACCESS,
        Event.F_PERMISSION,
    }
)


class SmmuViommu:
    """A guest's slice. Its VMID is that of the parent, which it may share with another slice over the same parent."""

    def __init__(self, owner: SmmuDriver, parent: SmmuDomain, host: ViommuHost) -> None:
        self.owner, self.parent, self.host = owner, parent, host
        parent.viommus += 1
        self._sids: dict[int, int] = {}
        self._names: dict[Device, int] = {}
        self.nested: list[SmmuNested] = []

    def alloc_nested(self, device: Device, flags: int, data: UserData) -> NestedDomain:
        """The domain of a guest's STE. Errors as `read_nested`."""
        return read_nested(self, flags, data)

    # Names

    def add_vdevice(self, device: Device, virt_id: int) -> None:
        """Name a stream. EOPNOTSUPP: the device has more than one."""
        from softiommu.drivers.smmuv3.device import SmmuDevice

        assert isinstance(device, SmmuDevice), "devices behind one SMMU are of its driver"
        if len(device.function.sids) != 1:
            raise unsupported(f"{device.name} has {len(device.function.sids)} streams")
        self._sids[virt_id] = device.function.sids[0]
        self._names[device] = virt_id

    def remove_vdevice(self, device: Device) -> None:
        """Forget a name."""
        del self._sids[self._names.pop(device)]

    def stream_of(self, virt_id: int) -> int:
        """The stream that has a name."""
        return self._sids[virt_id]

    def name_of(self, device: Device) -> int | None:
        """The guest's stream id of a device."""
        return self._names.get(device)

    # Commands

    def invalidate(self, entries: UserArray, handled: Handled) -> None:
        """Carry out a guest's commands. EINVAL: of another type, or none; EIO: at one that no guest may give. Entries
        of the generic form have their own errors; EINVAL: no device has the name."""
        if is_generic(entries):
            waiting = Gathered(self.owner, self.parent.id)
            gather(entries, handled, lambda asked: waiting.take(self._streams(asked.device), asked), waiting.complete)
            return
        if not entries.entry_num:
            raise UapiError(EINVAL, "there is no command")
        raw = entries.packed(ViommuArmSmmuv3Invalidate, InvalidateDataType.VIOMMU_INVALIDATE_DATA_ARM_SMMUV3)
        self.carry_out(raw, handled)

    def _streams(self, name: int | None) -> list[int]:
        """The stream of a name; without one all that have a name, or are nested: a name may go before they do."""
        if name is None:
            nested = [sid for domain in self.nested for sid in domain.sids]
            return list(dict.fromkeys([*self._sids.values(), *nested]))
        if name not in self._sids:
            raise UapiError(EINVAL, f"no vDEVICE has stream id {name:#x}")
        return [self._sids[name]]

    def carry_out(self, commands: bytes, handled: Handled) -> None:
        """Carry out commands up to the first that is refused, here or by the hardware. EIO."""
        good, refusal = convert(commands, self.parent.id, self._sids)
        handled.count = self.owner.queue.attempt(good)
        if handled.count < len(good) // COMMAND_BYTES:
            refusal = "the hardware calls it illegal"
        if refusal:
            low, high = WORDS.unpack_from(commands, handled.count * COMMAND_BYTES)
            raise UapiError(EIO, f"command {handled.count}, {low:#x} {high:#x}, is refused: {refusal}")

    def report(self, type: int, data: bytes) -> bool:
        """Tell the guest of an event; False: nobody listens."""
        try:
            self.host.report_event(type, data)
        except UapiError:  # there is no event queue of this type
            return False
        return True

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
        """The hardware has nothing of it but what the parent's VMID tags. With the last of a VM goes the VM's VMID."""
        self.parent.viommus -= 1
        if not self.parent.viommus:
            self.parent.take_own_vmid()


_: type[Viommu] = SmmuViommu


class Guest:
    """A device's stream as a guest knows it, while the device is attached to the guest's STE."""

    def __init__(self, viommu: SmmuViommu, name: int) -> None:
        self._viommu, self._name = viommu, name

    def hears(self, record: Sequence[int]) -> bool:
        """Tell the guest of an event; False: it is not the guest's, or nobody listens."""
        first, how = Event0(record[0]), Event1(record[1])
        if first.TYPE not in _GUESTS_EVENTS or how.S2 or how.STALL:
            return False
        renamed = first.replace(SID=self._name & Event0.SID.mask >> Event0.SID.low)
        return self._viommu.report(VeventqType.ARM_SMMUV3, VeventArmSmmuv3(int(renamed), *record[1:4]).to_bytes())


def read_vmid(type: int, data: UserData | None) -> int:
    """The VMID that VIOMMU_ALLOC asks for. EINVAL: no data, or of another length; EOPNOTSUPP: reserved."""
    if data is None:
        raise UapiError(EINVAL, "the VM's VMID is asked for, and not told")
    asked = data.copy(ViommuBtm, type)
    if asked.reserved:
        raise unsupported(f"reserved is {asked.reserved:#x}")
    return asked.vmid
