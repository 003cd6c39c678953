"""Process directories, as a driver of a RISC-V IOMMU writes them, and which domains may share one."""

from __future__ import annotations

from collections.abc import Mapping
from errno import EINVAL
from typing import TYPE_CHECKING

from softiommu.drivers.hidden import Directory, Pages
from softiommu.drivers.riscv.nested import RiscvNested
from softiommu.errors import UapiError
from softiommu.hardware.riscv.tables import PC, PDI, PDT_LEVELS, DirectoryEntry, PdtMode, Pdtp, directory_index
from softiommu.memory.physical import PAGE, PhysicalMemory

if TYPE_CHECKING:
    from softiommu.drivers.riscv.domain import RiscvDomain

#: What a stream, or a process of it, is routed through, by process id; None: of requests without one.
Domains = Mapping[int | None, "RiscvDomain | RiscvNested"]


class ProcessDirectory:
    """A process directory. `parent`: the second stage under which it lies, for then all its addresses are
    guest-physical."""

    def __init__(self, memory: PhysicalMemory, mode: PdtMode, parent: RiscvDomain | None = None) -> None:
        self._mode = mode
        pages = Pages(memory, parent)
        self._tree = Directory(memory, pages, "a process directory", _entry, _linked)

    @property
    def pdtp(self) -> Pdtp:
        """What tells the hardware where it is."""
        return Pdtp.of(MODE=self._mode, PPN=self._tree.root // PAGE)

    def context(self, pid: int) -> int:
        """Where in memory a process context is; tables are made on the way. ENOMEM."""
        levels = reversed(range(PDT_LEVELS[self._mode]))
        return self._tree.place(tuple(directory_index(level, pid, PDI) for level in levels), PC)

    def free(self) -> None:
        """Nothing leads to it any more."""
        self._tree.free()


def _entry(address: int) -> int:
    return DirectoryEntry.of(V=1, PPN=address // PAGE)


def _linked(entry: int) -> int | None:
    found = DirectoryEntry(entry)
    return found.PPN * PAGE if found.V else None


def guests_of(domains: Domains) -> list[RiscvNested]:
    """The guests' first stages that processes have."""
    return [domain for pid, domain in domains.items() if pid is not None and isinstance(domain, RiscvNested)]


def check_together(domains: Domains) -> None:
    """Whether one device context can say all of this. EINVAL."""
    whole, guests = domains.get(None), guests_of(domains)
    if not guests:
        if whole is not None and not whole.first and len(domains) > 1:
            raise UapiError(EINVAL, "processes beside a second stage are guests', nested on it")
        return
    slice = guests[0].slice
    if isinstance(whole, RiscvNested):
        guests.append(whole)
    elif whole is not None and whole is not slice.parent:
        raise UapiError(EINVAL, "requests without a PASID go through the PASIDs' parent, or a first stage on it")
    count = len(domains) - int(whole is slice.parent)
    wrong = (
        ("some of a device's PASIDs are nested, and some are not", len(guests) != count),
        ("a guest's own directory of processes is for a whole device", any(each.has_directory for each in guests)),
        ("all PASIDs of a device are of one vIOMMU (or one HWPT): it has one GSCID", _differ(guests, "slice")),
        ("SADE is one for all PASIDs of a device", _differ(guests, "sets_flags")),
        ("DTF would silence all PASIDs of the device", any(each.is_silent for each in guests)),
    )
    for why, found in wrong:
        if found:
            raise UapiError(EINVAL, why)


def _differ(guests: list[RiscvNested], attribute: str) -> bool:
    return len({getattr(each, attribute) for each in guests}) > 1
