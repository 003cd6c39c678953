"""What a request meets in a RISC-V IOMMU, for a trace: device and process directories, both stages, MSI page tables."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING

from softiommu.hardware.iommu import TranslationFaultError
from softiommu.hardware.riscv.registers import DdtpMode
from softiommu.hardware.riscv.tables import (
    BASE_DC,
    BASE_DDI,
    DDT_LEVELS,
    EXTENDED_DC,
    EXTENDED_DDI,
    PC,
    PDI,
    PDT_LEVELS,
    DeviceTa,
    DirectoryEntry,
    Iohgatp,
    Iosatp,
    MsiPages,
    MsiPte,
    Msiptp,
    Pdtp,
    ProcessTa,
    Tc,
    directory_index,
)
from softiommu.hardware.riscv.walker import Walker
from softiommu.hardware.trace import Expect, Known, Raw, Script, intermediate, one, structure

if TYPE_CHECKING:
    from softiommu.hardware.iommu import Request
    from softiommu.hardware.riscv.contexts import Device, Space
    from softiommu.hardware.riscv.model import RiscvIommu
    from softiommu.memory.physical import PhysicalMemory
    from softiommu.words import Word

_NAMES = ("first-stage", "second-stage")


def way(unit: RiscvIommu, memory: PhysicalMemory, request: Request) -> Script:
    """The structures on the way of a request."""
    ddtp, capabilities = unit.registers.DDTP, unit.registers.CAPABILITIES
    yield Known("ddtp", ddtp)
    if ddtp.MODE not in DDT_LEVELS:
        return request.iova if ddtp.MODE == DdtpMode.BARE else None
    walker = Walker(memory, capabilities)
    if request.sid >> walker.device_bits(ddtp):
        return None
    places = EXTENDED_DDI if capabilities.MSI_FLAT else BASE_DDI
    table = yield from _directory("device", ddtp.PPN << 12, DDT_LEVELS[ddtp.MODE], request.sid, places, None)
    if table is None:
        return None
    size = EXTENDED_DC if capabilities.MSI_FLAT else BASE_DC
    at = table + size * directory_index(0, request.sid, places)
    words = yield from structure(at, ("device context, tc", Tc))
    paged = bool(Tc(words[0]).PDTV)
    yield from structure(at + 8, *_device_context(paged, size))
    try:
        device = walker.device(ddtp, request)
        space = device.space
        pasid = 0 if request.pasid is None and device.tc.DPE else request.pasid
        if paged and pasid is not None and device.pdtp.MODE:
            found = yield from _process(walker, device, pasid, request)
            if found is None:
                return None
            space = found
    except TranslationFaultError:
        return None
    return (yield from _stages(device, space, request))


def _device_context(paged: bool, size: int) -> tuple[tuple[str, Callable[[int], Word]], ...]:
    """The words of a device context behind the first."""
    base = (
        ("device context, iohgatp", Iohgatp),
        ("device context, ta", DeviceTa),
        ("device context, fsc", Pdtp if paged else Iosatp),
    )
    if size == BASE_DC:
        return base
    return (
        *base,
        ("device context, msiptp", Msiptp),
        ("device context, msi_addr_mask", MsiPages),
        ("device context, msi_addr_pattern", MsiPages),
        ("device context, reserved", Raw),
    )


def _directory(
    kind: str, table: int, levels: int, number: int, places: tuple[int, int, int, int], device: Device | None
) -> Script:
    """The non-leaf entries of a directory; the address of its leaf table. A process directory may be guest-physical."""
    for level in range(levels - 1, 0, -1):
        at = yield from _shown(device, table + 8 * directory_index(level, number, places))
        if at is None:
            return None
        (raw,) = yield from structure(at, (f"{kind} directory entry of level {level}", DirectoryEntry))
        entry = DirectoryEntry(raw)
        if not entry.V:
            return None
        table = entry.PPN << 12
    return table


def _shown(device: Device | None, gpa: int) -> Script:
    """Where something of a process directory lies."""
    if device is None or device.second is None:
        return gpa
    return (yield from one(device.second, gpa, _NAMES[1]))


def _process(
    walker: Walker, device: Device, pasid: int, request: Request
) -> Generator[Known | Expect, int, Space | None]:
    levels = PDT_LEVELS[device.pdtp.MODE]
    table = yield from _directory("process", device.pdtp.PPN << 12, levels, pasid, PDI, device)
    if table is None:
        return None
    at = yield from _shown(device, table + PC * directory_index(0, pasid, PDI))
    if at is None:
        return None
    yield from structure(at, ("process context, ta", ProcessTa), ("process context, fsc", Iosatp))
    return walker.process(device, pasid, request)


def _stages(device: Device, space: Space, request: Request) -> Script:
    """Both stages; a guest page that is an interrupt file has an entry in the MSI page table instead of the second."""
    iova, second = request.iova, device.second
    if space.first is not None:
        iova &= (1 << space.first.table.input_bits) - 1
    if second is None:
        return iova if space.first is None else (yield from one(space.first, iova, _NAMES[0]))
    gpa: int | None = iova
    if space.first is not None:
        gpa = yield from intermediate(space.first, second, iova, _NAMES)
    if gpa is None:
        return None
    if device.msi is None or not device.msi.covers(gpa):
        return (yield from one(second, gpa, _NAMES[1]))
    at = device.msi.table | device.msi.file(gpa) << 4
    (raw, _) = yield from structure(at, ("MSI page table entry", MsiPte), ("MSI page table entry, word 1", Raw))
    return MsiPte(raw).PPN << 12 | gpa & 0xFFF
