"""A virtual VT-d: the remapping unit that a guest sees, over any iommufd.

Its registers, queues and structures are those of a unit: the model's own, in the guest's RAM. What differs is who
caches: a device that is passed to the guest does its DMA through the host's IOMMU, so what the guest tells the unit to
forget is told to the host. A context or PASID entry is read when an invalidation names it, and its table becomes a
nested HWPT; that is why the unit has caching mode. Devices that the VMM emulates use `translate`.

Faults of a passed device that are no page requests are not told by iommufd: its DMA is blocked, and no more.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

from softiommu.hardware.iommu import Request, TranslationFaultError
from softiommu.hardware.vtd.caches import Caches, Selection, Shapes
from softiommu.hardware.vtd.model import Unit
from softiommu.hardware.vtd.queue import Queue
from softiommu.hardware.vtd.registers import Gcmd
from softiommu.hardware.vtd.tables import PasidDirectoryEntry, Pgtt
from softiommu.hardware.vtd.walker import check_mode
from softiommu.memory.physical import PAGE, BadAddressError
from softiommu.vmm.vtd_device import Host, VtdPassed
from softiommu.vmm.vtd_forms import GuestRoute, Nesting

if TYPE_CHECKING:
    from softiommu.api import FaultQueue, Hwpt, VfioDevice
    from softiommu.hardware.vtd.commands import Wait0, Wait1
    from softiommu.hardware.vtd.faults import Interrupt
    from softiommu.hardware.vtd.presets import Preset
    from softiommu.hardware.vtd.walker import Context
    from softiommu.memory.physical import PhysicalMemory
    from softiommu.vmm.passed import Note

_LOG = logging.getLogger(__name__)
_BYPASS = GuestRoute()
_LEAF_LG2, _ENTRY = 6, 64


class VirtualVtd(Unit):
    """A unit with `offer`'s capabilities. `parent` is a nesting parent (made for PASIDs too, where there are any) that
    shows `memory` at the guest's addresses.

    The guest's accesses are `read` and `write`. `interrupt(address, data)` is told of the unit's interrupts, `note` of
    what the host refuses. With `faults`, page requests come to the guest when the VMM calls `service`.
    """

    def __init__(
        self,
        memory: PhysicalMemory,
        parent: Hwpt,
        offer: Preset,
        interrupt: Interrupt | None = None,
        *,
        faults: FaultQueue | None = None,
        nesting: Nesting = Nesting.HARDWARE,
        note: Note = _LOG.warning,
    ) -> None:
        self.passed: dict[int, VtdPassed] = {}
        self._ram = memory
        #: The queue runs: what is forgotten is gathered until a wait, or the end.
        self._gathers = False
        # Every PASID is attached by itself: a guest has no more than its registers say.
        bits = offer.ecap.PSS + 1 if offer.ecap.PASID else 0
        self._host = Host(parent, faults, nesting, bits, note)
        super().__init__(memory, *offer, interrupt=interrupt)
        self._queue = _Queue(self, memory)

    # Devices

    def plug(self, sid: int, device: VfioDevice) -> None:
        """Pass a device to the guest, which knows it by `sid`. OSError: the host does not attach it."""
        passed = VtdPassed(sid, device, self._host)
        self.passed[sid] = passed
        self.connect(sid, passed)
        self._read_all(passed)

    def unplug(self, sid: int) -> None:
        """Take a device away: its DMA is blocked."""
        self.passed.pop(sid).close()
        del self.pages.endpoints[sid]

    def close(self) -> None:
        """Take all devices away. The parent, and the queue of faults, are the VMM's own."""
        for sid in list(self.passed):
            self.unplug(sid)

    def service(self) -> None:
        """Bring the page requests that wait to the guest. To be called when the queue of faults is ready to be read."""
        faults = self._host.faults
        by_id = {passed.id: passed for passed in self.passed.values()}
        while faults is not None and faults.ready:
            for fault in faults.read():
                if fault.device_id in by_id:
                    self.page_request(by_id[fault.device_id].request(fault))
                elif fault.last:
                    faults.respond(fault.cookie, False)

    # What the guest's entries say

    def on_write_GCMD(self, old: Gcmd, new: Gcmd) -> None:
        """Translation is turned on or off, or there is another root table: everything is read again."""
        before = (self._translates, self._rtaddr)
        super().on_write_GCMD(old, new)
        if new.SRTP or before != (self._translates, self._rtaddr):
            for passed in self.passed.values():
                self._read_all(passed)

    def _read_all(self, passed: VtdPassed) -> None:
        """Read all entries of a device."""
        context = self._context_of(passed)
        pasids: list[int] = []
        if context is not None:
            pasids = [pasid for pasid in self._present(context, passed.pasid_bits) if pasid]
        passed.use_only({None, *pasids})
        self._read(passed, context, None)
        for pasid in pasids:
            self._read(passed, context, pasid)

    def _context_of(self, passed: VtdPassed) -> Context | None:
        """The context entry; None: there is none, or none is asked for."""
        if not self._translates or not self._scalable:
            return None
        try:
            return self._walker.context(self._rtaddr, Request(passed.sid, 0, 0))
        except TranslationFaultError:
            return None

    def _present(self, context: Context, pasid_bits: int) -> Iterator[int]:
        """The PASIDs whose entries may be present, of those that the device has."""
        bits = min(context.pasid_bits, pasid_bits) if context.pasids else 0
        for number in range(1 << max(bits - _LEAF_LG2, 0) if bits else 0):
            try:
                entry = PasidDirectoryEntry(self._ram.read_u64(context.directory + 8 * number))
                leaf = self._ram.read(entry.SMPTBLPTR << 12, PAGE) if entry.P else b""
            except BadAddressError:
                continue
            for slot in range(len(leaf) // _ENTRY):
                pasid = number << _LEAF_LG2 | slot
                if leaf[slot * _ENTRY] & 1 and not pasid >> bits:
                    yield pasid

    def _read(self, passed: VtdPassed, context: Context | None, pasid: int | None) -> None:
        """Read the entry of a route, and attach what it says. What a request would be blocked for is blocked."""
        request = Request(passed.sid, 0, 0, pasid)
        route: GuestRoute | None = None
        if not self._translates:
            route = _BYPASS if pasid is None else None
        else:
            try:
                route = self._guest_route(request, context)
            except TranslationFaultError:
                route = None
        passed.use(pasid, route)

    def _guest_route(self, request: Request, context: Context | None) -> GuestRoute | None:
        if not self._scalable:
            check_mode(self._rtaddr, request)
            return GuestRoute.of(self._walker.legacy(self._rtaddr, request), False)
        if context is None:
            return None
        found = self._walker.route(context, self._walker.pasid_of(context, request), request)
        return GuestRoute.of(found, context.page_requests)

    # What the guest invalidates

    def new_caches(self, shapes: Shapes) -> Caches:
        """Caches for emulated devices, which tell of what is forgotten."""
        return _Caches(shapes, self)

    def gather(self, on: bool) -> None:
        """From now on what is forgotten is handed to the host in batches, or at once."""
        self._gathers = on
        if not on:
            self.flush()

    def flush(self) -> None:
        """Hand what was gathered to the host."""
        for passed in self.passed.values():
            passed.flush()

    def contexts_forgotten(self, selection: Selection) -> None:
        """Context entries are read again, and what hangs on them."""
        self.flush()
        for passed in self.passed.values():
            if selection.sid is None or not (selection.sid ^ passed.sid) & selection.sid_mask:
                self._read_all(passed)

    def pasids_forgotten(self, selection: Selection) -> None:
        """PASID entries are read again: one, or all."""
        self.flush()
        for passed in self.passed.values():
            if selection.pasid is None:
                self._read_all(passed)
            elif self._scalable:
                pasid = selection.pasid or None
                if pasid is None or not pasid >> passed.pasid_bits:
                    self._read(passed, self._context_of(passed), pasid)

    def translations_forgotten(self, selection: Selection) -> None:
        """A domain's translations. Pages of a domain are addresses of second stages."""
        for passed in self.passed.values():
            stage = Pgtt.SECOND if selection.window is not None else None
            chosen = passed.chosen(selection.did, None, stage)
            passed.forget(chosen, selection.window, selection.leaves_only)
        if not self._gathers:
            self.flush()

    def pasid_translations_forgotten(self, selection: Selection) -> None:
        """A PASID's translations by a first stage."""
        for passed in self.passed.values():
            chosen = passed.chosen(selection.did, selection.pasid, Pgtt.FIRST)
            passed.forget(chosen, selection.window, selection.leaves_only)
        if not self._gathers:
            self.flush()


class _Caches(Caches):
    """The unit's caches, with somebody who hears of each command."""

    def __init__(self, shapes: Shapes, unit: VirtualVtd) -> None:
        super().__init__(shapes)
        self._unit = unit

    def forget_contexts(self, selection: Selection) -> None:
        """A context-cache command."""
        super().forget_contexts(selection)
        self._unit.contexts_forgotten(selection)

    def forget_pasids(self, selection: Selection) -> None:
        """A PASID-cache command."""
        super().forget_pasids(selection)
        self._unit.pasids_forgotten(selection)

    def forget_translations(self, selection: Selection) -> None:
        """An IOTLB command."""
        super().forget_translations(selection)
        self._unit.translations_forgotten(selection)

    def forget_pasid_translations(self, selection: Selection) -> None:
        """A PASID-based IOTLB command."""
        super().forget_pasid_translations(selection)
        self._unit.pasid_translations_forgotten(selection)


class _Queue(Queue):
    """The unit's queue, whose waits see to it that the host has forgotten."""

    def __init__(self, unit: VirtualVtd, memory: PhysicalMemory) -> None:
        super().__init__(unit, memory)
        self._virtual = unit

    def _run(self) -> None:
        self._virtual.gather(True)
        try:
            super()._run()
        finally:
            self._virtual.gather(False)

    def _wait(self, command: Wait0, where: Wait1) -> None:
        self._virtual.flush()
        super()._wait(command, where)
