"""GCR3 tables, as a driver of the AMD IOMMU writes them, and what the PASIDs of one device may be routed through."""

from __future__ import annotations

from collections.abc import Mapping
from errno import EINVAL
from typing import TYPE_CHECKING

from softiommu.drivers.amd.process import AmdProcess
from softiommu.drivers.hidden import Directory, Pages
from softiommu.errors import UapiError
from softiommu.hardware.amd.tables import Gcr3Entry
from softiommu.memory.physical import PAGE

if TYPE_CHECKING:
    from softiommu.drivers.amd.domain import AmdDomain
    from softiommu.drivers.amd.driver import AmdDriver
    from softiommu.drivers.amd.nested import AmdNested

_INDEX_BITS = 9
_ENTRY_BYTES = 8

#: What a device (None), or a PASID of it, is routed through.
Domains = Mapping[int | None, "AmdDomain | AmdNested | AmdProcess"]


class Gcr3Table:
    """A device's GCR3 table, of GLX + 1 levels, and the domain id of what it translates. `parent`: the host table under
    which it lies, for then all addresses are guest-physical (Control.GCR3TRPMode). ENOMEM; EINVAL: such a parent has
    no place for it."""

    def __init__(self, owner: AmdDriver, glx: int, parent: AmdDomain | None = None) -> None:
        self._owner, self._glx = owner, glx
        self.did = owner.take_did()
        try:
            self._tree = Directory(owner.memory, Pages(owner.memory, parent), "a GCR3 table", _entry, _linked)
        except UapiError:
            owner.give_did(self.did)
            raise

    @property
    def root(self) -> int:
        """Its address, as the hardware takes it."""
        return self._tree.root

    def slot(self, pasid: int) -> int:
        """Where in memory a PASID's entry is; tables are made on the way. ENOMEM."""
        levels = reversed(range(self._glx + 1))
        indices = tuple(pasid >> _INDEX_BITS * level & (1 << _INDEX_BITS) - 1 for level in levels)
        return self._tree.place(indices, _ENTRY_BYTES)

    def free(self) -> None:
        """Nothing leads to it any more, and nothing of it is cached."""
        self._tree.free()
        self._owner.give_did(self.did)


def _entry(address: int) -> int:
    return Gcr3Entry.of(V=1, ADDR=address // PAGE)


def _linked(entry: int) -> int | None:
    found = Gcr3Entry(entry)
    return found.ADDR * PAGE if found.V else None


def processes_of(domains: Domains) -> list[AmdProcess]:
    """The guests' tables among them."""
    return [domain for domain in domains.values() if isinstance(domain, AmdProcess)]


def check_together(domains: Domains) -> None:
    """Whether one device table entry can say all of this. EINVAL."""
    base, processes = domains.get(None), processes_of(domains)
    pasids = [domain for pasid, domain in domains.items() if pasid is not None]
    if not processes:
        wrong: tuple[tuple[str, bool], ...] = (
            ("a PASID needs a domain with guest tables", any(not domain.guest for domain in pasids)),
            ("a device on host tables has no PASIDs of its own", bool(pasids and base is not None and not base.guest)),
        )
    else:
        parent = processes[0].parent
        others = [domain for domain in domains.values() if not isinstance(domain, AmdProcess)]
        wrong = (
            ("a device has one host table under its PASIDs", any(each.parent is not parent for each in processes)),
            ("some of a device's PASIDs are nested, and some are not", others not in ([], [base])),
            (
                "requests without a PASID go through the PASIDs' parent, or a guest's table on it",
                base is not None and base not in (parent, *processes),
            ),
            ("all guest tables of a device have as many levels", len({each.levels for each in processes}) > 1),
        )
    for why, found in wrong:
        if found:
            raise UapiError(EINVAL, why)
