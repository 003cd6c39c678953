"""Behind a virtual SMMUv3: any IOMMU of a host that nests in software.

Each context descriptor of the guest becomes a nested HWPT, for the RID or a PASID, whose shadow the host keeps. A guest
of an SMMUv3 tells nobody of new mappings; so the host takes only devices that ask again for what was not there (page
requests), and reads the guest's table then. What is not there either is an event for the guest.

Only the lower half of the addresses (TTB0) is translated.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from softiommu.abi.generic_invalidation import GENERIC, InvalidateV1, Scope, Target
from softiommu.abi.iommufd import HwptAllocFlags, PgfaultPerm
from softiommu.abi.software_nesting import BOUND, HwptBound, TableFormat
from softiommu.hardware.iommu import Request
from softiommu.hardware.smmuv3.commands import LAYOUTS, TLBI_TG, Address1, Op
from softiommu.hardware.smmuv3.events import Class, Event, Event0, Event1
from softiommu.hardware.smmuv3.faults import SmmuFaultError
from softiommu.hardware.smmuv3.registers import CommandError
from softiommu.hardware.smmuv3.tables import Config
from softiommu.vmm.passed import PassedDevice
from softiommu.vmm.smmuv3 import Backing, Ste

if TYPE_CHECKING:
    from softiommu.api import Fault, FaultQueue, Hwpt, VfioDevice
    from softiommu.hardware.smmuv3.configuration import Configuration
    from softiommu.vmm.passed import Note

_LOG = logging.getLogger(__name__)
_FORMATS = {12: TableFormat.ARM64_4K, 14: TableFormat.ARM64_16K, 16: TableFormat.ARM64_64K}
_LAST = (1 << 64) - 1
_PAGE_LG2 = 12
_CONTEXT_COMMANDS = frozenset({Op.CFGI_CD, Op.CFGI_CD_ALL})


class Table(NamedTuple):
    """What a context says of a stream or a substream. `granule_lg2` 0: its addresses are physical ones."""

    asid: int = 0
    root: int = 0
    width: int = 0
    granule_lg2: int = 0


class _Device(NamedTuple):
    """A device, and where its contexts are read."""

    held: PassedDevice[Table]
    contexts: Configuration
    pasid_bits: int


class InSoftware:
    """The devices of one guest. `parent` shows its RAM at its addresses; `faults` is ready when there are events."""

    def __init__(self, parent: Hwpt, faults: FaultQueue, note: Note = _LOG.warning) -> None:
        self._parent, self._faults, self._note = parent, faults, note
        self.passed: dict[int, _Device] = {}
        self._stes: dict[int, Ste] = {}

    def plug(self, sid: int, device: VfioDevice, contexts: Configuration) -> None:
        """A device comes."""
        self.passed[sid] = _Device(PassedDevice(sid, device, self._note), contexts, device.hw_info().pasid_bits)

    def unplug(self, sid: int) -> None:
        """A device goes."""
        self.passed.pop(sid).held.close()
        self._stes.pop(sid, None)

    def use(self, sid: int, ste: Ste) -> None:
        """A device's entry is this now, or is still: all its contexts are read."""
        device = self.passed[sid]
        device.contexts.forget_contexts(sid, sid, None, False)
        self._stes[sid] = ste
        self._read_all(sid)

    # Contexts

    def _read_all(self, sid: int) -> None:
        device, stream = self.passed[sid], self._stes[sid].stream
        bits = min(stream.cdmax, device.pasid_bits) if stream is not None else 0
        for pasid in [pasid for pasid in device.held.held if pasid is not None and pasid >> bits]:
            device.held.detach(pasid)
        for pasid in (None, *range(1, 1 << bits)):
            self._read(sid, pasid)

    def _read(self, sid: int, pasid: int | None) -> None:
        device, table = self.passed[sid], self._table(sid, pasid)
        if table is None:
            device.held.detach(pasid)
        else:
            device.held.attach(pasid, table, partial(self._make, device, table))

    def _table(self, sid: int, pasid: int | None) -> Table | None:
        """What a transaction is translated by; None: it is blocked."""
        ste = self._stes[sid]
        if ste.config == Config.BYPASS:
            return Table() if pasid is None else None
        if ste.stream is None:
            return None
        try:
            context = self.passed[sid].contexts.context(ste.stream, Request(sid, 0, 0, pasid))
        except SmmuFaultError:
            return None
        if context is None:
            return Table()
        half = context.halves[0]
        if half is None:
            return None
        table, root = half.stage
        return Table(context.tags[0][2], root, table.input_bits, table.granule_lg2)

    def _make(self, device: _Device, table: Table) -> tuple[Hwpt, bool]:
        if not table.granule_lg2:
            return self._parent, False
        flags = int(HwptAllocFlags.ALLOC_PASID) if device.pasid_bits else 0
        data = BOUND, HwptBound(0, table.root, table.width, int(_FORMATS[table.granule_lg2]))
        return device.held.device.hwpt(self._parent, flags, data, self._faults), True

    # Commands

    def forward(self, commands: list[tuple[int, int]]) -> tuple[int, CommandError]:
        """One after the other. Device TLBs, of which the guest does not know, are the host's business."""
        for number, words in enumerate(commands):
            op = Op(words[0] & 0xFF)
            low, high = LAYOUTS[op].low(words[0]), LAYOUTS[op].high(words[1])
            if op in _CONTEXT_COMMANDS:
                self._contexts_changed(op, low)
            elif not self._forget(op, low, high):
                return number, CommandError.ILL
        return len(commands), CommandError.NONE

    def _contexts_changed(self, op: Op, low: Any) -> None:
        ssid = low.SSID if op is Op.CFGI_CD else None
        self.passed[low.SID].contexts.forget_contexts(low.SID, low.SID, ssid, False)
        if ssid is None:
            self._read_all(low.SID)
        else:
            bits = self.passed[low.SID].pasid_bits
            for pasid in (None,) if ssid == 0 else (ssid,) if not ssid >> bits else ():
                self._read(low.SID, pasid)

    def _forget(self, op: Op, low: Any, high: Any) -> bool:
        """A command for translations: a range or all, of one address space or all. False: it is illegal.

        Those by address reach all address spaces, since pages may be global.
        """
        entry = InvalidateV1(scope=Scope.DOMAIN, targets=int(Target.LEAF | Target.TABLES))
        if isinstance(high, Address1):
            window = _window(low, high)
            if window is None:
                return False
            entry.scope, entry.granule_lg2 = Scope.RANGE_ALL_PASIDS, _PAGE_LG2
            entry.addr, entry.count = window[0], (window[1] - window[0] + 1) >> _PAGE_LG2
        asid = low.ASID if op is Op.TLBI_NH_ASID else None
        for device in self.passed.values():
            for pasid, held in list(device.held.held.items()):
                if held.own and asid in (None, held.route.asid):
                    self._invalidate(device, pasid, entry)
        return True

    def _invalidate(self, device: _Device, pasid: int | None, entry: InvalidateV1) -> None:
        held = device.held.held[pasid]
        try:
            held.hwpt.invalidate(GENERIC, [entry])
        except OSError as error:
            self._note(f"stream {device.held.sid:#x}: the host does not invalidate: {error}")
            device.held.renew(pasid, partial(self._make, device, held.route))

    # Events

    def events(self) -> Iterator[Sequence[int] | None]:
        """What devices asked for and the guest has not mapped: they are refused, and the guest is told."""
        by_id = {device.held.device.id: sid for sid, device in self.passed.items()}
        while self._faults.ready:
            for fault in self._faults.read():
                if fault.last:
                    self._refuse(fault)
                if fault.device_id in by_id:
                    yield _record(by_id[fault.device_id], fault)

    def _refuse(self, fault: Fault) -> None:
        try:
            self._faults.respond(fault.cookie, False)
        except OSError as error:  # the route has changed meanwhile: the host has answered
            self._note(f"the answer to a page request comes late: {error}")

    def close(self) -> None:
        """Nothing is left; the queue of faults is the VMM's own."""


_: type[Backing] = InSoftware


def _window(low: Any, high: Address1) -> tuple[int, int] | None:
    """The addresses of an invalidation (4.4.1). None: it is illegal."""
    first, size = high.ADDR << _PAGE_LG2, 1 << _PAGE_LG2
    if high.TG:
        size = (low.NUM + 1) << low.SCALE + TLBI_TG[high.TG]
    elif low.NUM or low.SCALE or high.TTL:
        return None
    return first, min(first + size - 1, _LAST)


def _record(sid: int, fault: Fault) -> tuple[int, int, int, int]:
    low = Event0.of(TYPE=Event.F_TRANSLATION, SID=sid)
    if fault.pasid is not None:
        low = low.replace(SSV=1, SSID=fault.pasid)
    reads = not fault.perm & PgfaultPerm.WRITE
    how = Event1.of(
        RNW=int(reads),
        PNU=int(bool(fault.perm & PgfaultPerm.PRIV)),
        IND=int(bool(fault.perm & PgfaultPerm.EXEC)),
        CLASS=Class.IN,
    )
    return int(low), int(how), fault.addr, 0
