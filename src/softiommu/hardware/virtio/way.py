"""What a request meets in a virtio-iommu, for a trace: nothing in memory, but a domain and one of its mappings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from softiommu.hardware.trace import Known, Script
from softiommu.hardware.virtio.commands import Attach, Map, Type
from softiommu.pagetable.kinds import READ, WRITE

if TYPE_CHECKING:
    from softiommu.hardware.iommu import Request
    from softiommu.hardware.virtio.model import VirtioIommu
    from softiommu.memory.physical import PhysicalMemory


def way(unit: VirtioIommu, memory: PhysicalMemory, request: Request) -> Script:
    """The requests of its driver that decide, as if they were made now."""
    mem = unit.domains.reserved(request.iova, request.iova)
    if mem is not None:
        yield Known("reserved range", mem)
        return None
    number = unit.domains.number_of(request.sid)
    domain = unit.domains.of(request.sid)
    if number is None or domain is None:
        yield Known("bypass", unit.registers.BYPASS)
        return None
    bypass = int(domain.is_bypass)
    yield Known("endpoint", Attach.of(TYPE=Type.ATTACH, DOMAIN=number, ENDPOINT=request.sid, BYPASS=bypass))
    mapping = domain.at(request.iova)
    if mapping is None:
        return None
    read, write = int(bool(mapping.allowed & READ)), int(bool(mapping.allowed & WRITE))
    yield Known(
        "mapping",
        Map.of(
            TYPE=Type.MAP,
            DOMAIN=number,
            VIRT_START=mapping.first,
            VIRT_END=mapping.last,
            PHYS_START=mapping.pa,
            READ=read,
            WRITE=write,
        ),
    )
    return mapping.pa + request.iova - mapping.first
