"""The generic typed invalidation as commands of SMMUv3, for what a guest has cached over a stage 2 of ours.

The guest's translations are tagged by its ASIDs. Which PASID has which ASID stands in the guest's context descriptors,
and may have changed: without an ASID in the request, every one of the guest is meant.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from softiommu.abi.generic_invalidation import Hint, Outcome, Scope
from softiommu.drivers.smmuv3.queue import Command, atc_inv, every_atc
from softiommu.hardware.smmuv3.commands import Address1, CfgiCd0, Leaf1, Op, Stream0, Va0, Vaa0, Vmid0, VmidAsid0

if TYPE_CHECKING:
    from softiommu.drivers.generic_invalidation import Invalidation
    from softiommu.drivers.smmuv3.driver import SmmuDriver

#: More commands than this cost more than forgetting the address space.
_MOST_COMMANDS = 64
_PAGE_LG2 = 12
_LAST = (1 << 64) - 1


class Gathered:
    """What the entries of one call ask for, of streams with one VMID: all translations go in one submission, then all
    that device TLBs have."""

    def __init__(self, driver: SmmuDriver, vmid: int) -> None:
        self._driver, self._vmid = driver, vmid
        self._asid_bits = 16 if driver.idr0.ASID16 else 8
        self._commands: list[Command] = []
        #: By the number of an entry.
        self._devices: dict[int, list[Command]] = {}
        self._taken = 0

    def take(self, sids: Sequence[int], asked: Invalidation) -> None:
        """The next entry: forget what is asked for of these streams."""
        if asked.configuration:
            self._commands += [_context(sid, asked) for sid in sids]
        if asked.translations:
            self._commands += _translations(self._vmid, self._asid_bits, asked)
        if asked.device_tlbs:
            cached = [sid for sid in sids if self._driver.routes.uses_ats(sid)]
            self._devices[self._taken] = [command for sid in cached for command in _device(sid, asked)]
        self._taken += 1

    def complete(self) -> dict[int, Outcome]:
        """Carry it out; the entries for which a device TLB did not answer, by their numbers."""
        queue = self._driver.queue
        if self._commands:
            queue.submit(*self._commands)
        # A device TLB is emptied after the IOTLB, from which it would be filled again.
        together = [command for commands in self._devices.values() for command in commands]
        if not together or self._answered(together):
            return {}
        # A SYNC tells that a device did not answer, and not to which command.
        return {
            number: Outcome.DEVICE_TIMEOUT
            for number, commands in self._devices.items()
            if len(self._devices) == 1 or not self._answered(commands)
        }

    def _answered(self, commands: Sequence[Command]) -> bool:
        timeouts = self._driver.queue.timeouts
        self._driver.queue.submit(*commands)
        return self._driver.queue.timeouts == timeouts


def _context(sid: int, asked: Invalidation) -> Command:
    """The context descriptors, and where they are found."""
    if asked.scope is Scope.DOMAIN:
        return Stream0.of(OPCODE=Op.CFGI_CD_ALL, SID=sid), 0
    return CfgiCd0.of(OPCODE=Op.CFGI_CD, SID=sid, SSID=asked.pasid or 0), Leaf1.of(LEAF=0)


def _translations(vmid: int, asid_bits: int, asked: Invalidation) -> list[Command]:
    asid, window = asked.arch_id, asked.window
    if asid is not None and asid >> asid_bits:
        return []  # no translation has such a tag
    if window is not None and window.last - window.first < _MOST_COMMANDS << _PAGE_LG2:
        pages = range(window.first >> _PAGE_LG2, (window.last >> _PAGE_LG2) + 1)
        low: Va0 | Vaa0 = Vaa0.of(OPCODE=Op.TLBI_NH_VAA, VMID=vmid)
        if asid is not None:
            low = Va0.of(OPCODE=Op.TLBI_NH_VA, VMID=vmid, ASID=asid)
        return [(low, Address1.of(LEAF=int(asked.leaves_only), ADDR=page)) for page in pages]
    if asid is not None and not asked.hints & Hint.GLOBAL:
        return [(VmidAsid0.of(OPCODE=Op.TLBI_NH_ASID, VMID=vmid, ASID=asid), 0)]
    return [(Vmid0.of(OPCODE=Op.TLBI_NH_ALL, VMID=vmid), 0)]


def _device(sid: int, asked: Invalidation) -> Iterator[Command]:
    """What a device TLB forgets: of one PASID, of requests without one, or of all."""
    first, last = asked.window or (0, _LAST)
    if asked.pasid is not None or asked.scope in (Scope.NO_PASID, Scope.RANGE_NO_PASID):
        yield atc_inv(sid, asked.pasid, first, last)
    else:
        yield from every_atc(sid, first, last)
