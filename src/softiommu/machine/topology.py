"""Where devices sit: requester ids, the ids that bridges give them, and which cannot be isolated from one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from softiommu.machine.pci import Bridge, PciDevice, requester_id


class Place(NamedTuple):
    """A device in the topology: the number of its IOMMU group, the id that its requests bear, and its group's ids."""

    group: int
    sid: int
    #: Its own requester id first.
    sids: tuple[int, ...]


def places(devices: Sequence[PciDevice], bridges: Sequence[Bridge]) -> dict[str, Place]:
    """The place of each device behind an IOMMU, by name. Groups are numbered in the order of the devices.

    A bridge from PCI Express to PCI makes every request from behind it bear the id of device 0 on its secondary bus,
    so that what is behind it is one group (PCI Express to PCI Bridge Specification 1.0, 2.3).
    """
    behind = {bridge.bus: bridge for bridge in bridges}
    groups: dict[object, list[PciDevice]] = {}
    for device in devices:
        if device.iommu is not None:
            bridge = behind.get(device.bus)
            groups.setdefault(bridge.name if bridge else (device.name,), []).append(device)
    found: dict[str, Place] = {}
    for number, members in enumerate(groups.values()):
        bus = members[0].bus
        aliases = (bus << 8,) if bus in behind else ()
        owns = [requester_id(member.address) for member in members]
        for member, own in zip(members, owns, strict=True):
            others = tuple(other for other in owns if other != own)
            found[member.name] = Place(number, aliases[0] if aliases else own, (own, *aliases, *others))
    return found
